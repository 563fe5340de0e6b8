"""The claim that experts are specialists: what an expert's number tells of the field of a text.

Dimensions: S sequences, L sequence length, K experts a token, E experts, D fields (domains).
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.load_balance import mixture
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.reporting.figures import BLUE, GREEN, LIGHT_GRAY, ORANGE, PINK, SKY_BLUE


def measure_specialists(context: RunContext) -> Measured:
    """How much an expert's number tells of a text's field, against fields dealt out at random."""
    if len(context.corpus.domains) < 3:
        raise Untestable(
            f"the text has {len(context.corpus.domains)} of the 3 fields or more without which most of an "
            "expert's tokens would be from one of themselves"
        )
    found = [_choices(context, training) for training in mixture(context)]
    told = [_information(*choices, context.pick(100, 500)) for choices in found]
    domains = list(context.corpus.domains)
    fields_S, experts, n_experts = found[0]
    counts_DE = _pooled(fields_S, _per_sequence(experts, n_experts))[-1]
    return Measured(
        {
            "over chance": [1e3 * (real - chance) for real, chance, _ in told],
            "favourite": [100 * share for _, _, share in told],
            "information": [1e3 * real for real, _, _ in told],
            "99 of 100 by chance below": [1e3 * chance for _, chance, _ in told],
        },
        {"domains": domains, "counts": counts_DE.tolist()},
        f"The mixture reads {context.pick(32, 64)} validation sequences of each of {len(domains)} fields "
        f"({', '.join(domains)}). Mutual information between a token's field and its expert, mean over "
        f"layers; by chance: the same with the sequences' fields dealt out anew, {context.pick(100, 500)} "
        "times. An expert's favourite field is where most of its tokens are from, all fields being equally "
        "long. The picture: the last layer of the first seed.",
    )


def _choices(context: RunContext, training: TrainingJob) -> tuple[np.ndarray, np.ndarray, int]:
    """(S,) fields of validation sequences, (layers, S, L * K) the experts of their tokens, and E."""
    model, corpus = context.model(training).eval(), context.corpus
    domains, experts = [], []
    sequences = context.pick(32, 64)
    with torch.no_grad():
        for batch in corpus.validation_batches(training.model.context, sequences, 16):
            batch = batch.to(context.device)
            _, routings = model(batch.tokens_BL)
            size = len(batch.domains_B)
            experts.append(torch.stack([r.ids_TK.reshape(size, -1) for r in routings]).cpu().numpy())
            domains.append(batch.domains_B.cpu().numpy())
    return np.concatenate(domains), np.concatenate(experts, axis=1), training.model.n_experts


def _per_sequence(experts: np.ndarray, n_experts: int) -> np.ndarray:
    """(layers, S, E): how often tokens of each sequence went to each expert."""
    return np.stack([[np.bincount(row, minlength=n_experts) for row in layer] for layer in experts])


def _pooled(domains_S: np.ndarray, per_sequence: np.ndarray) -> np.ndarray:
    """(layers, D, E): the same by field."""
    return np.einsum("sd,mse->mde", np.eye(domains_S.max() + 1)[domains_S], per_sequence)


def mutual_information(counts: np.ndarray) -> float:
    """Bits that the column tells of the row, of a table (…, D, E) of counts; the mean over tables."""
    joint = counts / counts.sum((-2, -1), keepdims=True)
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    terms = np.where(
        joint > 0, joint * np.log2(np.where(joint > 0, joint, 1) / np.where(apart > 0, apart, 1)), 0
    )
    return float(terms.sum((-2, -1)).mean())


def _information(
    domains_S: np.ndarray, experts: np.ndarray, n_experts: int, draws: int
) -> tuple[float, float, float]:
    """The information, what 99 of 100 dealings stay below, and the favourite field's share of an expert's
    tokens, weighted by the experts' loads.

    Sequences are dealt, not tokens: tokens of one text are alike, and dealt apart would make chance look
    smaller than it is.
    """
    per_sequence = _per_sequence(experts, n_experts)
    random = np.random.default_rng(0)
    chance = [mutual_information(_pooled(random.permutation(domains_S), per_sequence)) for _ in range(draws)]
    counts = _pooled(domains_S, per_sequence)
    share = float(counts.max(-2).sum() / counts.sum())
    return mutual_information(counts), float(np.quantile(chance, 0.99)), share


def draw_specialists(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    counts_DE = np.array(detail["counts"])
    share_DE = 100 * counts_DE / counts_DE.sum(0, keepdims=True).clip(min=1)
    order = np.argsort(-share_DE.max(0) + 1000 * share_DE.argmax(0))
    bottom = np.zeros(len(order))
    colors, hatches = (
        (BLUE, ORANGE, GREEN, LIGHT_GRAY, PINK, SKY_BLUE),
        ("", "//", "..", "xx", "\\\\", "++"),
    )
    for i, domain in enumerate(detail["domains"]):
        axes.bar(range(len(order)), share_DE[i][order], bottom=bottom, label=domain, width=0.9,
                 color=colors[i % 6], hatch=hatches[i % 6], edgecolor="white", linewidth=0.3)  # fmt: skip
        bottom += share_DE[i][order]
    axes.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="experts of one layer, by their favourite field",
        ylabel="share of an expert's tokens, %",
        ylim=(0, 100),
    )
    axes.set_xticks([])
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(detail["domains"]),
    )


SPECIALIZATION = Experiment(
    measure_specialists,
    draw_specialists,
    mixture,
    seconds=(3, 15),
    labels={"information": " millibits", "99 of 100 by chance below": " millibits"},
)
