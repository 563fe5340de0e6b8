"""[evidence] Experiments: each technique measured, once, for commands, claims and documentation."""
