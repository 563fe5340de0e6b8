"""[evidence] Experiments on expert parallelism: bytes sent, speed of training steps, placement of experts."""
