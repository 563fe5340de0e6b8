"""One layer across processes: against one process that holds all its experts and is given all its tokens.

What travels rounded is held to an emulation in float64, which rounds with ml_dtypes; what the meter counts to
what torch.distributed was given, and to a closed form made from the experts' ids alone. Layers take dispatch
``reference`` where the dispatch is not what is tested: it needs no operators, which take seconds to load.

Dimensions: T tokens, D model width, E experts, H expert width, K experts a token, P processes, N rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from process_group import run
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimoe.moe import MoE, Routing
from minimoe.moe.expert_parallel.comm_meter import Meter
from minimoe.moe.expert_parallel.row_format import Column, RowFormat, row_formats
from minimoe.moe.parallelize import expert_parallel_
from minimoe.precision.linear import quantize_weights_

DIM, WIDTH, N_EXPERTS, TOP_K = 16, 8, 8, 3
SIZES = (1, 2, 4)
WIRES = ("full", "bf16", "fp8")
LEGS = ("counts", "dispatch", "combine", "combine backward", "dispatch backward")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")

# The largest error over the tensor's largest number. Between x and a gradient stand half a dozen sums of at
# most 50 terms: 300 roundings of 2^-24 or 2^-53, 2e-5 and 4e-14 if all went the same way, which they do not.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def build(dtype: torch.dtype = torch.float64, seed: int = 1, **arguments: Any) -> MoE:
    """The same in every process. Weights are so large that the experts are far from linear, and no larger
    in a wide layer: its scores would all be 1."""
    torch.manual_seed(seed)
    sizes = {"dim": DIM, "expert_dim": WIDTH, "n_experts": N_EXPERTS, "top_k": TOP_K}
    moe = MoE(**{**sizes, "dispatch": "reference", **arguments})
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=1.2 * moe.dim**-0.5)
    return moe.to(dtype)


@dataclass(frozen=True)
class Case:
    layer: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    counts: Callable[[int], list[int]] = lambda size: [9 + 2 * (rank % 2) for rank in range(size)]
    groups: bool = False  # as many as processes
    mask: bool = False
    bias: Callable[[int], Tensor] | None = None  # (E,) of so many processes
    autocast: bool = False
    checkpointed: bool = False  # the forward pass again in the backward pass: tokens travel once more
    frozen: tuple[str, ...] = ()

    def build(self, size: int) -> MoE:
        layer = dict(self.layer)
        if self.groups:
            layer |= {"n_groups": size, "top_groups": -(-size // 2), "top_k": 2}
        moe = build(self.dtype, **layer)
        if self.bias is not None:
            moe.gate.e_score_correction_bias.copy_(self.bias(size))
        for name, parameter in moe.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen or ("nothing",)))
        return moe

    def tokens(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, D), what arrives as its gradient, and which are real (T,), of all processes."""
        torch.manual_seed(2)
        x_TD, upstream_TD = torch.randn(2, sum(self.counts(size)), DIM, dtype=torch.float64)
        mask_T = torch.rand(len(x_TD)) < 0.6 if self.mask else torch.ones(len(x_TD), dtype=torch.bool)
        x_TD[~mask_T] = torch.nan  # what stands there must not matter
        return x_TD.to(self.dtype), upstream_TD.to(self.dtype), mask_T

    def step(self, moe: nn.Module, x: Tensor, upstream: Tensor, mask: Tensor) -> "Step":
        x = x.clone().requires_grad_("x" not in self.frozen)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            inputs = (x, mask if self.mask else None)
            y, routing = checkpoint(moe, *inputs, use_reentrant=False) if self.checkpointed else moe(*inputs)
        y.backward(upstream.to(y.dtype))
        grads = {name: parameter.grad for name, parameter in moe.named_parameters()}
        return Step(y.detach(), Routing(*(part.detach() for part in routing)), {"x": x.grad, **grads})


@dataclass
class Step:
    """What a process, or all of them together, made of its tokens."""

    y: Tensor
    routing: Routing
    grads: dict[str, Tensor | None]


def uneven(size: int) -> list[int]:
    """Process 0 brings no token, unless it is alone."""
    return [3 * rank for rank in range(size)] if size > 1 else [3]


def idle(size: int) -> Tensor:
    """A bias with which no token takes the last process's experts (of one process: the last expert), because
    scores are between 0 and 1."""
    n_idle = N_EXPERTS // size if size > 1 else 1
    return torch.zeros(N_EXPERTS).index_fill(0, torch.arange(N_EXPERTS - n_idle, N_EXPERTS), -10)


