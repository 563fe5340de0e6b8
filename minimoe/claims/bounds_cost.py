"""The claims about parameters, memory and money, and the bounds that each must meet."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.model_cost.bill import TRAINING_BILL
from minimoe.experiments.model_cost.counts import MEMORY_FIT, MIXTRAL

CLAIMS = (
    Claim(
        "the-bill",
        "Training took 2.788 million card hours, about 5.6 million dollars: ten times less than Meta's, on "
        "2,000 chips and not 16,000.",
        "New York Times, 2025-01-23 and 2025-02-12; DeepSeek-V3, arXiv 2412.19437, table 1; Llama 3.1, arXiv "
        "2407.21783 and its model card",
        (
            Bound("total", "billions of parameters off the published 671", most=0.5, why="as it is rounded"),
            Bound(
                "active",
                "billions working on a token, the embedding left out, off the published 37",
                most=0.5,
                why="as it is rounded",
            ),
            Bound(
                "utilisation",
                "share of the bf16 peak that the hours imply",
                most=60,
                unit=" %",
                why="more would be too good to be true",
            ),
            Bound(
                "utilisation",
                "share of the bf16 peak that the hours imply",
                least=20,
                unit=" %",
                why="less would be waste",
            ),
            Bound("dollars", "millions of dollars off the published 5.6", most=0.05, why="as it is rounded"),
            Bound("fewer hours", "Llama 3.1 405B's hours over V3's", least=10, unit="x", why="ten times"),
            Bound(
                "fewer operations",
                "Llama 3.1 405B's operations over V3's",
                least=10,
                unit="x",
                why="the same, whatever the hours",
            ),
            Bound(
                "cards", "Llama 3.1 405B's cards over V3's", least=7.5, unit="x", why="16,000 over 2,000 is 8"
            ),
        ),
        TRAINING_BILL,
    ),
    Claim(
        "fits-in-memory",
        "The memory needed to store the model was reduced, so that one machine of eight cards holds it.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3",
        (
            Bound(
                "reduced",
                "bytes of V3's weights in 8 bits over bf16",
                most=0.55,
                why="half, and a tenth for the rest",
            ),
            Bound(
                "h800",
                "V3's weights in 8 bits over the memory of 8 H800",
                most=1,
                why="the cards it was trained on, 80 GB each",
            ),
            Bound(
                "h200",
                "V3's weights in 8 bits over the memory of 8 H200",
                most=1,
                why="the next cards, 141 GB each",
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
                "total", "billions of parameters off the published 46.7", most=0.05, why="as it is rounded"
            ),
            Bound(
                "active",
                "billions working on a token off the published 12.9",
                most=0.05,
                why="as it is rounded",
            ),
            Bound(
                "layer",
                "our layer's largest error against Mixtral's equations",
                most=1e-12,
                why="float64 rounding",
            ),
        ),
        MIXTRAL,
    ),
)
