"""The claims about distillation, and the bounds that each must meet."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.distillation.measure import STUDENT_QUALITY, TEXT_ONLY_COPY

CLAIMS = (
    Claim(
        "small-from-big",
        "Distillation makes a big model's skill available in a small, cheap one without losing much.",
        "Financial Times, 2025-02-02; Hinton, Vinyals, Dean, arXiv 1503.02531",
        (
            Bound(
                "closed, ample",
                "of the gap to its teacher, what logits close with as much text",
                least=50,
                unit=" %",
                why="most of it",
            ),
            Bound(
                "closed, scarce",
                "of the gap to its teacher, what logits close with little text",
                least=50,
                unit=" %",
                why="most of it",
            ),
            Bound("size", "the student's parameters over the teacher's", most=0.25, unit="x", why="small"),
            Bound(
                "speed", "bytes a second that it writes, over the teacher's", least=1.5, unit="x", why="cheap"
            ),
        ),
        STUDENT_QUALITY,
        learns=True,
    ),
    Claim(
        "copying-is-easy",
        "A model that is seen only through its answers can be copied.",
        "Financial Times, 2025-01-29; New York Times, 2025-01-29",
        (
            Bound(
                "share",
                "of what logits close of the gap, what the most text closes",
                least=50,
                unit=" %",
                why="most of it",
            ),
        ),
        TEXT_ONLY_COPY,
        learns=True,
    ),
)
