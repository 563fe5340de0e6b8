"""The speed of emulating a tensor core's sums, against mmaemu, which computes the same bits.

    pytest benchmarks/test_tensor_core.py --benchmark-enable --benchmark-only -s

One thread, E4M3 numbers, M = N = 256, K = 4096. mmaemu is measured as a user calls it on a CPU,
``mmaemu.accumulate`` with its hopper profile (without promotion: ``use_fast_accum``), and by its reference
for a single sum, ``dot``, which gets a few rows and is counted per row. All are timed in the same rounds, in
turn.

Measured twice: with the C library's default, which returns large freed blocks to the system and requests
them again, and with freed memory kept (``minimoe.tools.allocator``). mmaemu works in blocks of megabytes and
gains most. It may gain in the default, too: the library also keeps freed blocks below one that is in use.
"""

import pytest
import torch

from minimoe.precision import E4M3, Accumulator, round_to
from minimoe.tools.timing import interleaved_seconds

DOT_ROWS = 4


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("promote_every", [None, 128])
@pytest.mark.parametrize("memory", ["given back", "kept"], indirect=True)  # in this order
def test_against_mmaemu(benchmark, rounds, memory, promote_every):
    mmaemu = pytest.importorskip("mmaemu")
    from mmaemu.model.chain import dot

    timed = rounds > 1
    outer, depth = (256, 4096) if timed else (128, 96)
    torch.manual_seed(0)
    a_MK, b_NK = (round_to(torch.rand(outer, depth), E4M3) for _ in range(2))
    a_codes, b_codes = a_MK.to(torch.float8_e4m3fn), b_NK.to(torch.float8_e4m3fn)
    few = [x.contiguous() for x in (a_codes[:DOT_ROWS, None].expand(-1, outer, -1), b_codes)]
    core = Accumulator.tensor_core(promote_every=promote_every)

    def theirs():
        return mmaemu.accumulate(
            a_codes, b_codes, use_fast_accum=promote_every is None,
            profile="hopper", splitk=1, backend="reference",
        )  # fmt: skip

    tasks = {
        "mmaemu": theirs,
        "dot": lambda: dot(few[0], few[1].expand(DOT_ROWS, -1, -1), preset="hopper"),
        "eager": lambda: core.matmul(a_MK, b_NK.T),
        "compiled": lambda: core.matmul(a_MK, b_NK.T, compiled=True),
    }
    assert torch.equal(tasks["eager"](), theirs())  # right first, then fast
    assert torch.equal(tasks["compiled"](), theirs())
    if promote_every is None:
        assert torch.equal(tasks["eager"]()[:DOT_ROWS], tasks["dot"]())
    cpu = torch.device("cpu")
    seconds = interleaved_seconds(tasks, cpu, rounds=rounds, warmup=2 if timed else 0)
    seconds["dot"] *= outer / DOT_ROWS
    figures = {
        "ms_mmaemu": seconds["mmaemu"] * 1e3,
        "ms_eager": seconds["eager"] * 1e3,
        "ms_compiled": seconds["compiled"] * 1e3,
        "eager_faster_than_mmaemu": seconds["mmaemu"] / seconds["eager"],
        "compiled_faster_than_mmaemu": seconds["mmaemu"] / seconds["compiled"],
        "compiled_faster_than_dot": seconds["dot"] / seconds["compiled"],
    }
    benchmark.group = f"tensor core sums, {outer} x {outer} x {depth}, one thread, memory {memory}"
    benchmark.extra_info.update(figures)
    print(
        f"\n{memory:10}  promoted {promote_every or 'never':5}  mmaemu {figures['ms_mmaemu']:6.0f} ms"
        f"   eager {figures['ms_eager']:4.0f} ms {figures['eager_faster_than_mmaemu']:4.1f}x"
        f"   compiled {figures['ms_compiled']:4.1f} ms {figures['compiled_faster_than_mmaemu']:4.1f}x"
        f"   dot {figures['compiled_faster_than_dot']:.0f}x"
    )
    benchmark.pedantic(tasks["compiled"], rounds=max(rounds // 4, 1), warmup_rounds=0)
