"""[evidence] The distillation experiment: students of one size, trained by every method."""
