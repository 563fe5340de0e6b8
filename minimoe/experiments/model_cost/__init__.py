"""[evidence] Experiments on published models, counted from their configurations: cost, memory, parameters."""
