"""[evidence] Claims of the articles: bounds over the figures of experiments, and the ledger of verdicts."""

from minimoe.claims.claim import Bound, Claim, Judgement
from minimoe.claims.registry import CLAIMS

__all__ = ["CLAIMS", "Bound", "Claim", "Judgement"]
