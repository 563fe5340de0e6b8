"""[portability] Layers of published checkpoints (Hugging Face names), read from and written to safetensors.

    moe = presets.moe_from_config(json.loads(Path("DeepSeek-V3/config.json").read_text()))
    load_layer_(moe, "DeepSeek-V3", 3)  # only layer 3's tensors are read
    save_layer(moe, "layer-3.safetensors", 3, "deepseek-v3")

A published layer has one tensor per matrix and expert; newer ones, and models loaded by transformers 5 and
later, have the experts stacked (``fused``). Under ``model.layers.{i}.``:

    qwen3-moe, olmoe  mlp.gate.weight, mlp.experts.{e}.{gate,up,down}_proj.weight
    deepseek-v3       these, mlp.gate.e_score_correction_bias, mlp.shared_experts.{gate,up,down}_proj.weight
    mixtral           block_sparse_moe.gate.weight, block_sparse_moe.experts.{e}.{w1,w3,w2}.weight
    fused             mlp.experts.gate_up_proj (E, 2H, D), mlp.experts.down_proj (E, D, H), as in ``Experts``

The layout is detected from the names. DeepSeek-V3's own files are in FP8 with one float32 scale per 128 x 128
block of a weight, ``weight_scale_inv`` (a factor, despite its name), which is applied when reading. A layer
with a tensor that ``MoE`` does not support is refused, because ignoring the tensor would give wrong results.

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

MIXTRAL_PROJECTIONS = ("w1", "w3", "w2")  # the same three

FAMILIES = ("deepseek-v3", "mixtral", "qwen3-moe", "olmoe")


class _TensorMapping(NamedTuple):
    """A published tensor, and the tensor of ``MoE`` that it is, or is a part of."""

    name: str
    ours: str
    expert: int | None = None
    half: int | None = None  # of gate_up_proj

    def select(self, state: Mapping[str, Tensor]) -> Tensor:
        """That tensor or part, as a view."""
        tensor = state[self.ours]
        if self.expert is not None:
            tensor = tensor[self.expert]
        return tensor if self.half is None else tensor.chunk(2)[self.half]


class _Layout(NamedTuple):
    """The names and the grouping of a layer's tensors in a checkpoint."""

    prefix: str  # of all names
    projections: tuple[str, str, str] = PROJECTIONS
    fused: bool = False
    bias: bool = False
    shared: bool = False

    def mappings(self, n_experts: int) -> Iterator[_TensorMapping]:
        yield _TensorMapping(f"{self.prefix}gate.weight", "gate.weight")
        if self.bias:
            yield _TensorMapping(self.prefix + BIAS, BIAS)
        for projection in PROJECTIONS if self.shared else ():
            ours = f"shared_experts.{projection}.weight"
            yield _TensorMapping(self.prefix + ours, ours)
        if self.fused:
            for ours in ("experts.gate_up_proj", "experts.down_proj"):
                yield _TensorMapping(self.prefix + ours, ours)
            return
        gate, up, down = self.projections
        for e in range(n_experts):
            expert = f"{self.prefix}experts.{e}"
            yield _TensorMapping(f"{expert}.{gate}.weight", "experts.gate_up_proj", e, 0)
            yield _TensorMapping(f"{expert}.{up}.weight", "experts.gate_up_proj", e, 1)
            yield _TensorMapping(f"{expert}.{down}.weight", "experts.down_proj", e)


def _detect_layout(checkpoint: TensorFiles, layer: int | str) -> _Layout:
    """The layout of this layer, detected from its names."""
    root = f"model.layers.{layer}" if isinstance(layer, int) else layer
    for block in ("mlp", "block_sparse_moe"):
        prefix = f"{root}.{block}."
        names = {name.removeprefix(prefix) for name in checkpoint.files if name.startswith(prefix)}
        if any(name.startswith("experts.") for name in names):
            return _Layout(
                prefix,
                MIXTRAL_PROJECTIONS if any(name.endswith(".w1.weight") for name in names) else PROJECTIONS,
                fused="experts.gate_up_proj" in names,
                bias=BIAS in names,
                shared=any(name.startswith("shared_experts.") for name in names),
            )
    matches = (re.match(r"(.*layers\.(\d+))\.(mlp|block_sparse_moe)\.experts\.", n) for n in checkpoint.files)
    others = sorted({(int(match[2]), match[1]) for match in matches if match})
    known = f"{len(others)} layers have, {others[0][1]} to {others[-1][1]}" if others else "no layer has"
    raise ValueError(f"{root} of {checkpoint.path} has no experts in a supported layout; {known}")


