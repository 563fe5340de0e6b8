"""[evidence] Claims about distillation and their bounds."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.distillation.student_quality import STUDENT_QUALITY, TEXT_ONLY_COPY

CLAIMS = (
    Claim(
        "small-from-big",
        "Distillation makes a big model's skill available in a small, cheap one without losing much.",
        "Financial Times, 2025-02-02; Hinton, Vinyals, Dean, arXiv 1503.02531",
        (
            Bound(
                "closed, ample",
                "share of the gap to the teacher that logits close, with as much text as the teacher",
                least=50,
                unit=" %",
                why="most of it",
            ),
            Bound(
                "closed, scarce",
                "share of the gap to the teacher that logits close, with little text",
                least=50,
                unit=" %",
                why="most of it",
            ),
            Bound(
                "size", "the student's parameters, relative to the teacher", most=0.25, unit="x", why="small"
            ),
            Bound(
                "speed",
                "bytes generated per second, relative to the teacher",
                least=1.5,
                unit="x",
                why="cheap",
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
                "gap closed by the longest teacher text, as a share of what logits close",
                least=50,
                unit=" %",
                why="most of it",
            ),
        ),
        TEXT_ONLY_COPY,
        learns=True,
    ),
)
