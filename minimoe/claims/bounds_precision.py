"""[evidence] Claims about 8-bit numbers and their bounds."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.fp8_training import FP8_TRAINING
from minimoe.experiments.precision.accumulation import ACCUMULATION, TENSOR_CORE
from minimoe.experiments.precision.number_formats import FORMAT_ACCURACY, ROUNDED_CONSTANTS, STORAGE
from minimoe.experiments.precision.outliers import OUTLIERS
from minimoe.precision import BF16, E4M3, E5M2

_V3 = "DeepSeek-V3, arXiv 2412.19437"

CLAIMS = (
    Claim(
        "half-the-space",
        "Numbers of 8 bits take half the memory of those of 16 bits.",
        f"New York Times, 2025-02-12; {_V3}, section 3.3",
        tuple(
            Bound(figure, f"bytes of {what}, relative to bf16", most=0.55, why="half, and a tenth for scales")
            for figure, what in (
                ("tensor", "a tensor"),
                ("model", "our MoE model's weights"),
                ("v3", "DeepSeek-V3's weights"),
            )
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
                f"largest error in {fmt}, in units of roundoff",
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
        tuple(
            Bound(figure, what, least=2, unit="x", why="clearly larger, and not by chance")
            for figure, what in (
                ("8 over 16", "error of E4M3, relative to bf16"),
                ("16 over 32", "error of bf16, relative to float32"),
            )
        ),
        FORMAT_ACCURACY,
    ),
    Claim(
        "wide-answer",
        "Keeping the running answer in 32 bits makes the result more precise.",
        f"New York Times, 2025-02-12; {_V3}, section 3.3.2",
        tuple(
            Bound(
                f"{name} over float32",
                f"error of a sum in {name}, relative to float32",
                least=10,
                unit="x",
                why="an order of magnitude",
            )
            for name in (TENSOR_CORE, "fp16", "bf16")
        ),
        ACCUMULATION,
    ),
    Claim(
        "promotion",
        "Tensor cores keep some 14 bits of a sum, which costs about 2 % at K = 4096; adding to float32 every "
        "128 products repairs it.",
        f"{_V3}, section 3.3.2",
        (
            Bound(
                "plain",
                "largest error of sums without promotion, for the more favorable inputs",
                least=1,
                unit=" %",
                why="V3: nearly 2 %, for unnamed inputs",
            ),
            Bound(
                "mended",
                "error with promotion, relative to without",
                most=0.1,
                unit="x",
                why="an order of magnitude",
            ),
        ),
        ACCUMULATION,
    ),
    Claim(
        "accurate-enough",
        "Numbers of 8 bits are accurate enough to train a powerful network.",
        f"New York Times, 2025-02-12; {_V3}, section 3.3 and appendix B.1",
        (
            Bound(
                "gap",
                "loss with V3's recipe, relative increase over float32",
                most=0.25,
                unit=" %",
                why="V3: below 0.25 %",
            ),
            Bound(
                "gap to bf16",
                "loss with V3's recipe, relative increase over bf16",
                most=0.25,
                unit=" %",
                why="the comparison in V3",
            ),
            Bound(
                "naive",
                "loss without scales, relative increase over float32",
                least=0.25,
                unit=" %",
                why="the recipe is needed",
            ),
        ),
        FP8_TRAINING,
        learns=True,
    ),
    Claim(
        "outliers",
        "Scales for small groups of numbers protect the others from an outlier.",
        f"{_V3}, section 3.3.2",
        tuple(
            Bound(
                figure,
                f"gain of the other columns from {block} scales",
                least=10,
                unit=" dB",
                why="an order of magnitude in power",
            )
            for figure, block in (("tiles", "1×128"), ("blocks", "128×128"))
        ),
        OUTLIERS,
    ),
)
