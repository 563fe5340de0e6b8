"""What the tests share: a small corpus that needs no package, and one thread, so that bits repeat."""

import numpy as np
import pytest
import torch

from minimoe.data.corpus import Corpus
from minimoe.models.config import ModelConfig

SENTENCES = {
    "letters": b"the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. ",
    "numbers": b"one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10 eleven 11. ",
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def corpus() -> Corpus:
    parts = tuple(np.frombuffer(text * 40, dtype=np.uint8) for text in SENTENCES.values())
    sources = tuple("a sentence" for _ in SENTENCES)
    return Corpus(tuple(SENTENCES), parts, parts, sources, "a fingerprint")


@pytest.fixture
def tiny_dense() -> ModelConfig:
    return ModelConfig(dim=16, n_layers=2, n_heads=2, context=16, hidden_dim=32)


@pytest.fixture
def tiny_moe() -> ModelConfig:
    return ModelConfig(dim=16, n_layers=2, n_heads=2, context=16, n_experts=8, top_k=2, expert_dim=8)


@pytest.fixture(params=["dense", "moe"])
def tiny(request, tiny_dense, tiny_moe) -> ModelConfig:
    return tiny_dense if request.param == "dense" else tiny_moe
