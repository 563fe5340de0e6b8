"""[evidence] Shared expert: with one, with one more routed expert instead, and with it switched off."""

from dataclasses import replace

from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured
from minimoe.experiments.moe_jobs import choose_preset, jobs_per_seed, moe_jobs
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.reporting.figures import draw_dots
from minimoe.training.trainer import Trainer


def without_shared(config: ModelConfig) -> ModelConfig:
    """No shared expert and one more routed expert per token: equal active parameters."""
    return replace(config, n_shared=0, top_k=config.top_k + config.n_shared)


def all_jobs(context: RunContext) -> list[TrainingJob]:
    preset = choose_preset(context)
    routed_only = jobs_per_seed(context, "routed-only", without_shared(preset.moe), preset.lr["moe"])
    return [*moe_jobs(context), *routed_only]


def measure(context: RunContext) -> Measured:
    jobs = context.train(all_jobs(context))
    shared, routed_only = ([context.final_bits(job) for job in jobs[name]] for name in ("moe", "routed-only"))
    switched_off = [bits_switched_off(context, job) for job in jobs["moe"]]
    config = choose_preset(context).moe
    return Measured(
        {
            "gain": [without - with_ for with_, without in zip(shared, routed_only, strict=True)],
            "loss": [off - on for on, off in zip(shared, switched_off, strict=True)],
            "with": shared,
            "without": routed_only,
            "switched off": switched_off,
        },
        {"with a shared expert": shared, "routed experts only": routed_only}
        | {"shared expert switched\noff after training": switched_off},
        f"MoE models of {config.n_experts} experts, with one shared and {config.top_k} routed per token, and "
        f"with none shared and {config.top_k + 1} routed, trained alike with {context.seeds} seeds. Then the "
        "shared expert of the trained models is switched off and one more routed expert per token is used, "
        "as in DeepSeekMoE (section 4.5, where the loss rose from 1.808 to 2.414).",
    )


def bits_switched_off(context: RunContext, job: TrainingJob) -> float:
    """Bits per byte without the trained shared expert, with one more routed expert per token."""
    trained = context.model(job)
    model = GPT(without_shared(job.model))
    model.load_state_dict({n: t for n, t in trained.state_dict().items() if ".shared_experts." not in n})
    trainer = Trainer(model, context.corpus, replace(job.training, average=0.0), context.device)
    return trainer.evaluate().bits_per_byte


def draw(figure: Figure, detail: dict[str, list[float]]) -> None:
    axes = figure.subplots()
    draw_dots(axes, detail)
    axes.set(ylabel="validation bits per byte", xlim=(-0.5, len(detail) - 0.5))


SHARED_EXPERT = Experiment(measure, draw, all_jobs, seconds=(2, 5))
