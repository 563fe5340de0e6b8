"""[evidence] Expert specialization: mutual information between a text's domain and its tokens' experts.

Dimensions: S sequences, L sequence length, K experts per token, M MoE layers, E experts, D domains.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.jobs import TrainingJob
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.experiments.moe_jobs import moe_jobs
from minimoe.reporting.figures import BLUE, GREEN, LIGHT_GRAY, ORANGE, PINK, SKY_BLUE

COLORS, HATCHES = (BLUE, ORANGE, GREEN, LIGHT_GRAY, PINK, SKY_BLUE), ("", "//", "..", "xx", "\\\\", "++")


class Specialization(NamedTuple):
    information: float
    """mutual information of domain and expert, in bits, mean over layers"""
    chance: float
    """99th percentile of the same with the domains permuted"""
    favorite: float
    """share of an expert's tokens from its most frequent domain, mean weighted by load"""


def measure(context: RunContext) -> Measured:
    """The mutual information, against a permutation test."""
    domains = list(context.corpus.domains)
    if len(domains) < 3:
        raise Untestable(
            f"the corpus has {len(domains)} domains and this needs 3 or more: with 2, most of an expert's "
            "tokens are from one of them whatever it does"
        )
    sequences, permutations = context.pick(32, 64), context.pick(100, 500)
    loads = [expert_loads(context, job, sequences) for job in moe_jobs(context)]
    results = [specialization(domains_S, loads_MSE, permutations) for domains_S, loads_MSE in loads]
    counts_DE = per_domain(*loads[0])[-1]
    return Measured(
        {
            "over chance": [1e3 * (result.information - result.chance) for result in results],
            "favorite": [100 * result.favorite for result in results],
            "information": [1e3 * result.information for result in results],
            "99th percentile by chance": [1e3 * result.chance for result in results],
        },
        {"domains": domains, "counts": counts_DE.tolist()},
        f"The MoE model reads {sequences} validation sequences of each of {len(domains)} domains "
        f"({', '.join(domains)}). Mutual information between a token's domain and its expert, mean over "
        f"layers; by chance: the same with the domains of the sequences permuted, {permutations} times. An "
        "expert's favorite domain is the one most of its tokens are from, all domains being equally long. "
        "The figure shows the last layer of the first seed.",
    )


def expert_loads(context: RunContext, job: TrainingJob, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """(S,) domains of validation sequences, and (M, S, E) how often each one's tokens went to each expert."""
    model, n_experts = context.model(job), job.model.n_experts
    domains, loads = [], []
    with torch.no_grad():
        for batch in context.corpus.validation_batches(job.model.context, sequences, 16):
            _, routings = model(batch.tokens_BL.to(context.device))
            ids_MS = [r.ids_TK.reshape(len(batch.domains_B), -1).cpu().numpy() for r in routings]
            loads.append(count_loads(ids_MS, n_experts))
            domains.append(batch.domains_B.numpy())
    return np.concatenate(domains), np.concatenate(loads, axis=1)


def count_loads(ids: Any, n_experts: int) -> np.ndarray:
    """(M, S, L * K) experts' ids -> (M, S, E) how often each one stands in a sequence."""
    return np.stack([[np.bincount(row, minlength=n_experts) for row in layer] for layer in ids])


def per_domain(domains_S: np.ndarray, loads_MSE: np.ndarray) -> np.ndarray:
    """(M, D, E) loads, summed over the sequences of a domain."""
    return np.einsum("sd,mse->mde", np.eye(domains_S.max() + 1)[domains_S], loads_MSE)


def mutual_information(counts: np.ndarray) -> float:
    """Mutual information of row and column, in bits, of tables (…, D, E) of counts; the mean over tables."""
    joint = counts / counts.sum((-2, -1), keepdims=True)
    independent = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.where(joint > 0, joint, 1) / np.where(independent > 0, independent, 1)
    return float(np.where(joint > 0, joint * np.log2(ratio), 0).sum((-2, -1)).mean())


def specialization(domains_S: np.ndarray, loads_MSE: np.ndarray, permutations: int) -> Specialization:
    """Sequences are permuted, not tokens: tokens of one text are alike, and permuting them one by one would
    make the information by chance smaller than it is."""
    random = np.random.default_rng(0)
    chance = [
        mutual_information(per_domain(random.permutation(domains_S), loads_MSE)) for _ in range(permutations)
    ]
    counts_MDE = per_domain(domains_S, loads_MSE)
    favorite = float(counts_MDE.max(-2).sum() / counts_MDE.sum())
    return Specialization(mutual_information(counts_MDE), float(np.quantile(chance, 0.99)), favorite)


def draw(figure: Figure, detail: dict[str, Any]) -> None:
    axes = figure.subplots()
    counts_DE = np.array(detail["counts"])
    share_DE = 100 * counts_DE / counts_DE.sum(0, keepdims=True).clip(min=1)
    order = np.argsort(-share_DE.max(0) + 1000 * share_DE.argmax(0))
    bottom = np.zeros(len(order))
    for i, domain in enumerate(detail["domains"]):
        axes.bar(range(len(order)), share_DE[i][order], bottom=bottom, label=domain, width=0.9,
                 color=COLORS[i % 6], hatch=HATCHES[i % 6], edgecolor="white", linewidth=0.3)  # fmt: skip
        bottom += share_DE[i][order]
    axes.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="experts of one layer, by their favorite domain",
        ylabel="share of an expert's tokens, %",
        ylim=(0, 100),
    )
    axes.set_xticks([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(detail["domains"]))


UNITS = dict.fromkeys(("over chance", "information", "99th percentile by chance"), " millibits")
UNITS |= {"favorite": " %"}

SPECIALIZATION = Experiment(measure, draw, moe_jobs, seconds=(3, 15), units=UNITS)
