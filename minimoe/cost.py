"""What a configuration costs: parameters and floating-point operations, counted from the configuration
alone, never from a module.

A multiply and an add are two operations. Matrix products count; norms, activations, softmax and the
optimizer do not. Training is three times forward: one product for the output, one for the input's
gradient, one for the weight's.
"""

import math

from minimoe.model import ModelConfig


def parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Parameters of the model; with ``active``, those that work on one token: the K picked experts of
    each layer in place of all E, everything else in full (the embedding counts once, it is tied)."""
    d = config.dim
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    mixture = 3 * d * config.expert_dim * experts + d * config.n_experts
    dense = 3 * d * config.hidden_dim
    feed_forward = sum(mixture if config.is_mixture(layer) else dense for layer in range(config.n_layers))
    block = 4 * d * d + 2 * d  # attention, two norms
    return config.vocab_size * d + config.n_layers * block + feed_forward + d


def flops_per_token(config: ModelConfig, *, training: bool = True) -> float:
    """Operations a token, averaged over a full context.

    A token attends to the (context + 1) / 2 tokens up to itself on average: two products (scores,
    values) of that length and width D a layer.
    """
    norms = (2 * config.n_layers + 1) * config.dim
    weights = parameters(config, active=True) - norms
    attention = config.n_layers * 2 * config.dim * (config.context + 1) / 2
    forward = 2 * (weights + attention)
    return 3 * forward if training else forward


def dense_width(config: ModelConfig, *, active: bool) -> int:
    """The SwiGLU width that gives a dense model this mixture's active (or total) parameters.

    Rounded up to a multiple of 16, in the dense model's favour: matmuls like such widths.
    """
    experts = (config.top_k if active else config.n_experts) + config.n_shared
    width = experts * config.expert_dim + config.n_experts / 3  # the gate's E * D over 3 * D a column
    return 16 * math.ceil(width / 16)
