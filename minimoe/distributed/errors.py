"""One optimizer step and one evaluation. The loop around them is ``training``.

AdamW whose weight decay touches matrices only, a warm-up and then a cosine or a constant rate, clipping,
gradient accumulation. The balance bias moves once per optimizer step, by the counts of all micro-batches.

Dimensions: B batch, L sequence length, V vocabulary, E experts, M mixture layers.
"""


class TrainingError(ValueError):
    """Training cannot go on; the message says what to change."""


class PeerFailure(Exception):
    """Another process has failed, and tells why."""
