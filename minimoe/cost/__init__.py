"""What a model costs, from its configuration alone, never from a module: parameters, operations, bytes,
hours, dollars. ``of`` makes an ``Architecture`` of a ``ModelConfig``; ``PUBLISHED`` has those of others.
"""

from minimoe.cost.architecture import Architecture, LatentAttention, of
from minimoe.cost.bill import ACCELERATORS, Accelerator, Bill, bill, utilisation
from minimoe.cost.bytes import KEEPING, Bytes, Keeping, cached_numbers, kept
from minimoe.cost.counting import Parameters, count, forward_flops, training_flops
from minimoe.cost.ours import dense_width, flops_per_token, parameters
from minimoe.cost.published import PUBLISHED
from minimoe.cost.travel import Traffic, processes_visited, traffic

__all__ = [
    "ACCELERATORS",
    "KEEPING",
    "PUBLISHED",
    "Accelerator",
    "Architecture",
    "Bill",
    "Bytes",
    "Keeping",
    "LatentAttention",
    "Parameters",
    "Traffic",
    "bill",
    "cached_numbers",
    "count",
    "dense_width",
    "flops_per_token",
    "forward_flops",
    "kept",
    "of",
    "parameters",
    "processes_visited",
    "traffic",
    "training_flops",
    "utilisation",
]
