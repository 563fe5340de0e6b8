"""The documentation agrees with the records and the source tree; its links work and its examples run."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import render_docs  # noqa: E402
import tree  # noqa: E402

UNSHOWN = {"crossover-cpu.json"}  # a test compares it with what dispatch="auto" selects
ROOT_PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tutorials/README.md"]
PAGES = [ROOT / name for name in ROOT_PAGES] + sorted((ROOT / "docs").rglob("*.md"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def examples() -> list[tuple[str, str]]:
    found = []
    for path in PAGES:
        codes = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
        found += [(f"{name_of(path)}:{i}", code) for i, code in enumerate(codes)]
    return found


@pytest.mark.parametrize("path", render_docs.pages(), ids=name_of)
def test_a_page_shows_what_is_recorded(path):
    page = path.read_text(encoding="utf-8")
    assert render_docs.rendered(page) == page, "run: python scripts/render_docs.py"


def test_the_picture_shows_the_imports_of_today():
    assert render_docs.PICTURE.read_text(encoding="utf-8") == render_docs.picture()


def test_every_block_is_shown_and_every_record_has_a_block(monkeypatch):
    text = "".join(path.read_text(encoding="utf-8") for path in render_docs.pages())
    assert set(re.findall(r"<!-- begin (\S+) -->", text)) == set(render_docs.RENDERERS)
    shown, read = set(), render_docs.record
    monkeypatch.setattr(render_docs, "record", lambda name: shown.add(f"{name}.json") or read(name))
    for render in render_docs.RENDERERS.values():
        if isinstance(render, partial) and render.func is render_docs.text:
            shown.add(f"{render.args[0]}.txt")
        render()
    records = {path.name for path in render_docs.RESULTS.iterdir() if path.suffix in (".json", ".txt")}
    assert shown == records - UNSHOWN
    tables = [f"precision-{table['name']}" for table in read("precision")["tables"]]
    assert [name for name in render_docs.RENDERERS if name.startswith("precision-")][: len(tables)] == tables


@pytest.mark.parametrize(("name", "code"), examples(), ids=[name for name, _ in examples()])
def test_the_python_examples_run(name, code):
    if name.startswith("tutorials/"):
        pytest.skip("a line from a notebook")
    exec(compile(code, name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", prose):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{name_of(path)} links to {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{name_of(path)} links to {link}"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 20_000


def test_the_readme_lists_all_rooms_in_import_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("```text\nminimoe/\n")[1].split("```")[0]
    assert re.findall(r"^  (\w+)/", block, re.M) == list(tree.rooms())[::-1]


@pytest.mark.parametrize("technique", render_docs.READING)
def test_a_technique_is_read_in_600_lines(technique):
    paths = [ROOT / "minimoe" / name for name in render_docs.READING[technique]]
    assert sum(map(tree.lines, paths)) <= 600
    assert [tree.mark(path) for path in paths] == [None] * len(paths)


def test_every_room_has_a_page_in_the_reference():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for room in tree.rooms():
        if room != "cli":  # the command line has a page of its own
            assert f"::: minimoe.{room}" in (ROOT / "docs" / "reference" / f"{room}.md").read_text()
            assert f"reference/{room}.md" in navigation
