"""The claims about numbers in 8 bits, and the bounds that each must meet."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.fp8_training import FP8_TRAINING
from minimoe.experiments.precision.accumulation import ACCUMULATORS, PROMOTION, V3, WAYS
from minimoe.experiments.precision.number_formats import FORMAT_ACCURACY, ROUNDED_CONSTANTS, STORAGE
from minimoe.experiments.precision.outliers import OUTLIERS
from minimoe.precision import BF16, E4M3, E5M2

CLAIMS = (
    Claim(
        "half-the-space",
        "Numbers of 8 bits take half the memory of those of 16 bits.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3",
        (
            Bound(
                "tensor", "a tensor's bytes over those of bf16", most=0.55, why="half, and a tenth for scales"
            ),
            Bound("model", "our mixture's weights over bf16", most=0.55, why="half, and a tenth for scales"),
            Bound("v3", "DeepSeek-V3's weights over bf16", most=0.55, why="half, and a tenth for scales"),
        ),
        STORAGE,
    ),
    Claim(
        "pi",
        "Shortening decimals, as π to 3.14, leaves a good estimate.",
        "New York Times, 2025-02-12",
        tuple(
            Bound(
                str(fmt),
                f"the worst error in {fmt}, in units of roundoff",
                most=1,
                why="IEEE 754: half a unit in the last place",
            )
            for fmt in (E4M3, E5M2, BF16)
        ),
        ROUNDED_CONSTANTS,
    ),
    Claim(
        "less-accurate",
        "Each calculation with 8 bits is less accurate.",
        "New York Times, 2025-02-12",
        (
            Bound(
                "8 over 16",
                "error of E4M3 over that of bf16",
                least=2,
                unit="x",
                why="clearly, and not by chance",
            ),
            Bound(
                "16 over 32",
                "error of bf16 over that of float32",
                least=2,
                unit="x",
                why="clearly, and not by chance",
            ),
        ),
        FORMAT_ACCURACY,
    ),
    Claim(
        "wide-answer",
        "Keeping the running answer in 32 bits makes the result more precise.",
        f"New York Times, 2025-02-12; {V3}, section 3.3.2",
        tuple(
            Bound(
                f"{name} over float32",
                f"error with a sum in {name} over one in float32",
                least=10,
                unit="x",
                why="an order of magnitude",
            )
            for name in WAYS
            if name != "float32"
        ),
        ACCUMULATORS,
    ),
    Claim(
        "promotion",
        "Tensor cores keep some 14 bits of a sum, which costs about 2 % at K = 4096; adding to float32 every "
        "128 products repairs it.",
        f"{V3}, section 3.3.2",
        (
            Bound(
                "plain",
                "worst error of plain sums, the kinder numbers",
                least=1,
                unit=" %",
                why="V3: nearly 2 %, of numbers it does not name",
            ),
            Bound(
                "mended",
                "the error with promotion over the error without",
                most=0.1,
                unit="x",
                why="an order of magnitude",
            ),
        ),
        PROMOTION,
    ),
    Claim(
        "accurate-enough",
        "Numbers of 8 bits are accurate enough to train a powerful network.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3 and appendix B.1",
        (
            Bound(
                "gap", "loss under V3's recipe above float32's", most=0.25, unit=" %", why="V3: below 0.25 %"
            ),
            Bound(
                "gap to bf16",
                "loss under V3's recipe above bf16's",
                most=0.25,
                unit=" %",
                why="the comparison V3 made",
            ),
            Bound(
                "naive",
                "loss without any scale above float32's",
                least=0.25,
                unit=" %",
                why="so that care is needed",
            ),
        ),
        FP8_TRAINING,
        learns=True,
    ),
    Claim(
        "outliers",
        "Scales for small groups of numbers protect the others from an outlier.",
        "DeepSeek-V3, arXiv 2412.19437, section 3.3.2",
        (
            Bound(
                "tiles",
                "what scales for 1×128 gain the other columns",
                least=10,
                unit=" dB",
                why="an order of magnitude in power",
            ),
            Bound(
                "blocks",
                "what scales for 128×128 gain the other columns",
                least=10,
                unit=" dB",
                why="an order of magnitude in power",
            ),
        ),
        OUTLIERS,
    ),
)
