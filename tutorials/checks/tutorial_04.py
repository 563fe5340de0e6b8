"""What the exercises of *Keeping everyone busy* are checked with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from checks import Verdict, compare
from minimoe.moe import max_violation, route, switch_loss, update_bias_

COUNTS = (
    torch.tensor([40, 10, 10, 20]),
    torch.tensor([5, 5, 5, 5, 5]),
    torch.tensor([0, 96, 0, 0, 0, 0]),
    torch.tensor([3, 1, 4, 1, 5, 9]),
    torch.tensor([10, 10, 10, 0]),  # the idlest is farther from the mean than the busiest
)


def check_violation(violation: Callable[[Tensor], float]) -> Verdict:
    """``violation(counts_E)`` -> MaxVio."""
    return compare(
        violation,
        [((counts_E,), max_violation(counts_E)) for counts_E in COUNTS],
        praise="0 is perfectly even; with one expert a token, E - 1 is the worst there is.",
        hints=[
            (
                lambda c: max_violation(c) + 1,
                "That is how many times its share the busiest has. MaxVio is what is *above* the share: "
                "take the mean away before you divide.",
            ),
            (
                lambda c: float((c.max() - c.min()) / c.double().mean()),
                "You compare the busiest with the idlest. Compare it with the mean.",
            ),
            (
                lambda c: float((c.max() - c.double().mean()) / c.sum()),
                "Divide by the mean load, not by the sum of all.",
            ),
            (
                lambda c: float(c.max() - c.double().mean()),
                "That is a number of tokens. Divide it by the mean, so that large and small batches compare.",
            ),
            (
                lambda c: float((c - c.double().mean()).abs().max() / c.double().mean()),
                "That is the largest distance to either side. Who has too little delays nobody.",
            ),
            (
                lambda c: float(c.double().std() / c.double().mean()),
                "A standard deviation speaks of all experts. The others wait for the busiest alone.",
            ),
        ],
        tolerance=1e-5,
    )


def _made(
    scale: float = 1.0, *, f: str = "share", p: str = "share", factor: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """Variants of Switch's loss, most of them wrong."""

    def loss(scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        T, E = scores_TE.shape
        counts_E = F.one_hot(ids_TK, E).sum((0, 1)).to(scores_TE.dtype)
        f_E = counts_E / {"share": counts_E.sum(), "tokens": T, "one": 1}[f]
        p_E = {
            "share": (scores_TE / scores_TE.sum(1, keepdim=True)).mean(0),
            "raw": scores_TE.mean(0),
            "sum": (scores_TE / scores_TE.sum(1, keepdim=True)).sum(0),
            "f": f_E,
        }[p]
        return scale * (E if factor else 1) * (f_E * p_E).sum()

    return loss


def check_switch(loss: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """``loss(scores_TE, ids_TK)`` -> Switch's balance loss, a scalar that leads to a gradient."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for n_experts, top_k, skew in ((6, 2, 1.0), (4, 1, 0.0), (8, 3, 2.0)):
        logits_TE = torch.randn(32, n_experts, generator=generator) + skew * torch.arange(n_experts) / 4
        routing = route(logits_TE, top_k, score="sigmoid")
        cases.append(((routing.scores_TE, routing.ids_TK), switch_loss(routing)))
    verdict = compare(
        loss,
        cases,
        praise="And its gradient goes through P alone, as it must.",
        hints=[
            (
                _made(factor=False),
                "E times too small: add up over the experts (no mean), with the factor E in front; perfect "
                "balance is 1.",
            ),
            (
                _made(f="tokens", p="raw"),
                "f and P are shares: divide the counts by all picks, T times K, and each token's scores by "
                "their sum.",
            ),
            (
                _made(f="tokens"),
                "K times too large: f is an expert's share of all *picks*, of which there are T times K.",
            ),
            (
                _made(p="raw"),
                "P is a mean of shares: divide each token's scores by their sum before you average.",
            ),
            (_made(p="sum"), "P is the *mean* over the tokens; you have added them up."),
            (_made(f="one"), "f is a share: divide the counts by the number of picks."),
            (
                _made(p="f"),
                "You multiply f by f. Picks are counts, and a count has no gradient: the second factor "
                "must come from the scores.",
            ),
        ],
        tolerance=1e-5,
    )
    return verdict if not verdict else _with_gradient(loss, verdict)


def _with_gradient(loss: Callable[[Tensor, Tensor], Tensor], verdict: Verdict) -> Verdict:
    logits_TE = torch.randn(16, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    routing = route(logits_TE, 2, score="sigmoid")
    (expected,) = torch.autograd.grad(switch_loss(routing), logits_TE, retain_graph=True)
    value = loss(routing.scores_TE, routing.ids_TK)
    if not (isinstance(value, Tensor) and value.requires_grad):
        return Verdict(
            False,
            "The value is right, but no gradient comes back from it: keep to torch's functions, without "
            ".item(), .tolist(), .detach() or numpy on the scores.",
        )
    (given,) = torch.autograd.grad(value, logits_TE)
    if not torch.allclose(given, expected, rtol=1e-4, atol=1e-7):
        return Verdict(
            False,
            "The value is right, its gradient is not: all of it should come through P, from the scores.",
        )
    return verdict


def _moved(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
    bias_E = bias_E.clone()
    update_bias_(bias_E, counts_E, speed)
    return bias_E


def check_update(move: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """``move(bias_E, counts_E, speed)`` -> the new bias."""
    biases = [0.1 * torch.arange(len(counts_E)) for counts_E in COUNTS]
    biases[0] = torch.zeros(4)
    examples = [(bias_E, counts_E, 0.125) for bias_E, counts_E in zip(biases, COUNTS, strict=True)]

    def away(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        return 2 * bias_E - _moved(bias_E, counts_E, speed)

    def proportional(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        load_E = counts_E.float()
        return bias_E + speed * (load_E.mean() - load_E)

    def relative(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        load_E = counts_E.float()
        return bias_E + speed * (load_E.mean() - load_E) / load_E.mean()

    def step_alone(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        return _moved(bias_E, counts_E, speed) - bias_E

    def never_even(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        load_E = counts_E.float()
        return bias_E + speed * torch.where(load_E > load_E.mean(), -1.0, 1.0)

    def down_alone(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        load_E = counts_E.float()
        return bias_E - speed * (load_E > load_E.mean())

    def extremes_alone(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
        busiest, idlest = counts_E == counts_E.max(), counts_E == counts_E.min()
        return bias_E + speed * (idlest.float() - busiest.float())

    kept = [bias_E.clone() for bias_E in biases]
    verdict = compare(
        move,
        [(example, _moved(*example)) for example in examples],
        praise="The overloaded go down, the underloaded up, and who has just its share stays.",
        hints=[
            (away, "The wrong way round: an overloaded expert's bias must go *down*."),
            (proportional, "V3 moves every expert by the same step, up or down: take the sign alone."),
            (relative, "V3 moves every expert by the same step, up or down: take the sign alone."),
            (never_even, "An expert that has exactly the mean load should stay where it is: sign(0) is 0."),
            (extremes_alone, "You move the busiest and the idlest alone; the rule is for every expert."),
            (down_alone, "The underloaded must go up as well, and by as much."),
            (step_alone, "That is the step. Add it to the old bias."),
        ],
    )
    if verdict and not all(torch.equal(a, b) for a, b in zip(kept, biases, strict=True)):
        return Verdict(
            False, "The new values are right, but you changed the old bias in place; return a new one."
        )
    return verdict
