"""``check_quantizer``: an assertion that a function rounds to a number format exactly."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from minimoe.precision.arguments import Overflow, check_choice
from minimoe.precision.formats import Format, as_format
from minimoe.precision.rounding import round_to

Nonfinite = Literal["keep", "saturate", "skip"]
Deterministic = Literal["nearest", "zero"]


def check_quantizer(
    fn: Callable[[Tensor], Tensor],
    fmt: Format | str,
    *,
    overflow: Overflow = "saturate",
    nonfinite: Nonfinite = "keep",
    rounding: Deterministic = "nearest",
    samples: int = 1 << 18,
    seed: int = 0,
) -> None:
    """Assert that ``fn`` rounds every number to ``fmt``, element by element, as ``round_to`` does.

    torch's own casts pass, with the policies of torch 2.13 (up to 2.11 E4M3's are "nan" and "keep"):

        check_quantizer(lambda x: x.to(torch.float8_e4m3fn), E4M3, nonfinite="saturate")
        check_quantizer(lambda x: x.to(torch.float8_e5m2), E5M2, overflow="inf")

    The checks, each over vectors of float32:

        numbers       every number of the format is unchanged
        ties          midpoints of two neighbors, to the even one
        beside        one step of float32 below and above every tie and every number
        bf16, fp16    every number of these formats
        random        float32 bit patterns: half from all, half from the format's range
        overflow      all of these that are finite and greater than the largest number, ``fmt.max``
        symmetry      fn(-x) is -fn(x)
        order         fn never falls as x rises
        independence  order, other elements, shape and strides change nothing (a hidden scale would)
        zeros         the signs of zeros, and of numbers that round to them
        nonfinite     infinities and NaNs

    Args:
        fn: maps a float32 tensor to the rounded numbers, in its shape, as float32 or ``fmt.dtype``.
        fmt: a format of at most 20 bits whose numbers all fit float32. For E8M0 the inputs are positive: 0
            and negative numbers, on which implementations disagree, are not checked.
        overflow: what ``fn`` does with finite numbers that round beyond the largest.
        nonfinite: "keep", as ``round_to`` does: NaN stays NaN, an infinity stays one, or becomes NaN if the
            format has none; "saturate": infinities become ±max, NaN stays NaN; "skip": not checked.
        rounding: to nearest, ties to even, or toward zero.
        samples: number of random inputs.

    Raises:
        AssertionError: which checks failed, for how many inputs, and the three smallest of these; or ``fn``
            raised an exception, or returned a wrong shape or dtype.
        ValueError: an unknown policy, or a format that this check does not support.
    """
    fmt = as_format(fmt)
    check_choice("nonfinite", nonfinite, Nonfinite)
    check_choice("rounding", rounding, Deterministic)

    def call(x: Tensor) -> Tensor:
        return _call(fn, x, fmt)

    def reference(x: Tensor) -> Tensor:
        y = round_to(x, fmt, rounding=rounding, overflow=overflow)
        return y.where(~x.isinf(), x.clamp(-fmt.max, fmt.max)) if nonfinite == "saturate" else y

    inputs = {name: (x, reference(x)) for name, x in _inputs(fmt, samples, seed).items()}
    checks = [_Check(name, x, call(x), expected) for name, (x, expected) in inputs.items()]
    x = torch.cat([x for name, (x, _) in inputs.items() if name != "random"]).unique()
    checks += _relations(call, x, fmt)
    if fmt.signed:
        zeros = torch.cat((torch.tensor((0.0, -0.0)), x[(x != 0) & (x.abs() < fmt.min_subnormal)]))
        got, expected = call(zeros), reference(zeros)
        both = (got == 0) & (expected == 0)  # the checks above cover the others
        checks.append(_Check("zeros", zeros[both], got[both], expected[both], signed_zeros=True))
    if nonfinite != "skip":
        bits = (0x7F800000, 0x7FC00000, 0x7F800001)  # infinity, a quiet and a signalling NaN
        special = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        special = torch.cat((special, -special)) if fmt.signed else special
        checks.append(_Check("nonfinite", special, call(special), reference(special)))
    failed = [check for check in checks if len(check.wrong)]
    if failed:
        head = f"{fmt}: {len(failed)} of {len(checks)} checks failed"
        raise AssertionError("\n".join((head, *map(str, failed))))


class _Check:
    """One check's inputs, results and expected results: three float32 tensors (N,)."""

    def __init__(self, name: str, x: Tensor, got: Tensor, expected: Tensor, *, signed_zeros: bool = False):
        same = got == expected
        if signed_zeros:
            same &= got.signbit() == expected.signbit()
        self.name, self.x, self.got, self.expected = name, x, got, expected
        self.wrong = (~(same | (got.isnan() & expected.isnan()))).nonzero().flatten()

    def __str__(self) -> str:
        lines = [f"  {self.name}: {len(self.wrong)} of {len(self.x)} inputs"]
        wrong = self.wrong[
            self.x[self.wrong].signbit().int().argsort(stable=True)
        ]  # positive before negative
        for i in wrong[self.x[wrong].abs().argsort(stable=True)[:3]]:
            x, got, expected = (float(t[i]) for t in (self.x, self.got, self.expected))
            bits = int(self.x[i].view(torch.int32)) % 2**32
            lines.append(f"    {x:.9g} ({_hex(x)}, bits {bits:08x}) -> {got:.9g}, expected {expected:.9g}")
        return "\n".join(lines)


