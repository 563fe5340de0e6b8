"""Experiments on expert parallelism: bytes sent, speed of training steps, and placement of experts."""
