"""What a model costs, from its configuration alone, never from a module: parameters, operations, bytes,
hours, dollars. ``of`` makes an ``Architecture`` of a ``ModelConfig``; ``PUBLISHED`` has those of others.
"""

from minimoe.cost.activations import STORED, Activations, Stored, activations
from minimoe.cost.architecture import Architecture, LatentAttention, from_config
from minimoe.cost.communication import (
    AllToAllCost,
    Traffic,
    all_to_all,
    passed_on,
    processes_visited,
    traffic,
)
from minimoe.cost.memory import (
    STORAGE_PRECISIONS,
    MemoryFootprint,
    StoragePrecision,
    cached_numbers,
    memory_footprint,
)
from minimoe.cost.parameters import (
    Parameters,
    count,
    dense_width,
    flops_per_token,
    forward_flops,
    parameters,
    training_flops,
)
from minimoe.cost.published import PUBLISHED, PUBLISHED_RUNS
from minimoe.cost.roofline import Part, roofline
from minimoe.cost.training_run import ACCELERATORS, Accelerator, Bill, PublishedRun, bill, utilisation

__all__ = [
    "ACCELERATORS",
    "PUBLISHED",
    "PUBLISHED_RUNS",
    "STORAGE_PRECISIONS",
    "STORED",
    "Accelerator",
    "Activations",
    "AllToAllCost",
    "Architecture",
    "Bill",
    "LatentAttention",
    "MemoryFootprint",
    "Parameters",
    "Part",
    "PublishedRun",
    "StoragePrecision",
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
    "from_config",
    "memory_footprint",
    "parameters",
    "passed_on",
    "processes_visited",
    "roofline",
    "traffic",
    "training_flops",
    "utilisation",
]
