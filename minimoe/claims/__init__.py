"""Each claim of the articles as an experiment with bounds; the ledger tries them and tells the verdicts."""

from minimoe.claims.claim import Bound, Claim, Judgement
from minimoe.claims.registry import CLAIMS
from minimoe.experiments.context import RunContext
from minimoe.experiments.measurement import Measured, Untestable

__all__ = ["CLAIMS", "Bound", "Claim", "Judgement", "Measured", "RunContext", "Untestable"]
