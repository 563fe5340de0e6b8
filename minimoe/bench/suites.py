"""Which comparisons are made: sweeps around one size, small for ``--quick``.

Dimensions: T tokens, D model width, H expert width, E experts, K experts a token; M, N, K of a product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from minimoe.bench import distillation as lessons
from minimoe.bench import layers, models
from minimoe.bench import low_precision as bits
from minimoe.bench.case import Built, Case, Suite
from minimoe.bench.layers import BOTH, FORWARD, LAYERS, MIXTURE
from minimoe.bench.low_precision import CODES, HALF
from minimoe.bench.low_precision import FULL as FLOAT32
from minimoe.experiments.distillation.experiment import SETUPS
from minimoe.experiments.presets import PRESETS
from minimoe.models.config import ModelConfig

Build = Callable[[Case, torch.device], Built]


@dataclass(frozen=True)
class Plan:
    """The size of interest, and how far the sweeps go from it. Raises ValueError for what cannot be."""

    dim: int = 512
    expert_dim: int = 128
    n_experts: int = 32
    top_k: int = 4
    tokens: int = 256
    matmul: int = 2048
    """M, N and K of a product, and the sides of what is quantised"""
    token_sweep: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    expert_sweep: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    crossover_experts: tuple[int, ...] = (8, 32, 128)
    """E for which all of ``token_sweep`` is measured"""
    top_k_sweep: tuple[int, ...] = (1, 2, 4, 8, 16)
    dim_sweep: tuple[int, ...] = (128, 256, 512, 1024)
    """the expert's width goes with it"""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """of the layer at the size itself, over all tokens"""
    batch: int = 16
    """sequences of a training step"""
    vocabulary: int = 32768
    """of the chunked loss"""

    def __post_init__(self) -> None:
        for name in ("dim", "expert_dim", "n_experts", "tokens", "matmul"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if not 1 <= self.top_k <= self.n_experts:
            raise ValueError(f"top_k ({self.top_k}) must be between 1 and n_experts ({self.n_experts})")

    @property
    def shape(self) -> dict[str, int]:
        """The size of interest of a layer."""
        return {"T": self.tokens, "E": self.n_experts, "K": self.top_k, "D": self.dim, "H": self.expert_dim}


FULL = Plan()

QUICK = Plan(
    dim=256, expert_dim=64, tokens=128, matmul=768,
    token_sweep=(1, 16, 128, 1024), expert_sweep=(8, 32, 128), top_k_sweep=(1, 4, 16),
    dim_sweep=(128, 256, 512), dtypes=("float32",), batch=8, vocabulary=8192,
)  # fmt: skip


def moe(plan: Plan) -> Iterator[Case]:
    """Layers by tokens, experts, top-k and width; dispatchers; a training step; writing."""
    for way in (FORWARD, BOTH):
        for shape in shapes(plan):
            yield Case("moe", f"layer, {way}", LAYERS, LAYERS[:2], shape, layers.layer)
    for dtype in plan.dtypes[1:]:
        for tokens in plan.token_sweep:
            shape = plan.shape | {"T": tokens}
            for way in (FORWARD, BOTH):
                yield Case("moe", f"layer, {way}", LAYERS, LAYERS[:2], shape, layers.layer, dtype)
    for way in (FORWARD, BOTH):
        for tokens in plan.token_sweep:
            ways = ("loop", "grouped", "capacity") + (("reference",) if tokens <= 16 else ())
            shape = plan.shape | {"T": tokens}
            yield Case("moe", f"dispatch, {way}", ways, ("loop",), shape, layers.dispatchers)
    compared = PRESETS["quick"].models()
    step = partial(models.train_step, configs=compared, apart=0.5)
    yield _whole("moe", "training step", LAYERS, LAYERS[:2], compared[MIXTURE], plan.batch, step)
    for texts in (1, 16):
        write = partial(models.generation, configs=compared)
        shape = {"B": texts, "T": texts * 24} | _sizes(compared[MIXTURE])
        yield Case("moe", "writing", LAYERS, LAYERS[:2], shape, write)


def shapes(plan: Plan) -> list[dict[str, int]]:
    """Around the size one letter at a time, and all tokens for several numbers of experts."""
    found = [plan.shape | {"T": tokens} for tokens in plan.token_sweep]
    found += [plan.shape | {"E": experts} for experts in plan.expert_sweep]
    found += [plan.shape | {"K": top_k} for top_k in plan.top_k_sweep]
    for dim in plan.dim_sweep:
        expert_dim = max(8, 8 * round(dim * plan.expert_dim / plan.dim / 8))
        found.append(plan.shape | {"D": dim, "H": plan.expert_dim if dim == plan.dim else expert_dim})
    found += [plan.shape | {"E": e, "T": t} for e in plan.crossover_experts for t in plan.token_sweep]
    possible = [plan.shape, *(shape for shape in found if shape["K"] <= shape["E"])]
    return [shape for i, shape in enumerate(possible) if shape not in possible[:i]]


def fp8(plan: Plan) -> Iterator[Case]:
    """Quantising, decoding, products, a layer, a training step, bytes of weights."""
    side = plan.matmul
    square = {"M": side, "K": side}
    blocks = ("copy", HALF, *bits.BLOCKS)
    yield Case("fp8", "quantise", blocks, ("copy",), square, bits.quantising)
    yield Case("fp8", "decode", ("cast", "decode"), ("cast",), square, bits.decoding)
    for rows in dict.fromkeys((16, side // 4, side)):
        shape = {"M": rows, "N": side, "K": side}
        yield Case("fp8", "matmul", (FLOAT32, HALF, *bits.RECIPES), (FLOAT32, HALF), shape, bits.product)
    low = ("deepseek-v3", "deepseek-v3-pow2")
    for tokens in (plan.tokens, 4 * plan.tokens):
        shape = {"T": tokens, "D": side // 2}
        yield Case("fp8", f"linear, {BOTH}", (FLOAT32, *low), (FLOAT32,), shape, bits.linear)
    dense = ModelConfig(dim=128, n_layers=3, n_heads=2, context=128, hidden_dim=384)
    configs = {FLOAT32: dense, **{recipe: replace(dense, precision=recipe) for recipe in low}}
    step = partial(models.train_step, configs=configs, apart=0.05)
    yield _whole("fp8", "training step", tuple(configs), (FLOAT32,), dense, plan.batch, step)
    for config in PRESETS["standard"].models().values():
        held = partial(bits.weights, config=config)
        yield Case("fp8", "weights", (FLOAT32, HALF, CODES), (FLOAT32, HALF), _sizes(config), held)


def distill(plan: Plan) -> Iterator[Case]:
    """A student against its teacher, what the teacher's logits add to a step, and the loss in chunks."""
    setup = SETUPS["quick"]
    both = {"teacher": setup.teacher, "student": setup.student}
    names, sizes = tuple(both), _sizes(setup.student)
    read, write = (partial(build, configs=both) for build in (models.reading, models.generation))
    step = partial(models.train_step, configs=both, apart=0.5)
    lesson = partial(lessons.lesson_step, student=setup.student, teacher=setup.teacher)
    for batch in (1, plan.batch):
        shape = {"B": batch, "T": batch * setup.student.context} | sizes
        yield Case("distill", "reading", names, ("teacher",), shape, read)
        yield Case("distill", "writing", names, ("teacher",), shape | {"T": batch * 24}, write)
    yield _whole("distill", "training step", names, ("teacher",), setup.student, plan.batch, step)
    yield _whole(
        "distill",
        "step with a teacher",
        ("alone", "on logits"),
        ("alone",),
        setup.student,
        plan.batch,
        lesson,
    )
    shape = {"T": 2 * plan.tokens, "V": plan.vocabulary, "D": setup.student.dim}
    for tokens in (shape["T"], 4 * shape["T"]):
        ways = ("plain", "chunked")
        yield Case("distill", "loss in chunks", ways, ("plain",), shape | {"T": tokens}, lessons.chunks)


SUITES: dict[Suite, Callable[[Plan], Iterator[Case]]] = {"moe": moe, "fp8": fp8, "distill": distill}


def cases(plan: Plan, suites: tuple[Suite, ...] = ("moe", "fp8", "distill")) -> list[Case]:
    """All of some suites."""
    return [case for suite in suites for case in SUITES[suite](plan)]


def _sizes(config: ModelConfig) -> dict[str, int]:
    """Of a model, for the record."""
    found = {"D": config.dim, "layers": config.n_layers}
    return found | (
        {"E": config.n_experts, "K": config.top_k} if config.n_experts else {"H": config.hidden_dim}
    )


def _whole(
    suite: Suite, group: str, tasks: tuple[str, ...], baselines: tuple[str, ...], config: ModelConfig,
    batch: int, build: Build,
) -> Case:  # fmt: skip
    shape = {"B": batch, "T": batch * config.context} | _sizes(config)
    return Case(suite, group, tasks, baselines, shape, build)
