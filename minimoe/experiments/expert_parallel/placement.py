"""[evidence] EPLB: load of the busiest of 8 ranks, with experts in order and rebalanced by measured loads."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Detail, Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.presets import PRESETS
from minimoe.moe import rebalance_experts
from minimoe.moe.eplb import contiguous
from minimoe.reporting.tables import TextTable
from minimoe.training.trainer import Trainer

RANKS, SLOTS = 8, 40  # for 32 experts

PLACEMENTS = ("in order", "for all text", "for this text")

COLUMNS = {
    "text": "{text}",
    "in order": "{in order:.2f}",
    "rebalanced for all text": "{for all text:.2f}",
    "rebalanced for this text": "{for this text:.2f}",
}


def jobs(context: RunContext) -> list[TrainingJob]:
    preset = PRESETS["quick"]
    return [TrainingJob(preset.moe, preset.training.shortened(context.pick(20, 200)), label="moe")]


def validation_loads(context: RunContext) -> dict[str, Tensor]:
    """(M, E) tokens per layer and expert, over all validation text and by domain."""
    (job,) = jobs(context)
    config = replace(job.training, average=0.0, autocast="off")  # the loaded weights are averages already
    counts_NME = Trainer(context.model(job), context.corpus, config, context.device).evaluate().counts_NME
    assert counts_NME is not None
    return {"all": counts_NME.sum(0)} | dict(zip(context.corpus.domains, counts_NME, strict=True))


def measure(context: RunContext) -> Measured:
    loads = validation_loads(context)
    layers, n_experts = loads["all"].shape
    in_order = contiguous(n_experts, RANKS, layers)
    for_all = rebalance_experts(loads["all"], SLOTS, n_ranks=RANKS)
    rows: list[dict[str, Any]] = []
    for text, loads_ME in loads.items():
        placements = (in_order, for_all, rebalance_experts(loads_ME, SLOTS, n_ranks=RANKS))
        imbalances = [each.imbalance(loads_ME, RANKS).mean().item() for each in placements]
        rows.append({"text": text} | dict(zip(PLACEMENTS, imbalances, strict=True)))
    return Measured(
        {f"{row['text']}, {name}": [row[name]] for row in rows for name in PLACEMENTS},
        {"placement": rows},
        f"Load of the busiest of {RANKS} ranks relative to the mean, averaged over layers, by the text that "
        f"a trained MoE model reads: its {n_experts} experts in order, and placed by EPLB on {SLOTS} slots.",
    )


def tables(detail: Detail) -> list[TextTable]:
    """From ``Measured.detail``, or from docs/results/parallel.json."""
    about = f"Load of the busiest of {RANKS} ranks relative to the mean, averaged over layers."
    return [TextTable.from_rows("placement", about, COLUMNS, detail["placement"])]


EPLB = Experiment(measure, jobs=jobs, tables=tables, seconds=(5, 10))