CASES = {
    "float64": Case(),
    "float32": Case(dtype=torch.float32),
    "softmax": Case({"score": "softmax"}),
    "not normalised": Case({"normalize": False, "scale": 2.5}),
    "softmax, not normalised": Case({"score": "softmax", "normalize": False}),
    "one expert a token": Case({"top_k": 1, "normalize": False}),
    "all experts": Case({"top_k": N_EXPERTS}),
    "groups": Case(groups=True),
    "no shared expert": Case({"n_shared": 0}),
    "two shared experts": Case({"n_shared": 2}),
    "mask": Case(mask=True),
    "bias": Case(bias=lambda size: torch.linspace(-1, 1, N_EXPERTS)[torch.randperm(N_EXPERTS)]),
    "uneven": Case(counts=uneven),
    "uneven, float32": Case(dtype=torch.float32, counts=uneven),
    # One process receives a single row, the others nothing; or some a single row each.
    "a single token": Case({"top_k": 1, "normalize": False}, counts=lambda size: [1, *[0] * (size - 1)]),
    "a single token, float32": Case(dtype=torch.float32, counts=lambda size: [*[0] * (size - 1), 1]),
    "no token": Case(counts=lambda size: [0] * size),
    "an idle process": Case(bias=idle),
    "frozen experts": Case(frozen=("experts",)),
    "frozen gate": Case(frozen=("gate",)),
    "frozen gate and x": Case(frozen=("gate", "x")),
    "x without gradient": Case(frozen=("x",)),
    "checkpointed": Case(checkpointed=True),
    "loop": Case({"dispatch": "loop"}),
    "loop, an idle process": Case({"dispatch": "loop"}, bias=idle),
    "loop, float32": Case({"dispatch": "loop"}, torch.float32),
    "grouped": Case({"dispatch": "grouped"}, torch.float32),
    "grouped, an idle process": Case({"dispatch": "grouped"}, torch.float32, bias=idle),
    "auto": Case({"dispatch": "auto"}, torch.float32),
    "auto, float64, all at once": Case(
        {"dispatch": "auto", "n_shared": 2, "score": "softmax", "scale": 2.5},
        counts=uneven,
        mask=True,
        bias=idle,
    ),
    "bfloat16": Case({"dispatch": "loop"}, torch.bfloat16),
    "bfloat16, grouped": Case({"dispatch": "grouped"}, torch.bfloat16),
    "autocast": Case({"dispatch": "auto"}, torch.float32, autocast=True),
    "autocast, no shared expert": Case({"dispatch": "loop", "n_shared": 0}, torch.float32, autocast=True),
    # Without the shared expert: for its weights' gradient tokens share scales, and each process has its own.
    "recipe": Case({"dispatch": "auto", "recipe": "deepseek-v3", "n_shared": 0}, torch.float32),
    "recipe and autocast": Case(
        {"dispatch": "auto", "recipe": "deepseek-v3", "n_shared": 0}, torch.float32, autocast=True
    ),
}


def every_case() -> dict[str, tuple[Step, Meter]]:
    """In each of several processes: its share of each case."""
    size, rank = dist.get_world_size(), dist.get_rank()
    done = {}
    for name, case in CASES.items():
        meter = Meter()
        mine = [tensor.split(case.counts(size))[rank] for tensor in case.tokens(size)]
        try:
            moe = expert_parallel_(case.build(size), meter=meter)
            done[name] = case.step(moe, *mine), meter
        except Exception as error:
            raise RuntimeError(f"the case {name!r}") from error
    return done


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def done(request, tmp_path_factory) -> list[dict[str, tuple[Step, Meter]]]:
    return run(every_case, request.param, tmp_path_factory.mktemp("cases"))


def joined(steps: list[Step]) -> Step:
    """The processes' steps as one: tokens and experts one after another, what all have copies of summed."""
    grads: dict[str, Tensor | None] = {}
    for name in steps[0].grads:
        parts = [step.grads[name] for step in steps]
        assert len({part is None for part in parts}) == 1, f"{name} has a gradient in some processes only"
        if parts[0] is None:
            grads[name] = None
        elif name in ("x", *EXPERTS):
            grads[name] = torch.cat(parts)
        else:
            grads[name] = torch.stack(parts).double().sum(0)
    *fields, counts = zip(*(step.routing for step in steps), strict=True)
    routing = Routing(*map(torch.cat, fields), torch.stack(counts).sum(0))
    return Step(torch.cat([step.y for step in steps]), routing, grads)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest, over the largest number there is."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return 0.0
    difference, largest = (actual.double() - expected.double()).abs().max(), expected.double().abs().max()
    return float(difference / largest) if largest else float(difference)


def assert_same(actual: Step, expected: Step, limit: float) -> None:
    """Values and every gradient."""
    assert actual.y.dtype == expected.y.dtype
    assert error(actual.y, expected.y) <= limit
    assert actual.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        if grad is None:
            assert actual.grads[name] is None, name
        else:
            assert error(actual.grads[name], grad) <= limit, name


def tolerance(case: Case, size: int) -> float:
    if case.dtype == torch.bfloat16 or (case.autocast and "recipe" not in case.layer):
        # bf16 rounds by 2^-8 at most. Across processes each one's share of a sum is rounded once more; the
        # shares of a large number are about as large. The final rounding is made on both sides: two more.
        return (size + 2) * 2**-8
    return TOLERANCE[case.dtype]


