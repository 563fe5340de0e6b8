"""Process groups that the tests of a module share; ``conftest`` closes them."""

from collections.abc import Callable
from typing import Any

from minimoe.distributed.spawn import ProcessPool

PRELOAD = ["torch._dynamo", "pytest", "minimoe.cli.main"]  # slow to import

_pools: dict[int, ProcessPool] = {}


def run(function: Callable[..., Any], size: int, *arguments: Any, timeout: float = 30) -> list[Any]:
    """``function(*arguments)`` in ``size`` processes of one gloo group; what each returns, by rank."""
    if size not in _pools or _pools[size].closed:
        _pools[size] = ProcessPool(size, 60, preload=PRELOAD)
    return _pools[size].run(function, *arguments, timeout=timeout)


def close() -> None:
    while _pools:
        _pools.popitem()[1].close()
