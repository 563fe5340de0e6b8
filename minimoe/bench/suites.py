"""[evidence] The benchmark suites: sweeps around the user's size, smaller ones for ``--quick``.

Dimensions: T tokens, D model width, H expert width, E experts, K experts per token; M, N, K of a matmul.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from minimoe.bench import distillation, layers, low_precision, models
from minimoe.bench.case import Case, Suite
from minimoe.bench.distillation import LABELS, LOSSES, TEACHER_LOGITS
from minimoe.bench.layers import DIRECTIONS, FORWARD_BACKWARD, LAYERS, MOE
from minimoe.bench.low_precision import CODES, FLOAT32, HALF
from minimoe.experiments.distillation.setup import SETUPS
from minimoe.experiments.presets import PRESETS
from minimoe.models.config import ModelConfig

GENERATED = 24  # tokens per prompt


@dataclass(frozen=True)
class Plan:
    """The size of interest, and the sweeps around it. Raises ValueError for invalid sizes."""

    dim: int = 512
    expert_dim: int = 128
    n_experts: int = 32
    top_k: int = 4
    tokens: int = 256
    matmul: int = 2048
    """M, N and K of a matmul, and the sides of a quantized matrix"""
    token_sweep: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    expert_sweep: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    crossover_experts: tuple[int, ...] = (8, 32, 128)
    """E at which all of ``token_sweep`` is measured"""
    top_k_sweep: tuple[int, ...] = (1, 2, 4, 8, 16)
    dim_sweep: tuple[int, ...] = (128, 256, 512, 1024)
    """the expert width is scaled in proportion"""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """of the layer at the size of interest, over ``token_sweep``"""
    batch: int = 16
    """sequences per training step"""
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
        """The layer's size of interest."""
        return {"T": self.tokens, "E": self.n_experts, "K": self.top_k, "D": self.dim, "H": self.expert_dim}


FULL = Plan()

QUICK = Plan(
    dim=256, expert_dim=64, tokens=128, matmul=768,
    token_sweep=(1, 16, 128, 1024), expert_sweep=(8, 32, 128), top_k_sweep=(1, 4, 16),
    dim_sweep=(128, 256, 512), dtypes=("float32",), batch=8, vocabulary=8192,
)  # fmt: skip


def moe(plan: Plan) -> Iterator[Case]:
    """The layer by tokens, experts, top-k and width; dispatchers; a training step; generation."""
    case = partial(Case, "moe", tasks=LAYERS, baselines=LAYERS[:2])
    by_tokens = [plan.shape | {"T": tokens} for tokens in plan.token_sweep]
    for dtype in plan.dtypes:
        for direction in DIRECTIONS:
            for shape in shapes(plan) if dtype == plan.dtypes[0] else by_tokens:
                yield case(f"layer, {direction}", shape=shape, build=layers.build_layers, dtype=dtype)
    for direction in DIRECTIONS:
        for shape in by_tokens:
            tasks = ("loop", "grouped", "capacity") + (("reference",) if shape["T"] <= 16 else ())
            yield Case("moe", f"dispatch, {direction}", tasks, ("loop",), shape, layers.build_dispatchers)
    configs = PRESETS["quick"].models()
    step = partial(models.build_train_step, configs=configs, max_loss_gap=0.5)
    yield case("training step", shape=_model_shape(configs[MOE], plan.batch), build=step)
    generate = partial(models.build_generation, configs=configs)
    for batch in (1, 16):
        yield case("generation", shape=_model_shape(configs[MOE], batch, GENERATED), build=generate)


def shapes(plan: Plan) -> list[dict[str, int]]:
    """One letter of the size at a time, and all of ``token_sweep`` for several E."""
    swept = [plan.shape | {"T": tokens} for tokens in plan.token_sweep]
    swept += [plan.shape | {"E": experts} for experts in plan.expert_sweep]
    swept += [plan.shape | {"K": top_k} for top_k in plan.top_k_sweep]
    for dim in plan.dim_sweep:
        expert_dim = max(8, 8 * round(dim * plan.expert_dim / plan.dim / 8))
        swept.append(plan.shape | {"D": dim, "H": plan.expert_dim if dim == plan.dim else expert_dim})
    swept += [plan.shape | {"E": e, "T": t} for e in plan.crossover_experts for t in plan.token_sweep]
    possible = [plan.shape, *(shape for shape in swept if shape["K"] <= shape["E"])]
    return [shape for i, shape in enumerate(possible) if shape not in possible[:i]]


