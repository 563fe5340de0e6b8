"""Each claim of the articles as an experiment with bounds; the ledger tries them and tells the verdicts."""

from minimoe.claims.catalogue import CLAIMS
from minimoe.claims.claim import Bound, Claim, Judgement, Measured, Untestable
from minimoe.claims.workshop import Workshop

__all__ = ["CLAIMS", "Bound", "Claim", "Judgement", "Measured", "Untestable", "Workshop"]
