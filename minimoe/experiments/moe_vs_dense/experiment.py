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


def jobs_by_model(context: RunContext) -> dict[str, list[TrainingJob]]:
    preset = choose_preset(context)
    return {
        name: jobs_per_seed(context, name, model, preset.lr[name]) for name, model in preset.models().items()
    }


def all_jobs(context: RunContext) -> list[TrainingJob]:
    return [job for jobs in jobs_by_model(context).values() for job in jobs]


def measure(context: RunContext) -> Measured:
    context.train(all_jobs(context))
    preset = choose_preset(context)
    curves = {
        name: [read_curve(context.job_folder(job) / "records.jsonl", job.model, job.training) for job in jobs]
        for name, jobs in jobs_by_model(context).items()
    }
    comparison = Comparison(curves, preset.models())
    values = {
        f"{rival}, {axis}": comparison.leads(rival, axis)
        for rival in ("dense-active", "dense-total")
        for axis in ("flops", "seconds")
    }
    values |= {name: comparison.reached(name, "flops") for name in curves}
    for name, of_seeds in curves.items():
        tokens = preset.training.batch_size * preset.training.accumulate * preset.moe.context
        values[f"{name}, ms per step"] = [1e3 * tokens / curve.tokens_per_second for curve in of_seeds]
    moe = preset.moe
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
