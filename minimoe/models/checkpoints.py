"""Layers of published checkpoints, read from and written to safetensors.

    moe = presets.moe_from_config(json.loads(Path("DeepSeek-V3/config.json").read_text()))
    load_layer_(moe, "DeepSeek-V3", 3)  # only layer 3's tensors are read
    save_layer(moe, "layer-3.safetensors", 3, "deepseek-v3")

A published layer has one tensor a matrix and expert; newer ones, and transformers from version 5 on once
loaded, have the experts stacked (``fused``). Below ``model.layers.{i}.``:

    qwen3-moe, olmoe  mlp.gate.weight, mlp.experts.{e}.{gate,up,down}_proj.weight
    deepseek-v3       these, mlp.gate.e_score_correction_bias, mlp.shared_experts.{gate,up,down}_proj.weight
    mixtral           block_sparse_moe.gate.weight, block_sparse_moe.experts.{e}.{w1,w3,w2}.weight
    fused             mlp.experts.gate_up_proj (E, 2H, D), mlp.experts.down_proj (E, D, H), as in ``Experts``

When reading, the names tell which it is. DeepSeek-V3's own files are in FP8 with one float32 factor for
each 128 x 128 block of a weight, ``weight_scale_inv`` (a factor, whatever the name); reading multiplies it
in. A tensor of the layer that ``MoE`` has no place for is refused: left out, it would falsify the result.

Dimensions: D model width, H expert width, E experts.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minimoe.moe.layer import MoE
from minimoe.tools.safetensors_io import SCALE, TensorFiles, write_tensors

BIAS = "gate.e_score_correction_bias"

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

MIXTRAL = ("w1", "w3", "w2")  # the same three

FAMILIES = ("deepseek-v3", "mixtral", "qwen3-moe", "olmoe")


class _Piece(NamedTuple):
    """A published tensor, and the part of ours that it is."""

    name: str
    ours: str
    expert: int | None = None
    half: int | None = None  # of gate_up_proj

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """That part, as a view."""
        tensor = state[self.ours]
        if self.expert is not None:
            tensor = tensor[self.expert]
        return tensor if self.half is None else tensor.chunk(2)[self.half]


class _Layout(NamedTuple):
    """How a layer is written."""

    prefix: str  # of all its tensors
    projections: tuple[str, str, str] = PROJECTIONS
    fused: bool = False
    bias: bool = False
    shared: bool = False

    def pieces(self, n_experts: int) -> Iterator[_Piece]:
        yield _Piece(f"{self.prefix}gate.weight", "gate.weight")
        if self.bias:
            yield _Piece(self.prefix + BIAS, BIAS)
        for projection in PROJECTIONS if self.shared else ():
            ours = f"shared_experts.{projection}.weight"
            yield _Piece(self.prefix + ours, ours)
        if self.fused:
            for ours in ("experts.gate_up_proj", "experts.down_proj"):
                yield _Piece(self.prefix + ours, ours)
            return
        gate, up, down = self.projections
        for e in range(n_experts):
            expert = f"{self.prefix}experts.{e}"
            yield _Piece(f"{expert}.{gate}.weight", "experts.gate_up_proj", e, 0)
            yield _Piece(f"{expert}.{up}.weight", "experts.gate_up_proj", e, 1)
            yield _Piece(f"{expert}.{down}.weight", "experts.down_proj", e)


def _layout(checkpoint: TensorFiles, layer: int | str) -> _Layout:
    """How this layer is written here, judged by its names."""
    root = f"model.layers.{layer}" if isinstance(layer, int) else layer
    for block in ("mlp", "block_sparse_moe"):
        prefix = f"{root}.{block}."
        names = {name.removeprefix(prefix) for name in checkpoint.files if name.startswith(prefix)}
        if any(name.startswith("experts.") for name in names):
            return _Layout(
                prefix,
                MIXTRAL if any(name.endswith(".w1.weight") for name in names) else PROJECTIONS,
                fused="experts.gate_up_proj" in names,
                bias=BIAS in names,
                shared=any(name.startswith("shared_experts.") for name in names),
            )
    matches = (re.match(r"(.*layers\.(\d+))\.(mlp|block_sparse_moe)\.experts\.", n) for n in checkpoint.files)
    having = sorted({(int(match[2]), match[1]) for match in matches if match})
    known = f"{len(having)} have, {having[0][1]} to {having[-1][1]}" if having else "no layer has"
    raise ValueError(f"{root} of {checkpoint.path} has no experts that are known here; {known}")


def read_layer(
    path: str | Path, layer: int | str, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of one published layer under ``MoE``'s names, for ``load_state_dict``.

    Args:
        path: a safetensors file, or a folder with one, or with shards and their index.
        layer: its number, or the name before ``.mlp`` where that is not ``model.layers.{i}``.
        dtype: of all but the balance bias, which is float32, and zero in families that have none.

    Raises:
        ValueError: there is no such checkpoint or layer, tensors are missing, unknown, of a shape that
            does not fit the others, or damaged.
    """
    with TensorFiles(Path(path)) as checkpoint:
        layout = _layout(checkpoint, layer)
        state = {
            name: torch.empty(shape, dtype=torch.float32 if name == BIAS else dtype)
            for name, shape in _shapes(checkpoint, layout).items()
        }
        _fill_(state, checkpoint, layout)
    return state


