"""The documentation as a site (`scripts/docs.py`), without the tool that builds it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import sidecar
from scripts import docs

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = docs.ROOT / "docs" / "reference.md"
DECISIONS = docs.ROOT / "docs" / "decisions"
PAGES = docs.pages(docs.ROOT)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation_and_every_link_leads_to_a_file() -> None:
    """Of README, changelog, examples and all that is under docs/."""
    assert docs.misplaced(docs.ROOT) == []
    assert {path.relative_to(docs.ROOT) for path in docs.ROOT.glob("docs/**/*.md")} <= set(PAGES)
    named = docs.navigation(docs.ROOT)
    assert len(named) == len(set(named))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_heading_that_is_linked_to_is_there_on_a_code_host_too(page: Path) -> None:
    """Whose anchors are not made by the site."""
    path = docs.ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        text = (path.parent / target if target else path).read_text(encoding="utf-8")
        assert anchor in anchors(text), f"{target}#{anchor}"


def test_the_reference_has_every_public_name_once() -> None:
    """But for the version."""
    named = re.findall(r"^::: sidecar\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(set(sidecar.__all__) - {"__version__"})


def test_decisions_are_listed_by_their_titles() -> None:
    """In their order."""
    titles = [
        (f"{int(path.name[:4])}. ", path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "), path.name)
        for path in sorted(DECISIONS.glob("0*.md"))
    ]
    wanted = [f"{number}[{title.removeprefix(number)}]({name})" for number, title, name in titles]
    assert re.findall(r"^\d+\. .*$", (DECISIONS / "README.md").read_text(encoding="utf-8"), re.MULTILINE) == wanted


def test_nothing_is_published_but_pages_and_what_they_link_to(tmp_path: Path) -> None:
    """No file of secrets that happens to lie beside them."""
    docs.lay_out(docs.ROOT, tmp_path / "pages")
    there = {path.relative_to(tmp_path / "pages") for path in (tmp_path / "pages").rglob("*") if path.is_file()}
    assert there == {*PAGES, *(target for page in PAGES for target in docs.linked(docs.ROOT, page))}
    assert not [path for path in there if path.name == ".env"]


def test_misplaced_pages_and_links_are_told(tmp_path: Path) -> None:
    """A page that is in no navigation, one that isn't there, links to nothing and to a folder."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples").mkdir()
    (tmp_path / "zensical.toml").write_text(
        'project.nav = [{ "a" = "README.md" }, { "b" = ["CHANGELOG.md", "no.md"] }]'
    )
    (tmp_path / "README.md").write_text("[a](docs/) [b](docs/a.md#a) [c](nowhere.yaml) [d](https://example.org/)")
    for name in ("CHANGELOG.md", "examples/README.md", "docs/a.md"):
        (tmp_path / name).write_text("# A")
    assert docs.misplaced(tmp_path) == [
        "docs/a.md: is not in the navigation of zensical.toml",
        "examples/README.md: is not in the navigation of zensical.toml",
        "zensical.toml: its navigation names no.md, which is no page",
        "README.md: links to docs, a folder, which a site can't show: link to a file in it",
        "README.md: links to nowhere.yaml, which isn't there",
    ]


@pytest.mark.parametrize(
    ("html", "wrong"),
    [
        ('<a href="other/#there">', ""),
        ('<a href="./#here">', ""),
        ('<a href="#here">', ""),
        ('<a href="https://example.org/">', ""),
        ('<a href="mailto:somebody@example.org">', ""),
        ('<img src="data:image/png;base64,AA==">', ""),
        ('<link rel="canonical" href="https://example.org/">', ""),
        ('<a href="other/#nowhere">', "index.html: other/#nowhere leads nowhere"),
        ('<a href="#nowhere">', "index.html: #nowhere leads nowhere"),
        ('<a href="nowhere/">', "index.html: nowhere/ leads nowhere"),
        ('<img src="nowhere.png">', "index.html: nowhere.png leads nowhere"),
        ('<script src="https://cdn.example/a.js"></script>', "index.html: loads https://cdn.example/a.js"),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', "index.html: loads //cdn.example/a.css"),
        ('<link rel="preconnect" href="https://cdn.example">', "index.html: loads https://cdn.example"),
    ],
)
def test_what_was_built_is_looked_at_as_a_browser_would(tmp_path: Path, html: str, wrong: str) -> None:
    """A link may lead to another site; nothing is fetched from there by itself."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text('<h1 id="there">')
    (tmp_path / "index.html").write_text(f'<h1 id="here">{html}')
    assert docs.broken(tmp_path) == ([wrong] if wrong else [])


def test_fonts_of_style_sheets_are_from_here(tmp_path: Path) -> None:
    """They are fetched by the browser as well."""
    (tmp_path / "a.css").write_text("@import 'https://fonts.example/a.css'; a { background: url(data:image/png,a) }")
    (tmp_path / "b.css").write_text("@font-face { src: url(../fonts/a.woff2) }")
    assert docs.broken(tmp_path) == ["a.css: loads https://fonts.example/a.css"]