def fp8(plan: Plan) -> Iterator[Case]:
    """Quantize, decode, matmul, linear layer, a training step, bytes of weights."""
    side = plan.matmul
    square = {"M": side, "K": side}
    blocks = ("copy", HALF, *low_precision.BLOCKS)
    yield Case("fp8", "quantize", blocks, ("copy",), square, low_precision.build_quantize)
    yield Case("fp8", "decode", ("cast", "decode"), ("cast",), square, low_precision.build_decode)
    for rows in dict.fromkeys((16, side // 4, side)):
        shape = {"M": rows, "N": side, "K": side}
        matmuls = (FLOAT32, HALF, *low_precision.RECIPES)
        yield Case("fp8", "matmul", matmuls, matmuls[:2], shape, low_precision.build_matmul)
    low = ("deepseek-v3", "deepseek-v3-pow2")
    for tokens in (plan.tokens, 4 * plan.tokens):
        shape = {"T": tokens, "D": side // 2}
        group, linears = f"linear, {FORWARD_BACKWARD}", (FLOAT32, *low)
        yield Case("fp8", group, linears, linears[:1], shape, low_precision.build_linear)
    dense = ModelConfig(dim=128, n_layers=3, n_heads=2, context=128, hidden_dim=384)
    configs = {FLOAT32: dense, **{recipe: replace(dense, precision=recipe) for recipe in low}}
    step = partial(models.build_train_step, configs=configs, max_loss_gap=0.05)
    shape = _model_shape(dense, plan.batch)
    yield Case("fp8", "training step", tuple(configs), (FLOAT32,), shape, step)
    for config in PRESETS["standard"].models().values():
        build = partial(low_precision.build_weights, config=config)
        yield Case("fp8", "weights", (FLOAT32, HALF, CODES), (FLOAT32, HALF), _model_shape(config), build)


def distill(plan: Plan) -> Iterator[Case]:
    """A student against its teacher, what the teacher's logits add to a step, and the chunked loss."""
    setup = SETUPS["quick"]
    student, configs = setup.student, {"teacher": setup.teacher, "student": setup.student}
    case = partial(Case, "distill", tasks=tuple(configs), baselines=("teacher",))
    forward = partial(models.build_forward_pass, configs=configs)
    generate = partial(models.build_generation, configs=configs)
    step = partial(models.build_train_step, configs=configs, max_loss_gap=0.5)
    distill_step = partial(distillation.build_distill_step, student=student, teacher=setup.teacher)
    for batch in (1, plan.batch):
        yield case("forward pass", shape=_model_shape(student, batch), build=forward)
        yield case("generation", shape=_model_shape(student, batch, GENERATED), build=generate)
    shape, signals, losses = _model_shape(student, plan.batch), (LABELS, TEACHER_LOGITS), tuple(LOSSES)
    yield case("training step", shape=shape, build=step)
    yield Case("distill", "distillation step", signals, signals[:1], shape, distill_step)
    for tokens in (2 * plan.tokens, 8 * plan.tokens):
        shape = {"T": tokens, "V": plan.vocabulary, "D": student.dim}
        yield Case("distill", "chunked loss", losses, losses[:1], shape, distillation.build_chunked_loss)


SUITES: dict[Suite, Callable[[Plan], Iterator[Case]]] = {"moe": moe, "fp8": fp8, "distill": distill}


def cases(plan: Plan, suites: tuple[Suite, ...] = ("moe", "fp8", "distill")) -> list[Case]:
    """All cases of some suites."""
    return [case for suite in suites for case in SUITES[suite](plan)]


def _model_shape(config: ModelConfig, batch: int | None = None, length: int | None = None) -> dict[str, int]:
    """A model's sizes, after those of a batch of sequences of ``length`` tokens (default: the context)."""
    width = {"E": config.n_experts, "K": config.top_k} if config.n_experts else {"H": config.hidden_dim}
    sizes = {} if batch is None else {"B": batch, "T": batch * (length or config.context)}
    return sizes | {"D": config.dim, "layers": config.n_layers} | width
