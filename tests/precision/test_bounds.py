"""The bounds hold for data of every kind, are nearly as tight as possible, and fail only where documented."""

import math

import pytest
import torch

from minimoe.precision.accumulator import Accumulator
from minimoe.precision.analysis import bound, exact_product, gamma, gamma_probabilistic, tightness
from minimoe.precision.analysis.bounds import _ranges
from minimoe.precision.analysis.operand import cast_operand
from minimoe.precision.analysis.sum_bounds import RoundingModel, sums_of_codes
from minimoe.precision.formats import BF16, E2M1, E2M3, E4M3, E4M3FNUZ, E5M2, FP16, FP32, INT8
from minimoe.precision.matmul import matmul, multiply
from minimoe.precision.quantize import quantize
from minimoe.precision.recipe import DEEPSEEK_V3, DEEPSEEK_V3_POW2, FULL, MXFP8, NAIVE, RECIPES, ROWWISE, Cast

KINDS = ("deterministic", "probabilistic")


def same(name, cast, **fields):
    return FULL.with_(name=name, activation=cast, weight=cast, **fields)


NARROW = same("narrow", Cast(E2M3, (1, 8), "none"))  # codes so small that fp16 holds their sums
VARIANTS = [
    *RECIPES.values(),
    same("e5m2", Cast(E5M2, (1, 16), "pow2")),
    same("fp4", Cast(E2M1, (1, 16), "ocp")),
    same("int8", Cast(INT8, (1, None))),
    same("fnuz-down", Cast(E4M3FNUZ, (7, 5), "pow2_down")),
    FULL.with_(name="one-cast", weight=Cast(E4M3, (128, 128))),
    FULL.with_(name="saturating", weight=Cast(E4M3, None, "none"), output=E4M3),
    DEEPSEEK_V3_POW2.with_(name="bf16", backend="bf16"),
    DEEPSEEK_V3_POW2.with_(name="pow2-blocks", backend="blocks"),
    DEEPSEEK_V3.with_(name="blocks", backend="blocks"),
    DEEPSEEK_V3.with_(name="fp16-result", output=FP16),
    ROWWISE.with_(name="hardware", backend="hardware"),
    ROWWISE.with_(name="fp32-promoted", accumulator=Accumulator.fp32(promote_every=16)),
    ROWWISE.with_(name="core", accumulator=Accumulator.tensor_core()),
    ROWWISE.with_(name="core-promoted", accumulator=Accumulator.tensor_core(13, 128)),
    ROWWISE.with_(name="core-4", accumulator=Accumulator.tensor_core(4, 64)),
    ROWWISE.with_(name="core-30", accumulator=Accumulator.tensor_core(30)),
    same("core-e5m2", Cast(E5M2, (1, 128)), accumulator=Accumulator.tensor_core(10)),
    MXFP8.with_(name="core-mx", accumulator=Accumulator.tensor_core()),
    FULL.with_(
        name="core-two-sides",
        activation=Cast(E4M3, (1, 48)),
        weight=Cast(E4M3, (3, 32)),
        accumulator=Accumulator.tensor_core(1),
    ),
    ROWWISE.with_(name="bf16-sums", accumulator=Accumulator.bf16()),
    ROWWISE.with_(name="bf16-promoted", accumulator=Accumulator.bf16(promote_every=32)),
    ROWWISE.with_(name="bf16-random", accumulator=Accumulator.bf16("stochastic", 32)),
    NARROW.with_(name="fp16-sums", accumulator=Accumulator.fp16()),
    NARROW.with_(name="fp16-random", accumulator=Accumulator.fp16("stochastic", promote_every=24)),
    FULL.with_(name="plain-bf16-sums", accumulator=Accumulator.bf16()),
]


def repeat(x, k):
    """Each element of x 16 times, k in total."""
    return x.repeat_interleave(16)[:k]


