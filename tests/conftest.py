"""Shared by all tests: a small corpus that needs no package, one thread, so that results repeat, and the
division of tests among parallel workers."""

import os
import sys

import numpy as np
import pytest
import torch

from minimoe.data.corpus import Corpus
from minimoe.models.config import ModelConfig

# Otherwise torch.compile first checks, for 15 seconds, that the compiler supports the CPU's vector units.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

SENTENCES = {
    "letters": b"the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. ",
    "numbers": b"one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10 eleven 11. ",
}


# Longest first, so that no worker ends with a minute of work that the others could have shared.
LONGEST_FIRST = ("tutorial", "resume", "distributed", "compile")


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would start with the files of the most tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    def rank(item) -> int:
        marks = [i for i, name in enumerate(LONGEST_FIRST) if item.get_closest_marker(name)]
        return min(marks, default=len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays with one worker, which shares its fixtures; each tutorial is a job of its own."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "/tutorials/" in nodeid else nodeid.split("::")[0]

    return ByFile(config, log)


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


@pytest.fixture(autouse=True, scope="module")
def _process_groups():
    """Ends those that tests of this module shared, see ``process_group``."""
    yield
    if "process_group" in sys.modules:
        sys.modules["process_group"].close()