def read_layer(
    path: str | Path, layer: int | str, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of one published layer under ``MoE``'s names, for ``load_state_dict``.

    Args:
        path: a safetensors file, or a folder with one, or with shards and their index.
        layer: its number, or the name before ``.mlp`` where that is not ``model.layers.{i}``.
        dtype: of all tensors but the balancing bias, which is float32, and zero in families without one.

    Raises:
        ValueError: there is no such checkpoint or layer, or tensors are missing, unsupported, corrupt or of
            inconsistent shapes.
    """
    with TensorFiles(Path(path)) as checkpoint:
        layout = _detect_layout(checkpoint, layer)
        state = {
            name: torch.empty(shape, dtype=torch.float32 if name == BIAS else dtype)
            for name, shape in _shapes(checkpoint, layout).items()
        }
        _fill_(state, checkpoint, layout)
    return state


def load_layer_(moe: MoE, path: str | Path, layer: int | str) -> None:
    """Read a published layer into ``moe``, in its dtype; ``path`` and ``layer`` as in ``read_layer``.

    ``moe`` must route as the published layer does; build it with ``presets.moe_from_config``.

    Raises:
        ValueError: as in ``read_layer``, or the shapes differ. ``moe`` is then unchanged.
    """
    state = moe.state_dict()
    if moe.gate.weight.is_meta:
        raise ValueError("the layer is on the meta device; call moe.to_empty(device=...) first")
    with TensorFiles(Path(path)) as checkpoint:
        layout = _detect_layout(checkpoint, layer)
        shapes = _shapes(checkpoint, layout)
        for name in sorted(state.keys() | shapes.keys()):
            ours = tuple(state[name].shape) if name in state else "absent"
            published = shapes.get(name, "absent")
            if ours != published:
                raise ValueError(
                    f"{name} is {published} in {layout.prefix[:-1]} of the checkpoint, {ours} in the layer; "
                    "build the layer with presets.moe_from_config from the checkpoint's config.json"
                )
        _fill_(state, checkpoint, layout)


def save_layer(moe: MoE, path: str | Path, layer: int | str, family: str, *, fused: bool = False) -> None:
    """Write one layer under its published names, in its dtype, atomically to a safetensors file.

    Args:
        layer: as in ``read_layer``.
        family: one of ``FAMILIES``.
        fused: stack the experts, as transformers 5 and later does; it reads both.

    Raises:
        ValueError: the family is unknown or does not support the layer's balancing bias or shared expert, or
            the file cannot be written.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    state = moe.state_dict()
    shared = moe.shared_experts is not None
    deepseek = family == "deepseek-v3"
    if not deepseek and (shared or state[BIAS].any()):
        part = "a shared expert" if shared else f"a balancing bias ({BIAS}) that is not zero"
        raise ValueError(f"the layer has {part}, which {family} does not support; write it as deepseek-v3")
    root = f"model.layers.{layer}" if isinstance(layer, int) else layer
    if family == "mixtral" and not fused:  # stacked, transformers names the block mlp
        layout = _Layout(f"{root}.block_sparse_moe.", MIXTRAL_PROJECTIONS)
    else:
        layout = _Layout(f"{root}.mlp.", fused=fused, bias=deepseek, shared=shared)
    mappings = layout.mappings(len(moe.gate.weight))
    write_tensors({mapping.name: mapping.select(state).contiguous() for mapping in mappings}, Path(path))


def _shapes(checkpoint: TensorFiles, layout: _Layout) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer under ``MoE``'s names; raises if tensors are missing or unsupported."""
    names = {name for name in checkpoint.files if name.startswith(layout.prefix)}
    gate = f"{layout.prefix}gate.weight"
    n_experts, dim = checkpoint.shape(gate) if gate in names else (1, 0)
    mappings = list(layout.mappings(n_experts))
    missing = [mapping.name for mapping in mappings if mapping.name not in names]
    if missing:
        raise ValueError(
            f"{checkpoint.path} lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''} "
            f"of the layer's {len(mappings)} tensors; download all of its files"
        )
    known = {mapping.name for mapping in mappings}
    unknown = sorted(name for name in names - known if name.removesuffix(SCALE) not in known)
    if unknown:
        raise ValueError(
            f"{checkpoint.path} has {len(unknown)} tensors in this layer that MoE does not support, such as "
            f"{unknown[0]}; supported families are {', '.join(FAMILIES)}"
        )
    expert_dim = checkpoint.shape(mappings[-1].name)[-1]
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
    """Copy the layer into tensors of the shapes given by ``_shapes``."""
    mappings = list(layout.mappings(len(state["gate.weight"])))
    for mapping in mappings:  # checked first, so that an inconsistent layer is not partly copied
        shape, expected = checkpoint.shape(mapping.name), tuple(mapping.select(state).shape)
        if shape != expected:
            raise ValueError(f"{mapping.name} is {shape}; the layer's other tensors imply {expected}")
    for mapping in mappings:
        mapping.select(state).copy_(checkpoint.read(mapping.name))
    if not layout.bias:
        state[BIAS].zero_()
