"""[evidence] Benchmarks of whole models: a training step, a forward pass, generation.

Dimensions: B batch, L sequence length, T = B*L tokens of a step (in generation, B times the new tokens).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minimoe.bench.case import BuiltCase, Case, Work, WrongResult
from minimoe.bench.checks import require_close, require_dense_size
from minimoe.bench.layers import DENSE_ACTIVE, DENSE_TOTAL, MOE, n_parameters
from minimoe.cost import count, expected_active_experts, flops_per_token, from_config, parameters
from minimoe.data.corpus import Corpus, load_corpus
from minimoe.experiments.presets import COMPARABLE
from minimoe.models.config import ModelConfig
from minimoe.models.generation import generate
from minimoe.models.gpt import GPT
from minimoe.tools.memory import weight_bytes
from minimoe.tools.timing import Task
from minimoe.training.config import TrainConfig
from minimoe.training.trainer import Trainer

Configs = Mapping[str, ModelConfig]

Text = Callable[[], Corpus]

PROMPT = 16  # tokens

WEIGHT_ACCESSES = 12  # reads and writes per weight per step: weights twice, gradients, moments, average

default_corpus = functools.cache(load_corpus)


def build_train_step(
    case: Case, device: torch.device, *, configs: Configs, max_loss_gap: float, corpus: Text = default_corpus
) -> BuiltCase:
    """One optimizer step of each model on the same batches.

    Args:
        max_loss_gap: largest difference of the first losses, in nats, of models that compute nearly the same.
    """
    training = training_config(case)
    models = {name: make_model(config, device) for name, config in configs.items()}
    trainers = {name: Trainer(model, corpus(), training, str(device)) for name, model in models.items()}

    def check() -> None:
        require_parameters(models, configs)
        require_same_loss(trainers, case.baseline, max_loss_gap)

    tasks: dict[str, Task] = {name: trainer.train_step for name, trainer in trainers.items()}
    return BuiltCase(check, tasks, {name: step_work(config, case) for name, config in configs.items()})


def build_generation(case: Case, device: torch.device, *, configs: Configs) -> BuiltCase:
    """Each model continues B prompts greedily, with its KV cache."""
    B, new = case.shape["B"], case.shape["T"] // case.shape["B"]
    models = {name: make_model(config, device) for name, config in configs.items()}
    prompt_BL = torch.randint(256, (B, PROMPT), device=device)

    def check() -> None:
        for name, model in models.items():
            cached = generate(model, prompt_BL, 3, temperature=0)
            if not torch.equal(cached, generate(model, prompt_BL, 3, temperature=0, use_cache=False)):
                raise WrongResult(f"{name} generates different tokens with and without its KV cache")

    tasks = {name: partial(generate, model, prompt_BL, new, temperature=0) for name, model in models.items()}
    passes = [B * PROMPT] + [B] * (new - 1)
    return BuiltCase(check, tasks, {name: _forward_work(config, passes) for name, config in configs.items()})


def build_forward_pass(case: Case, device: torch.device, *, configs: Configs) -> BuiltCase:
    """Each model's forward pass over B sequences."""
    B, L = case.shape["B"], case.shape["T"] // case.shape["B"]
    models = {name: make_model(config, device).eval() for name, config in configs.items()}
    tokens_BL = torch.randint(256, (B, L), device=device)

    @torch.no_grad()
    def forward(model: GPT, tokens_BL: Tensor) -> Tensor:
        return model(tokens_BL)[0]

    def check() -> None:  # attention is causal: logits of the first half do not depend on the second
        for name, model in models.items():
            half, full = forward(model, tokens_BL[:, : L // 2]), forward(model, tokens_BL)
            require_close(f"{name}, first half", full[:, : L // 2], half, 1e-4)

    tasks = {name: partial(forward, model, tokens_BL) for name, model in models.items()}
    work = {name: _forward_work(config, [B * L]) for name, config in configs.items()}
    memory = {name: weight_bytes(model) for name, model in models.items()}
    return BuiltCase(check, tasks, work, lambda: memory)


def training_config(case: Case) -> TrainConfig:
    return replace(COMPARABLE, batch_size=case.shape["B"])


def make_model(config: ModelConfig, device: torch.device) -> GPT:
    torch.manual_seed(0)
    return GPT(config).to(device)


def require_parameters(models: Mapping[str, GPT], configs: Configs) -> None:
    """Compare each model's parameters with its configuration's, and the dense models' with the MoE's."""
    for name, config in configs.items():
        if (actual := n_parameters(models[name])) != parameters(config):
            raise WrongResult(f"{name} has {actual:,} parameters, not {parameters(config):,}")
    for name, active in ((DENSE_ACTIVE, True), (DENSE_TOTAL, False)):
        if name in configs:
            config, expected = configs[name], parameters(configs[MOE], active=active)
            require_dense_size(name, parameters(config), expected, config.dim * config.n_layers)


def require_same_loss(trainers: Mapping[str, Trainer], baseline: str, max_gap: float) -> None:
    """Take a step with each trainer and compare the losses before it."""
    losses = {name: trainer.train_step().loss for name, trainer in trainers.items()}
    for name, loss in losses.items():
        if not abs(loss - losses[baseline]) <= max_gap:
            raise WrongResult(
                f"the first loss of {name} is {loss:.4f}, that of {baseline} {losses[baseline]:.4f}; they "
                f"must be within {max_gap:g}"
            )


def step_work(config: ModelConfig, case: Case) -> Work:
    """FLOPs of all tokens, and traffic of all weights with their gradients and optimizer states."""
    return Work(case.shape["T"] * flops_per_token(config), 4 * WEIGHT_ACCESSES * parameters(config))


def _forward_work(config: ModelConfig, passes: Sequence[int]) -> Work:
    """FLOPs and weights read of forward passes over so many tokens each."""
    flops = sum(passes) * flops_per_token(config, training=False)
    return Work(flops, 4 * sum(_weights_read(config, tokens) for tokens in passes))


def _weights_read(config: ModelConfig, tokens: int) -> float:
    """Expected number of weights that at least one of the tokens needs."""
    n = count(from_config(config))
    if not config.n_experts:
        return n.total
    experts = expected_active_experts(config.n_experts, config.top_k, tokens)
    return n.total - n.routed * (1 - experts / config.n_experts)
