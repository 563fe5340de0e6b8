"""[evidence] Quantization noise of each format, by the block that shares a scale and by scale rule."""

import torch

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.measurement import Measured
from minimoe.precision import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FP16,
    INT8,
    Format,
    fake_quantize,
    measure_error,
    round_to,
)
from minimoe.precision.arguments import Block, ScaleRule
from minimoe.reporting.tables import TextTable

BLOCKS: dict[str, Block | None] = {"tensor": None, "1×128": (1, 128), "128×128": (128, 128), "1×32": (1, 32)}

SCALED = (E4M3, E5M2, INT8, E3M2, E2M3, E2M1)
UNSCALED = (FP16, BF16)

RULES: dict[str, ScaleRule] = {
    "fp32": "fp32",
    "power of two, up": "pow2",
    "power of two, nearest": "pow2_nearest",
    "power of two, down": "pow2_down",
    "OCP MX": "ocp",
}

RULE_CASES: dict[str, tuple[Format, Block]] = {
    "E4M3, 1×128": (E4M3, (1, 128)),
    "E4M3, 1×32": (E4M3, (1, 32)),
    "E2M1, 1×32": (E2M1, (1, 32)),
}


def signal_to_noise(size: int, seed: int = 0) -> Detail:
    """Signal to noise in dB of size × size normal numbers, by format and block and by scale rule."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))

    def sqnr(fmt: Format, block: Block | None, rule: ScaleRule = "fp32") -> float:
        return measure_error(fake_quantize(x, fmt, block, rule), x).sqnr_db

    formats = {str(fmt): [sqnr(fmt, block) for block in BLOCKS.values()] for fmt in SCALED}
    formats |= {str(fmt): [measure_error(round_to(x, fmt), x).sqnr_db] for fmt in UNSCALED}
    cases = RULE_CASES.values()
    rules = {name: [sqnr(fmt, block, rule) for fmt, block in cases] for name, rule in RULES.items()}
    return {"size": size, "formats": formats, "rules": rules}


def measure(context: RunContext) -> Measured:
    size = context.pick(256, 1024)
    detail = signal_to_noise(size, context.seed)
    values = {fmt: [ratios[0]] for fmt, ratios in detail["formats"].items()}
    ran = f"{size}×{size} normal numbers rounded to each format, one scale per tensor."
    return Measured(values, detail, ran)


def tables(detail: Detail) -> list[TextTable]:
    def rows(ratios: dict[str, list[float]], columns: int) -> list[list[str]]:
        cells = {name: [f"{x:.1f}" for x in row] for name, row in ratios.items()}
        return [[name, *row, *[""] * (columns - len(row))] for name, row in cells.items()]

    numbers = f"{detail['size']}×{detail['size']} normal numbers"
    by_format = f"Signal to noise in dB of {numbers}, by format and block that shares a scale."
    by_rule = "Signal to noise in dB by the rule that computes a scale from a block's largest magnitude."
    return [
        TextTable("signal-to-noise", by_format, ["format", *BLOCKS], rows(detail["formats"], len(BLOCKS))),
        TextTable("rules-of-scale", by_rule, ["scale", *RULE_CASES], rows(detail["rules"], len(RULE_CASES))),
    ]


UNITS = dict.fromkeys(map(str, SCALED + UNSCALED), " dB")

QUANTIZATION_NOISE = Experiment(measure, tables=tables, seconds=(1, 5), units=UNITS)
