"""[evidence] Memory measured in bytes: a module's weights, and the activations that autograd saves."""

import weakref

import torch
from torch import Tensor, nn


class _Saved:
    """Holds a tensor that autograd saved; it lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_activation_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd saves between forward and backward of ``module(x)``. Each storage counts once; x,
    parameters and buffers do not count, nor does what a graph inside the forward pass saved and released."""
    excluded = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        y = module(x)  # keeps the graph alive until the bytes are counted
    storages = [saved.tensor.untyped_storage() for saved in alive]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del y
    return sum(size for pointer, size in sizes.items() if pointer not in excluded)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and persistent buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())
