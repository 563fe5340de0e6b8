"""An upcycled layer computes the same as the dense layer, until training makes its copies diverge."""

import pytest
import torch

from minimoe.moe import SwiGLU
from minimoe.moe.upcycling import upcycle

DIM, HIDDEN = 12, 48
CASES = [
    # copies, top_copies, split, n_shared
    (1, 1, 1, 0),
    (4, 1, 1, 0),
    (4, 2, 1, 0),
    (8, 2, 1, 1),
    (4, 2, 2, 0),
    (3, 2, 3, 0),
    (4, 3, 2, 2),
    (5, 2, 5, 1),
    (3, 3, 4, 0),
    (2, 1, 4, 2),
]


def dense_layer(dtype=torch.float32):
    """With weights so large that a missing slice has a visible effect."""
    dense = SwiGLU(DIM, HIDDEN).to(dtype)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_(std=0.3)
    return dense


def forward_backward(layer, x, upstream):
    x = x.clone().requires_grad_()
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(upstream)
    return y.detach(), x.grad


@pytest.mark.parametrize(("copies", "top_copies", "split", "n_shared"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dispatch", ["auto", "reference"])
def test_equals_the_dense_layer(copies, top_copies, split, n_shared, dtype, dispatch):
    dense = dense_layer(dtype)
    moe = upcycle(dense, copies, top_copies=top_copies, split=split, n_shared=n_shared, dispatch=dispatch)
    x, upstream = torch.randn(2, 64, DIM, dtype=dtype)
    rounding = 4 * torch.finfo(dtype).eps
    for actual, expected in zip(
        forward_backward(moe, x, upstream), forward_backward(dense, x, upstream), strict=True
    ):
        torch.testing.assert_close(
            actual, expected, rtol=rounding, atol=2 * rounding * expected.abs().max().item()
        )


@pytest.mark.parametrize(("copies", "top_copies", "split", "n_shared"), CASES)
def test_the_choice_is_of_whole_copies(copies, top_copies, split, n_shared):
    moe = upcycle(dense_layer(), copies, top_copies=top_copies, split=split, n_shared=n_shared)
    _, routing = moe(torch.randn(500, DIM))
    copies_TK = routing.ids_TK.sort().values // split  # expert = copy * split + slice
    copies_Tc = copies_TK[:, ::split]
    assert (copies_TK == copies_Tc.repeat_interleave(split, 1)).all()
    assert len(routing.counts_E.nonzero()) == copies * split  # each expert has tokens
    if top_copies < copies and top_copies > 1:
        assert routing.weights_TK.std() > 1e-4  # copies have different weights


def test_experts_are_slices_of_the_dense_layer():
    dense = dense_layer()
    moe = upcycle(dense, 3, split=2, n_shared=1)
    gate_WD, up_WD, down_DW = (p.detach() for p in dense.parameters())
    assert torch.equal(moe.shared_experts.up_proj.weight, up_WD[:16])
    assert torch.equal(moe.shared_experts.down_proj.weight, down_DW[:, :16])
    for copy in range(3):
        for piece, rows in enumerate((slice(16, 32), slice(32, 48))):
            expert = copy * 2 + piece
            assert torch.equal(moe.experts.gate_up_proj[expert], torch.cat((gate_WD[rows], up_WD[rows])))
            assert torch.equal(moe.experts.down_proj[expert], down_DW[:, rows])


def test_copies_and_their_routers_diverge_in_training():
    moe = upcycle(dense_layer(), 4, top_copies=2, split=2)
    gate_cs = moe.gate.weight.view(4, 2, DIM)
    up_cs, down_cs = (p.view(4, 2, *p.shape[1:]) for p in (moe.experts.gate_up_proj, moe.experts.down_proj))
    assert (gate_cs[:, 0] == gate_cs[:, 1]).all()
    assert (up_cs[0] == up_cs[3]).all()
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    moe(torch.randn(64, DIM))[0].square().mean().backward()
    optimizer.step()
    for weights_cs in (up_cs, down_cs):
        for copy in range(1, 4):
            assert (weights_cs[0] != weights_cs[copy]).any()
    assert (gate_cs[:, 0] != gate_cs[:, 1]).any(-1).all()  # slices of a copy diverge as well


def test_one_copy_of_one_slice_gives_the_gate_no_gradient():
    moe = upcycle(dense_layer(), 4, top_copies=1)
    moe(torch.randn(64, DIM))[0].square().mean().backward()
    assert moe.gate.weight.grad.abs().max() == 0


def test_the_dense_layer_is_not_changed():
    dense = dense_layer()
    before = [p.detach().clone() for p in dense.parameters()]
    moe = upcycle(dense, 2, split=2, n_shared=1)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.fill_(7)
    assert all(torch.equal(p, b) for p, b in zip(dense.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_the_dense_layers_and_all_parameters_are_trainable(dtype):
    moe = upcycle(dense_layer(dtype).requires_grad_(False), 2, n_shared=1)
    assert all(p.dtype == dtype and p.requires_grad for p in moe.parameters())
    assert moe.gate.e_score_correction_bias.dtype == torch.float32
    assert moe.gate.e_score_correction_bias.abs().max() == 0


def test_the_device_is_the_dense_layers():
    with torch.device("meta"):
        dense = SwiGLU(DIM, HIDDEN)
    assert {t.device.type for t in upcycle(dense, 2, n_shared=1).state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"copies": 0}, r"copies \(0\) must be at least 1"),
        ({"copies": 2, "top_copies": 0}, r"top_copies \(0\) must be at least 1"),
        ({"copies": 2, "split": 0}, r"split \(0\) must be at least 1"),
        ({"copies": 2, "n_shared": -1}, r"n_shared \(-1\)"),
        ({"copies": 2, "top_copies": 3}, r"top_copies \(3\) must not exceed copies \(2\)"),
        ({"copies": 2, "split": 4, "n_shared": 3}, r"\(48\) must be divisible .*3 \+ 4 = 7"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        upcycle(dense_layer(), **arguments)
