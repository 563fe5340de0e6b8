"""[evidence] Claims about mixtures of experts and their bounds."""

from minimoe.claims.claim import Claim
from minimoe.experiments.expert_parallel.communication import EXPERT_PARALLEL
from minimoe.experiments.load_balance import LOAD_BALANCE
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.shared_expert import SHARED_EXPERT
from minimoe.experiments.specialization import SPECIALIZATION

CLAIMS = (
    Claim.of(
        "much-more-efficient",
        "A mixture of experts is much more efficient than one network.",
        "New York Times, 2025-02-12",
        MOE_VS_DENSE,
        "dense-active, flops | at least 0 | "
        "bits per byte below dense with equal active parameters, at equal FLOPs | no worse",
        "dense-total, flops | at least 0 | "
        "bits per byte below dense with equal total parameters, at equal FLOPs | no worse",
        "dense-active, seconds | at least 0 | "
        "bits per byte below dense with equal active parameters, at equal seconds | no worse",
        "dense-total, seconds | at least 0 | "
        "bits per byte below dense with equal total parameters, at equal seconds | no worse",
    ),
    Claim.of(
        "specialists",
        "Each expert concentrates on its field, such as poetry, programming, biology or physics.",
        "New York Times, 2025-02-12",
        SPECIALIZATION,
        "over chance | at least 0 millibits | "
        "mutual information of expert and domain, above the 99th percentile by chance | more than chance",
        "favorite | at least 50 % | share of an expert's tokens from its favorite domain | most of them",
    ),
    Claim.of(
        "generalist",
        "Pairing the specialists with a generalist is the trick.",
        "New York Times, 2025-02-12; DeepSeekMoE, arXiv 2401.06066, section 4.5; against it OLMoE, arXiv "
        "2409.02060, section 4.1",
        SHARED_EXPERT,
        "gain | at least 0 | bits per byte gained by a shared expert, at equal active parameters | no worse",
        "loss | at least 0 | bits per byte lost when it is switched off after training | it is needed",
    ),
    Claim.of(
        "struggled",
        "Many companies struggled with the method.",
        "New York Times, 2025-02-12; balance: arXiv 2101.03961, 2408.15664; DeepSeek-V3, arXiv 2412.19437, "
        "section 2.1.2",
        LOAD_BALANCE,
        "uneven | at least 1 | MaxVio without balancing | the busiest expert has twice its share",
        "mended | at most 0.5x | MaxVio with the worst balancing method, relative to without | "
        "at least halved",
        "worse | at least 0 | bits per byte lost without balancing, compared with the bias | "
        "the model suffers",
    ),
    Claim.of(
        "moving-data",
        "The time lost by moving data from place to place was minimized.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, sections 2.1.2 and 3.3.3",
        EXPERT_PARALLEL,
        "bytes | at most 0.5x | "
        "bytes sent with group-limited routing in 8 bits, relative to free routing in bf16 | half: a token "
        "visits two processes of four",
        "seconds | at most 1x | "
        "step time with group-limited routing in 8 bits, relative to free routing in bf16 | no slower",
    ),
)
