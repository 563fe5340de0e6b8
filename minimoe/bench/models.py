"""Whole models: a step of training, reading, writing.

Dimensions: B batch, L sequence length, T = B*L tokens of a step (or B times the tokens written).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minimoe.bench.case import Built, Case, Cost, WrongResult
from minimoe.bench.checks import require_close
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, MIXTURE, touched
from minimoe.cost import flops_per_token, parameters
from minimoe.data.corpus import Corpus, load_corpus
from minimoe.models.config import ModelConfig
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT
from minimoe.tools.memory import bytes_held
from minimoe.tools.timing import Task
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

Configs = Mapping[str, ModelConfig]

PROMPT = 16  # tokens

TRAINING = TrainConfig(schedule="constant", average=0.1)

PASSES = 12  # times that a step reads or writes each weight: twice it, gradients, moments, average

text = functools.cache(load_corpus)


def train_step(
    case: Case, device: torch.device, *, configs: Configs, apart: float, corpus: Callable[[], Corpus] = text
) -> Built:
    """One optimizer step of each model on the same batches.

    Args:
        apart: nats by which the first losses may differ, in models that should compute nearly the same.
    """
    training = training_of(case)
    trainers = {
        n: Trainer(make_model(c, device), corpus(), training, str(device)) for n, c in configs.items()
    }

    def check() -> None:
        require_counted(trainers, configs)
        require_same_loss(trainers, case.baseline, apart)

    tasks: dict[str, Task] = {name: trainer.train_step for name, trainer in trainers.items()}
    return Built(check, tasks, {name: step_cost(config, case) for name, config in configs.items()})


def generation(case: Case, device: torch.device, *, configs: Configs) -> Built:
    """Each model continues B prompts greedily, with its cache."""
    B, new = case.shape["B"], case.shape["T"] // case.shape["B"]
    models = {name: make_model(config, device) for name, config in configs.items()}
    prompt_BL = torch.randint(256, (B, PROMPT), device=device)

    def check() -> None:
        for name, model in models.items():
            written = generate(model, prompt_BL, 3, temperature=0)
            if not torch.equal(written, generate(model, prompt_BL, 3, temperature=0, use_cache=False)):
                raise WrongResult(f"{name} writes something else with its cache than without")

    tasks = {name: partial(generate, model, prompt_BL, new, temperature=0) for name, model in models.items()}
    costs = {}
    for name, config in configs.items():
        tokens = B * (PROMPT + new - 1)
        costs[name] = Cost(
            tokens * flops_per_token(config, training=False),
            4 * (_needed(config, B * PROMPT) + (new - 1) * _needed(config, B)),
        )
    return Built(check, tasks, costs)


def reading(case: Case, device: torch.device, *, configs: Configs) -> Built:
    """Each model's forward pass over B sequences."""
    B, L = case.shape["B"], case.shape["T"] // case.shape["B"]
    models = {name: make_model(config, device).eval() for name, config in configs.items()}
    tokens_BL = torch.randint(256, (B, L), device=device)

    def read(model: GPT) -> Tensor:
        with torch.no_grad():
            return model(tokens_BL)[0]

    def check() -> None:  # nobody sees what comes after: the first half's logits are those of the half alone
        for name, model in models.items():
            with torch.no_grad():
                half = model(tokens_BL[:, : L // 2])[0]
            require_close(f"{name} reading half", read(model)[:, : L // 2], half, 1e-4)

    tasks = {name: partial(read, model) for name, model in models.items()}
    costs = {
        name: Cost(B * L * flops_per_token(config, training=False), 4 * _needed(config, B * L))
        for name, config in configs.items()
    }
    memory = {name: bytes_held(model) for name, model in models.items()}
    return Built(check, tasks, costs, lambda: memory)


def training_of(case: Case) -> TrainConfig:
    return replace(TRAINING, batch_size=case.shape["B"])


def make_model(config: ModelConfig, device: torch.device) -> GPT:
    torch.manual_seed(0)
    return GPT(config).to(device)


def require_counted(trainers: Mapping[str, Trainer], configs: Configs) -> None:
    """The parameters are as many as the configuration says, and those of dense networks and mixture match
    but for what rounds a width up."""
    for name, config in configs.items():
        found = sum(p.numel() for p in trainers[name].model.parameters())
        if found != parameters(config):
            raise WrongResult(f"{name} has {found:,} parameters, not {parameters(config):,}")
    for name, active in ((DENSE_ACTIVE, True), (DENSE_TOTAL, False)):
        if name in configs:
            config, wanted = configs[name], parameters(configs[MIXTURE], active=active)
            if not 0 <= parameters(config) - wanted < 48 * config.dim * config.n_layers:
                raise WrongResult(f"{name} has {parameters(config):,} parameters, the mixture {wanted:,}")


def require_same_loss(trainers: Mapping[str, Trainer], baseline: str, apart: float) -> None:
    """One step of each: the losses before it."""
    losses = {name: trainer.train_step().loss for name, trainer in trainers.items()}
    for name, loss in losses.items():
        if not abs(loss - losses[baseline]) <= apart:
            raise WrongResult(
                f"{name} begins with a loss of {loss:.4f}, {baseline} with {losses[baseline]:.4f}; they "
                f"should be within {apart:g}"
            )


def step_cost(config: ModelConfig, case: Case) -> Cost:
    """Arithmetic of all tokens, and every weight with what belongs to it."""
    return Cost(case.shape["T"] * flops_per_token(config), 4 * PASSES * parameters(config))


def _needed(config: ModelConfig, tokens: int) -> float:
    """Weights that so many tokens need between them."""
    total = parameters(config)
    if not config.n_experts:
        return total
    idle = total - parameters(config, active=True)
    routed = idle * config.n_experts / (config.n_experts - config.top_k)
    return total - routed * (1 - touched(config.n_experts, config.top_k, tokens) / config.n_experts)
