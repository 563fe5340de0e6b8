"""The layer against those of published models in transformers: values and every gradient."""

import pytest
import torch

from minimoe.moe import MoE

transformers = pytest.importorskip("transformers")

from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock  # noqa: E402
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock  # noqa: E402
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock  # noqa: E402

DIM, WIDTH = 16, 8


def filled(block):
    """The block (which comes without values) with random weights, computing in plain PyTorch."""
    block.experts.config._experts_implementation = "eager"
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def deepseek_v3(n_shared=1, normalize=True):
    # K / M = 4 / 2: the paper's sum of the K / M best scores per group is transformers' sum of the two best.
    config = transformers.DeepseekV3Config(
        hidden_size=DIM,
        moe_intermediate_size=WIDTH,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        n_shared_experts=n_shared,
        norm_topk_prob=normalize,
        routed_scaling_factor=2.5,
    )
    block = filled(DeepseekV3MoE(config))
    # As large as the scores and mostly negative: some picked scores are negative, and a mask of 0 would win.
    block.gate.e_score_correction_bias.copy_(torch.linspace(-1.7, 0.05, 16)[torch.randperm(16)])
    ours = {"normalize": normalize, "scale": 2.5, "n_groups": 4, "top_groups": 2, "n_shared": n_shared}
    return block, MoE(DIM, WIDTH, 16, 4, **ours)


def mixtral():
    config = transformers.MixtralConfig(hidden_size=DIM, intermediate_size=WIDTH, num_local_experts=8)
    return filled(MixtralSparseMoeBlock(config)), MoE(DIM, WIDTH, 8, 2, n_shared=0, score="softmax")


def qwen3(normalize):
    config = transformers.Qwen3MoeConfig(
        hidden_size=DIM,
        moe_intermediate_size=WIDTH,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=normalize,
    )
    ours = {"n_shared": 0, "score": "softmax", "normalize": normalize}
    return filled(Qwen3MoeSparseMoeBlock(config)), MoE(DIM, WIDTH, 16, 4, **ours)


def olmoe(normalize):
    config = transformers.OlmoeConfig(
        hidden_size=DIM,
        intermediate_size=WIDTH,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=normalize,
    )
    ours = {"n_shared": 0, "score": "softmax", "normalize": normalize}
    return filled(OlmoeSparseMoeBlock(config)), MoE(DIM, WIDTH, 8, 3, **ours)


PAIRS = {
    "deepseek_v3": deepseek_v3,
    "deepseek_v3, two shared": lambda: deepseek_v3(n_shared=2),
    "deepseek_v3, not normalized": lambda: deepseek_v3(normalize=False),
    "mixtral": mixtral,
    "qwen3_moe, normalized": lambda: qwen3(True),
    "qwen3_moe": lambda: qwen3(False),
    "olmoe, normalized": lambda: olmoe(True),
    "olmoe": lambda: olmoe(False),
}


def run(layer, x, upstream):
    """The output and every gradient of one pass."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(upstream)
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("dispatch", ["reference", "loop", "grouped"])
@pytest.mark.parametrize(("seed", "shape"), [(0, (1, 1)), (1, (2, 7)), (2, (3, 32))])
def test_published_layers_compute_the_same(pair, dispatch, seed, shape):
    torch.manual_seed(seed)
    theirs, ours = PAIRS[pair]()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing) <= {"gate.e_score_correction_bias"}  # only DeepSeek has one
    assert not unexpected
    ours.dispatch = dispatch
    x, upstream = torch.randn(2, *shape, DIM)
    expected, actual = run(theirs, x, upstream), run(ours, x, upstream)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor is None:  # theirs has none for experts without tokens; ours are zero
            tensor = torch.zeros_like(actual[name])
        scale = tensor.abs().max().item()
        torch.testing.assert_close(
            actual[name], tensor, rtol=1e-5, atol=2e-6 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bias_and_groups_have_an_effect():
    """Otherwise the comparison above would hold without them."""
    theirs, ours = deepseek_v3()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(64, DIM)
    _, routing = ours(x)
    bias_E = ours.gate.e_score_correction_bias
    plain_TK = routing.scores_TE.topk(4).indices
    ungrouped_TK = (routing.scores_TE + bias_E).topk(4).indices
    for other_TK in (plain_TK, ungrouped_TK):
        assert (routing.ids_TK.sort().values != other_TK.sort().values).any(-1).sum() > 10
    assert ((routing.scores_TE + bias_E).gather(1, routing.ids_TK) < 0).any(-1).sum() > 10