@pytest.mark.parametrize("name", CASES)
def test_several_processes_do_what_one_does(done, name):
    case, size = CASES[name], len(done)
    x, upstream, mask = case.tokens(size)
    whole = case.step(case.build(size), x, upstream, mask)
    several = joined([process[name][0] for process in done])
    for ours, theirs in zip(several.routing, whole.routing, strict=True):
        # Its own tokens, and experts by their numbers in the whole layer. The gate's matmul has another
        # number of rows, so floats may differ by a rounding.
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert_same(several, whole, tolerance(case, size))
    assert several.y[~mask].count_nonzero() == 0
    assert not case.mask or 0 < mask.sum() < len(mask)


def visits(routing: Routing, size: int, mask: Tensor | None = None) -> np.ndarray:
    """(T, P) bool, from the ids alone: which processes a token is sent to."""
    process_TK = routing.ids_TK.numpy() // (routing.scores_TE.shape[1] // size)
    visits_TP = (process_TK[:, :, None] == np.arange(size)).any(1)
    return visits_TP if mask is None else visits_TP & mask.numpy()[:, None]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_sent_once_to_each_process_and_padding_to_none(done, name):
    case, size = CASES[name], len(done)
    masks = case.tokens(size)[2].split(case.counts(size))
    for rank, (process, mask) in enumerate(zip(done, masks, strict=True)):
        step, meter = process[name]
        away = np.arange(size) != rank
        times = 2 if case.checkpointed else 1
        assert meter.rows["dispatch"] == times * visits(step.routing, size, mask)[:, away].sum()