def _hex(x: float) -> str:
    digits, mark, exponent = x.hex().partition("p")
    return digits.rstrip("0").rstrip(".") + mark + exponent if mark and x else x.hex()


def _inputs(fmt: Format, samples: int, seed: int) -> dict[str, Tensor]:
    """Finite inputs by name; all those beyond the format's largest number are in "overflow"."""
    values = fmt.values[fmt.values.isfinite()].unique()
    step = 2.0 ** (fmt.max_exponent - fmt.mantissa_bits)
    beyond = torch.tensor((fmt.max + step,), dtype=torch.float64)  # where the next number would be
    values = torch.cat((-beyond, values, beyond) if fmt.signed else (values, beyond))
    ties = ((values[1:] + values[:-1]) / 2).float()
    values = values.float()
    near = torch.cat((ties, values))
    infinity = torch.tensor(torch.inf)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    g = torch.Generator().manual_seed(seed)
    anything = torch.randint(-(2**31), 2**31, (samples // 2,), generator=g).int().view(torch.float32)
    low, high = (int(torch.tensor(v).view(torch.int32)) for v in (fmt.min_subnormal / 4, 2.0 * fmt.max))
    inside = torch.randint(low, high, (samples - samples // 2,), generator=g).int().view(torch.float32)
    sign = torch.randint(2, inside.shape, generator=g) * 2.0 - 1
    inputs = {
        "numbers": values,
        "ties": ties,
        "beside": torch.cat((near.nextafter(infinity), near.nextafter(-infinity))),
        "bf16": halves.view(torch.bfloat16).float(),
        "fp16": halves.view(torch.float16).float(),
        "random": torch.cat((anything, sign * inside)),
    }
    inputs = {k: x[x.isfinite() & ((x > 0) | fmt.signed)] for k, x in inputs.items()}
    overflow = torch.cat([x[x.abs() > fmt.max] for x in inputs.values()]).unique()
    return {k: x[x.abs() <= fmt.max] for k, x in inputs.items()} | {"overflow": overflow}


def _relations(call: Callable[[Tensor], Tensor], x: Tensor, fmt: Format) -> Iterator[_Check]:
    """Relations between fn's own results; x is sorted."""
    result = call(x)
    if fmt.signed:
        yield _Check("symmetry", -x, call(-x), -result)
    number = ~result.isnan()
    rising = result[number]
    yield _Check("order", x[number][1:], rising[1:], rising[1:].maximum(rising[:-1]))
    x = x[x.abs() <= fmt.max]
    x = x[x.abs().argsort(stable=True)]  # the halves differ in size, which a hidden scale depends on
    half = len(x) // 2
    even = 2 * half
    result = call(x)
    pieces = {
        "reversed": call(x.flip(0)).flip(0),
        "split": torch.cat((call(x[:half]), call(x[half:]))),
        "transposed": call(x[:even].view(half, 2).t()).t().reshape(even),
    }
    for name, got in pieces.items():
        yield _Check(f"independence ({name})", x[: len(got)], got, result[: len(got)])


def _call(fn: Callable[[Tensor], Tensor], x: Tensor, fmt: Format) -> Tensor:
    """fn(x) as float32; AssertionError for an exception or a wrong result type."""
    given = f"for float32 {tuple(x.shape)}"
    try:
        y = fn(x.clone())
    except Exception as error:
        raise AssertionError(f"{fmt}: {given}, fn raised {type(error).__name__}: {error}") from error
    dtypes = (torch.float32,) if fmt.dtype is None else (torch.float32, fmt.dtype)
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype not in dtypes:
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        names = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        raise AssertionError(f"{fmt}: {given}, fn returned {kind}; it must return {names} of that shape")
    return y.detach().float()