def cancelling(m, k):
    x = torch.randn(m, (k + 1) // 2)
    return torch.stack((x, -x * (1 + 1e-4 * torch.randn_like(x))), -1).flatten(1)[:, :k]


def outlier(size):
    def make(m, k):
        x = torch.randn(m, k)
        x[torch.randint(m, ()), torch.randint(k, ())] = size
        return x

    return make


DATA = {
    "normal": torch.randn,
    "positive": torch.rand,
    "outlier 1e4": outlier(1e4),
    "outlier 1e5": outlier(1e5),
    "mixed": lambda m, k: torch.randn(m, k).mul(3).exp(),
    "small": lambda m, k: 1e-4 * torch.randn(m, k),
    "uneven": lambda m, k: torch.randn(m, k) * repeat(torch.exp2(torch.randint(-10, 11, (k // 16 + 1,))), k),
    "around the smallest": lambda m, k: 2e-3 * torch.rand(m, k),
    "sparse": lambda m, k: torch.randn(m, k).relu() * (torch.rand(m, 1) > 0.3),
}
EXTREME = {
    "1e-38": lambda m, k: 1e-38 * torch.randn(m, k),
    "1e-44": lambda m, k: 1e-44 * torch.randn(m, k),
    "1e30": lambda m, k: 1e30 * torch.randn(m, k),
    "largest": lambda m, k: torch.rand(m, k) * torch.finfo(torch.float32).max,
    "all magnitudes": lambda m, k: torch.randn(m, k) * torch.exp2(torch.randint(-149, 120, (m, k))),
}
SHAPES = ((5, 1, 3), (7, 37, 9), (3, 130, 33), (2, 700, 2))


def check(a, b, recipe, kind, **options):
    """Assert that the bound holds; returns for how many elements it is finite."""
    limit = bound(a, b, recipe, kind, **options)
    error = (matmul(a, b, recipe).double() - exact_product(a, b)).abs()
    wrong = ~(error <= limit) & limit.isfinite()
    assert not limit.isnan().any()
    assert not wrong.any(), (error[wrong] / limit[wrong]).max()
    return int(limit.isfinite().sum())


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda r: r.name)
def test_bounds_hold(recipe):
    """Data of each kind for both operands, and a pair of cancelling halves."""
    held = 0
    shapes = SHAPES[:3] if recipe.accumulator.kind in ("fp16", "bf16") else SHAPES  # those are slow
    for m, k, n in shapes:
        pairs = [(make(m, k), make(n, k).T) for make in DATA.values()]
        pairs.append((cancelling(m, k), torch.randn(n, (k + 1) // 2).repeat_interleave(2, 1)[:, :k].T))
        for a, b in pairs:
            held += sum(check(a, b, recipe, kind) for kind in KINDS)
    total = 2 * 10 * sum(m * n for m, _, n in shapes)
    overflows = "fp16" in recipe.name or recipe.name == "bf16-random"
    assert held > (0.2 if overflows else 0.99) * total


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda r: r.name)
def test_bounds_hold_at_the_ends_of_float32(recipe):
    held = 0
    for make in EXTREME.values():
        for other in (torch.randn, EXTREME["1e-38"], EXTREME["1e30"], make):
            a, b = make(6, 40), other(5, 40).T
            held += sum(check(a, b, recipe, kind) + check(b.T, a.T, recipe, kind) for kind in KINDS)
    assert held > 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("recipe", [FULL, DEEPSEEK_V3, DEEPSEEK_V3_POW2, MXFP8], ids=lambda r: r.name)
def test_bounds_hold_for_other_dtypes_and_more_axes(dtype, recipe):
    for kind in KINDS:
        a, b = torch.randn(2, 3, 5, 200).to(dtype), torch.randn(200, 7).to(dtype)
        assert check(a, b, recipe, kind) == 2 * 3 * 5 * 7
        assert check(1e-6 * a, b, recipe, kind) > 0
        check(1000 * a, 1000 * b, recipe, kind)  # infinite in float16


@pytest.mark.parametrize("recipe", [DEEPSEEK_V3, MXFP8, ROWWISE], ids=lambda r: r.name)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_long_sums(recipe, kind):
    for make in (torch.randn, torch.rand):
        assert check(make(16, 4096), make(4096, 16), recipe, kind) == 256
    assert check(2e-3 * torch.rand(16, 4096), torch.rand(4096, 16), NAIVE, kind) == 256
    promoted = recipe.with_(accumulator=Accumulator.tensor_core(13, 128))
    assert check(torch.rand(16, 4096), torch.rand(4096, 16), promoted, kind) == 256


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_quantized_weights(kind):
    a, b = torch.randn(9, 300), torch.randn(300, 20)
    for scale in ("fp32", "pow2"):
        codes = quantize(b, E4M3, (128, 128), scale)
        assert check(a, codes, DEEPSEEK_V3, kind) == 180
        assert check(a, codes, DEEPSEEK_V3_POW2, kind) == 180
        if scale == "pow2":  # otherwise the backend refuses them
            assert check(a, codes, DEEPSEEK_V3_POW2.with_(backend="bf16"), kind) == 180
        less = bound(a, codes, DEEPSEEK_V3, kind) < bound(a, b, DEEPSEEK_V3, kind)
        assert less.double().mean() > 0.99


def test_every_backend_stays_within_the_bound_of_any():
    a, b = torch.randn(32, 512), torch.randn(512, 32)
    for recipe, backends in (
        (DEEPSEEK_V3, ("dequantize", "blocks")),
        (DEEPSEEK_V3_POW2, ("dequantize", "bf16", "blocks")),
        (ROWWISE, ("dequantize", "blocks", "hardware")),
    ):
        for kind in KINDS:
            limit, exact = bound(a, b, recipe, kind), exact_product(a, b)
            for backend in backends:
                y = matmul(a, b, recipe.with_(backend=backend))
                assert ((y.double() - exact).abs() <= limit).all()


def test_gradients_have_the_bound_of_their_casts():
    a = torch.randn(40, 256, requires_grad=True)
    b = torch.randn(256, 24, requires_grad=True)
    g = 1e-3 * torch.randn(40, 24)
    recipe = RECIPES["tensorwise"]
    matmul(a, b, recipe).backward(g)
    for actual, x, y, casts in (
        (a.grad, g, b.mT, (recipe.gradient, recipe.weight)),
        (b.grad.mT, g.mT, a, (recipe.gradient, recipe.activation)),
    ):
        limit = bound(x, y, recipe.with_(activation=casts[0], weight=casts[1]))
        error = (actual.double() - exact_product(x, y)).abs()
        assert (error <= limit).all()
        assert (error > limit / 100).any()


# how close they are


@pytest.mark.parametrize("depth", [128, 1024])
@pytest.mark.parametrize(
    "name", ["deepseek-v3", "deepseek-v3-pow2", "tensorwise", "rowwise", "mxfp8", "naive"]
)
def test_bounds_are_as_close_as_they_can_be(name, depth):
    """See ``tightness`` for the origin of the numbers."""
    a, b = torch.randn(64, depth), torch.randn(depth, 64)
    median, closest = tightness(a, b, name)
    assert 1.8 < median / math.sqrt(depth) < 2.6
    assert closest < 0.5 * math.sqrt(depth)
    median, closest = tightness(a, b, name, "probabilistic")
    assert 17 < median < 23
    assert 2.5 < closest < 4.5


@pytest.mark.parametrize(
    ("accumulator", "positive", "most"),
    [
        (Accumulator.tensor_core(), True, 16),
        (Accumulator.tensor_core(8), True, 9),
        (Accumulator.tensor_core(), False, 140),
        (Accumulator.tensor_core(13, 128), True, 110),
        (Accumulator.bf16(), True, 25),
        (Accumulator.bf16("stochastic", promote_every=64), True, 900),
        (Accumulator.bf16(), False, 3500),
    ],
)
def test_bounds_of_accumulators_are_not_vacuous(accumulator, positive, most):
    """Sums of one sign come close: all are truncated in one direction."""
    make = torch.rand if positive else torch.randn
    median, _ = tightness(make(64, 1024), make(1024, 64), ROWWISE.with_(accumulator=accumulator))
    assert most / 2.5 < median < most


@pytest.mark.parametrize("rule", ["fp32", "pow2", "ocp", "none"])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, E2M1, E4M3FNUZ, INT8], ids=str)
def test_every_number_stays_within_its_own_limit(fmt, rule):
    """At the midpoints of neighbors and beside them, where x / scale may be rounded to the other side."""
    values = fmt.values[(fmt.values >= 0) & (fmt.values <= fmt.max)].unique()
    ties = torch.cat(((values[1:] + values[:-1]) / 2, values)).float()
    scale = 1 + torch.rand(1000, 1) if rule == "fp32" else torch.ones(1, 1)
    largest = {"none": 3.0, "ocp": 1.004}.get(rule, 1.0) * fmt.max * scale
    x = torch.cat((largest, ties * scale, ties.nextafter(torch.tensor(0.0)) * scale, ties * 0.99 * scale), 1)
    operand = cast_operand(x, Cast(fmt, (1, None), rule), -1)
    limits = _ranges(operand, FULL)
    error = (operand.dequantized - operand.original).abs()
    assert (error <= limits.rounding + limits.known_error * (1 + 1e-15)).all()
    known = limits.center != limits.size
    torch.testing.assert_close(error[known], limits.known_error[known], rtol=1e-12, atol=0)
    assert known.any()
    assert not (known & (limits.rounding > 0)).any()


def test_an_operands_blocks_and_its_rounding_to_bf16():
    x = torch.randn(20, 30)
    cast = Cast(E4M3, (3, 5))
    assert cast_operand(x, cast, -1).side == cast_operand(x, cast, -2).side == 5
    assert cast_operand(x, Cast(E4M3), -1).side is cast_operand(x, None, -2).side is None
    recipe = DEEPSEEK_V3_POW2.with_(backend="bf16")
    for scale, exact in (("pow2", True), ("fp32", False)):  # weights may come with any scales
        operand = cast_operand(quantize(x, E4M3, (3, 5), scale), None, -2)
        limits = _ranges(operand, recipe)
        assert bool((limits.rounding == 0).all()) == exact
        assert (
            (operand.dequantized.bfloat16().double() - operand.dequantized).abs() <= limits.rounding
        ).all()


def test_bf16_multiplications_may_flush_subnormal_numbers_to_0():
    for size_a, size_b in ((1e-39, 1.0), (1e-20, 1e-20)):
        a, b = (size_a * torch.randn(64, 64)).bfloat16(), (size_b * torch.randn(64, 64)).bfloat16()
        for kind in KINDS:
            assert check(a, b, FULL.with_(output=BF16), kind) == 64 * 64


CODES = {
    "any": lambda fmt, *shape: some(fmt.values[fmt.values.abs() <= 448], *shape),
    "positive": lambda fmt, *shape: some(fmt.values[(fmt.values > 0) & (fmt.values <= 448)], *shape),
    "subnormal": lambda fmt, *shape: some(fmt.values[fmt.values.abs() < fmt.min_normal], *shape),
    "one": lambda fmt, *shape: some(fmt.values[(fmt.values > 0) & (fmt.values <= 2)], 1, 1).expand(shape),
}


def some(values, *shape):
    return values[torch.randint(len(values), shape)].float()


@pytest.mark.parametrize("fmt", [E4M3, E5M2, FP16], ids=str)
@pytest.mark.parametrize(
    "accumulator",
    [
        Accumulator.fp32(),
        Accumulator.fp32(promote_every=1),
        *(Accumulator.tensor_core(bits) for bits in (1, 2, 3, 4, 13, 22, 25, 40)),
        Accumulator.tensor_core(8, promote_every=32),
        Accumulator.bf16(),
        Accumulator.fp16(promote_every=7),
        Accumulator.bf16("stochastic"),
    ],
)
def test_accumulators_stay_within_their_part_of_the_bound(accumulator, fmt):
    """Sums of codes alone, where no rounding of operands hides a mistake."""
    for depth in (1, 31, 32, 33, 150):
        for name, make in CODES.items():
            a, b = make(fmt, 16, depth), make(fmt, depth, 16)
            model = RoundingModel("deterministic" if name == "one" else "probabilistic", 1e-9, 256, depth)
            sums, limit = sums_of_codes(a.abs().double(), b.abs().double(), (fmt, fmt), accumulator, model)
            torch.testing.assert_close(sums, a.abs().double() @ b.abs().double())
            error = (accumulator.matmul(a, b, formats=(fmt, fmt)).double() - a.double() @ b.double()).abs()
            assert (error <= limit)[limit.isfinite()].all(), (depth, name)


def test_a_tensor_core_truncates_its_terms_and_then_their_sum():
    """31 times 1.249 with 2 bits: each becomes 1, and 31 becomes 28. Two truncations, not one."""
    a, one = torch.full((1, 31), 1 + 255 / 1024), torch.ones(31, 1)
    core, formats = Accumulator.tensor_core(2), (FP16, FP16)
    assert float(core.matmul(a, one, formats=formats)) == 28
    model = RoundingModel("deterministic", 0.5, 1, 31)
    _, limit = sums_of_codes(a.double(), one.double(), formats, core, model)
    assert 31 * a[0, 0] - 28 <= float(limit) < 2 * (31 * a[0, 0] - 28)


def test_float32_sums_stay_within_their_part_of_the_bound():
    a, b = torch.rand(4, 2000), torch.rand(2000, 4)
    exact = a.double() @ b.double()
    for every in (None, 1, 100):
        accumulator = Accumulator.fp32(every)
        error = (accumulator.matmul(a, b, formats=(FP32, FP32)).double() - exact).abs()
        for kind in KINDS:
            model = RoundingModel(kind, 1e-9, 16, 2000)
            _, limit = sums_of_codes(a.double(), b.double(), (FP32, FP32), accumulator, model)
            assert (error <= limit).all()
        assert (error > limit / 1000).any()


def test_exact_operands_and_sums_come_near_the_bound():
    """No slack in the worst case: every number a midpoint, all rounded in one direction."""
    a, one = torch.full((4, 64), 1 + 1 / 16), torch.ones(64, 4)
    error = (matmul(a, one, NAIVE).double() - exact_product(a, one)).abs()
    # The bound has u 2^0 for each factor; that the ones are exact is not assumed.
    assert 0.45 < float((error / bound(a, one, NAIVE)).min()) < 0.51
    a, recipe = torch.full((4, 64), 1.75), same("fp4", Cast(E2M1, None, "none"))
    error = (matmul(a, a.T, recipe).double() - exact_product(a, a.T)).abs()
    torch.testing.assert_close(bound(a, a.T, recipe), error, rtol=1e-4, atol=0)  # 2 * 2 for 1.75 * 1.75
    a = torch.full((4, 64), 1000.0)
    error = (matmul(a, one, NAIVE).double() - exact_product(a, one)).abs()
    saturated = bound(a, one, NAIVE) - 448 * 64 / 16
    torch.testing.assert_close(saturated, error, rtol=1e-4, atol=0)
    a, b = (1e15 * (1 + torch.rand(9, 80)) for _ in "ab")
    error = (matmul(a, b.T, NAIVE).double() - exact_product(a, b.T)).abs()
    assert (error <= bound(a, b.T, NAIVE)).all()  # where float64's own rounding is the only slack
    a = torch.full((4, 64), 5e-4)
    error = (matmul(a, one, NAIVE).double() - exact_product(a, one)).abs()
    torch.testing.assert_close(bound(a, one, NAIVE), error, rtol=1e-4, atol=0)


def test_probabilistic_bounds_are_never_larger_and_shrink_with_the_failure():
    a, b = torch.randn(20, 600), torch.randn(600, 20)
    random = ROWWISE.with_(accumulator=Accumulator.bf16("stochastic"))
    for recipe in (DEEPSEEK_V3, FULL, random, ROWWISE.with_(accumulator=Accumulator.tensor_core())):
        sure, likely = (bound(a, b, recipe, kind) for kind in KINDS)
        assert (likely < sure).all()
        assert (bound(a, b, recipe, "probabilistic", failure=1e-3) < likely).all()
    one = bound(a[:, :1], b[:1], DEEPSEEK_V3)
    assert torch.equal(one, bound(a[:, :1], b[:1], DEEPSEEK_V3, "probabilistic"))


def test_the_failure_probability_is_respected():
    """With a failure of 1/2 at most half of the results may exceed the bound; in practice far fewer do."""
    failed = 0
    for _ in range(200):
        a, b = torch.randn(4, 256), torch.randn(256, 4)
        error = (matmul(a, b, DEEPSEEK_V3).double() - exact_product(a, b)).abs()
        failed += bool((error > bound(a, b, DEEPSEEK_V3, "probabilistic", failure=0.5)).any())
    assert failed <= 10


# where there is no bound, and where the model does not hold


def test_infinite_where_there_is_no_bound():
    a, b = torch.randn(4, 64), torch.randn(64, 5)
    a[1, 7], a[2, 9], b[3, 4] = torch.inf, torch.nan, -torch.inf
    for recipe in (FULL, DEEPSEEK_V3, same("fp4", Cast(E2M1, (1, 16))), DEEPSEEK_V3.with_(backend="blocks")):
        for kind in KINDS:
            infinite = bound(a, b, recipe, kind).isinf()
            assert infinite[1:3].all()
            assert infinite[:, 4].all()
            assert not infinite[[0, 3], :4].any()
    large = torch.full((2, 2), 1e20)
    assert bound(large, large, FULL).isinf().all()
    assert bound(large, large, DEEPSEEK_V3.with_(backend="blocks")).isinf().all()
    assert bound(large.double()[:1, :1] * 1e30, torch.full((1, 2), 1e-20), FULL).isinf().all()
    assert bound(large.half() * 0 + 300, large.half() * 0 + 300, FULL).isinf().all()  # 65504 in the result
    assert bound(large, 1e-2 * large, FULL.with_(output=BF16)).isfinite().all()
    assert bound(large, 1e-2 * large, FULL.with_(output=FP16)).isinf().all()


def test_sums_in_fp16_overflow_on_codes_that_use_e4m3s_range():
    """Trap: the codes are summed before they are scaled, and 448² is already 200704."""
    a, b = torch.randn(8, 256), torch.randn(256, 8)
    recipe = DEEPSEEK_V3.with_(accumulator=Accumulator.fp16())
    assert bound(a, b, recipe).isinf().all()
    assert not matmul(a, b, recipe).isfinite().all()
    assert bound(a / 8, b / 8, NAIVE.with_(accumulator=Accumulator.fp16())).isfinite().all()


def test_constants_exceed_the_probabilistic_bound():
    """Trap: all errors are equal, and add up like K. The deterministic bound holds."""
    a, b = torch.full((2, 4096), 1.06), torch.full((4096, 2), 1.0)
    recipe = same("unscaled", Cast(E4M3, None, "none"))
    error = (matmul(a, b, recipe).double() - exact_product(a, b)).abs()
    assert (error > 2 * bound(a, b, recipe, "probabilistic")).all()
    assert check(a, b, recipe, "deterministic") == 4


def sequential(terms_RK, fmt_accumulator):
    """The errors of each row's sum, one term added after another, and the sums of magnitudes."""
    ones = torch.ones(terms_RK.shape[1], 1)
    got = fmt_accumulator.matmul(terms_RK, ones).double()[:, 0]
    return (got - terms_RK.double().sum(1)).abs(), terms_RK.double().abs().sum(1)


@pytest.mark.parametrize(
    ("accumulator", "u", "depths"),
    [
        (Accumulator.fp16(), FP16.unit_roundoff, (64, 500, 4096)),
        (Accumulator.bf16(), BF16.unit_roundoff, (64, 250, 1024)),
    ],
    ids=["fp16", "bf16"],
)
def test_gamma_holds_for_16_bit_sums_and_the_square_root_only_for_random_signs(accumulator, u, depths):
    """Trap: a long sum of one sign absorbs small terms, always in one direction."""
    *short, long = depths
    for depth in short:
        signs, positive = (quantize(x / 8, E4M3, scale="none").dequantize() for x in (
            torch.randn(64, depth), 1 + torch.rand(64, depth)))  # fmt: skip
        for terms in (signs, positive):
            error, magnitude = sequential(terms, accumulator)
            assert (error <= gamma(depth, u) * magnitude).all()
        error, magnitude = sequential(signs, accumulator)
        assert (error <= gamma_probabilistic(depth, u, 2.0) * magnitude).all()
    positive = torch.full((1, long), 0.25)
    error, magnitude = sequential(positive, accumulator)
    assert error > 2 * gamma_probabilistic(long, u, 2.0) * magnitude
    random = Accumulator(accumulator.kind, rounding="stochastic")
    error, magnitude = sequential(positive.expand(8, -1), random)
    assert (error <= gamma_probabilistic(long, 2 * u, 2.0) * magnitude).all()


def test_gamma():
    assert gamma(0, 0.1) == 0
    assert gamma(4, 0.125) == pytest.approx(1.0)
    assert gamma(8, 0.125) == gamma(9, 0.125) == math.inf
    assert gamma_probabilistic(0, 0.1, 5.0) == 0
    assert gamma_probabilistic(10**6, 2.0**-24, 4.0) == pytest.approx(4e3 * 2.0**-24, rel=1e-3)
    assert gamma_probabilistic(10**6, 2.0**-24, 4.0) < gamma(10**6, 2.0**-24) / 200
    assert gamma_probabilistic(1e9, 0.5, 10.0) == math.inf


def test_empty_and_zero_sums():
    for recipe in (FULL, DEEPSEEK_V3, DEEPSEEK_V3_POW2, ROWWISE.with_(accumulator=Accumulator.tensor_core())):
        for kind in KINDS:
            assert bound(torch.zeros(3, 0), torch.zeros(0, 2), recipe, kind).max() < 1e-30
            assert bound(torch.zeros(0, 5), torch.randn(5, 2), recipe, kind).shape == (0, 2)
    zero = bound(torch.zeros(3, 64), torch.randn(64, 2), DEEPSEEK_V3)
    assert zero.max() < 1e-40
    assert torch.equal(multiply(torch.zeros(3, 64), torch.randn(64, 2), None, None, FULL), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "average"}, "deterministic, probabilistic, not 'average'"),
        ({"failure": 0.0}, "not 0.0"),
        ({"failure": 1.0}, "not 1.0"),
        ({"recipe": "v4"}, "unknown recipe 'v4'"),
        ({"b_KN": torch.ones(5, 4)}, r"\(5, 4\)"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    arguments = {"a_MK": torch.ones(2, 3), "b_KN": torch.ones(3, 4), "recipe": FULL} | arguments
    with pytest.raises(ValueError, match=message):
        bound(**arguments)
