"""The row format of expert parallelism: what is sent in 16 or 8 bits is rounded once, and correctly.

The layer is compared with an emulation in float64, which rounds with ml_dtypes.

Dimensions: T tokens, D model width, E experts, K experts per token, P processes, N rows.
"""

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from expert_parallel_cases import DISPATCH_DTYPES, SIZES, Case, Step, assert_same, build, error, merged
from process_group import run
from torch import Tensor

from minimoe.moe import MoE, expert_parallel_
from minimoe.moe.expert_parallel.row_format import Column, RowFormat, row_formats


def to_bf16(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().astype(ml_dtypes.bfloat16).astype(np.float64))


def to_e4m3(x: Tensor) -> Tensor:
    values = x.numpy().astype(np.float64)
    scales = tile_scales(values)
    return torch.from_numpy((values / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scales)


def tile_scales(values: np.ndarray) -> np.ndarray:
    """The scale of each number: 2^ceil(log2(amax / 448)) of its tile of 128 in the row, where amax is the
    largest finite magnitude; at least 2^-126, and 1 for zeros."""
    width = values.shape[1]
    magnitudes = np.where(np.isfinite(values), np.abs(values), 0)
    amax = np.maximum.reduceat(magnitudes, range(0, width, 128), axis=1).repeat(128, axis=1)[:, :width]
    fraction, exponent = np.frexp(amax / 448)  # fraction * 2^exponent, fraction from 1/2 to below 1
    scales = np.ldexp(1.0, np.maximum(exponent - (fraction == 0.5), -126))
    return np.where(amax == 0, 1.0, scales)


DISPATCH_ROUNDING = {"full": lambda x: x, "bf16": to_bf16, "fp8": to_e4m3}
COMBINE_ROUNDING = {"full": lambda x: x, "bf16": to_bf16, "fp8": to_bf16}


class Rounded(torch.autograd.Function):
    """x and its gradient as they are received."""

    @staticmethod
    def forward(ctx, x, forward_rounding, backward_rounding):
        ctx.backward_rounding = backward_rounding
        return forward_rounding(x.detach()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return ctx.backward_rounding(grad).to(grad.dtype), None, None


def emulated(moe: MoE, x_TD: Tensor, dispatch_dtype: str, size: int) -> Tensor:
    """y (T, D) of a layer whose experts are divided among ``size`` processes, computed in one: every expert
    sees every token, with a weight of 0 where it was not picked."""
    n_local = len(moe.experts.down_proj) // size
    routing = moe.gate(x_TD)  # unrounded: the gate is local
    weights_TE = torch.zeros_like(routing.scores_TE).scatter(1, routing.ids_TK, routing.weights_TK)
    y_TD = moe.shared_experts(x_TD)
    for process in range(size):
        local = slice(process * n_local, (process + 1) * n_local)
        sent_TD = Rounded.apply(x_TD, DISPATCH_ROUNDING[dispatch_dtype], COMBINE_ROUNDING[dispatch_dtype])
        gate_up = torch.einsum("td,egd->teg", sent_TD, moe.experts.gate_up_proj[local])
        gate, up = gate_up.chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, moe.experts.down_proj[local])
        sum_TD = (weights_TE[:, local, None] * out).sum(1)
        y_TD = y_TD + Rounded.apply(
            sum_TD, COMBINE_ROUNDING[dispatch_dtype], DISPATCH_ROUNDING[dispatch_dtype]
        )
    return y_TD


WIDE = {"dim": 192, "top_k": 3}  # 1.5 tiles


def wide_tokens(counts: list[int]) -> tuple[Tensor, Tensor]:
    """x and the upstream gradient, float32 numbers in float64, of very different magnitudes and so scales."""
    torch.manual_seed(3)
    x_TD, upstream_TD = torch.randn(2, sum(counts), WIDE["dim"])
    sizes_T1 = torch.logspace(-1, 0.5, len(x_TD)).unsqueeze(1)
    return (x_TD * sizes_T1).double(), (upstream_TD * sizes_T1.flip(0)).double()


def run_dispatch_dtypes(counts: list[int]) -> dict[tuple[str, torch.dtype], Step]:
    rank = dist.get_rank()
    x, upstream = (tensor.split(counts)[rank] for tensor in wide_tokens(counts))
    done = {}
    for dispatch_dtype in DISPATCH_DTYPES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            moe = expert_parallel_(build(dtype, **WIDE), dispatch_dtype=dispatch_dtype)
            done[dispatch_dtype, dtype] = Case().step(moe, x.to(dtype), upstream.to(dtype), x)
    return done


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def results(request) -> tuple[list[int], list[dict[tuple[str, torch.dtype], Step]]]:
    counts = [2 + 3 * rank for rank in range(request.param)]
    return counts, run(run_dispatch_dtypes, request.param, counts)


def emulated_step(dispatch_dtype: str, counts: list[int]) -> Step:
    moe = build(**WIDE)
    x, upstream = wide_tokens(counts)
    y = emulated(moe, x.requires_grad_(), dispatch_dtype, len(counts))
    y.backward(upstream)
    grads = {name: parameter.grad for name, parameter in moe.named_parameters()}
    return Step(y.detach(), moe.gate(x), {"x": x.grad, **grads})


@pytest.mark.distributed
@pytest.mark.parametrize("dispatch_dtype", DISPATCH_DTYPES)
def test_a_layer_is_rounded_only_where_it_should_be(results, dispatch_dtype):
    """In float64 all other errors are too small to change the result of a rounding."""
    counts, processes = results
    several = merged([process[dispatch_dtype, torch.float64] for process in processes])
    expected = emulated_step(dispatch_dtype, counts)
    assert_same(several, expected, 1e-12)
    if dispatch_dtype != "full":  # rounding has an effect
        assert error(several.y, emulated_step("full", counts).y) > 2**-12


@pytest.mark.distributed
@pytest.mark.parametrize("dispatch_dtype", ["bf16", "fp8"])
def test_float32_is_rounded_as_float64_is(results, dispatch_dtype):
    """x and the gradient of y are the same numbers in both, so experts and gate see the same. Sums that are
    then rounded to BF16, y and dx, may rarely round to the neighboring number, one unit (2^-7) away."""
    counts, processes = results
    several = merged([process[dispatch_dtype, torch.float32] for process in processes])
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
        # The error of a float32 sum is about 2^-22, rounding boundaries are 2^-8 apart, and P numbers are
        # summed: one in 2^14 / P rounds to the neighbor. The limit is four times that, plus two.
        assert off.sum() <= 2 + off.numel() * len(counts) * 2**-12, name


@pytest.mark.distributed
def test_bf16_is_lossless_for_a_bf16_layer(results):
    _, processes = results
    for process in processes:
        full, bf16 = process["full", torch.bfloat16], process["bf16", torch.bfloat16]
        assert torch.equal(full.y, bf16.y)
        assert all(torch.equal(grad, bf16.grads[name]) for name, grad in full.grads.items())


@pytest.mark.distributed
def test_fp8_for_a_bf16_layer(results):
    """Against float64 with the same rounding of what is sent. What remains are roundings of BF16 itself: half
    a dozen of 2^-8 from x to y and from there to dx, few of which go the same way."""
    counts, processes = results
    several = merged([process["fp8", torch.bfloat16] for process in processes])
    moe = build(torch.bfloat16, **WIDE).double()
    x, upstream = (tensor.bfloat16().double() for tensor in wide_tokens(counts))
    assert torch.equal(several.routing.ids_TK, moe.gate(x).ids_TK)
    y = emulated(moe, x.requires_grad_(), "fp8", len(counts))
    y.backward(upstream)
    assert error(several.y, y.detach()) <= 4 * 2**-8
    assert error(several.grads["x"], x.grad) <= 4 * 2**-8


def float32_formats(dispatch_dtype: str, width: int) -> dict[str, RowFormat]:
    return row_formats(dispatch_dtype, width, 2, torch.float32, torch.float32, torch.float32)


def rows(kind: str, width: int) -> Tensor:
    torch.manual_seed(4)
    x = torch.randn(7, width)
    if kind == "tiny":
        x *= torch.logspace(-40, -30, 7).unsqueeze(1)  # from subnormal numbers up
    elif kind == "huge":
        x *= 1e37
    elif kind == "mixed":
        x *= torch.logspace(-12, 12, width)
    elif kind == "zeros":
        x[::2] = 0
        x[1, : width // 2] = 0
    elif kind == "powers":  # the scale changes at 448 * 2^k
        x = torch.tensor([448.0, 449.0, 447.0, 224.0, 3.5, 1.0, 480.0]).unsqueeze(1).repeat(1, width)
    return x


@pytest.mark.parametrize("width", [1, 100, 128, 130, 384])
@pytest.mark.parametrize("kind", ["random", "tiny", "huge", "mixed", "zeros", "powers"])
def test_rows_are_within_the_bound_of_their_rounding(kind, width):
    x = rows(kind, width)
    for dispatch_dtype in ("bf16", "fp8"):
        for name in ("dispatch", "combine", "combine backward", "dispatch backward"):
            column = float32_formats(dispatch_dtype, width)[name].columns[0]
            received = column.decode(torch.cat(column.encode(x), 1))
            in_8_bits = dispatch_dtype == "fp8" and name in ("dispatch", "combine backward")
            expected = (to_e4m3 if in_8_bits else to_bf16)(x)
            assert torch.equal(received.double(), expected), (dispatch_dtype, name)
            bound = 2**-8 * x.double().abs() + 2.0**-134  # half the smallest subnormal bf16
            if in_8_bits:
                scale = tile_scales(x.double().numpy())  # E4M3's smallest subnormal is 2^-9
                bound = torch.maximum(2**-4 * x.double().abs(), torch.from_numpy(2**-10 * scale))
            assert ((received.double() - x.double()).abs() <= bound).all(), (dispatch_dtype, name)


def test_infinity_and_nan_are_kept_and_do_not_affect_other_numbers():
    """E4M3 has no infinity: it becomes NaN, which the loss shows just as well."""
    x = rows("random", 130)
    bad = torch.zeros_like(x, dtype=torch.bool)
    bad[0, 3] = bad[1, 129] = bad[2, 5] = bad[2, 6] = True
    broken = x.clone()
    broken[bad] = torch.tensor([torch.inf, torch.nan, -torch.inf, torch.inf])
    for dispatch_dtype in DISPATCH_DTYPES:
        for row_format in float32_formats(dispatch_dtype, 130).values():
            column = row_format.columns[0]
            received, clean = (column.decode(torch.cat(column.encode(rows), 1)) for rows in (broken, x))
            if column.sent_dtype is None:
                assert received[bad].isnan().all()
            else:
                torch.testing.assert_close(received[bad], broken[bad], rtol=0, atol=0, equal_nan=True)
            tiles = F.pad(bad, (0, 126)).view(7, 2, 128).any(2).repeat_interleave(128, 1)[:, :130]
            assert torch.equal(received[~tiles], clean[~tiles])
            rest = tiles & ~bad  # their tile may have lost its largest number, and so have another scale
            assert torch.equal(received[rest], column.decode(torch.cat(column.encode(x * ~bad), 1))[rest])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 128, 129, 130, 192])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 5])
