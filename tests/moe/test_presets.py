"""Presets against the published totals and against transformers' configurations."""

import pytest
import torch

from minimoe.moe import MoE
from minimoe.moe.dispatch.capacity import expert_capacity
from minimoe.moe.presets import PRESETS, moe_from_config, preset


def parameters(moe, part=""):
    return sum(p.numel() for name, p in moe.named_parameters() if name.startswith(part))


def full(name, **changes):
    with torch.device("meta"):  # shapes only; DeepSeek-V3's layer would take 45 GB
        return preset(name, **changes)


def description(moe):
    """All that determines what a layer computes, except its weights."""
    gate = ("top_k", "score", "normalize", "scale", "n_groups", "top_groups", "choice", "jitter")
    shapes = {name: tuple(tensor.shape) for name, tensor in moe.state_dict().items()}
    return shapes | {name: getattr(moe.gate, name) for name in gate} | {"dispatch": moe.dispatch}


@pytest.mark.parametrize("name", PRESETS)
def test_each_builds_and_runs_at_a_small_size(name):
    moe = preset(name, dim=8, expert_dim=4)
    x = torch.randn(32, 8)
    y, routing = moe(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert routing.ids_TK.shape == (32, PRESETS[name]["top_k"])
    assert routing.scores_TE.shape == (32, PRESETS[name]["n_experts"])
    assert moe.gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "layers", "billions", "rest"),
    [
        # Published totals of the whole model; the rest is attention, embeddings and dense layers.
        ("mixtral-8x7b", 32, 46.7, 1.60),
        ("deepseekmoe-16b", 27, 16.38, 0.96),  # 28 layers, the first is dense
        ("deepseek-v3", 58, 671, 14.46),  # 61, three are dense
        ("qwen3-30b-a3b", 48, 30.53, 1.53),
        ("olmoe-1b-7b", 16, 6.92, 0.47),
    ],
)
def test_parameters_add_up_to_the_published_totals(name, layers, billions, rest):
    assert layers * parameters(full(name)) / 1e9 == pytest.approx(billions - rest, rel=0.002)


@pytest.mark.parametrize(
    ("name", "layers", "billions", "rest"),
    # GShard: every second of 36 layers; the paper's 600B is rounded.
    [("switch-base-128", 12, 7.4, 0.17), ("gshard-600b", 18, 618, 0)],
)
def test_so_do_older_models_with_two_matrices_per_expert(name, layers, billions, rest):
    assert layers * parameters(full(name), "experts") * 2 / 3 / 1e9 == pytest.approx(
        billions - rest, rel=0.005
    )


def test_parameters_of_the_experts_only():
    assert 32 * parameters(full("mixtral-8x7b"), "experts") == 45_097_156_608
    assert parameters(full("deepseek-v3"), "experts") == 256 * 3 * 7168 * 2048
    assert parameters(full("deepseekmoe-16b"), "shared") == 2 * 3 * 2048 * 1408


def test_changes_take_precedence_and_presets_are_immutable():
    moe = preset("deepseek-v3", dim=8, expert_dim=4, n_groups=4, top_groups=4, dispatch="loop")
    assert (moe.gate.n_groups, moe.gate.top_groups, moe.dispatch) == (4, 4, "loop")
    assert PRESETS["deepseek-v3"]["n_groups"] == 8
    with pytest.raises(TypeError):
        PRESETS["deepseek-v3"] = {}


def test_gshard_has_a_capacity_of_2n_over_e():
    gshard = PRESETS["gshard-600b"]
    sizes = (gshard["n_experts"], gshard["top_k"], gshard["capacity_factor"])
    assert expert_capacity(4096, *sizes) == 2 * 4096 // 2048


def test_unknown_presets_are_rejected():
    message = r"unknown preset 'mixtral'; choose from switch-base-128, .*mixtral-8x7b"
    with pytest.raises(ValueError, match=message):
        preset("mixtral")


# Values of the released config.json that differ from transformers' defaults.
PUBLISHED = {
    "mixtral-8x7b": ("MixtralConfig", {}),
    "deepseek-v3": ("DeepseekV3Config", {}),
    "qwen3-30b-a3b": ("Qwen3MoeConfig", {"norm_topk_prob": True}),
    "olmoe-1b-7b": ("OlmoeConfig", {"intermediate_size": 1024}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_configurations_describe_the_same_layer(name):
    transformers = pytest.importorskip("transformers")
    kind, changes = PUBLISHED[name]
    config = getattr(transformers, kind)(**changes).to_dict()
    with torch.device("meta"):
        moe = moe_from_config(config)
    assert description(moe) == description(full(name))


def test_configurations_of_other_releases():
    deepseek = {
        "model_type": "deepseek_v3",
        "hidden_size": 8,
        "moe_intermediate_size": 4,
        "n_routed_experts": 8,
    }
    deepseek |= {"num_experts_per_tok": 3, "intermediate_size": 99, "n_shared_experts": 2}
    ungrouped = {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 2.8}
    expected = MoE(8, 4, 8, 3, n_shared=2, normalize=False, scale=2.8)
    assert description(moe_from_config(deepseek | ungrouped)) == description(expected)
    qwen = {"model_type": "qwen3_moe", "hidden_size": 8, "moe_intermediate_size": 4, "num_experts_per_tok": 2}
    for key in ("num_experts", "num_local_experts"):  # before and after transformers 5
        moe = moe_from_config(qwen | {key: 16}, dispatch="loop")
        assert description(moe) == description(
            MoE(8, 4, 16, 2, n_shared=0, score="softmax", normalize=False, dispatch="loop")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be one of deepseek_v3, .*not 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "the configuration has no hidden_size"),
        ({"n_routed_experts": None}, "no n_routed_experts or num_experts or num_local_experts"),
        ({"num_experts_per_tok": 4}, r"num_experts_per_tok \(4\) / topk_group \(4\) must be 2"),
    ],
)
def test_unsupported_configurations_are_rejected(changes, message):
    config = {"model_type": "deepseek_v3", "hidden_size": 8, "moe_intermediate_size": 4}
    config |= {"n_routed_experts": 16, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
    moe_from_config(config)
    with pytest.raises(ValueError, match=message):
        moe_from_config(config | changes)
