"""What a model costs, from its configuration alone, never from a module: parameters, operations, bytes,
hours, dollars. ``of`` makes an ``Architecture`` of a ``ModelConfig``; ``PUBLISHED`` has those of others.
"""

from minimoe.cost.activations import STORED, Activations, Stored, activations
from minimoe.cost.architecture import Architecture, LatentAttention, of
from minimoe.cost.bill import ACCELERATORS, Accelerator, Bill, PublishedRun, bill, utilisation
from minimoe.cost.bytes import KEEPING, Bytes, Keeping, cached_numbers, kept
from minimoe.cost.counting import Parameters, count, forward_flops, training_flops
from minimoe.cost.ours import dense_width, flops_per_token, parameters
from minimoe.cost.published import PUBLISHED, PUBLISHED_RUNS
from minimoe.cost.roofline import Part, roofline
from minimoe.cost.travel import AllToAll, Traffic, all_to_all, passed_on, processes_visited, traffic

__all__ = [
    "ACCELERATORS",
    "KEEPING",
    "PUBLISHED",
    "PUBLISHED_RUNS",
    "STORED",
    "Accelerator",
    "Activations",
    "AllToAll",
    "Architecture",
    "Bill",
    "Bytes",
    "Keeping",
    "LatentAttention",
    "Parameters",
    "Part",
    "PublishedRun",
    "Stored",
    "Traffic",
    "activations",
    "all_to_all",
    "bill",
    "cached_numbers",
    "count",
    "dense_width",
    "flops_per_token",
    "forward_flops",
    "kept",
    "of",
    "parameters",
    "passed_on",
    "processes_visited",
    "roofline",
    "traffic",
    "training_flops",
    "utilisation",
]