def test_groups_limit_the_processes_that_a_token_visits(done):
    size = len(done)
    limit = -(-size // 2)
    free = visits(joined([process["float64"][0] for process in done]).routing, size).sum(1)
    limited = visits(joined([process["groups"][0] for process in done]).routing, size).sum(1)
    assert limited.max() == limit
    assert free.max() > limit or size == 1  # else the limit limits nothing


@pytest.mark.parametrize("name", ["an idle process", "loop, an idle process", "grouped, an idle process"])
def test_experts_without_tokens_have_a_gradient_of_zero(done, name):
    idle_E = CASES[name].bias(len(done)) < 0
    several = joined([process[name][0] for process in done])
    assert several.routing.counts_E[idle_E].sum() == 0
    for expert in EXPERTS:
        assert several.grads[expert][idle_E].count_nonzero() == 0
        assert (several.grads[expert][~idle_E].flatten(1).abs().amax(1) > 0).all()


# what travels rounded


def to_bf16(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().astype(ml_dtypes.bfloat16).astype(np.float64))


def to_e4m3(x: Tensor) -> Tensor:
    values = x.numpy().astype(np.float64)
    scales = tile_scales(values)
    return torch.from_numpy((values / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scales)


def tile_scales(values: np.ndarray) -> np.ndarray:
    """2^ceil(log2(amax / 448)) of each number's 128 neighbours in its row, amax the largest that is finite;
    2^-126 at least, and 1 for zeros."""
    width = values.shape[1]
    magnitudes = np.where(np.isfinite(values), np.abs(values), 0)
    amax = np.maximum.reduceat(magnitudes, range(0, width, 128), axis=1).repeat(128, axis=1)[:, :width]
    fraction, exponent = np.frexp(amax / 448)  # fraction * 2^exponent, fraction from 1/2 to below 1
    scales = np.ldexp(1.0, np.maximum(exponent - (fraction == 0.5), -126))
    return np.where(amax == 0, 1.0, scales)


ROUNDING = {"full": lambda x: x, "bf16": to_bf16, "fp8": to_e4m3}
HOME = {"full": lambda x: x, "bf16": to_bf16, "fp8": to_bf16}


class Rounded(torch.autograd.Function):
    """x as it arrives, and its gradient as it comes back."""

    @staticmethod
    def forward(ctx, x, there, back):
        ctx.back = back
        return there(x.detach()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return ctx.back(grad).to(grad.dtype), None, None


def emulated(moe: MoE, x_TD: Tensor, dispatch_dtype: str, size: int) -> Tensor:
    """y (T, D) of a layer whose experts stand in ``size`` processes, all in one: every expert sees every
    token, with a weight of 0 where it was not picked."""
    n_local = len(moe.experts.down_proj) // size
    routing = moe.gate(x_TD)  # from x itself: the gate is at home
    weights_TE = torch.zeros_like(routing.scores_TE).scatter(1, routing.ids_TK, routing.weights_TK)
    y_TD = moe.shared_experts(x_TD)
    for process in range(size):
        mine = slice(process * n_local, (process + 1) * n_local)
        sent_TD = Rounded.apply(x_TD, ROUNDING[dispatch_dtype], HOME[dispatch_dtype])
        gate_up = torch.einsum("td,egd->teg", sent_TD, moe.experts.gate_up_proj[mine])
        gate, up = gate_up.chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, moe.experts.down_proj[mine])
        sum_TD = (weights_TE[:, mine, None] * out).sum(1)
        y_TD = y_TD + Rounded.apply(sum_TD, HOME[dispatch_dtype], ROUNDING[dispatch_dtype])
    return y_TD


WIDE = {"dim": 192, "top_k": 3}  # a tile and a half


def wide_tokens(counts: list[int]) -> tuple[Tensor, Tensor]:
    """x and its y's gradient, float32 numbers in float64; of very different sizes, so that scales do too."""
    torch.manual_seed(3)
    x_TD, upstream_TD = torch.randn(2, sum(counts), WIDE["dim"])
    sizes_T1 = torch.logspace(-1, 0.5, len(x_TD)).unsqueeze(1)
    return (x_TD * sizes_T1).double(), (upstream_TD * sizes_T1.flip(0)).double()


def on_the_wire(counts: list[int]) -> dict[tuple[str, torch.dtype], Step]:
    rank = dist.get_rank()
    x, upstream = (tensor.split(counts)[rank] for tensor in wide_tokens(counts))
    done = {}
    for dispatch_dtype in WIRES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            moe = expert_parallel_(build(dtype, **WIDE), dispatch_dtype=dispatch_dtype)
            done[dispatch_dtype, dtype] = Case().step(moe, x.to(dtype), upstream.to(dtype), x)
    return done


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def wired(request, tmp_path_factory) -> tuple[list[int], list[dict[tuple[str, torch.dtype], Step]]]:
    counts = [2 + 3 * rank for rank in range(request.param)]
    return counts, run(on_the_wire, request.param, tmp_path_factory.mktemp("dispatch_dtypes"), counts)


def emulated_step(dispatch_dtype: str, counts: list[int]) -> Step:
    moe = build(**WIDE)
    x, upstream = wide_tokens(counts)
    y = emulated(moe, x.requires_grad_(), dispatch_dtype, len(counts))
    y.backward(upstream)
    grads = {name: parameter.grad for name, parameter in moe.named_parameters()}
    return Step(y.detach(), moe.gate(x), {"x": x.grad, **grads})


@pytest.mark.parametrize("dispatch_dtype", WIRES)
def test_the_wire_rounds_what_it_should_and_nothing_else(wired, dispatch_dtype):
    """In float64 all other errors are so small that no rounding can fall on the other side."""
    counts, processes = wired
    several = joined([process[dispatch_dtype, torch.float64] for process in processes])
    expected = emulated_step(dispatch_dtype, counts)
    assert_same(several, expected, 1e-12)
    if dispatch_dtype != "full":  # and the rounding is there to be seen
        assert error(several.y, emulated_step("full", counts).y) > 2**-12


@pytest.mark.parametrize("dispatch_dtype", ["bf16", "fp8"])
def test_the_wire_rounds_float32_as_it_does_float64(wired, dispatch_dtype):
    """x and the gradient of y are the same numbers in both, so experts and gate see the same. What is summed
    before it is rounded to bf16, y and dx, may fall on the other side: one unit (2^-7) away, and seldom."""
    counts, processes = wired
    several = joined([process[dispatch_dtype, torch.float32] for process in processes])
    expected = emulated_step(dispatch_dtype, counts)
    assert torch.equal(several.routing.ids_TK, expected.routing.ids_TK)
    pairs = {"y": (several.y, expected.y)} | {
        name: (several.grads[name], grad) for name, grad in expected.grads.items()
    }
    for name, (actual, exact) in pairs.items():
        if name not in ("y", "x"):
            assert error(actual, exact) <= 1e-5, name
            continue
        assert error(actual, exact) <= 2**-7, name
        off = (actual.double() - exact).abs() > 1e-5 * exact.abs().max()
        # A float32 sum is off by some 2^-22, a rounding boundary comes every 2^-8 of a number, and P numbers
        # are added up: one in 2^14 / P falls on the other side. Four times that, and two that chance may add.
        assert off.sum() <= 2 + off.numel() * len(counts) * 2**-12, name


def test_a_bf16_layer_loses_nothing_on_a_bf16_wire(wired):
    _, processes = wired
    for process in processes:
        full, bf16 = process["full", torch.bfloat16], process["bf16", torch.bfloat16]
        assert torch.equal(full.y, bf16.y)
        assert all(torch.equal(grad, bf16.grads[name]) for name, grad in full.grads.items())


def test_a_bf16_layer_on_an_fp8_wire(wired):
    """Against float64 with the same rounding of what is sent. What remains are roundings of BF16 itself: half
    a dozen of 2^-8 from x to y and from there to dx, few of which go the same way."""
    counts, processes = wired
    several = joined([process["fp8", torch.bfloat16] for process in processes])
    moe = build(torch.bfloat16, **WIDE).double()
    x, upstream = (tensor.bfloat16().double() for tensor in wide_tokens(counts))
    assert torch.equal(several.routing.ids_TK, moe.gate(x).ids_TK)
    y = emulated(moe, x.requires_grad_(), "fp8", len(counts))
    y.backward(upstream)
    assert error(several.y, y.detach()) <= 4 * 2**-8
    assert error(several.grads["x"], x.grad) <= 4 * 2**-8


def rows(kind: str, width: int) -> Tensor:
    torch.manual_seed(4)
    x = torch.randn(7, width)
    if kind == "tiny":
        x *= torch.logspace(-40, -30, 7).unsqueeze(1)  # from subnormal on
    elif kind == "huge":
        x *= 1e37
    elif kind == "mixed":
        x *= torch.logspace(-12, 12, width)
    elif kind == "zeros":
        x[::2] = 0
        x[1, : width // 2] = 0
    elif kind == "powers":  # 448 * 2^k is where the scale steps
        x = torch.tensor([448.0, 449.0, 447.0, 224.0, 3.5, 1.0, 480.0]).unsqueeze(1).repeat(1, width)
    return x


@pytest.mark.parametrize("width", [1, 100, 128, 130, 384])
@pytest.mark.parametrize("kind", ["random", "tiny", "huge", "mixed", "zeros", "powers"])
def test_rows_arrive_within_the_bound_of_their_rounding(kind, width):
    x = rows(kind, width)
    for dispatch_dtype in ("bf16", "fp8"):
        for name in ("dispatch", "combine", "combine backward", "dispatch backward"):
            column = row_formats(dispatch_dtype, width, 2, torch.float32, torch.float32, torch.float32)[
                name
            ].columns[0]
            arrived = column.decode(torch.cat(column.encode(x), 1))
            in_8_bits = dispatch_dtype == "fp8" and name in ("dispatch", "combine backward")
            expected = (to_e4m3 if in_8_bits else to_bf16)(x)
            assert torch.equal(arrived.double(), expected), (dispatch_dtype, name)
            bound = 2**-8 * x.double().abs() + 2.0**-134  # half the smallest subnormal bf16
            if in_8_bits:
                scale = tile_scales(x.double().numpy())  # E4M3's smallest subnormal is 2^-9
                bound = torch.maximum(2**-4 * x.double().abs(), torch.from_numpy(2**-10 * scale))
            assert ((arrived.double() - x.double()).abs() <= bound).all(), (dispatch_dtype, name)


def test_what_is_not_finite_arrives_so_and_leaves_the_rest_alone():
    """E4M3 has no infinity: there it arrives as NaN, which the layer's loss shows just as well."""
    x = rows("random", 130)
    bad = torch.zeros_like(x, dtype=torch.bool)
    bad[0, 3] = bad[1, 129] = bad[2, 5] = bad[2, 6] = True
    broken = x.clone()
    broken[bad] = torch.tensor([torch.inf, torch.nan, -torch.inf, torch.inf])
    for dispatch_dtype in WIRES:
        for leg in row_formats(dispatch_dtype, 130, 2, torch.float32, torch.float32, torch.float32).values():
            column = leg.columns[0]
            arrived, clean = (column.decode(torch.cat(column.encode(rows), 1)) for rows in (broken, x))
            if column.sent_dtype is None:
                assert arrived[bad].isnan().all()
            else:
                torch.testing.assert_close(arrived[bad], broken[bad], rtol=0, atol=0, equal_nan=True)
            tiles = F.pad(bad, (0, 126)).view(7, 2, 128).any(2).repeat_interleave(128, 1)[:, :130]
            assert torch.equal(arrived[~tiles], clean[~tiles])
            rest = tiles & ~bad  # whose tile may have lost its largest number, and with it its scale
            assert torch.equal(arrived[rest], column.decode(torch.cat(column.encode(x * ~bad), 1))[rest])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 128, 129, 130, 192])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 5])
