"""Being one of the processes that ``torchrun`` started: joining them, and what happens when one is lost.

A process that dies takes the others with it, within the timeout; ``torchrun`` starts all anew if it was told
to (``--max-restarts``), and they go on from the last checkpoint.
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


def is_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def is_restart() -> bool:
    """Whether it did so again after a failure."""
    return is_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_device(device: str) -> str:
    """Of several GPUs this process's own; ``torchrun`` has numbered the processes of this machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if is_torchrun() and device == "cuda" else device


@contextmanager
def init_distributed(
    expert_parallel: int | None, dispatch_dtype: DispatchDtype, timeout: float, device: str
) -> Iterator[SingleProcess]:
    """The processes of this run: those that ``torchrun`` started, or this one alone.

    Args:
        expert_parallel: how many hold a layer's experts between them; None for 1: the experts are copied.
        timeout: seconds to wait for a process that does not answer.

    Raises:
        ValueError: processes were asked for and not started.
        TrainingError: another process is gone, or did not answer in time.
    """
    if not timeout > 0:
        raise ValueError(f"timeout ({timeout}) must be above 0 seconds")
    if not is_torchrun() and expert_parallel is None:
        yield SingleProcess()
        return
    try:
        if is_torchrun():
            _join(device, timedelta(seconds=timeout))
            require_same_settings(
                {"expert_parallel": expert_parallel, "dispatch_dtype": dispatch_dtype}
            )  # groups could not be made else
        yield DataExpertParallel(
            1 if expert_parallel is None else expert_parallel, dispatch_dtype, timeout=timeout
        )
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise TrainingError(
            f"process {os.environ.get('RANK')} lost another, or waited {timeout:g} s for it in vain "
            f"({str(error).splitlines()[0]}); what was saved is whole: start all again with --resume"
        ) from error
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(device: str, timeout: timedelta) -> None:
    """As init_process_group does by itself, but after a restart without the addresses of those that are gone:
    torchrun keeps one store for all attempts."""
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _is_loss(error: RuntimeError) -> bool:
    """Whether the error is of the connection. Gloo has no class of its own for that, and many words."""
    signs = ("gloo", "nccl", "connection ", "timed out", "timeout", "broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)


def require_same_settings(settings: dict[str, Any]) -> None:
    """Refuse to start where a process has other settings than the first.

    Raises:
        ValueError: in every process, naming the setting and both values.
    """
    found: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, _flat(settings))
    first = found[0]
    for process, other in enumerate(found):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"process {process} was started with {key} = {other.get(key)}, process 0 with "
                    f"{first.get(key)}; start all with the same"
                )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dim": 64}} -> {"model.dim": 64}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
