"""The trainer: one optimizer step (``train_step``) and one evaluation. The training loop is in ``loop``.

AdamW with weight decay on matrices only, linear warm-up and then a cosine or constant learning rate, gradient
clipping and accumulation. The load-balancing bias is updated once per optimizer step, from the token counts
of all micro-batches.

Dimensions: B batch, L sequence length, V vocabulary, E experts, M MoE layers, N domains.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from minimoe.data.corpus import Batch, Corpus
from minimoe.distributed.errors import TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.gpt import GPT
from minimoe.moe import MoE, Routing, update_bias_
from minimoe.moe.load_balancing import sequence_loss, switch_loss
from minimoe.tools.timing import interleaved_seconds, synchronize
from minimoe.training.config import BALANCE_WEIGHTS, TrainConfig
from minimoe.training.metrics import Evaluation, Step


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Mean nats per token, computed in float32."""
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten())


class Trainer:
    """A model, its optimizer and the current step: everything that a checkpoint holds.

    Args:
        network: what ``strategy.wrap_model`` returned; for a single process the model itself.
        config: of the whole run. Where several processes train one model, each takes its share of every
            batch, and all report the metrics of the whole batch.
    """

    def __init__(
        self,
        network: nn.Module,
        corpus: Corpus,
        config: TrainConfig,
        device: str = "cpu",
        strategy: SingleProcess | None = None,
    ) -> None:
        self.network = network.to(device)
        self.model = cast(GPT, getattr(network, "module", network))  # without DistributedDataParallel
        corpus.check(self.model.config.context, self.model.config.vocab_size)
        self.strategy = SingleProcess() if strategy is None else strategy
        self.corpus = corpus
        self.config = config
        self.device = torch.device(device)
        self.moe_layers = [m for m in self.model.modules() if isinstance(m, MoE)]
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = self._make_optimizer()
        self.average: dict[str, Tensor] = {}
        if config.average:
            self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.extra_state: dict[str, Tensor] = {}  # further tensors for the checkpoint, by name
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
        """The settings that a resumed run must share."""
        return {"model": asdict(self.model.config), "training": asdict(self.config)}

    def train_step(self) -> Step:
        """One optimizer step over ``accumulate`` micro-batches.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are unchanged.
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
        loss = self.strategy.all_reduce_mean(loss)
        balance_loss = self.strategy.all_reduce_mean(balance_loss)
        counts_ME = None if counts_ME is None else self.strategy.all_reduce_sum(counts_ME)
        grad_norm = self.strategy.clip_grad_norm(self.parameters, config.clip)
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
        balance = balance_loss.item() if self._has_balance_loss() else None
        return Step(self.step, loss.item(), lr, grad_norm.item(), tokens, seconds, counts_ME, balance)

    def batch(self, micro: int) -> Batch:
        """This process's share of the step's micro-batch; targets of -100 are ignored."""
        config, context = self.config, self.model.config.context
        batch = self.corpus.batch(config.seed, self.step, config.batch_size, context, micro=micro)
        return self.strategy.shard_batch(batch).to(self.device)

    def objective(self, logits_BLV: Tensor, batch: Batch, micro: int, loss: Tensor) -> Tensor:
        """The loss to minimize, a mean over tokens: here the cross-entropy ``loss`` itself."""
        return loss

    def _backward(self, micro: int, bf16: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add one micro-batch's gradients -> its share of the loss and of the balance loss, counts_ME."""
        batch = self.batch(micro)
        self.model.train()
        with self.strategy.grad_sync(last=micro + 1 == self.config.accumulate):
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
        """The auxiliary load-balancing loss, averaged over layers: 1 for an even load, 0 if there is none."""
        if not self._has_balance_loss():
            return torch.zeros((), device=self.device)
        match self.config.balance:
            case "switch":  # from the counts of the whole batch
                counts = [self.strategy.all_reduce_sum(routing.counts_E) for routing in routings]
                losses = [switch_loss(r._replace(counts_E=c)) for r, c in zip(routings, counts, strict=True)]
            case "sequence" | "bias+sequence":
                losses = [sequence_loss(routing, self.model.config.context) for routing in routings]
            case method:
                raise ValueError(f"Trainer._balance_loss has no loss for balance {method!r}; add a case")
        return torch.stack(losses).mean()

    def _has_balance_loss(self) -> bool:
        return bool(self.moe_layers) and self.config.balance in BALANCE_WEIGHTS

    @torch.no_grad()
    def _after_update(self, counts_ME: Tensor | None) -> None:
        """Update the load-balancing bias and the weight average."""
        self.step += 1
        if counts_ME is not None:
            self._update_bias(counts_ME)
        if self.average:
            # A window that grows with the run: the newest weights get weight 1 / (fraction * steps).
            weight = min(1.0, 1.0 / (self.config.average * self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    def _update_bias(self, counts_ME: Tensor) -> None:
        match self.config.balance:
            case "bias" | "bias+sequence":
                for moe, counts_E in zip(self.moe_layers, counts_ME, strict=True):
                    update_bias_(moe.gate.e_score_correction_bias, counts_E, self.config.balance_speed)
            case "none" | "switch" | "sequence":
                pass
            case method:
                raise ValueError(f"Trainer._update_bias does not cover balance {method!r}; add a case")

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Validation bits per byte in float32, of the averaged weights where there are any."""
        self.model.eval()
        nats = torch.zeros(len(self.corpus.domains), dtype=torch.float64)
        n_experts = self.model.config.n_experts
        counts_NME = torch.zeros(len(nats), len(self.moe_layers), n_experts, dtype=torch.int64)
        batches = self.corpus.validation_batches(
            self.model.config.context, self.config.eval_sequences, self.config.batch_size
        )
        for batch, is_counted in self.strategy.shard_batches(batches):
            batch = batch.to(self.device)
            logits_BLV, routings = functional_call(self.model, self.average, (batch.tokens_BL,))
            if not is_counted:
                continue
            domain = batch.domains_B[0]  # the same for the whole batch
            nats[domain] += cross_entropy(logits_BLV, batch.targets_BL).item() * len(batch.domains_B)
            if routings:
                counts_NME[domain] += torch.stack([routing.counts_E for routing in routings]).cpu()
        nats, counts_NME = self.strategy.all_reduce_sum(nats), self.strategy.all_reduce_sum(counts_NME)
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
        return self.strategy.run_on_rank0(lambda: seconds["bf16"] < 0.95 * seconds["float32"])