def test_rows_are_packed_and_unpacked(n_rows, width, dtype):
    weight = torch.promote_types(dtype, torch.float32)
    for dispatch_dtype in WIRES:
        for name, leg in row_formats(dispatch_dtype, width, 3, dtype, dtype, weight).items():
            x = torch.randn(n_rows, width, dtype=torch.float64).to(dtype).to(leg.columns[0].dtype)
            weights = torch.rand(n_rows, 3, dtype=torch.float64).to(weight)
            ids = torch.randint(-1, 2**15, (n_rows, 3)).to(torch.int16)
            sent = (x, weights, ids)[: len(leg.columns)]
            packed = leg.pack(sent)
            assert packed.shape == (n_rows, leg.nbytes), name
            assert packed.dtype == torch.uint8
            arrived = leg.unpack(packed)
            for ours, theirs in zip(arrived, sent, strict=True):
                assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert all(map(torch.equal, arrived[1:], sent[1:])), name
            assert dispatch_dtype != "full" or torch.equal(arrived[0], x), name
            ones = [torch.ones((), dtype=c.dtype).expand(n_rows, c.width) for c in leg.columns]  # of stride 0
            assert torch.equal(leg.pack(ones), leg.pack([one.clone() for one in ones])), name
            for row in range(n_rows):  # each by itself, as when a process receives a single one
                alone = leg.unpack(packed[row : row + 1])
                assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, arrived, strict=True))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_may_hold_anything(dtype):
    leg = RowFormat("any", (Column(3, dtype, dtype), Column(7, torch.float32, None), Column(1, dtype, dtype)))
    first, last = torch.arange(12).view(4, 3).to(dtype), torch.arange(4).view(4, 1).to(dtype)
    middle = torch.eye(4, 7)  # E4M3 has these
    packed = leg.pack((first, middle, last))
    assert leg.nbytes == 4 * dtype.itemsize + 8 == packed.shape[1]
    assert all(map(torch.equal, leg.unpack(packed), (first, middle, last)))


