"""Text generation: the KV cache against recomputation, sampling against known distributions."""

import pytest
import torch

from minimoe.models.generation import generate, sample_tokens
from minimoe.models.gpt import GPT


@pytest.fixture
def model(tiny) -> GPT:
    model = GPT(tiny)
    model.init_weights(gain=2.0)  # sharper distributions than at initialization
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_full_recomputation(model, temperature):
    prompt = torch.randint(256, (3, 4))

    def run(use_cache):
        generator = torch.Generator().manual_seed(7)
        return generate(
            model, prompt, 40, temperature=temperature, generator=generator, use_cache=use_cache
        )  # 40 tokens fill a context of 16 several times over

    assert torch.equal(run(True), run(False))


def test_a_batch_equals_its_rows(model):
    prompts = torch.randint(256, (4, 5))
    together = generate(model, prompts, 10, temperature=0)
    alone = torch.cat([generate(model, row[None], 10, temperature=0) for row in prompts])
    assert torch.equal(together, alone)


def test_same_seed_same_text(model):
    prompt = torch.randint(256, (2, 4))
    a, b, c = (
        generate(model, prompt, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_nucleus_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    picked = sample_tokens(logits, 1.0, 0.7, generator)  # 0.5 is below 0.7, 0.5 + 0.3 is not
    assert set(picked.tolist()) == {0, 1}
    assert (picked == 0).float().mean().item() == pytest.approx(0.5 / 0.8, abs=0.03)
    assert sample_tokens(logits, 1.0, 1e-9, generator).eq(0).all()


def test_temperature_by_hand():
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(8000, 1)
    generator = torch.Generator().manual_seed(0)
    share = sample_tokens(logits, 2.0, 1.0, generator).eq(0).float().mean().item()
    assert share == pytest.approx(2 / 3, abs=0.02)  # sqrt(0.8) : sqrt(0.2) is 2 : 1


def test_generating_restores_the_mode(model):
    model.train()
    generate(model, torch.zeros(1, 1, dtype=torch.int64), 2)
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, r"temperature \(-1.0\)"),
        ({"temperature": float("nan")}, r"temperature \(nan\)"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
        ({"n_tokens": -1}, r"n_tokens \(-1\)"),
        ({"prompt_BL": torch.zeros(1, 0, dtype=torch.int64)}, r"\(1, 0\)"),
    ],
)
def test_invalid_settings_are_rejected(model, arguments, message):
    arguments = {"prompt_BL": torch.zeros(1, 1, dtype=torch.int64), "n_tokens": 1} | arguments
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)
