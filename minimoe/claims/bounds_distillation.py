"""[evidence] Claims about distillation and their bounds."""

from minimoe.claims.claim import Claim
from minimoe.experiments.distillation.student_quality import STUDENT_QUALITY, TEXT_ONLY_COPY

CLAIMS = (
    Claim.of(
        "small-from-big",
        "Distillation makes a big model's skill available in a small, cheap one without losing much.",
        "Financial Times, 2025-02-02; Hinton, Vinyals, Dean, arXiv 1503.02531",
        STUDENT_QUALITY,
        "closed, ample | at least 50 % | "
        "share of the gap to the teacher that logits close, with as much text as the teacher | most of it",
        "closed, scarce | at least 50 % | "
        "share of the gap to the teacher that logits close, with little text | most of it",
        "size | at most 0.25x | the student's parameters, relative to the teacher | small",
        "speed | at least 1.5x | bytes generated per second, relative to the teacher | cheap",
    ),
    Claim.of(
        "copying-is-easy",
        "A model that is seen only through its answers can be copied.",
        "Financial Times, 2025-01-29; New York Times, 2025-01-29",
        TEXT_ONLY_COPY,
        "share | at least 50 % | gap closed by the longest teacher text, as a share of what logits close | "
        "most of it",
    ),
)