# what is sent, and when


@dataclass
class Watch:
    """What goes through torch.distributed.all_to_all_single, in order."""

    sent: list[tuple[int, int, int]] = field(default_factory=list)  # bytes, messages and rows, to others
    events: list[str] = field(default_factory=list)


class Watched:
    """A Work that tells when it is waited for."""

    def __init__(self, work: dist.Work, name: str, events: list[str]) -> None:
        self._work, self._name, self._events = work, name, events

    def wait(self) -> bool:
        self._events.append(f"{self._name} waited for")
        return self._work.wait()


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    watch, exchange = Watch(), dist.all_to_all_single

    def noting(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        size, home = dist.get_world_size(group), dist.get_rank(group)
        split = [len(input) // size] * size if input_split_sizes is None else input_split_sizes
        away = [n for process, n in enumerate(split) if process != home]
        name = LEGS[len(watch.sent) % len(LEGS)]
        watch.sent.append(
            (sum(away) * input.shape[1:].numel() * input.itemsize, np.count_nonzero(away), sum(away))
        )
        watch.events.append(f"{name} started")
        work = exchange(output, input, output_split_sizes, input_split_sizes, group, async_op)
        return Watched(work, name, watch.events) if async_op else work

    dist.all_to_all_single = noting
    try:
        yield watch
    finally:
        dist.all_to_all_single = exchange


ROUTES = {
    "free": {},
    "groups": {"n_groups": 4, "top_groups": 2, "top_k": 4},
    "one": {"top_k": 1, "normalize": False},
}


def metered(dim: int, counts: list[int]) -> dict[tuple[str, str], tuple[Meter, Watch, Routing, Tensor]]:
    """The meter, what it should have seen, where tokens went, and (E/P,) how many each expert was given."""
    done = {}
    for dispatch_dtype in WIRES:
        for name, route in ROUTES.items():
            meter = Meter()
            moe = expert_parallel_(
                build(torch.float32, dim=dim, **route), dispatch_dtype=dispatch_dtype, meter=meter
            )
            given = []
            moe.experts.register_forward_pre_hook(lambda _, inputs, g=given: g.append(inputs[1].ids_TK))
            torch.manual_seed(dist.get_rank())
            with watched() as watch:
                y, routing = moe(torch.randn(counts[dist.get_rank()], dim, requires_grad=True))
                y.sum().backward()
            n_local = len(moe.experts.down_proj)
            given_E = torch.cat(given).flatten().bincount(minlength=n_local)
            done[dispatch_dtype, name] = meter, watch, Routing(*(part.detach() for part in routing)), given_E
    return done


def traffic(
    routings: list[Routing], rank: int, dispatch_dtype: str, dim: int
) -> dict[str, tuple[int, int, int]]:
    """Bytes, messages and rows that process ``rank`` sends others, leg by leg, from ids alone."""
    size, top_k = len(routings), routings[0].ids_TK.shape[1]
    rows_PP = np.array([visits(routing, size).sum(0) for routing in routings])  # from, to
    others = np.arange(size) != rank
    there, back = rows_PP[rank, others], rows_PP[others, rank]
    activation = {"full": 4 * dim, "bf16": 2 * dim, "fp8": dim + -(-dim // 128)}[dispatch_dtype]
    home = 4 * dim if dispatch_dtype == "full" else 2 * dim
    row_formats = {
        "counts": (np.ones(size - 1, int), 8),
        "dispatch": (there, activation + top_k * (4 + 2)),
        "combine": (back, home),
        "combine backward": (there, activation),
        "dispatch backward": (back, home + 4 * top_k),
    }
    return {leg: (n.sum() * nbytes, np.count_nonzero(n), n.sum()) for leg, (n, nbytes) in row_formats.items()}


@pytest.mark.parametrize(("dim", "counts"), [(16, [5]), (16, [6, 9]), (192, [0, 1, 5, 12])])
def test_the_meter_counts_what_is_sent(tmp_path, dim, counts):
    processes = run(metered, len(counts), tmp_path, dim, counts)
    for dispatch_dtype in WIRES:
        for route in ROUTES:
            routings = [process[dispatch_dtype, route][2] for process in processes]
            for rank, process in enumerate(processes):
                meter, watch, _, _ = process[dispatch_dtype, route]
                counted = {leg: (meter.bytes[leg], meter.messages[leg], meter.rows[leg]) for leg in LEGS}
                assert counted == dict(zip(LEGS, watch.sent, strict=True)), (dispatch_dtype, route, rank)
                assert counted == traffic(routings, rank, dispatch_dtype, dim), (dispatch_dtype, route, rank)
                for counter in (meter.bytes, meter.messages, meter.rows):
                    assert counter.keys() == set(LEGS)
                    assert len(counts) > 1 or counter.total() == 0
            given_E = torch.cat(
                [process[dispatch_dtype, route][3] for process in processes]
            )  # nothing in vain
            assert torch.equal(given_E, sum(routing.counts_E for routing in routings))


def one_after_another() -> list[str]:
    moe = expert_parallel_(build())
    with watched() as watch:
        for part, module in (("shared", moe.shared_experts), ("experts", moe.experts)):
            module.register_forward_pre_hook(lambda *_, p=part: watch.events.append(f"{p} begins"))
            module.register_forward_hook(lambda *_, p=part: watch.events.append(f"{p} ends"))
        moe.shared_experts.register_full_backward_pre_hook(
            lambda *_: watch.events.append("shared begins backward")
        )
        for name, parameter in moe.shared_experts.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, n=name: watch.events.append(n))
        moe.shared_experts.register_full_backward_hook(lambda *_: watch.events.append("shared ends backward"))
        y, _ = moe(torch.randn(5, DIM, dtype=torch.float64, requires_grad=True))
        watch.events.append("backward")
        y.sum().backward()
    return watch.events


def test_the_shared_expert_works_while_tokens_travel(tmp_path):
    for events in run(one_after_another, 2, tmp_path):
        forward, backward = events[: events.index("backward")], events[events.index("backward") + 1 :]
        assert forward == [
            "counts started",
            "dispatch started",
            "shared begins",
            "shared ends",
            "dispatch waited for",
            "experts begins",
            "experts ends",
            "combine started",
            "combine waited for",
        ]
        start, *shared, end = backward[2:]
        assert backward[:2] == ["combine backward started", "combine backward waited for"]
        assert (start, end) == ("dispatch backward started", "dispatch backward waited for")
        assert (shared[0], shared[-1]) == ("shared begins backward", "shared ends backward")
        assert set(shared[1:-1]) == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}


# layers together


def residual(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = x + layer(x)[0]
    return x


def two_in_flight(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers[0](x)[0] * layers[0](x / 2)[0]


def in_turn(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers[0](layers[0](x)[0])[0]


PROGRAMS = {program.__name__: program for program in (residual, two_in_flight, in_turn)}


def pair() -> nn.ModuleList:
    return nn.ModuleList([build(), build(seed=5, top_k=2, n_shared=0)])


def program_step(layers: nn.ModuleList, name: str, x: Tensor, upstream: Tensor, times: int = 1) -> Step:
    layers.zero_grad()
    x = x.clone().requires_grad_()
    y = PROGRAMS[name](layers, x)
    for time in range(times):
        y.backward(upstream, retain_graph=time < times - 1)
    grads = {name: parameter.grad for name, parameter in layers.named_parameters()}
    nothing = Routing(*torch.zeros(4, 1))
    return Step(y.detach(), nothing, {"x": x.grad, **grads})


def every_program(counts: list[int]) -> dict[str, list]:
    rank = dist.get_rank()
    x, upstream, _ = (tensor.split(counts)[rank] for tensor in Case(counts=lambda _: counts).tokens(0))
    layers = expert_parallel_(pair())
    done: dict[str, Any] = {name: program_step(layers, name, x, upstream) for name in PROGRAMS}
    done["twice backward"] = program_step(layers, "residual", x, upstream, times=2)
    with torch.no_grad():
        done["no_grad"] = residual(layers, x)
    with torch.inference_mode():
        done["inference_mode"] = residual(layers, x).clone()
    done["shape"] = residual(layers, x.unsqueeze(0)).detach()
    return done


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def programs(request, tmp_path_factory) -> tuple[list[int], list[dict[str, Any]]]:
    counts = [3 * rank or 4 for rank in range(request.param)]
    return counts, run(every_program, request.param, tmp_path_factory.mktemp("programs"), counts)


def joined_programs(steps: list[Step]) -> Step:
    """As ``joined``, of two layers."""
    renamed = []
    for layer in ("0.", "1."):
        ours = [
            Step(
                s.y, s.routing, {n.removeprefix(layer): g for n, g in s.grads.items() if n.startswith(layer)}
            )
            for s in steps
        ]
        renamed.append({layer + name: grad for name, grad in joined(ours).grads.items()})
    x = {"x": torch.cat([step.grads["x"] for step in steps])}
    return Step(torch.cat([step.y for step in steps]), steps[0].routing, x | renamed[0] | renamed[1])


@pytest.mark.parametrize("name", [*PROGRAMS, "twice backward"])
def test_layers_together_have_the_gradients_of_one_process(programs, name):
    counts, processes = programs
    x, upstream, _ = Case(counts=lambda _: counts).tokens(0)
    program, times = ("residual", 2) if name == "twice backward" else (name, 1)
    layers = pair()
    if program in ("two_in_flight", "in_turn"):  # the second has no part in it
        for parameter in layers[1].parameters():
            parameter.requires_grad_(False)
    whole = program_step(layers, program, x, upstream, times)
    assert_same(joined_programs([process[name] for process in processes]), whole, 1e-12)


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "shape"])
def test_layers_work_without_gradients_and_keep_the_shape(programs, name):
    counts, processes = programs
    x, _, _ = Case(counts=lambda _: counts).tokens(0)
    y = [process[name] for process in processes]
    if name == "shape":
        y = [part.squeeze(0) for part in y]
    assert not any(part.requires_grad for part in y)
    assert error(torch.cat(y), residual(pair(), x).detach()) <= 1e-12


def in_two_groups(counts: list[int]) -> tuple[Step, Meter]:
    """Processes 0 and 2 hold one copy of the experts, 1 and 3 another."""
    groups = [dist.new_group([first, first + 2]) for first in range(2)]
    rank, meter, case = dist.get_rank(), Meter(), Case()
    x, upstream, mask = (tensor.split(counts)[rank] for tensor in Case(counts=lambda _: counts).tokens(0))
    moe = expert_parallel_(case.build(2), groups[rank % 2], meter=meter)
    return case.step(moe, x, upstream, mask), meter


def test_a_group_may_be_part_of_all_processes(tmp_path):
    counts = [4, 7, 5, 2]
    processes = run(in_two_groups, 4, tmp_path, counts)
    x, upstream, mask = (tensor.split(counts) for tensor in Case(counts=lambda _: counts).tokens(0))
    for first in range(2):
        mine = [torch.cat(tensor[first::2]) for tensor in (x, upstream, mask)]
        steps = [step for step, _ in processes[first::2]]
        assert_same(joined(steps), Case().step(Case().build(2), *mine), 1e-12)
        for place, (step, meter) in enumerate(processes[first::2]):
            assert meter.rows["dispatch"] == visits(step.routing, 2)[:, 1 - place].sum()
            assert meter.rows["counts"] == 1


# state, and what is refused


def state() -> dict[str, Any]:
    moe = build()
    moe.experts.gate_up_proj.requires_grad_(False)
    model = nn.Sequential(nn.Linear(2, 2), moe)
    returned = expert_parallel_(model)
    experts = [moe.get_parameter(name) for name in EXPERTS]
    return {
        "state": {name: tensor.clone() for name, tensor in moe.state_dict().items()},
        "learns": {name: parameter.requires_grad for name, parameter in moe.named_parameters()},
        "leaves": all(type(p) is nn.Parameter and p.is_leaf for p in experts),
        "alone": all(p.untyped_storage().nbytes() == p.nbytes for p in experts),
        "same": returned is model,
    }


@pytest.mark.parametrize("size", SIZES)
def test_each_process_holds_its_experts_and_all_the_rest(tmp_path, size):
    whole = build()
    expected = whole.state_dict()
    for rank, process in enumerate(run(state, size, tmp_path)):
        assert list(process["state"]) == list(expected)
        for name, tensor in process["state"].items():
            theirs = expected[name]
            if name in EXPERTS:
                n_local = N_EXPERTS // size
                theirs = theirs[rank * n_local : (rank + 1) * n_local]
            assert torch.equal(tensor, theirs), name
        learns = {name: name != EXPERTS[0] for name, _ in whole.named_parameters()}
        assert process["learns"] == learns
        assert process["leaves"]
        assert process["alone"]  # not a view that keeps the whole layer's memory
        assert process["same"]


def codes() -> MoE:
    return quantize_weights_(build(torch.float32, dispatch="auto", recipe="deepseek-v3"))


REFUSED = {
    "experts": (lambda: build(n_experts=7), r"n_experts \(7\) must be divisible by .* processes \(2\)"),
    "capacity": (lambda: build(dispatch="capacity"), "'capacity' with choice 'token' drops tokens"),
    "choice": (
        lambda: build(choice="expert", dispatch="auto"),
        "'auto' with choice 'expert' drops tokens",
    ),
    "twice": (lambda: expert_parallel_(build()), "already divided among processes; build a new layer"),
    "codes": (codes, r"quantized for inference \(quantize_weights_\); call expert_parallel_ before it"),
}


def refusals() -> dict[str, tuple[str, bool]]:
    """Each message, and whether a layer that could be spread was left as it was."""
    done = {}
    for name, (make, _) in REFUSED.items():
        bad, good = make(), build()
        with pytest.raises(ValueError) as caught:
            expert_parallel_(nn.ModuleList([good, bad]))
        done[name] = str(caught.value), good.parallel is None and len(good.experts.down_proj) == N_EXPERTS
    good = build()
    with pytest.raises(ValueError) as caught:
        expert_parallel_(good, dispatch_dtype="fp16")
    done["dispatch_dtype"] = str(caught.value), good.parallel is None
    return done


def test_what_cannot_be_spread_is_refused_with_its_numbers(tmp_path):
    messages = {name: message for name, (_, message) in REFUSED.items()}
    messages["dispatch_dtype"] = "dispatch_dtype must be one of full, bf16, fp8, not 'fp16'"
    for process in run(refusals, 2, tmp_path):
        assert process.keys() == messages.keys()
        for name, (said, untouched) in process.items():
            with pytest.raises(ValueError, match=messages[name]):
                raise ValueError(said)
            assert untouched, name


def test_experts_are_not_spread_without_a_process_group():
    moe = build()
    with pytest.raises(ValueError, match=r"needs a process group: call .*init_process_group.*torchrun"):
        expert_parallel_(moe)
    assert moe.parallel is None
