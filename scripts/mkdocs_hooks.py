"""Hooks of mkdocs.yml: pages for files outside docs/, links to source files, and formulas as MathML.

A page links to any file of the repository by its relative path (``../minimoe/moe/router.py``), as a code host
expects. The site has a page for each linked file, and the links are rewritten to point to it.
"""

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages of the site.
PAGES = {
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "tutorials/README.md": "tutorials/index.md",
    "README.md": "index.md",  # docs/index.md stands for it
}
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".cff": "yaml", ".txt": "text", "": "text"}
LINK = re.compile(r"(\]\()(?![a-z]+:|#|//)([^)\s#]+)")
HREF = re.compile(r'href="(?![a-z]+:|#|/)([^"#]+)"')  # in a notebook
PAGE = re.compile(r"\.(md|ipynb)$")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
MATH = re.compile(r"\\\((.+?)\\\)|\\\[(.+?)\\\]|\$\$(.+?)\$\$", re.S)


def resolve(place: Path, link: str) -> tuple[str, str]:
    """The file that a relative link leads to, and its page: ``minimoe/moe/router.py`` and
    ``source/minimoe/moe/router.py.md``. Raises PluginError where there is none."""
    path = posixpath.normpath(posixpath.join(place.relative_to(ROOT).parent.as_posix(), link))
    if (ROOT / path).is_dir():
        path = f"{path}/__init__.py"
    if not (ROOT / path).is_file():
        raise PluginError(f"{place.relative_to(ROOT)} links to {link}, which does not exist")
    if path.startswith("docs/"):
        return path, path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path, path
    return path, PAGES.get(path) or f"source/{path}.md"


def source_page(path: str) -> str:
    """A page that shows a file with line numbers; left out of the search."""
    text, language = (ROOT / path).read_text(encoding="utf-8").rstrip(), LANGUAGES[Path(path).suffix]
    return (
        f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# `{path}`\n\n"
        f'````{language} linenums="1"\n{text}\n````\n'
    )


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: Any) -> Files:
    """Add the pages of files that stand outside docs/ or are linked to."""
    own = [ROOT / path for path, page in PAGES.items() if page != "index.md"]
    for path in own:
        page = PAGES[path.relative_to(ROOT).as_posix()]
        files.append(File.generated(config, page, abs_src_path=str(path)))
    for notebook in sorted(ROOT.glob("tutorials/*.ipynb")):
        path = notebook.relative_to(ROOT)
        files.append(File(path.as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    links = [(p, m[2]) for p in [*own, *ROOT.glob("docs/**/*.md")] for m in LINK.finditer(prose(p))]
    linked = {resolve(place, link) for place, link in links}
    for name, page in sorted(linked):
        if page.startswith("source/"):
            files.append(File.generated(config, page, content=source_page(name)))
    return files


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def target(page: Any, link: str) -> str:
    """A relative link as the site needs it."""
    _, found = resolve(Path(page.file.abs_src_path), link)
    return os.path.relpath(found, posixpath.dirname(page.file.src_uri) or ".")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to files of the repository."""
    if page.file.abs_src_path is None or page.file.src_uri.endswith(".ipynb"):
        return markdown
    return "".join(
        part if part.startswith("```") else LINK.sub(lambda link: link[1] + target(page, link[2]), part)
        for part in FENCE.split(markdown)
    )


def on_page_content(html_text: str, page: Any, **_: Any) -> str:
    """Write formulas as MathML, which browsers show by themselves; of notebooks also the links."""
    if not page.file.src_uri.endswith(".ipynb"):
        pieces = re.split(r'(<(?:span|div) class="arithmatex">.*?</(?:span|div)>)', html_text, flags=re.S)
        return "".join(MATH.sub(mathml, p) if 'class="arithmatex"' in p[:30] else p for p in pieces)
    html_text = re.sub(r"<script[^>]*mathjax[^>]*></script>", "", html_text, flags=re.I)
    pieces = re.split(r"(<pre.*?</pre>|<script.*?</script>)", html_text, flags=re.S)
    for i, piece in enumerate(pieces):
        if not piece.startswith(("<pre", "<script")):
            piece = HREF.sub(lambda link: f'href="{PAGE.sub(".html", target(page, link[1]))}"', piece)
            pieces[i] = MATH.sub(mathml, piece)
    return "".join(pieces)


def mathml(formula: re.Match[str]) -> str:
    inline = formula[1] is not None
    latex = html.unescape(formula[1] or formula[2] or formula[3]).strip()
    return str(convert(latex, display="inline" if inline else "block"))