def test_rows_are_packed_and_unpacked(n_rows, width, dtype):
    weight = torch.promote_types(dtype, torch.float32)
    for dispatch_dtype in DISPATCH_DTYPES:
        for name, row_format in row_formats(dispatch_dtype, width, 3, dtype, dtype, weight).items():
            x = torch.randn(n_rows, width, dtype=torch.float64).to(dtype).to(row_format.columns[0].dtype)
            weights = torch.rand(n_rows, 3, dtype=torch.float64).to(weight)
            ids = torch.randint(-1, 2**15, (n_rows, 3)).to(torch.int16)
            sent = (x, weights, ids)[: len(row_format.columns)]
            packed = row_format.pack(sent)
            assert packed.shape == (n_rows, row_format.nbytes), name
            assert packed.dtype == torch.uint8
            received = row_format.unpack(packed)
            for ours, theirs in zip(received, sent, strict=True):
                assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert all(map(torch.equal, received[1:], sent[1:])), name
            assert dispatch_dtype != "full" or torch.equal(received[0], x), name
            shapes = [(column.dtype, column.width) for column in row_format.columns]
            ones = [
                torch.ones((), dtype=dtype_).expand(n_rows, width_) for dtype_, width_ in shapes
            ]  # stride 0
            assert torch.equal(row_format.pack(ones), row_format.pack([one.clone() for one in ones])), name
            for row in range(n_rows):  # each alone, as when a process receives a single row
                alone = row_format.unpack(packed[row : row + 1])
                assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, received, strict=True))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_any_columns(dtype):
    row_format = RowFormat(
        "any", (Column(3, dtype, dtype), Column(7, torch.float32, None), Column(1, dtype, dtype))
    )
    first, last = torch.arange(12).view(4, 3).to(dtype), torch.arange(4).view(4, 1).to(dtype)
    middle = torch.eye(4, 7)  # exact in E4M3
    packed = row_format.pack((first, middle, last))
    assert row_format.nbytes == 4 * dtype.itemsize + 8 == packed.shape[1]
    assert all(map(torch.equal, row_format.unpack(packed), (first, middle, last)))
