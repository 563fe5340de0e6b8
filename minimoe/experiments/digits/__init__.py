"""[evidence] The digits experiment: distillation on handwritten digits."""
