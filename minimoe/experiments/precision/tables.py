"""What 8 bits lose and 32-bit sums save, measured now: the tables behind ``minimoe precision``.

Every figure is measured when its function runs; a seed fixes the random numbers. Dimensions: M, N, K of a
product, K contracted.
"""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from minimoe.precision import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FP16,
    INT8,
    RECIPES,
    ROWWISE,
    Accumulator,
    Format,
    fake_quantize,
    matmul,
    measure_error,
    round_to,
)
from minimoe.precision.analysis.bounds import Kind, tightness
from minimoe.precision.analysis.error import decibels
from minimoe.precision.blockwise import Block
from minimoe.precision.scales import Scale
from minimoe.reporting.tables import TextTable

BLOCKS: dict[str, Block | None] = {"tensor": None, "1×128": (1, 128), "128×128": (128, 128), "1×32": (1, 32)}

RULES: dict[str, Scale] = {
    "fp32": "fp32",
    "power of two, up": "pow2",
    "power of two, nearest": "pow2_nearest",
    "power of two, down": "pow2_down",
    "OCP MX": "ocp",
}

DRAWS: dict[str, Callable[..., Tensor]] = {
    "uniform [0, 1)": torch.rand,
    "normal + 1": lambda *shape, generator: torch.randn(*shape, generator=generator) + 1,
    "normal": torch.randn,
}


def signal_to_noise(size: int = 1024, seed: int = 0) -> TextTable:
    """Normal numbers rounded to each format under each kind of scale."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))

    def noise(fmt: Format, block: Block | None, rule: Scale = "fp32") -> str:
        return f"{measure_error(fake_quantize(x, fmt, block, rule), x).sqnr_db:.1f}"

    rows = [
        [str(fmt), *(noise(fmt, block) for block in BLOCKS.values())]
        for fmt in (E4M3, E5M2, INT8, E3M2, E2M3, E2M1)
    ]
    for fmt in (FP16, BF16):  # without any scale
        rows.append(
            [str(fmt), f"{measure_error(round_to(x, fmt), x).sqnr_db:.1f}", *[""] * (len(BLOCKS) - 1)]
        )
    about = f"Signal to noise in dB of {size}×{size} normal numbers, by format and by what shares a scale."
    return TextTable("signal-to-noise", about, ["format", *BLOCKS], rows)


def rules_of_scale(size: int = 1024, seed: int = 0) -> TextTable:
    """The same numbers in E4M3 and E2M1, by how the scale is made."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    columns: dict[str, tuple[Format, Block]] = {
        "E4M3, 1×128": (E4M3, (1, 128)),
        "E4M3, 1×32": (E4M3, (1, 32)),
        "E2M1, 1×32": (E2M1, (1, 32)),
    }
    rows = [
        [
            name,
            *(
                f"{measure_error(fake_quantize(x, fmt, block, rule), x).sqnr_db:.1f}"
                for fmt, block in columns.values()
            ),
        ]
        for name, rule in RULES.items()
    ]
    about = "Signal to noise in dB by the rule that makes a scale of a block's largest number."
    return TextTable("rules-of-scale", about, ["scale", *columns], rows)


