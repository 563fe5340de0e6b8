"""[speed] The choice of the fastest dispatcher for given sizes, dtype and device."""

from typing import Literal

import torch
from torch import Tensor

from minimoe.moe.dispatch.grouped import unsupported_reason


def fastest(x_TD: Tensor, top_k: int, expert_dim: int) -> Literal["grouped", "loop"]:
    """The rule derived from ``bench.dispatch_crossover`` and its record (docs/results/crossover-cpu.json).

    On a CPU the loop wins with few tokens and wide experts, where reading weights takes the time; with one
    thread in float32; and where the (R, D) rows that ``grouped`` makes exceed 32 MB, the limit up to which
    glibc reuses freed memory. Otherwise the two are so close that a rough rule is enough (a test compares it
    with the record).
    """
    # Tracing does not support get_num_threads.
    if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():
        n_tokens, dim = x_TD.shape
        full = x_TD.dtype == torch.float32
        few = n_tokens == 1 or (full and n_tokens <= 16 and dim >= 256)
        large = n_tokens * top_k * dim * x_TD.itemsize > 1 << 25
        if few or large or (full and torch.get_num_threads() == 1):
            return "loop"
    return "loop" if unsupported_reason(x_TD, dim=x_TD.shape[1], expert_dim=expert_dim) else "grouped"


def check_grouped(x_TD: Tensor, expert_dim: int) -> None:
    """Raise ValueError where the grouped dispatcher cannot run."""
    if reason := unsupported_reason(x_TD, dim=x_TD.shape[1], expert_dim=expert_dim):
        raise ValueError(f"dispatch 'grouped' cannot run here: {reason}; use 'loop' or 'auto'")
