"""What a model costs, computed from its configuration alone: parameters, FLOPs, bytes, GPU-hours, dollars.

``from_config`` makes an ``Architecture`` of a ``ModelConfig``; ``PUBLISHED`` holds those of published models.
"""

from minimoe.cost.activations import Activations, activations
from minimoe.cost.architecture import Architecture, LatentAttention, from_config
from minimoe.cost.communication import (
    AllToAllCost,
    Traffic,
    all_to_all,
    nvlink_forwards,
    processes_visited,
    traffic,
)
from minimoe.cost.memory import (
    STORAGE_PRECISIONS,
    MemoryFootprint,
    StoragePrecision,
    kv_cache_numbers,
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
from minimoe.cost.roofline import Part, expected_active_experts, roofline
from minimoe.cost.training_run import (
    ACCELERATORS,
    Accelerator,
    PublishedRun,
    TrainingCost,
    mfu,
    training_cost,
)

__all__ = [
    "ACCELERATORS",
    "PUBLISHED",
    "PUBLISHED_RUNS",
    "STORAGE_PRECISIONS",
    "Accelerator",
    "Activations",
    "AllToAllCost",
    "Architecture",
    "LatentAttention",
    "MemoryFootprint",
    "Parameters",
    "Part",
    "PublishedRun",
    "StoragePrecision",
    "Traffic",
    "TrainingCost",
    "activations",
    "all_to_all",
    "count",
    "dense_width",
    "expected_active_experts",
    "flops_per_token",
    "forward_flops",
    "from_config",
    "kv_cache_numbers",
    "memory_footprint",
    "mfu",
    "nvlink_forwards",
    "parameters",
    "processes_visited",
    "roofline",
    "traffic",
    "training_cost",
    "training_flops",
]
