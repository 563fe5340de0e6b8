import pytest
import torch

from minimoe.moe import MoE, max_violation, update_bias_


def test_the_bias_moves_against_the_load():
    bias = torch.tensor([0.0, 0.5, 0.0, 0.0])
    update_bias_(bias, torch.tensor([10, 2, 4, 0]), speed=0.1)
    torch.testing.assert_close(bias, torch.tensor([-0.1, 0.6, 0.0, 0.1]))


def test_the_bias_alone_balances_a_lopsided_gate():
    moe = MoE(8, 8, 8, 2)
    x = torch.randn(256, 8) + 3  # a common direction: some experts are everybody's favourites
    with torch.no_grad():
        moe.gate.weight += 0.005 * torch.arange(8)[:, None]
    before = max_violation(moe(x)[1].counts_E)
    for _ in range(500):
        update_bias_(moe.gate.e_score_correction_bias, moe(x)[1].counts_E, speed=0.002)
    assert before > 2
    assert max_violation(moe(x)[1].counts_E) < 0.3


def test_max_violation_by_hand():
    assert max_violation(torch.tensor([4, 4, 4, 4])) == 0
    assert max_violation(torch.tensor([8, 4, 4, 0])) == 1  # 8 over a mean of 4
    assert max_violation(torch.tensor([16, 0, 0, 0])) == 3  # E/K - 1 for K = 1
    assert max_violation(torch.tensor([0, 0])) == 0


def test_counts_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        update_bias_(torch.zeros(4), torch.zeros(3))
