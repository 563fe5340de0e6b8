"""Text generation: greedy decoding, temperature and nucleus (top-p) sampling, with a KV cache.

Dimensions: B batch, L prompt length, V vocabulary.
"""

import torch
from torch import Tensor

from minimoe.models.gpt import GPT, KVCache


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise ValueError for invalid sampling settings."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature ({temperature}) must be 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p ({top_p}) must be above 0 and at most 1")


def sample_tokens(
    logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """(B,) the next token of each row. The nucleus (arXiv 1904.09751) is the smallest set of most likely
    tokens whose total probability reaches ``top_p``."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities_BV, ids_BV = (logits_BV.float() / temperature).softmax(-1).sort(-1, descending=True)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV  # of the more likely tokens
    nucleus_BV = probabilities_BV.masked_fill(before_BV >= top_p, 0.0)
    picked_B1 = torch.multinomial(nucleus_BV, 1, generator=generator)
    return ids_BV.gather(-1, picked_B1).squeeze(-1)


@torch.no_grad()
def generate(
    model: GPT,
    prompt_BL: Tensor,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each prompt by ``n_tokens``; returns them, (B, n_tokens).

    When the context is full, the model continues from its second half. ``use_cache=False`` recomputes every
    step from the start, which is slower and gives the same result: the oracle. The model's mode (train or
    eval) is restored afterwards.

    Raises:
        ValueError: the prompt is empty, or the sampling settings are invalid.
    """
    check_sampling(temperature, top_p)
    if prompt_BL.ndim != 2 or prompt_BL.shape[1] == 0:
        raise ValueError(f"prompt must be (batch, length >= 1), not {tuple(prompt_BL.shape)}")
    if n_tokens < 0:
        raise ValueError(f"n_tokens ({n_tokens}) must be 0 or more")
    was_training = model.training
    model.eval()
    context, tokens_BL, generated = model.config.context, prompt_BL[:, -model.config.context :], []
    cache = _new_cache(model, tokens_BL) if use_cache else None
    new_BL = tokens_BL  # not yet in the cache
    for _ in range(n_tokens):
        logits_BLV, _ = model(new_BL if use_cache else tokens_BL, cache)
        next_B = sample_tokens(logits_BLV[:, -1], temperature, top_p, generator)
        generated.append(next_B)
        tokens_BL = torch.cat((tokens_BL, next_B.unsqueeze(1)), dim=1)
        new_BL = next_B.unsqueeze(1)
        if tokens_BL.shape[1] > context:
            new_BL = tokens_BL = tokens_BL[:, -(context + 1) // 2 :]
            cache = _new_cache(model, tokens_BL) if use_cache else None
    model.train(was_training)
    return torch.stack(generated, dim=1) if generated else prompt_BL[:, :0]


def _new_cache(model: GPT, tokens_BL: Tensor) -> KVCache:
    weight = model.embedding.weight
    return KVCache(model.config, tokens_BL.shape[0], device=weight.device, dtype=weight.dtype)
