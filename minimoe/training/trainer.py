"""One optimizer step and one evaluation. The loop around them is ``training``.

AdamW whose weight decay touches matrices only, a warm-up and then a cosine or a constant rate, clipping,
gradient accumulation. The balance bias moves once per optimizer step, by the counts of all micro-batches.

Dimensions: B batch, L sequence length, V vocabulary, E experts, M mixture layers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from minimoe.data.corpus import Batch, Corpus
from minimoe.distributed.errors import TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.gpt import GPT
from minimoe.moe import MoE, Routing, max_violation, update_bias_
from minimoe.moe.load_balancing import sequence_loss, switch_loss
from minimoe.tools.timing import interleaved_seconds, synchronize
from minimoe.training.config import BALANCE_WEIGHTS, TrainConfig


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    step: int  # steps done, this one included
    loss: float  # cross-entropy, nats a token; balance and teacher's terms are never in it
    lr: float
    grad_norm: float  # before clipping
    tokens: int
    seconds: float
    counts_ME: Tensor | None  # tokens an expert got, a row a mixture layer; None for a dense model
    balance_loss: float | None = None  # the mean over layers, before its weight; None without such a loss


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of each domain, their mean, and the experts' loads over the validation text."""

    step: int
    domains: dict[str, float]
    counts_NME: Tensor | None  # N domains, in the order of ``domains``; None for a dense model

    @property
    def counts_ME(self) -> Tensor | None:
        return None if self.counts_NME is None else self.counts_NME.sum(0)

    @property
    def bits_per_byte(self) -> float:
        return sum(self.domains.values()) / len(self.domains)

    @property
    def max_violation(self) -> float | None:
        """MaxVio of each mixture layer, averaged over layers; None for a dense model."""
        if self.counts_ME is None:
            return None
        return sum(max_violation(counts_E) for counts_E in self.counts_ME) / len(self.counts_ME)


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Mean nats a token, in float32 whatever the logits are."""
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten())


class Trainer:
    """A model, its optimizer and its place in the run: all that a checkpoint must hold.

    With ``processes`` it is one of several that train one model together, each on its share of every batch;
    ``config`` is of all, and so are the figures that come out.
    """

    def __init__(
        self,
        model: GPT,
        corpus: Corpus,
        config: TrainConfig,
        device: str = "cpu",
        processes: SingleProcess | None = None,
    ) -> None:
        corpus.check(model.config.context, model.config.vocab_size)
        self.processes = SingleProcess() if processes is None else processes
        self.model = model.to(device)
        self.network = self.processes.wrap_model(self.model, config.batch_size)
        self.corpus = corpus
        self.config = config
        self.device = torch.device(device)
        self.moe_layers = [m for m in model.modules() if isinstance(m, MoE)]
        self.parameters = dict(model.named_parameters())
        self.optimizer = self._make_optimizer()
        self.average: dict[str, Tensor] = {}
        if config.average:
            self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.extra_state: dict[str, Tensor] = {}  # what else a checkpoint must hold, by name
        self.step = 0
        self.bf16 = self._choose_bf16()

    def _make_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        config = self.config
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)

    def settings(self) -> dict[str, dict[str, Any]]:
        """What a run must be resumed with, part by part."""
        return {"model": asdict(self.model.config), "training": asdict(self.config)}

    def train_step(self) -> Step:
        """One optimizer step over ``accumulate`` micro-batches.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are left as they were.
        """
        start = time.perf_counter()
        config = self.config
        lr = config.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = torch.zeros((), device=self.device)
        balance_loss = torch.zeros((), device=self.device)
        counts_ME = None
        for micro in range(config.accumulate):
            micro_loss, micro_balance, micro_counts_ME = self._backward(micro, self.bf16)
            loss += micro_loss
            balance_loss += micro_balance
            if micro_counts_ME is not None:
                counts_ME = micro_counts_ME + (0 if counts_ME is None else counts_ME)
        loss, balance_loss = (
            self.processes.all_reduce_mean(loss),
            self.processes.all_reduce_mean(balance_loss),
        )
        counts_ME = None if counts_ME is None else self.processes.all_reduce_sum(counts_ME)
        grad_norm = self.processes.clip_grad_norm(self.parameters, config.clip)
        if not (torch.isfinite(loss) and torch.isfinite(grad_norm)):
            self.optimizer.zero_grad()
            raise TrainingError(
                f"step {self.step + 1}: loss {loss.item()}, gradient norm {grad_norm.item()} at "
                f"learning rate {lr:.2g}; lower lr ({config.lr}) or lengthen warmup ({config.warmup})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._after_update(counts_ME)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        tokens = config.accumulate * config.batch_size * self.model.config.context
        counts_ME = None if counts_ME is None else counts_ME.cpu()
        balance = balance_loss.item() if self._balances_by_loss() else None
        return Step(self.step, loss.item(), lr, grad_norm.item(), tokens, seconds, counts_ME, balance)

    def batch(self, micro: int) -> Batch:
        """What the model reads in this step's micro-batch; targets of -100 do not count."""
        config, context = self.config, self.model.config.context
        whole = self.corpus.batch(config.seed, self.step, config.batch_size, context, micro=micro)
        return self.processes.shard_batch(whole).to(self.device)

    def objective(self, logits_BLV: Tensor, batch: Batch, micro: int, loss: Tensor) -> Tensor:
        """What is minimised, a mean over tokens. Here the cross-entropy ``loss`` itself."""
        return loss

    def _backward(self, micro: int, bf16: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add one micro-batch's gradients; return its share of the loss and of the balance loss, and its
        counts."""
        batch = self.batch(micro)
        self.model.train()
        with self.processes.grad_sync(last=micro + 1 == self.config.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                logits_BLV, routings = self.network(batch.tokens_BL)
                loss = cross_entropy(logits_BLV, batch.targets_BL)
                objective = self.objective(logits_BLV, batch, micro, loss) / self.config.accumulate
            loss = loss / self.config.accumulate
            balance_loss = self._balance_loss(routings) / self.config.accumulate
            (objective + self.config.loss_weight * len(routings) * balance_loss).backward()
        counts = torch.stack([routing.counts_E for routing in routings]) if routings else None
        return loss.detach(), balance_loss.detach(), counts

    def _balance_loss(self, routings: list[Routing]) -> Tensor:
        """The mean over layers of the balance loss; 1 where all are even, 0 where there is none."""
        if not self._balances_by_loss():
            return torch.zeros((), device=self.device)
        if self.config.balance == "switch":  # its loads are those of the whole batch
            counts = [self.processes.all_reduce_sum(routing.counts_E) for routing in routings]
            losses = [switch_loss(r._replace(counts_E=c)) for r, c in zip(routings, counts, strict=True)]
        else:
            losses = [sequence_loss(routing, self.model.config.context) for routing in routings]
        return torch.stack(losses).mean()

    def _balances_by_loss(self) -> bool:
        return bool(self.moe_layers) and self.config.balance in BALANCE_WEIGHTS

    @torch.no_grad()
    def _after_update(self, counts_ME: Tensor | None) -> None:
        """Move the balance bias and the average, once per optimizer step."""
        self.step += 1
        if counts_ME is not None and self.config.balance.startswith("bias"):
            for moe, counts_E in zip(self.moe_layers, counts_ME, strict=True):
                update_bias_(moe.gate.e_score_correction_bias, counts_E, self.config.balance_speed)
        if self.average:
            # A window that grows with the run: the newest weights enter with 1 / (fraction * steps).
            weight = min(1.0, 1.0 / (self.config.average * self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Bits per byte over the validation windows, in float32, with the averaged weights if any."""
        self.model.eval()
        nats = torch.zeros(len(self.corpus.domains), dtype=torch.float64)
        n_experts = self.model.config.n_experts
        counts_NME = torch.zeros(len(nats), len(self.moe_layers), n_experts, dtype=torch.int64)
        batches = self.corpus.validation_batches(
            self.model.config.context, self.config.eval_sequences, self.config.batch_size
        )
        for batch, counts in self.processes.shard_batches(batches):
            batch = batch.to(self.device)
            logits_BLV, routings = functional_call(self.model, self.average, (batch.tokens_BL,))
            if not counts:
                continue
            domain = batch.domains_B[0]  # a batch is of one domain
            nats[domain] += cross_entropy(logits_BLV, batch.targets_BL).item() * len(batch.domains_B)
            if routings:
                counts_NME[domain] += torch.stack([routing.counts_E for routing in routings]).cpu()
        nats, counts_NME = self.processes.all_reduce_sum(nats), self.processes.all_reduce_sum(counts_NME)
        bits = nats / self.config.eval_sequences / math.log(2)
        domains = dict(zip(self.corpus.domains, bits.tolist(), strict=True))
        return Evaluation(self.step, domains, counts_NME if self.moe_layers else None)

    def _choose_bf16(self) -> bool:
        if self.config.autocast != "auto":
            return self.config.autocast == "bf16"
        tasks: dict[str, Callable[[], object]] = {
            "float32": lambda: self._backward(0, bf16=False),
            "bf16": lambda: self._backward(0, bf16=True),
        }
        seconds = interleaved_seconds(tasks, self.device, rounds=3, warmup=1)
        self.optimizer.zero_grad()
        return self.processes.run_on_rank0(lambda: seconds["bf16"] < 0.95 * seconds["float32"])
