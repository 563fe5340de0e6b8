"""[portability] Starting under ``torchrun``: joining the process group, and reporting a lost or stalled peer.

A process that dies takes the others down with it, within the timeout; ``torchrun --max-restarts`` starts all
of them again, and they resume from the last checkpoint.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.errors import TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.moe.expert_parallel.row_format import DispatchDtype
from minimoe.tools.settings import first_difference

# Gloo raises plain RuntimeErrors for a closed or stalled connection, also from inside autograd, so only the
# text tells them from others. Nearly all name Gloo's source file; two can arrive without it.
_GLOO_ERRORS = ("gloo/", "timed out waiting", "application timeout")


def is_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def is_restart() -> bool:
    """Whether ``torchrun`` started it again after a failure."""
    return is_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_device(device: str) -> str:
    """This process's own GPU, by the rank that ``torchrun`` gave it on this machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if is_torchrun() and device == "cuda" else device


@contextmanager
def init_distributed(
    expert_parallel: int | None, dispatch_dtype: DispatchDtype, timeout: float, device: str
) -> Iterator[SingleProcess]:
    """The strategy of this run: several processes under ``torchrun``, a single one otherwise.

    Args:
        expert_parallel: processes that share the experts of a layer; None for 1, experts replicated.
        timeout: seconds to wait for an unresponsive process.

    Raises:
        ValueError: expert_parallel was given and ``torchrun`` did not start this process.
        TrainingError: another process died, or did not respond in time.
    """
    if not timeout > 0:
        raise ValueError(f"timeout ({timeout}) must be above 0 seconds")
    if not is_torchrun() and expert_parallel is None:
        yield SingleProcess()
        return
    try:
        if is_torchrun():
            _join(device, timedelta(seconds=timeout))
            # Before any group is made: processes that disagree about groups would hang.
            require_same_settings({"expert_parallel": expert_parallel, "dispatch_dtype": dispatch_dtype})
        size = 1 if expert_parallel is None else expert_parallel
        yield DataExpertParallel(size, dispatch_dtype, timeout=timeout)
    except RuntimeError as error:
        if not _is_peer_failure(error):
            raise
        raise TrainingError(
            f"process {os.environ.get('RANK')} lost the connection to another process, or got no response "
            f"within {timeout:g} s ({str(error).splitlines()[0]}); saved checkpoints are intact: start all "
            "processes again with --resume"
        ) from error
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(device: str, timeout: timedelta) -> None:
    """What init_process_group does by itself, except that each restart gets its own prefix in the store:
    torchrun keeps one store for all attempts, with addresses of processes that are gone."""
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _is_peer_failure(error: RuntimeError) -> bool:
    """Whether the error comes from the connection to other processes (NCCL and the store have classes)."""
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _GLOO_ERRORS)


def require_same_settings(settings: dict[str, Any]) -> None:
    """Refuse to start where a process has other settings than rank 0.

    Raises:
        ValueError: in every process, naming the setting and both values.
    """
    all_settings: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(all_settings, settings)
    for rank, others in enumerate(all_settings):
        if difference := first_difference(all_settings[0], others, f"in process {rank}"):
            raise ValueError(f"process 0 was {difference}; start all processes with the same settings")