def load_layer_(moe: MoE, path: str | Path, layer: int | str) -> None:
    """Read a published layer into ``moe``, in its dtype; ``path`` and ``layer`` as in ``read_layer``.

    ``moe`` has to route as the published layer does: ``presets.moe_from_config`` sees to that.

    Raises:
        ValueError: as in ``read_layer``, or the layer has other shapes. ``moe`` is then as it was.
    """
    state = moe.state_dict()
    if moe.gate.weight.is_meta:
        raise ValueError("the layer is on the meta device and holds nothing; moe.to_empty(device=...) first")
    with TensorFiles(Path(path)) as checkpoint:
        layout = _layout(checkpoint, layer)
        shapes = _shapes(checkpoint, layout)
        for name in sorted(state.keys() | shapes.keys()):
            wanted = tuple(state[name].shape) if name in state else "absent"
            found = shapes.get(name, "absent")
            if wanted != found:
                raise ValueError(
                    f"{name} is {found} in {layout.prefix[:-1]} of the checkpoint, {wanted} in the layer; "
                    "build the layer with presets.moe_from_config from the checkpoint's config.json"
                )
        _fill_(state, checkpoint, layout)


def save_layer(moe: MoE, path: str | Path, layer: int | str, family: str, *, fused: bool = False) -> None:
    """Write one layer under its published names, in its dtype, to a safetensors file: whole or not at all.

    Args:
        layer: as in ``read_layer``.
        family: one of ``FAMILIES``.
        fused: stack the experts, as transformers does from version 5 on; it reads both.

    Raises:
        ValueError: the family is unknown or has no place for the layer's balance bias or shared expert,
            or the file cannot be written.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    state = moe.state_dict()
    shared = moe.shared_experts is not None
    full = family == "deepseek-v3"
    if not full and (shared or state[BIAS].any()):
        what = "a shared expert" if shared else f"a balance bias ({BIAS}) that is not zero"
        raise ValueError(f"the layer has {what}, which {family} has no place for; write it as deepseek-v3")
    root = f"model.layers.{layer}" if isinstance(layer, int) else layer
    if family == "mixtral" and not fused:  # transformers renames the block where it stacks the experts
        layout = _Layout(f"{root}.block_sparse_moe.", MIXTRAL)
    else:
        layout = _Layout(f"{root}.mlp.", fused=fused, bias=full, shared=shared)
    pieces = layout.pieces(len(moe.gate.weight))
    write_tensors({piece.name: piece.of(state).contiguous() for piece in pieces}, Path(path))


def _shapes(checkpoint: TensorFiles, layout: _Layout) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer under our names, once all its tensors, and no others, are there."""
    names = {name for name in checkpoint.files if name.startswith(layout.prefix)}
    gate = f"{layout.prefix}gate.weight"
    n_experts, dim = checkpoint.shape(gate) if gate in names else (1, 0)
    pieces = list(layout.pieces(n_experts))
    missing = [piece.name for piece in pieces if piece.name not in names]
    if missing:
        raise ValueError(
            f"{checkpoint.path} lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, "
            f"of {len(pieces)} tensors of the layer; download all of its files"
        )
    known = {piece.name for piece in pieces}
    unknown = sorted(name for name in names - known if name.removesuffix(SCALE) not in known)
    if unknown:
        raise ValueError(
            f"{checkpoint.path} has {len(unknown)} tensors in this layer that MoE has no place for, "
            f"{unknown[0]} first; families known here are {', '.join(FAMILIES)}"
        )
    expert_dim = checkpoint.shape(pieces[-1].name)[-1]
    shapes: dict[str, tuple[int, ...]] = {
        "gate.weight": (n_experts, dim),
        BIAS: (n_experts,),
        "experts.gate_up_proj": (n_experts, 2 * expert_dim, dim),
        "experts.down_proj": (n_experts, dim, expert_dim),
    }
    if layout.shared:
        width = checkpoint.shape(f"{layout.prefix}shared_experts.down_proj.weight")[-1]
        wide = {"gate_proj": (width, dim), "up_proj": (width, dim), "down_proj": (dim, width)}
        shapes |= {f"shared_experts.{projection}.weight": shape for projection, shape in wide.items()}
    return shapes


@torch.no_grad()
def _fill_(state: dict[str, Tensor], checkpoint: TensorFiles, layout: _Layout) -> None:
    """Copy the layer into tensors of the shapes that ``_shapes`` gave."""
    pieces = list(layout.pieces(len(state["gate.weight"])))
    for piece in pieces:  # all of them first, so that nothing is copied of a layer that does not fit
        found, wanted = checkpoint.shape(piece.name), tuple(piece.of(state).shape)
        if found != wanted:
            raise ValueError(f"{piece.name} is {found}, by the layer's other tensors it should be {wanted}")
    for piece in pieces:
        piece.of(state).copy_(checkpoint.read(piece.name))
    if not layout.bias:
        state[BIAS].zero_()
