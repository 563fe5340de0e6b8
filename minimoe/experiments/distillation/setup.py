"""[evidence] Setups of the distillation experiment: models, training, and the methods that are compared.

All students have the same initial weights. The learning rate is constant and evaluations use averaged
weights, so every point of a loss curve is a fair place to stop. One student trains longer without a teacher,
to be compared at equal FLOPs.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from minimoe.distill.config import DistillConfig
from minimoe.experiments.presets import COMPARABLE
from minimoe.models.config import ModelConfig
from minimoe.training.config import TrainConfig

TeacherName = Literal["dense", "mixture", "8 bits"]

ALONE, LONGER = "alone", "alone for longer"


@dataclass(frozen=True)
class Method:
    """How one student is trained, and by which teacher."""

    distill_config: DistillConfig
    teacher: TeacherName = "dense"


@dataclass(frozen=True)
class Setup:
    """Models, training and data of one distillation experiment."""

    teacher: ModelConfig
    mixture: ModelConfig
    """the second teacher, a mixture of experts"""
    student: ModelConfig
    training: TrainConfig
    """of the students, and except for the learning rate of the teachers"""
    teacher_lr: float
    ks: tuple[int, ...] = (1, 4, 16, 64)
    """teacher tokens per position that the top-k students see"""
    teacher_tokens: int = 300_000
    """bytes of teacher text, for the student that reads most of it"""
    distill_config: DistillConfig = field(default_factory=DistillConfig)
    """divergence, temperature, prompt and sampling of all methods"""
    data_fraction: float = 1.0
    """fraction of the training text that the students read; the teachers read all of it"""
    baseline_factor: int = 4
    """how many times as many steps the longer student without a teacher has"""

    def methods(self) -> dict[str, Method]:
        """All methods by name."""
        logits = self.distill_config
        labels = replace(logits, signal="labels")
        text = replace(labels, data_source="teacher")
        methods = {
            ALONE: Method(labels),
            LONGER: Method(labels),
            "logits": Method(logits),
            "logits and labels": Method(replace(logits, alpha=0.5)),
        }
        methods |= {f"top-{k}": Method(replace(logits, signal="top-k", k=k)) for k in self.ks}
        methods["top-4 and labels"] = Method(replace(logits, signal="top-k", k=4, alpha=0.5))
        methods["on-policy"] = Method(replace(logits, data_source="student"))
        methods["mixture's logits"] = Method(logits, "mixture")
        methods["8-bit logits"] = Method(logits, "8 bits")
        for divisor in (27, 9, 3, 1):
            tokens = self.teacher_tokens // divisor
            amount = f"{tokens // 1000}k" if tokens >= 1000 else str(tokens)
            methods[f"text {amount}"] = Method(replace(text, teacher_tokens=tokens))
        return methods

    def steps(self, method: str) -> int:
        return self.training.steps * (self.baseline_factor if method == LONGER else 1)


SETUPS: dict[str, Setup] = {
    "quick": Setup(
        ModelConfig(dim=128, n_layers=4, n_heads=4, hidden_dim=336),
        ModelConfig(dim=96, n_layers=3, n_heads=3, n_experts=16, top_k=4, expert_dim=64),
        ModelConfig(dim=64, n_layers=2, n_heads=2, hidden_dim=176),
        replace(COMPARABLE, steps=400, lr=5e-3, warmup=30, eval_every=50, checkpoint_every=100),
        teacher_lr=2e-3,
    ),
}


def choose_methods(setup: Setup, names: str, *, mixture: bool = True) -> dict[str, Method]:
    """The methods named in a comma-separated list, or "all", in the setup's order and always with ALONE.

    Args:
        mixture: whether there is a mixture of experts as a second teacher; if not, its methods are left out.

    Raises:
        ValueError: an unknown method.
    """
    methods = {n: method for n, method in setup.methods().items() if mixture or method.teacher != "mixture"}
    chosen = set(methods) if names == "all" else {name.strip() for name in names.split(",")} | {ALONE}
    if unknown := chosen - methods.keys():
        raise ValueError(f"--methods: there is no {sorted(unknown)[0]!r}; choose among {', '.join(methods)}")
    return {name: method for name, method in methods.items() if name in chosen}
