"""Architectures of published models, and the training runs that their authors report, each with its source.

V3's figure of 671B does not include its multi-token prediction module, another 14B in the checkpoint.
"""

from minimoe.cost.architecture import Architecture, LatentAttention
from minimoe.cost.training_run import PublishedRun

_ALL = (
    Architecture(
        "deepseek-v3", dim=7168, n_layers=61, vocab_size=129_280, n_heads=128, head_dim=192, kv_heads=128,
        context=4096, hidden_dim=18_432, first_dense=3, n_experts=256, top_k=8, expert_dim=2048, n_shared=1,
        n_groups=8, top_groups=4,
        latent=LatentAttention(query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
        source="arXiv 2412.19437, section 4.2; huggingface.co/deepseek-ai/DeepSeek-V3 config.json",
    ),
    Architecture(
        "mixtral-8x7b", dim=4096, n_layers=32, vocab_size=32_000, n_heads=32, head_dim=128, kv_heads=8,
        context=32_768, n_experts=8, top_k=2, expert_dim=14_336,
        source="arXiv 2401.04088, table 1",
    ),
    Architecture(
        "deepseekmoe-16b", dim=2048, n_layers=28, vocab_size=102_400, n_heads=16, head_dim=128, kv_heads=16,
        context=4096, hidden_dim=10_944, first_dense=1, n_experts=64, top_k=6, expert_dim=1408, n_shared=2,
        source="arXiv 2401.06066, section 5.1.2; huggingface.co/deepseek-ai/deepseek-moe-16b-base",
    ),
    Architecture(
        "olmoe", dim=2048, n_layers=16, vocab_size=50_304, n_heads=16, head_dim=128, kv_heads=16,
        context=4096, n_experts=64, top_k=8, expert_dim=1024, qk_norm="width",
        source="arXiv 2409.02060, table 10; huggingface.co/allenai/OLMoE-1B-7B-0924 config.json",
    ),
    Architecture(
        "qwen3-30b-a3b", dim=2048, n_layers=48, vocab_size=151_936, n_heads=32, head_dim=128, kv_heads=4,
        context=32_768, n_experts=128, top_k=8, expert_dim=768, qk_norm="head",
        source="arXiv 2505.09388, table 2; huggingface.co/Qwen/Qwen3-30B-A3B config.json",
    ),
    Architecture(
        "llama-3.1-405b", dim=16_384, n_layers=126, vocab_size=128_256, n_heads=128, head_dim=128, kv_heads=8,
        context=8192, hidden_dim=53_248,
        source="arXiv 2407.21783, table 3",
    ),
    Architecture(
        "llama-2-70b", dim=8192, n_layers=80, vocab_size=32_000, n_heads=64, head_dim=128, kv_heads=8,
        context=4096, hidden_dim=28_672,
        source="arXiv 2307.09288, table 1; huggingface.co/meta-llama/Llama-2-70b-hf config.json",
    ),
    Architecture(
        "gpt-2", dim=768, n_layers=12, vocab_size=50_257, n_heads=12, head_dim=64, kv_heads=12,
        context=1024, hidden_dim=3072, gated=False, tied=True, biases=True, positions=True,
        source="Radford et al. 2019, table 2; huggingface.co/openai-community/gpt2 config.json",
    ),
)  # fmt: skip

PUBLISHED: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}

PUBLISHED_RUNS: dict[str, PublishedRun] = {
    "deepseek-v3": PublishedRun(
        tokens=14.8e12,
        hours={"pre-training": 2.664e6, "context extension": 0.119e6, "post-training": 0.005e6},
        accelerator="h800", gpus=2048, price=2.0, flops=None,
        source="arXiv 2412.19437, table 1 and section 3.1",
    ),
    "llama-3.1-405b": PublishedRun(
        tokens=15.6e12, hours={"training": 30.84e6}, accelerator="h100", gpus=16_384, price=2.0,
        flops=3.8e25,
        source="huggingface.co/meta-llama/Llama-3.1-405B; arXiv 2407.21783, sections 3.2 and 3.3; they "
        "state no price, so V3's is assumed",
    ),
}  # fmt: skip
