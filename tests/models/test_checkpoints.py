"""Published checkpoints: read, written, and compared with transformers."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minimoe.models.checkpoints import FAMILIES, load_layer_, read_layer, save_layer
from minimoe.moe import MoE
from minimoe.moe.presets import moe_from_config

DIM, WIDTH, EXPERTS = 16, 8, 8
LAYER = 1
MODELS = {
    "deepseek-v3": ("DeepseekV3", {"moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS}),
    "mixtral": ("Mixtral", {"intermediate_size": WIDTH, "num_local_experts": EXPERTS}),
    "qwen3-moe": ("Qwen3Moe", {"moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "head_dim": 8}),
    "olmoe": ("Olmoe", {"intermediate_size": WIDTH, "num_experts": EXPERTS, "eos_token_id": 1}),
}
DEEPSEEK = {
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}


def published(family, **changes):
    """A tiny random model of the family, in transformers."""
    transformers = pytest.importorskip("transformers")
    name, sizes = MODELS[family]
    extra = DEEPSEEK if family == "deepseek-v3" else {"num_experts_per_tok": 2}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **(sizes | extra | changes),
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.model.layers[LAYER].mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if family == "deepseek-v3":
        model.model.layers[LAYER].mlp.gate.e_score_correction_bias.normal_()
    return model


def random_layer(family="deepseek-v3", **changes):
    full = family == "deepseek-v3"
    moe = MoE(DIM, WIDTH, 4, 2, n_shared=2 if full else 0, **changes)
    if full:
        moe.gate.e_score_correction_bias.normal_()
    return moe


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def names_in(path):
    with safe_open(path, "pt") as file:
        return set(file.keys())


# --- against transformers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}], ids=["one file", "shards"])
def test_a_published_layer_computes_the_same(family, shards, tmp_path):
    model = published(family)
    model.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    moe = moe_from_config(json.loads((tmp_path / "config.json").read_text()))
    load_layer_(moe, tmp_path, LAYER)
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(moe(x)[0], model.model.layers[LAYER].mlp(x), rtol=1e-5, atol=1e-6)
    assert_same_state(read_layer(str(tmp_path), f"model.layers.{LAYER}"), moe.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [False, True])
def test_transformers_reads_what_we_write(family, fused, tmp_path):
    model = published(family)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    block = "block_sparse_moe" if family == "mixtral" else "mlp"
    before = {n for n in names_in(path) if n.startswith(f"model.layers.{LAYER}.{block}.")}
    moe = moe_from_config(json.loads((tmp_path / "config.json").read_text()))
    if family == "deepseek-v3":
        moe.gate.e_score_correction_bias.normal_()
    save_layer(moe, tmp_path / "layer.safetensors", LAYER, family, fused=fused)
    ours = load_file(tmp_path / "layer.safetensors")
    if not fused:
        assert ours.keys() == before  # the published names, all of them
    rest = {name: tensor for name, tensor in load_file(path).items() if name not in before}
    save_file(rest | ours, path, metadata={"format": "pt"})
    (tmp_path / "layer.safetensors").unlink()
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    x = torch.randn(2, 9, DIM)
    with torch.no_grad():
        torch.testing.assert_close(
            again.model.layers[LAYER].mlp(x), moe(x)[0], rtol=1e-5, atol=1e-5 * moe(x)[0].abs().max().item()
        )


# --- round trips


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_written_is_read_back(family, fused, dtype, tmp_path):
    moe = random_layer(family).to(dtype)
    save_layer(moe, tmp_path / "layer.safetensors", 7, family, fused=fused)
    again = random_layer(family).to(dtype)
    load_layer_(again, tmp_path / "layer.safetensors", 7)
    assert_same_state(again.state_dict(), moe.state_dict())
    state = read_layer(tmp_path / "layer.safetensors", 7, dtype=dtype)
    assert_same_state(state, moe.state_dict())  # the bias is always float32
    assert [p.name for p in tmp_path.iterdir()] == ["layer.safetensors"]


def test_both_prefixes_of_fused_experts_are_read(tmp_path):
    moe = random_layer("mixtral")
    save_layer(moe, tmp_path / "a.safetensors", 0, "mixtral", fused=True)
    tensors = {
        n.replace(".mlp.", ".block_sparse_moe."): t for n, t in load_file(tmp_path / "a.safetensors").items()
    }
    save_file(tensors, tmp_path / "b.safetensors")
    for file in ("a", "b"):
        assert_same_state(read_layer(tmp_path / f"{file}.safetensors", 0), moe.state_dict())


def test_a_layer_may_be_given_by_its_prefix(tmp_path):
    moe = random_layer("olmoe")
    save_layer(moe, tmp_path / "a.safetensors", "language_model.layers.3", "olmoe")
    assert "language_model.layers.3.mlp.gate.weight" in names_in(tmp_path / "a.safetensors")
    assert_same_state(read_layer(tmp_path / "a.safetensors", "language_model.layers.3"), moe.state_dict())


def test_reading_a_layer_without_a_bias_sets_it_to_zero(tmp_path):
    save_layer(random_layer("olmoe"), tmp_path / "a.safetensors", 0, "olmoe")
    moe = random_layer("olmoe")
    moe.gate.e_score_correction_bias.fill_(3)
    load_layer_(moe, tmp_path / "a.safetensors", 0)
    assert moe.gate.e_score_correction_bias.abs().max() == 0


# --- FP8


def quantized(shape):
    """A weight in FP8, its scales, and the dequantized weight, computed entry by entry."""
    rows, columns = shape
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    factors = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.5
    exact = torch.empty(shape)
    for r in range(rows):
        for c in range(columns):
            exact[r, c] = weight[r, c].float() * factors[r // 128, c // 128]
    return weight, factors, exact


@pytest.fixture
def fp8(tmp_path):
    """A file with a layer of two experts in FP8, D 150 and H 130: the last blocks are incomplete."""
    torch.manual_seed(1)
    prefix = "model.layers.3.mlp."
    tensors = {f"{prefix}gate.weight": torch.randn(2, 150).bfloat16()}
    exact = {f"{prefix}gate.weight": tensors[f"{prefix}gate.weight"].float()}
    for expert in range(2):
        for name, shape in (("gate_proj", (130, 150)), ("up_proj", (130, 150)), ("down_proj", (150, 130))):
            name = f"{prefix}experts.{expert}.{name}.weight"
            tensors[name], tensors[f"{name}_scale_inv"], exact[name] = quantized(shape)
    path = tmp_path / "fp8.safetensors"
    save_file(tensors, path)
    return path, tensors, exact


def test_fp8_blocks_are_dequantized(fp8):
    path, _, exact = fp8
    state = read_layer(path, 3)
    prefix = "model.layers.3.mlp."
    for expert in range(2):
        gate_up = [exact[f"{prefix}experts.{expert}.{name}_proj.weight"] for name in ("gate", "up")]
        assert torch.equal(state["experts.gate_up_proj"][expert], torch.cat(gate_up))
        assert torch.equal(
            state["experts.down_proj"][expert], exact[f"{prefix}experts.{expert}.down_proj.weight"]
        )
    assert torch.equal(state["gate.weight"], exact[f"{prefix}gate.weight"])
    halves = read_layer(path, 3, dtype=torch.bfloat16)
    assert torch.equal(halves["experts.down_proj"], state["experts.down_proj"].bfloat16())


def test_fp8_without_matching_scales_is_rejected_before_anything_is_copied(fp8):
    path, tensors, _ = fp8
    last = "model.layers.3.mlp.experts.1.down_proj.weight"
    moe = MoE(150, 130, 2, 1, n_shared=0)
    before = {n: t.clone() for n, t in moe.state_dict().items()}
    save_file({n: t for n, t in tensors.items() if n != f"{last}_scale_inv"}, path)
    with pytest.raises(ValueError, match=f"{last} is in FP8 and its scales, {last}_scale_inv, are missing"):
        load_layer_(moe, path, 3)
    save_file(tensors | {f"{last}_scale_inv": torch.ones(2, 1)}, path)
    with pytest.raises(ValueError, match=r"has shape \(2, 1\); for \(150, 130\) it must be \(2, 2\)"):
        load_layer_(moe, path, 3)
    assert_same_state(moe.state_dict(), before)


# --- errors


@pytest.fixture
def layer(tmp_path):
    """A file with layer 3 of a small DeepSeek, and its tensors."""
    path = tmp_path / "model.safetensors"
    save_layer(random_layer(), path, 3, "deepseek-v3")
    return path, load_file(path)


def test_missing_tensors_are_named_and_counted(layer):
    path, tensors = layer
    removed = [n for n in tensors if ".experts.2." in n or ".experts.3.up" in n]
    save_file({n: t for n, t in tensors.items() if n not in removed}, path)
    with pytest.raises(
        ValueError, match=r"lacks model.layers.3.mlp.experts.2.gate_proj.weight and 3 more of the layer's 17"
    ):
        read_layer(path, 3)
    save_file({n: t for n, t in tensors.items() if not n.endswith("mlp.gate.weight")}, path)
    with pytest.raises(ValueError, match=r"lacks model.layers.3.mlp.gate.weight of"):
        read_layer(path, 3)


def test_unsupported_tensors_are_rejected(layer):
    path, tensors = layer
    save_file(tensors | {"model.layers.3.mlp.shared_expert_gate.weight": torch.ones(1, DIM)}, path)
    with pytest.raises(
        ValueError, match=r"has 1 tensors .*does not support, such as model.layers.3.mlp.shared_expert_gate"
    ):
        read_layer(path, 3)


def test_for_a_layer_without_experts_the_error_names_those_with_experts(tmp_path):
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(1) for i in range(3)}
    tensors |= {f"model.layers.{i}.mlp.experts.0.up_proj.weight": torch.ones(1) for i in range(3, 12)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model.layers.0 of .* no experts .*; 9 layers have, model.layers.3 to .*11"
    ):
        read_layer(tmp_path, 0)
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no layer has"):
        read_layer(tmp_path, 0)


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (
            (DIM, WIDTH, 8, 2),
            {"n_shared": 2},
            r"experts.down_proj is \(4, 16, 8\) in .*3.mlp .*, \(8, 16, 8\) in",
        ),
        ((DIM, 12, 4, 2), {"n_shared": 2}, r"experts.down_proj is \(4, 16, 8\)"),
        (
            (DIM, WIDTH, 4, 2),
            {"n_shared": 0},
            r"shared_experts.down_proj.weight is \(16, 16\) .*absent in the",
        ),
    ],
)
def test_layers_of_another_shape_are_not_changed(arguments, changes, message, layer):
    path, _ = layer
    moe = MoE(*arguments, **changes)
    before = {n: t.clone() for n, t in moe.state_dict().items()}
    with pytest.raises(ValueError, match=message + ".*moe_from_config"):
        load_layer_(moe, path, 3)
    assert_same_state(moe.state_dict(), before)


def test_an_expert_of_another_shape_is_rejected(layer):
    path, tensors = layer
    save_file(tensors | {"model.layers.3.mlp.experts.1.up_proj.weight": torch.ones(5, DIM)}, path)
    moe = random_layer()
    before = {n: t.clone() for n, t in moe.state_dict().items()}
    for read in (lambda: read_layer(path, 3), lambda: load_layer_(moe, path, 3)):
        with pytest.raises(ValueError, match=r"experts.1.up_proj.weight is \(5, 16\); .* imply \(8, 16\)"):
            read()
    assert_same_state(moe.state_dict(), before)


def test_a_layer_on_the_meta_device_is_rejected(layer):
    path, _ = layer
    with torch.device("meta"):
        moe = random_layer()
    with pytest.raises(ValueError, match=r"meta device.*to_empty"):
        load_layer_(moe, path, 3)


def test_missing_and_corrupt_checkpoints_are_rejected(tmp_path, layer):
    path, tensors = layer
    with pytest.raises(ValueError, match="nowhere is neither a safetensors file nor a folder with"):
        read_layer(tmp_path / "nowhere", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is neither"):
        read_layer(tmp_path / "empty", 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"could not read .*model.safetensors \(.*download it again"):
        read_layer(tmp_path, 3)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(ValueError, match=r"could not read .*index.json"):
        read_layer(tmp_path, 3)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}))
    with pytest.raises(ValueError, match=r"could not read .*model-1.safetensors"):
        read_layer(tmp_path, 3)
    save_file({"other": torch.ones(1)}, tmp_path / "model-1.safetensors")
    with pytest.raises(ValueError, match=r"model-1.safetensors lacks model.layers.3.*index lists"):
        read_layer(tmp_path, 3)


def test_only_the_files_of_the_layer_are_opened(layer, tmp_path):
    path, tensors = layer
    index = {
        "weight_map": dict.fromkeys(tensors, path.name) | {"model.layers.4.mlp.gate.weight": "not-there"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_layer(tmp_path, 3).keys() == random_layer().state_dict().keys()


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "olmoe"])
def test_a_layer_is_written_completely_or_not_at_all(family, tmp_path):
    with pytest.raises(ValueError, match=f"a shared expert, which {family} does not support"):
        save_layer(MoE(DIM, WIDTH, 4, 2), tmp_path / "a", 0, family)
    moe = MoE(DIM, WIDTH, 4, 2, n_shared=0)
    moe.gate.e_score_correction_bias[2] = -1
    with pytest.raises(ValueError, match=f"bias .* not zero, which {family} does not support"):
        save_layer(moe, tmp_path / "a", 0, family)
    assert not any(tmp_path.iterdir())


def test_writing_is_atomic(layer, monkeypatch):
    path, _ = layer
    before = path.read_bytes()

    def full(tensors, name, metadata):
        shutil.copy(path, name)
        raise OSError("No space left on device")

    monkeypatch.setattr("minimoe.tools.safetensors_io.save_file", full)
    with pytest.raises(ValueError, match=r"could not write .*No space left"):
        save_layer(random_layer(), path, 3, "deepseek-v3")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="could not write"):
        save_layer(random_layer(), path.parent / "nowhere" / "a.safetensors", 3, "deepseek-v3")


def test_unknown_families_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="family must be one of deepseek-v3, mixtral, qwen3-moe, olmoe"):
        save_layer(random_layer(), tmp_path / "a", 0, "llama")
