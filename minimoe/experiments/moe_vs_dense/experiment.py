"""[evidence] MoE against dense: a mixture of experts and two dense networks, trained on the same batches.

Run by ``minimoe compare`` (sizes by preset) and by the claim ``much-more-efficient``.
"""

from minimoe.cost import parameters
from minimoe.experiments.context import RunContext
from minimoe.experiments.curves import read_curve
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.moe_jobs import choose_preset, jobs_per_seed
from minimoe.experiments.moe_vs_dense.figure import draw
from minimoe.experiments.moe_vs_dense.results import Comparison, tables
from minimoe.reporting.figures import STYLES


def all_jobs(context: RunContext) -> list[TrainingJob]:
    preset = choose_preset(context)
    models = preset.models().items()
    return [job for name, model in models for job in jobs_per_seed(context, name, model, preset.lr[name])]


def measure(context: RunContext) -> Measured:
    preset = choose_preset(context)
    curves = {
        name: [read_curve(context.job_folder(job) / "records.jsonl", job.model, job.training) for job in jobs]
        for name, jobs in context.train(all_jobs(context)).items()
    }
    comparison = Comparison(curves, preset.models())
    values = {
        f"{rival}, {axis}": comparison.leads(rival, axis)
        for rival in ("dense-active", "dense-total")
        for axis in ("flops", "seconds")
    }
    values |= {name: comparison.reached(name, "flops") for name in curves}
    moe = preset.moe
    tokens = preset.training.batch_size * preset.training.accumulate * moe.context
    for name, of_seeds in curves.items():
        values[f"{name}, ms per step"] = [1e3 * tokens / curve.tokens_per_second for curve in of_seeds]
    return Measured(
        values,
        comparison.as_dict(),
        f"An MoE model of {parameters(moe):,} parameters ({moe.n_experts} experts, {moe.top_k} per token, "
        f"one shared), {parameters(moe, active=True):,} of them active, against dense networks with as many "
        f"active and as many total parameters: {preset.training.steps} steps on the same text, "
        f"{context.seeds} seeds. Curves are compared at the budget of the cheapest model's whole run; "
        "seconds are those of the median step, with the models training in turns.",
    )


MOE_VS_DENSE = Experiment(
    measure,
    draw,
    all_jobs,
    tables,
    units={f"{name}, ms per step": " ms" for name in STYLES},
    figure_size=(12, 4.2),
)
