"""[evidence] Claims about parameters, memory and training cost, and their bounds."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.model_cost.memory_fit import MEMORY_FIT
from minimoe.experiments.model_cost.mixtral import MIXTRAL
from minimoe.experiments.model_cost.training_bill import TRAINING_BILL

_MFU = "MFU implied by the hours of pre-training"

CLAIMS = (
    Claim(
        "the-bill",
        "Training took 2.788 million GPU-hours, about 5.6 million dollars: ten times less than Meta's, on "
        "2,000 chips instead of 16,000.",
        "New York Times, 2025-01-23 and 2025-02-12; DeepSeek-V3, arXiv 2412.19437, table 1; Llama 3.1, arXiv "
        "2407.21783 and its model card",
        (
            Bound(
                "total", "billions of parameters, difference from the published 671", most=0.5, why="rounding"
            ),
            Bound(
                "active",
                "billions of active parameters without the embedding, difference from the published 37",
                most=0.5,
                why="rounding",
            ),
            Bound("utilisation", _MFU, most=60, unit=" %", why="more would be implausible"),
            Bound("utilisation", _MFU, least=20, unit=" %", why="less would be wasteful"),
            Bound(
                "dollars", "millions of dollars, difference from the published 5.6", most=0.05, why="rounding"
            ),
            Bound(
                "fewer hours",
                "GPU-hours of Llama 3.1 405B, relative to V3",
                least=10,
                unit="x",
                why="ten times",
            ),
            Bound(
                "fewer operations",
                "training FLOPs of Llama 3.1 405B, relative to V3",
                least=10,
                unit="x",
                why="ten times, whatever the hours",
            ),
            Bound(
                "cards",
                "GPUs of Llama 3.1 405B, relative to V3",
                least=7.5,
                unit="x",
                why="16,000 over 2,000 is 8",
            ),
        ),
        TRAINING_BILL,
    ),
    Claim(
        "fits-in-memory",
        "The memory needed to store the model was reduced, so that one machine of eight GPUs holds it.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3",
        (
            Bound(
                "reduced",
                "bytes of V3's weights in 8 bits, relative to bf16",
                most=0.55,
                why="half, and a tenth for the rest",
            ),
            Bound(
                "h800",
                "V3's weights in 8 bits, relative to the memory of 8 H800",
                most=1,
                why="the GPUs it was trained on, 80 GB each",
            ),
            Bound(
                "h200",
                "V3's weights in 8 bits, relative to the memory of 8 H200",
                most=1,
                why="the next generation, 141 GB each",
            ),
        ),
        MEMORY_FIT,
    ),
    Claim(
        "mixtral",
        "Mixtral 8x7B used the same technique in 2023.",
        "New York Times, 2025-02-12; Mixtral, arXiv 2401.04088",
        (
            Bound(
                "total",
                "billions of parameters, difference from the published 46.7",
                most=0.05,
                why="rounding",
            ),
            Bound(
                "active",
                "billions of active parameters, difference from the published 12.9",
                most=0.05,
                why="rounding",
            ),
            Bound(
                "layer",
                "largest error of our layer against Mixtral's equations",
                most=1e-12,
                why="float64 rounding",
            ),
        ),
        MIXTRAL,
    ),
)
