"""What the exercises of *MoE or dense?* are checked with."""

from collections.abc import Callable

from checks import Verdict, compare
from minimoe.cost import expected_active_experts as _touched

LAYERS = ((16, 512, 128, 64, 8), (1, 8, 4, 4, 2), (100, 64, 32, 16, 1))


def _operations(T: int, D: int, H: int, E: int, K: int) -> int:
    return 2 * T * (3 * D * H * (K + 1) + E * D)


def check_operations(operations: Callable[[int, int, int, int, int], float]) -> Verdict:
    """``operations(T, D, H, E, K)`` -> of the matrix products of a mixture with one shared expert."""
    return compare(
        operations,
        [(sizes, _operations(*sizes)) for sizes in LAYERS],
        praise="Experts, generalist and gate; E is only in the gate's part.",
        hints=[
            (
                lambda T, D, H, E, K: _operations(T, D, H, E, K) // 2,
                "Every weight takes a multiplication and an addition: two operations.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * (3 * D * H * K + E * D),
                "The generalist is missing: it works on every token too.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * 3 * D * H * K,
                "The gate and the generalist are missing: both work on every token.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * 3 * D * H * (K + 1),
                "The gate is missing: it has E rows of D weights, and every token meets them all.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * (3 * D * H * K + 3 * D * H * E + E * D),
                "You let all E experts work. A token goes to K of them, and to the generalist.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * (3 * D * H * (E + 1) + E * D),
                "You let all E experts work. A token goes to K of them, and to the generalist.",
            ),
            (
                lambda T, D, H, E, K: 2 * (3 * D * H * (K + 1) + E * D),
                "That is for one token. There are T of them.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * (2 * D * H * (K + 1) + E * D),
                "An expert has three D by H matrices' worth of weights: two in, one out.",
            ),
            (
                lambda T, D, H, E, K: 2 * T * (3 * D * H * (K + 1) + K * D),
                "The gate scores all E experts before K of them are picked.",
            ),
        ],
    )


def check_touched(touched: Callable[[int, int, int], float]) -> Verdict:
    """``touched(E, K, T)`` -> experts that get any of T tokens, on average."""
    return compare(
        touched,
        [(sizes, _touched(*sizes)) for sizes in ((64, 8, 4), (64, 8, 1), (8, 2, 3), (256, 8, 32), (4, 4, 2))],
        praise="With one token K, with many E.",
        hints=[
            (
                lambda E, K, T: min(E, K * T),
                "That is the most there can be, as if no two tokens shared an expert.",
            ),
            (
                lambda E, K, T: E * (1 - K / E) ** T,
                "Those are the experts that get *nothing*. Take them from E.",
            ),
            (
                lambda E, K, T: (1 - K / E) ** T,
                "That is the chance that one expert is passed over by all. One minus it is asked, and there "
                "are E of them.",
            ),
            (
                lambda E, K, T: 1 - (1 - K / E) ** T,
                "That is the chance of one expert. There are E of them.",
            ),
            (
                lambda E, K, T: E * (1 - (1 - 1 / E) ** (K * T)),
                "Close. But one token's K experts are all different: an expert is passed over by a whole "
                "token with the chance 1 - K/E.",
            ),
            (
                lambda E, K, T: E * (1 - (K / E) ** T),
                "K/E is the chance that a token picks it. Passed over it is with 1 - K/E.",
            ),
        ],
    )


def check_turning(turning_point: Callable[[float, float, float], float]) -> Verdict:
    """``turning_point(peak, bandwidth, size)`` -> tokens from which on multiplying takes longer."""
    machines = ((80e9, 20e9, 4.0), (990e12, 3.3e12, 2.0), (1000.0, 10.0, 1.0))
    return compare(
        turning_point,
        [((p, b, s), p * s / (2 * b)) for p, b, s in machines],
        praise="The layer's size is not in it: it is a property of the machine, and of the number format.",
        hints=[
            (
                lambda p, b, s: p * s / b,
                "Twice too many: every token takes *two* operations with each weight.",
            ),
            (
                lambda p, b, s: p / (2 * b),
                "The bytes of a weight are missing: it takes size / bandwidth to read.",
            ),
            (lambda p, b, s: p / b, "A weight has several bytes, and takes two operations a token."),
            (
                lambda p, b, s: 2 * b / (p * s),
                "Upside down: the faster the machine multiplies, the more tokens it needs.",
            ),
            (
                lambda p, b, s: p / (2 * b * s),
                "Larger weights take longer to read, and need more tokens to make it worth while.",
            ),
        ],
    )
