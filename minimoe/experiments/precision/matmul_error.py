"""[evidence] Matmul error: one product under each recipe, and how far the error bounds are above the error.

Dimensions: M, N, K of a product, K contracted.
"""

from typing import get_args

import torch

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.experiments.precision.accumulation import INPUTS
from minimoe.precision import RECIPES, ROWWISE, Accumulator, matmul, measure_error
from minimoe.precision.analysis import BoundKind, tightness
from minimoe.reporting.tables import TextTable

SMALL = 1e-4  # the size of gradients beside weights

BOUNDED = dict(RECIPES) | {
    "rowwise, tensor core": ROWWISE.with_(accumulator=Accumulator.tensor_core()),
    "the same, promoted": ROWWISE.with_(accumulator=Accumulator.tensor_core(promote_every=128)),
    "rowwise, bf16 sums": ROWWISE.with_(accumulator=Accumulator.bf16()),
}


def product_errors(size: int, depth: int, seed: int = 0) -> Detail:
    """Errors of one size × size product of normal numbers, K = depth, by recipe."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(size, depth, generator=generator), torch.randn(depth, size, generator=generator)
    exact = a.double() @ b.double()
    errors = {}
    for name, recipe in RECIPES.items():
        error = measure_error(matmul(a, b, recipe), exact, a=a, b=b)
        of_small = measure_error(matmul(SMALL * a, b, recipe), SMALL * exact)
        errors[name] = error._asdict() | {"relative, small": of_small.relative}
    return {"size": size, "depth": depth, "errors": errors}


def bound_ratios(size: int, depth: int, seed: int = 0) -> Detail:
    """Bound over error of a size × size product, K = depth: (median, minimum) by recipe, inputs and bound."""
    ratios = []
    for inputs in ("normal", "uniform [0, 1)"):
        generator = torch.Generator().manual_seed(seed)
        a, b = (INPUTS[inputs](*shape, generator=generator) for shape in ((size, depth), (depth, size)))
        for name, recipe in BOUNDED.items():
            values = [tightness(a, b, recipe, kind) for kind in get_args(BoundKind)]
            ratios.append({"recipe": name, "numbers": inputs, "ratios": values})
    return {"size": size, "depth": depth, "ratios": ratios}


def measure_products(context: RunContext) -> Measured:
    size, depth = context.pick((128, 1024), (512, 4096))
    detail = product_errors(size, depth, context.seed)
    values = {name: [100 * error["relative"]] for name, error in detail["errors"].items()}
    ran = f"A {size}×{size} product of normal numbers, K = {depth}, against float64."
    return Measured(values, detail, ran)


def measure_bounds(context: RunContext) -> Measured:
    size, depth = context.pick((16, 256), (64, 1024))
    detail = bound_ratios(size, depth, context.seed)
    least = [min(ratio for _, ratio in row["ratios"]) for row in detail["ratios"]]
    ran = f"A {size}×{size} product, K = {depth}: the smallest ratio of an error bound to the error."
    return Measured({"bound over error": [min(least)]}, detail, ran)


def product_tables(detail: Detail) -> list[TextTable]:
    rows = []
    for name, error in detail["errors"].items():
        relative = (error["relative"], error["relative, small"])
        others = (f"{error['sqnr_db']:.1f}", f"{error['calc_diff']:.1e}", f"{error['backward']:.1e}")
        rows.append([name, *(f"{x:.2%}" if x > 1e-4 else f"{x:.1e}" for x in relative), *others])
    about = (
        f"Error of a {detail['size']}×{detail['size']} product of normal numbers, K = {detail['depth']}, by "
        f"recipe: relative (Frobenius); the same with one factor scaled by {SMALL:g}, as gradients are; and "
        "other measures."
    )
    headings = ["recipe", "relative", "of small numbers", "dB", "calc_diff", "by component"]
    return [TextTable("products", about, headings, rows)]


def bound_tables(detail: Detail) -> list[TextTable]:
    rows = [
        [row["recipe"], row["numbers"], *(f"{median:.0f} ({least:.1f})" for median, least in row["ratios"])]
        for row in detail["ratios"]
    ]
    about = (
        f"Error bound over error of a {detail['size']}×{detail['size']} product, K = {detail['depth']}: the "
        "median, and in brackets the minimum; below 1 the bound would be broken."
    )
    return [TextTable("bounds", about, ["recipe", "numbers", *get_args(BoundKind)], rows)]


MATMUL_ERROR = Experiment(
    measure_products, tables=product_tables, seconds=(1, 10), units=dict.fromkeys(RECIPES, " %")
)

ERROR_BOUNDS = Experiment(measure_bounds, tables=bound_tables, seconds=(1, 10))
