"""[evidence] Presets: the mixture-of-experts layers of published models, as arguments of ``MoE``.

    preset("deepseek-v3")                            the layer as published: 11.3 billion parameters
    preset("mixtral-8x7b", dim=64, expert_dim=32)    its routing, in a small layer
    moe_from_config(json.loads(text))                the layer that a published config.json describes

Each is one layer of the model: E routed experts of width H, K of them per token, and tokens of width D.

    switch-base-128   Fedus et al., arXiv 2101.03961; widths as in the released checkpoint
    gshard-600b       Lepikhin et al., arXiv 2006.16668, MoE(2048E, 36L)
    mixtral-8x7b      Jiang et al., arXiv 2401.04088
    deepseekmoe-16b   Dai et al., arXiv 2401.06066
    deepseek-v3       DeepSeek-AI, arXiv 2412.19437
    qwen3-30b-a3b     Qwen, arXiv 2505.09388, and its released configuration
    olmoe-1b-7b       Muennighoff et al., arXiv 2409.02060

Differences from the published models:

- Switch and GShard have experts of two matrices with a ReLU in between; here every expert is a SwiGLU of
  three matrices, so that these two layers have 50 % more parameters. (The paper trained Switch-Base with
  GEGLU of width 2048, its released checkpoint has ReLU of width 3072: the same number of parameters.)
- Switch uses dropout inside its experts; here there is none.
- GShard uses the second expert with a probability of twice its weight; here it is always used. GShard
  applies the capacity within groups of tokens; here it applies to all tokens.
- GShard's capacity is 2N / E for N tokens with two picks each (section 2.2). This is an even share of the 2N
  picks, hence a factor of 1; relative to N / E the factor is 2.
- DeepSeek-V3 ranks a group by the sum of its K / M = 2 best scores. For another K or M, code derived from the
  released one still uses two, this layer K / M.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from minimoe.moe.layer import MoE

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "switch-base-128": {
            "dim": 768,
            "expert_dim": 3072,
            "n_experts": 128,
            "top_k": 1,
            "n_shared": 0,
            "score": "softmax",
            "normalize": False,  # with K = 1 a normalized weight gives the gate no gradient
            "jitter": 0.01,
            "dispatch": "capacity",
            "capacity_factor": 1.25,
        },
        "gshard-600b": {
            "dim": 1024,
            "expert_dim": 8192,
            "n_experts": 2048,
            "top_k": 2,
            "n_shared": 0,
            "score": "softmax",
            "normalize": True,
            "dispatch": "capacity",
            "capacity_factor": 1.0,
        },
        "mixtral-8x7b": {
            "dim": 4096,
            "expert_dim": 14336,
            "n_experts": 8,
            "top_k": 2,
            "n_shared": 0,
            "score": "softmax",
            "normalize": True,
        },
        "deepseekmoe-16b": {
            "dim": 2048,
            "expert_dim": 1408,
            "n_experts": 64,
            "top_k": 6,
            "n_shared": 2,
            "score": "softmax",
            "normalize": False,
        },
        "deepseek-v3": {
            "dim": 7168,
            "expert_dim": 2048,
            "n_experts": 256,
            "top_k": 8,
            "n_shared": 1,
            "score": "sigmoid",
            "normalize": True,
            "scale": 2.5,
            "n_groups": 8,
            "top_groups": 4,
        },
        "qwen3-30b-a3b": {
            "dim": 2048,
            "expert_dim": 768,
            "n_experts": 128,
            "top_k": 8,
            "n_shared": 0,
            "score": "softmax",
            "normalize": True,
        },
        "olmoe-1b-7b": {
            "dim": 2048,
            "expert_dim": 1024,
            "n_experts": 64,
            "top_k": 8,
            "n_shared": 0,
            "score": "softmax",
            "normalize": False,
        },
    }
)


def preset(name: str, **changes: Any) -> MoE:
    """Build the layer of a published model; ``changes`` are arguments of ``MoE`` that take precedence.

    Under ``with torch.device("meta"):`` it uses no memory, for counting parameters.

    Raises:
        ValueError: the preset is unknown, or the changes make it invalid.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return MoE(**{**PRESETS[name], **changes})


MODEL_TYPES = ("deepseek_v3", "mixtral", "qwen3_moe", "olmoe")


def moe_from_config(config: Mapping[str, Any], **changes: Any) -> MoE:
    """Build the layer that a published ``config.json`` describes; ``changes`` as in ``preset``.

    Raises:
        ValueError: the model type is not supported (``MODEL_TYPES``), a key is missing, or ``MoE`` would
            compute something else.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {model_type!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}, but MoE supports only 'silu'")
    top_k = _value(config, "num_experts_per_tok")
    n_groups, top_groups = config.get("n_group") or 1, config.get("topk_group")
    if top_groups is None or top_groups >= n_groups:
        n_groups, top_groups = 1, None  # no limit
    elif top_k != 2 * top_groups:
        raise ValueError(
            f"num_experts_per_tok ({top_k}) / topk_group ({top_groups}) must be 2: transformers ranks groups "
            "by their 2 best scores, MoE (as the paper) by as many as this quotient"
        )
    arguments = {
        "dim": _value(config, "hidden_size"),
        # In models with dense layers, intermediate_size is the width of those.
        "expert_dim": _value(config, "moe_intermediate_size", "intermediate_size"),
        "n_experts": _value(config, "n_routed_experts", "num_experts", "num_local_experts"),
        "top_k": top_k,
        "n_shared": config.get("n_shared_experts") or 0,
        "score": "sigmoid" if model_type == "deepseek_v3" else "softmax",
        "normalize": config.get("norm_topk_prob", model_type in ("deepseek_v3", "mixtral")),
        "scale": config.get("routed_scaling_factor", 1.0),
        "n_groups": n_groups,
        "top_groups": top_groups,
    }
    return MoE(**{**arguments, **changes})


def _value(config: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first key that is set: names differ between models and releases."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise ValueError(f"the configuration has no {' or '.join(keys)}")
