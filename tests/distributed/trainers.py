"""Builds the trainers that are compared across processes, and compares their results."""

import torch
import torch.nn.functional as F

from minimoe.distributed.data_expert_parallel import DataExpertParallel
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.training import checkpoint
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

MODEL = ModelConfig(dim=16, n_layers=2, n_heads=2, context=16, n_experts=8, top_k=2, expert_dim=8)

CONFIG = TrainConfig(steps=8, batch_size=8, warmup=4, eval_sequences=20)


class Exact(Trainer):
    """A trainer whose loss has the model's precision; that of ``Trainer`` is always float32."""

    def objective(self, logits_BLV, batch, micro, loss):
        return F.cross_entropy(logits_BLV.flatten(0, 1), batch.targets_BL.flatten())


def make(corpus, group, model=MODEL, config=CONFIG, dtype=torch.float32, crowded=False) -> Trainer:
    """A trainer with the same initial weights in all processes; ``group`` is P, or 0 for a single process."""
    torch.manual_seed(config.seed)
    gpt = GPT(model).to(dtype)
    if crowded:  # all tokens choose the first experts
        for block in gpt.blocks:
            block.feed_forward.gate.e_score_correction_bias[: model.top_k] = 100.0
    kind = Exact if dtype == torch.float64 else Trainer
    strategy = DataExpertParallel(group) if group else SingleProcess()
    return kind(strategy.wrap_model(gpt, config.batch_size), corpus, config, strategy=strategy)


def state(trainer) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, with the gathered experts: weights, averages, moments, generators."""
    tensors = checkpoint._model_tensors(trainer) | checkpoint._training_tensors(trainer)
    return {name: tensor.clone() for name, tensor in trainer.strategy.gather_experts(tensors).items()}


def figures(trainer, steps: int) -> dict[str, torch.Tensor]:
    """Metrics of some steps and an evaluation, and the state after them."""
    done = [trainer.train_step() for _ in range(steps)]
    evaluation = trainer.evaluate()
    found = {
        "losses": [step.loss for step in done],
        "grad norms": [step.grad_norm for step in done],
        "balance losses": [step.balance_loss or 0.0 for step in done],
        "bits per byte": list(evaluation.domains.values()),
    }
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
    if done[0].counts_ME is not None:
        tensors["counts"] = torch.stack([step.counts_ME for step in done])
        tensors["counts of the evaluation"] = evaluation.counts_NME
    return tensors | state(trainer)


def assert_close(actual: dict, expected: dict, tolerance: float, about: str = "") -> None:
    """Compare relative to each tensor's norm. Counts, and biases, which derive from them, must be equal.
    Random generators, which are not used here, may differ."""
    assert actual.keys() == expected.keys(), about
    for name, b in expected.items():
        a = actual[name]
        if name == "generator.cpu":
            continue
        if not b.is_floating_point() or name.endswith("correction_bias"):
            assert torch.equal(a, b), f"{about} {name}"
            continue
        assert a.shape == b.shape, f"{about} {name}"
        off = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        assert off <= tolerance, f"{about} {name}: {off:.1e} off"
