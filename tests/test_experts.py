"""Every dispatcher against the oracle, values and all gradients; and the oracle against numpy."""

import numpy as np
import pytest
import torch

from minimoe.moe import Experts, MoE, SwiGLU, route


def run(moe, x, upstream, dispatch):
    """Output and every gradient of one pass."""
    x = x.clone().requires_grad_()
    moe.zero_grad()
    moe.dispatch = dispatch
    y, _ = moe(x)
    y.backward(upstream)
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in moe.named_parameters()}}


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name] is not None, f"{name} has no gradient"
        torch.testing.assert_close(
            actual[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 64])
@pytest.mark.parametrize(("n_experts", "top_k"), [(1, 1), (2, 2), (8, 2), (64, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_equals_oracle(n_tokens, n_experts, top_k, dtype):
    moe = MoE(12, 8, n_experts, top_k).to(dtype)
    x, upstream = torch.randn(2, n_tokens, 12, dtype=dtype)
    oracle = run(moe, x, upstream, "reference")
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    for dispatch in ["loop", "auto"] + (["grouped"] if dtype == torch.float32 and n_tokens else []):
        assert_same(run(moe, x, upstream, dispatch), oracle, **tolerance)


def test_odd_widths_take_the_loop():
    moe = MoE(7, 5, 4, 2)
    x, upstream = torch.randn(2, 9, 7)
    assert_same(run(moe, x, upstream, "auto"), run(moe, x, upstream, "reference"), rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match=r"dim \(7\).*16 bytes.*'loop'"):
        run(moe, x, upstream, "grouped")


@pytest.mark.parametrize("dispatch", ["loop", "grouped", "reference"])
def test_all_tokens_on_one_expert_leaves_zero_gradients_elsewhere(dispatch):
    moe = MoE(8, 8, 4, 1, normalize=False)
    moe.gate.e_score_correction_bias[2] = 10
    x, upstream = torch.randn(2, 6, 8)
    gradients = run(moe, x, upstream, dispatch)
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        assert gradients[name][2].abs().max() > 0
        assert gradients[name][[0, 1, 3]].abs().max() == 0
    assert_same(gradients, run(moe, x, upstream, "reference"), rtol=1e-4, atol=1e-7)


def test_oracle_equals_numpy_in_float64():
    experts = Experts(6, 5, 4).double()
    x = torch.randn(11, 6, dtype=torch.float64)
    routing = route(torch.randn(11, 4, dtype=torch.float64), 2)
    gate_up, down = experts.gate_up_proj.detach().numpy(), experts.down_proj.detach().numpy()
    expected = np.zeros((11, 6))
    for t in range(11):
        for weight, e in zip(routing.weights_TK[t].numpy(), routing.ids_TK[t].numpy(), strict=True):
            gate, up = np.split(gate_up[e] @ x[t].numpy(), 2)
            expected[t] += weight * (down[e] @ (gate / (1 + np.exp(-gate)) * up))
    y = experts(x, routing, "reference")
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12)


def test_gradients_against_finite_differences():
    experts = Experts(4, 3, 3).double()
    routing = route(torch.randn(5, 3, dtype=torch.float64), 2)

    def sorted_experts(x, gate_up, down, weights):
        parameters = {"gate_up_proj": gate_up, "down_proj": down}
        arguments = (x, routing._replace(weights_TK=weights), "loop")
        return torch.func.functional_call(experts, parameters, arguments)

    inputs = (torch.randn(5, 4), torch.randn(3, 6, 4), torch.randn(3, 4, 3), torch.rand(5, 2))
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(sorted_experts, inputs)


def test_one_expert_is_the_dense_network():
    moe = MoE(8, 16, 1, 1, n_shared=0)
    dense = SwiGLU(8, 16)
    with torch.no_grad():
        moe.experts.gate_up_proj[0] = torch.cat((dense.gate_proj.weight, dense.up_proj.weight))
        moe.experts.down_proj[0] = dense.down_proj.weight
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(moe(x)[0], dense(x))


def test_shared_expert_is_added_unscaled():
    moe = MoE(8, 16, 4, 2, n_shared=2, scale=2.5)
    x = torch.randn(6, 8)
    y, routing = moe(x)
    assert moe.shared_experts.up_proj.weight.shape == (32, 8)
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.full((6,), 2.5))
    torch.testing.assert_close(y, moe.shared_experts(x) + moe.experts(x, routing, "reference"))


def test_the_task_reaches_the_gate():
    moe = MoE(8, 8, 4, 2)
    gradients = run(moe, *torch.randn(2, 16, 8), "auto")
    assert gradients["gate.weight"].abs().max() > 0


@pytest.mark.parametrize("dispatch", ["loop", "grouped", "reference"])
def test_under_autocast_all_ways_compute_in_bf16(dispatch):
    moe = MoE(16, 16, 4, 2)
    x = torch.randn(8, 16)
    exact, _ = moe(x)
    moe.dispatch = dispatch
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = moe(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MoE(8, 8, 4, 2, dispatch="fast"), "dispatch must be one of"),
        (lambda: MoE(8, 0, 4, 2), r"expert_dim \(0\)"),
        (lambda: MoE(8, 8, 4, 2, n_shared=-1), r"n_shared \(-1\)"),
        (lambda: MoE(8, 8, 4, 2)(torch.randn(3, 9)), "width 9, the layer has dim 8"),
    ],
)
def test_bad_layers_are_refused_with_their_numbers(build, message):
    with pytest.raises(ValueError, match=message):
        build()
