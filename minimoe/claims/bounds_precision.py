"""[evidence] Claims about 8-bit numbers and their bounds."""

from minimoe.claims.claim import Claim
from minimoe.experiments.fp8_training import FP8_TRAINING
from minimoe.experiments.precision.accumulation import ACCUMULATION
from minimoe.experiments.precision.number_formats import FORMAT_ACCURACY, ROUNDED_CONSTANTS, STORAGE
from minimoe.experiments.precision.outliers import OUTLIERS

CLAIMS = (
    Claim.of(
        "half-the-space",
        "Numbers of 8 bits take half the memory of those of 16 bits.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3",
        STORAGE,
        "tensor | at most 0.55 | bytes of a tensor, relative to bf16 | half, and a tenth for scales",
        "model | at most 0.55 | bytes of our MoE model's weights, relative to bf16 | "
        "half, and a tenth for scales",
        "v3 | at most 0.55 | bytes of DeepSeek-V3's weights, relative to bf16 | half, and a tenth for scales",
    ),
    Claim.of(
        "pi",
        "Shortening decimals, such as π to 3.14, leaves a good estimate.",
        "New York Times, 2025-02-12",
        ROUNDED_CONSTANTS,
        "E4M3 | at most 1 | largest error in E4M3, in units of roundoff | "
        "IEEE 754: half a unit in the last place",
        "E5M2 | at most 1 | largest error in E5M2, in units of roundoff | "
        "IEEE 754: half a unit in the last place",
        "BF16 | at most 1 | largest error in BF16, in units of roundoff | "
        "IEEE 754: half a unit in the last place",
    ),
    Claim.of(
        "less-accurate",
        "Each calculation with 8 bits is less accurate.",
        "New York Times, 2025-02-12",
        FORMAT_ACCURACY,
        "8 over 16 | at least 2x | error of E4M3, relative to bf16 | clearly larger, and not by chance",
        "16 over 32 | at least 2x | error of bf16, relative to float32 | clearly larger, and not by chance",
    ),
    Claim.of(
        "wide-answer",
        "Keeping the running answer in 32 bits makes the result more precise.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3.2",
        ACCUMULATION,
        "tensor core, 14 bits over float32 | at least 10x | "
        "error of a sum in tensor core, 14 bits, relative to float32 | an order of magnitude",
        "fp16 over float32 | at least 10x | error of a sum in fp16, relative to float32 | "
        "an order of magnitude",
        "bf16 over float32 | at least 10x | error of a sum in bf16, relative to float32 | "
        "an order of magnitude",
    ),
    Claim.of(
        "promotion",
        "Tensor cores keep about 14 bits of a sum, which costs about 2 % at K = 4096; adding to float32 "
        "every 128 products repairs it.",
        "DeepSeek-V3, arXiv 2412.19437, section 3.3.2",
        ACCUMULATION,
        "plain | at least 1 % | largest error of sums without promotion, for the more favorable inputs | "
        "V3: nearly 2 %, for unnamed inputs",
        "mended | at most 0.1x | error with promotion, relative to without | an order of magnitude",
    ),
    Claim.of(
        "accurate-enough",
        "Numbers of 8 bits are accurate enough to train a powerful network.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, section 3.3 and appendix B.1",
        FP8_TRAINING,
        "gap | at most 0.25 % | loss with V3's recipe, relative increase over float32 | V3: below 0.25 %",
        "gap to bf16 | at most 0.25 % | loss with V3's recipe, relative increase over bf16 | "
        "the comparison in V3",
        "naive | at least 0.25 % | loss without scales, relative increase over float32 | "
        "the recipe is needed",
    ),
    Claim.of(
        "outliers",
        "Scales for small groups of numbers protect the others from an outlier.",
        "DeepSeek-V3, arXiv 2412.19437, section 3.3.2",
        OUTLIERS,
        "tiles | at least 10 dB | gain of the other columns from 1×128 scales | "
        "an order of magnitude in power",
        "blocks | at least 10 dB | gain of the other columns from 128×128 scales | "
        "an order of magnitude in power",
    ),
)
