"""Text to train on."""

from minimoe.data.corpus import Batch, Corpus, check_data, load_corpus

__all__ = ["Batch", "Corpus", "check_data", "load_corpus"]
