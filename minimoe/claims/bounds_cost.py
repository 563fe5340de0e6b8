"""[evidence] Claims about parameters, memory and training cost, and their bounds."""

from minimoe.claims.claim import Claim
from minimoe.experiments.model_cost.memory_fit import MEMORY_FIT
from minimoe.experiments.model_cost.mixtral import MIXTRAL
from minimoe.experiments.model_cost.training_bill import TRAINING_BILL

CLAIMS = (
    Claim.of(
        "the-bill",
        "Training took 2.788 million GPU-hours, about 5.6 million dollars: ten times less than Meta's, on "
        "2,000 chips instead of 16,000.",
        "New York Times, 2025-01-23 and 2025-02-12; DeepSeek-V3, arXiv 2412.19437, table 1; Llama 3.1, "
        "arXiv 2407.21783 and its model card",
        TRAINING_BILL,
        "total | at most 0.5 | billions of parameters, difference from the published 671 | rounding",
        "active | at most 0.5 | "
        "billions of active parameters without the embedding, difference from the published 37 | rounding",
        "utilisation | at most 60 % | MFU implied by the hours of pre-training | more would be implausible",
        "utilisation | at least 20 % | MFU implied by the hours of pre-training | less would be wasteful",
        "dollars | at most 0.05 | millions of dollars, difference from the published 5.6 | rounding",
        "fewer hours | at least 10x | GPU-hours of Llama 3.1 405B, relative to V3 | ten times",
        "fewer operations | at least 10x | training FLOPs of Llama 3.1 405B, relative to V3 | "
        "ten times, whatever the hours",
        "cards | at least 7.5x | GPUs of Llama 3.1 405B, relative to V3 | 16,000 over 2,000 is 8",
    ),
    Claim.of(
        "fits-in-memory",
        "The memory needed to store the model was reduced, so that one machine of eight GPUs holds it.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3",
        MEMORY_FIT,
        "reduced | at most 0.55 | bytes of V3's weights in 8 bits, relative to bf16 | "
        "half, and a tenth for the rest",
        "h800 | at most 1 | V3's weights in 8 bits, relative to the memory of 8 H800 | "
        "the GPUs it was trained on, 80 GB each",
        "h200 | at most 1 | V3's weights in 8 bits, relative to the memory of 8 H200 | "
        "the next generation, 141 GB each",
    ),
    Claim.of(
        "mixtral",
        "Mixtral 8x7B used the same technique in 2023.",
        "New York Times, 2025-02-12; Mixtral, arXiv 2401.04088",
        MIXTRAL,
        "total | at most 0.05 | billions of parameters, difference from the published 46.7 | rounding",
        "active | at most 0.05 | billions of active parameters, difference from the published 12.9 | "
        "rounding",
        "layer | at most 1e-12 | largest error of our layer against Mixtral's equations | float64 rounding",
    ),
)
