"""Experiments on published models, counted from their configurations: training bill, memory, parameters."""