def outliers(size: int = 4096, height: int = 2048, seed: int = 0) -> TextTable:
    """One column of many scaled by A: what becomes of the others, in E4M3."""
    x = torch.randn(height, size, generator=torch.Generator().manual_seed(seed))
    blocks = {name: block for name, block in BLOCKS.items() if name != "1×32"}
    rows = []
    for exponent in range(2, 7):
        y = x.clone()
        y[:, size // 3] *= 10.0**exponent
        cells = []
        for block in blocks.values():
            rounded = fake_quantize(y, E4M3, block)
            error = measure_error(rounded, y, outliers=torch.tensor([size // 3]))
            others = torch.arange(size) != size // 3
            lost = (rounded[:, others] == 0).double().mean().item()
            noise = decibels(error.off_outliers or 0.0)
            cells.append(f"{noise:.1f} ({lost:.0%} zeros; all: {error.sqnr_db:.1f})")
        rows.append([f"10^{exponent}", *cells])
    about = (
        f"One column of {size} scaled by A: signal to noise in dB of the *other* columns, the share of them "
        "that became zero, and what the usual measure over all columns says."
    )
    return TextTable("outliers", about, ["A", *blocks], rows)


def sums(size: int = 128, seed: int = 0) -> TextTable:
    """The same 8-bit numbers, their products' sums kept in several ways."""
    ways = {
        "float32": Accumulator.fp32(),
        "tensor core, 13 bits": Accumulator.tensor_core(),
        "the same, promoted every 128": Accumulator.tensor_core(promote_every=128),
        "fp16": Accumulator.fp16(),
        "bf16": Accumulator.bf16(),
    }
    rows = []
    for draw, numbers in DRAWS.items():
        for k in (512, 4096, 16384):
            generator = torch.Generator().manual_seed(seed)
            a, b = (round_to(numbers(*shape, generator=generator), E4M3) for shape in ((size, k), (k, size)))
            exact = a.double() @ b.double()  # exact in float64 up to K = 171,196
            cells = []
            for way in ways.values():
                error = measure_error(way.matmul(a, b), exact, a=a, b=b)
                worst = error.backward if draw == "normal" else error.max_relative
                cells.append(f"{worst:.1e}" if worst < 5e-4 else f"{worst:.2%}")
            rows.append([draw, str(k), *cells])
    about = (
        f"Worst error of {size}×{size} sums of K products of E4M3 numbers. Of positive numbers relative to "
        "the sum itself; of normal numbers, whose sums cancel, relative to the sum of magnitudes."
    )
    return TextTable("sums", about, ["numbers", "K", *ways], rows)


def products(size: int = 512, depth: int = 4096, seed: int = 0) -> TextTable:
    """One matmul of normal numbers under each recipe."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(size, depth, generator=generator), torch.randn(depth, size, generator=generator)
    exact = a.double() @ b.double()
    small = 1e-4
    rows = []
    for name, recipe in RECIPES.items():
        error = measure_error(matmul(a, b, recipe), exact, a=a, b=b)
        of_small = measure_error(matmul(small * a, b, recipe), small * exact)
        cells = [f"{x:.2%}" if x > 1e-4 else f"{x:.1e}" for x in (error.relative, of_small.relative)]
        rows.append([name, *cells, f"{error.sqnr_db:.1f}", f"{error.calc_diff:.1e}", f"{error.backward:.1e}"])
    about = (
        f"Error of a {size}×{size} product of normal numbers, K = {depth}, by recipe: relative (Frobenius); "
        f"the same where one factor is {small:g} as large, as gradients are; and other measures."
    )
    headings = ["recipe", "relative", "of small numbers", "dB", "calc_diff", "by component"]
    return TextTable("products", about, headings, rows)


def bounds(size: int = 64, depth: int = 1024, seed: int = 0) -> TextTable:
    """How much room the bounds leave."""
    core, promoted = Accumulator.tensor_core(), Accumulator.tensor_core(promote_every=128)
    cases = dict(RECIPES) | {
        "rowwise, tensor core": ROWWISE.with_(accumulator=core),
        "the same, promoted": ROWWISE.with_(accumulator=promoted),
        "rowwise, bf16 sums": ROWWISE.with_(accumulator=Accumulator.bf16()),
    }
    rows = []
    for draw in ("normal", "uniform [0, 1)"):
        generator = torch.Generator().manual_seed(seed)
        a, b = (DRAWS[draw](*shape, generator=generator) for shape in ((size, depth), (depth, size)))
        for name, recipe in cases.items():
            ratios = (tightness(a, b, recipe, kind) for kind in get_args(Kind))
            rows.append([name, draw, *(f"{median:.0f} ({least:.1f})" for median, least in ratios)])
    about = (
        f"Bound over error of a {size}×{size} product, K = {depth}: the median, and in brackets where the "
        "bound comes closest; below 1 it would be broken."
    )
    return TextTable("bounds", about, ["recipe", "numbers", *get_args(Kind)], rows)


TABLES: tuple[Callable[..., TextTable], ...] = (
    signal_to_noise, rules_of_scale, outliers, sums, products, bounds,
)  # fmt: skip
