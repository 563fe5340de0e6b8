"""[portability] A counter-based random generator for stochastic rounding: noise is a function of position.

A stateful generator returns its numbers in turn, so what an element gets depends on what was drawn before it.
Here the number is a hash of a key and of the element's position, as in counter-based generators (Salmon et
al., SC 2011): the same in any order and tiling, with any number of threads, and on any device.
"""

import torch
from torch import Tensor

# The multipliers of splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) and the golden ratio by which
# its counter advances, as signed 64-bit integers.
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN = -0x61C8864680B583EB


def noise_for(
    x: Tensor, dtype: torch.dtype, generator: torch.Generator | int | None, positions: Tensor | None
) -> Tensor:
    """Uniform noise that broadcasts to x; see ``rounding.round_to`` for ``generator`` and ``positions``.

    Raises:
        ValueError: positions that are not int64 or do not broadcast to x, or a seed of more than 64 bits.
    """
    if positions is None:
        positions = torch.arange(x.numel(), device=x.device).view(x.shape)
    elif positions.dtype != torch.int64 or not _broadcasts(positions.shape, x.shape):
        raise ValueError(
            f"positions are {positions.dtype} {tuple(positions.shape)}; pass int64 that broadcasts to the "
            f"shape of x, {tuple(x.shape)}"
        )
    return uniform_at(positions, draw_key(generator, x.device), dtype)


def draw_key(generator: torch.Generator | int | None, device: torch.device) -> Tensor:
    """A 0-dim int64 key: a seed unchanged, or one draw from a generator (None: torch's global one).

    Raises:
        ValueError: a seed of more than 64 bits.
    """
    if isinstance(generator, int):
        if not -(2**63) <= generator < 2**63:
            raise ValueError(f"the seed ({generator}) must fit 64 bits: at least -2^63 and below 2^63")
        return torch.tensor(generator, dtype=torch.int64, device=device)
    source = generator.device if generator is not None else device
    key = torch.randint(2**63 - 1, (), dtype=torch.int64, generator=generator, device=source)
    return key.to(device)


def uniform_at(positions: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """One number in [0, 1) per position (int64), a multiple of 2^-24 (float32) or 2^-53 (float64)."""
    bits = 53 if dtype == torch.float64 else 24
    # Products wrap around, as the hash requires; the masks make the shifts logical. The key enters by xor:
    # torch.compile would fold sums and products of an arange into integers of more than 64 bits.
    z = (positions ^ _mix(key + _GOLDEN)) * _GOLDEN
    return ((_mix(z) >> (64 - bits)) & (2**bits - 1)).to(dtype) * 2.0**-bits


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MULTIPLIERS[0]
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MULTIPLIERS[1]
    return z ^ ((z >> 31) & (2**33 - 1))


def _broadcasts(small: torch.Size, shape: torch.Size) -> bool:
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)
