"""[evidence] Claims about mixtures of experts and their bounds."""

from minimoe.claims.claim import Bound, Claim
from minimoe.experiments.expert_parallel.communication import EXPERT_PARALLEL
from minimoe.experiments.load_balance import LOAD_BALANCE
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.shared_expert import SHARED_EXPERT
from minimoe.experiments.specialization import SPECIALIZATION

CLAIMS = (
    Claim(
        "much-more-efficient",
        "A mixture of experts is much more efficient than one network.",
        "New York Times, 2025-02-12",
        tuple(
            Bound(
                f"dense-{kind}, {axis.lower()}",
                f"bits per byte below dense with equal {kind} parameters, at equal {axis}",
                least=0,
                why="no worse",
            )
            for axis in ("FLOPs", "seconds")
            for kind in ("active", "total")
        ),
        MOE_VS_DENSE,
        learns=True,
    ),
    Claim(
        "specialists",
        "Each expert concentrates on its field, as poetry, programming, biology or physics.",
        "New York Times, 2025-02-12",
        (
            Bound(
                "over chance",
                "mutual information of expert and domain, above the 99th percentile by chance",
                least=0,
                unit=" millibits",
                why="more than chance",
            ),
            Bound(
                "favorite",
                "share of an expert's tokens from its favorite domain",
                least=50,
                unit=" %",
                why="most of them",
            ),
        ),
        SPECIALIZATION,
        learns=True,
    ),
    Claim(
        "generalist",
        "Pairing the specialists with a generalist is the trick.",
        "New York Times, 2025-02-12; DeepSeekMoE, arXiv 2401.06066, section 4.5; against it OLMoE, arXiv "
        "2409.02060, section 4.1",
        (
            Bound(
                "gain",
                "bits per byte gained by a shared expert, at equal active parameters",
                least=0,
                why="no worse",
            ),
            Bound(
                "loss",
                "bits per byte lost when it is switched off after training",
                least=0,
                why="it is needed",
            ),
        ),
        SHARED_EXPERT,
        learns=True,
    ),
    Claim(
        "struggled",
        "Many companies struggled with the method.",
        "New York Times, 2025-02-12; balance: arXiv 2101.03961, 2408.15664; DeepSeek-V3, arXiv 2412.19437, "
        "section 2.1.2",
        (
            Bound(
                "uneven", "MaxVio without balancing", least=1, why="the busiest expert has twice its share"
            ),
            Bound(
                "mended",
                "MaxVio with the worst balancing method, relative to without",
                most=0.5,
                unit="x",
                why="at least halved",
            ),
            Bound(
                "worse",
                "bits per byte lost without balancing, compared with the bias",
                least=0,
                why="the model suffers",
            ),
        ),
        LOAD_BALANCE,
        learns=True,
    ),
    Claim(
        "moving-data",
        "The time lost by moving data from place to place was minimised.",
        "New York Times, 2025-02-12; DeepSeek-V3, arXiv 2412.19437, sections 2.1.2 and 3.3.3",
        (
            Bound(
                "bytes",
                "bytes sent with group-limited routing in 8 bits, relative to free routing in bf16",
                most=0.5,
                unit="x",
                why="half: a token visits two processes of four",
            ),
            Bound(
                "seconds",
                "step time with group-limited routing in 8 bits, relative to free routing in bf16",
                most=1,
                unit="x",
                why="no slower",
            ),
        ),
        EXPERT_PARALLEL,
    ),
)
