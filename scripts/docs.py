#!/usr/bin/env python3
"""The documentation as a site, into ``build/docs``; run by ``make docs``.

The pages are laid out in the places that they have in the repository, with the files that they link to, and nothing
else: so a link that works on a code host works in the site. Zensical is strict about links between pages only; what was
built is looked at once more here, as a browser would: every link of every page, and that nothing comes from elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = "zensical.toml"
PAGES, SITE = Path("build/pages"), Path("build/docs")

_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_LOADING = {"audio", "embed", "iframe", "img", "input", "object", "script", "source", "video"}
"""Elements whose ``src`` or ``data`` a browser fetches by itself; of ``link`` it fetches nearly every ``href``."""
_OUTSIDE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def pages(root: Path) -> list[Path]:
    """Return the pages, relative to the repository."""
    there = [root / "README.md", root / "CHANGELOG.md", root / "examples" / "README.md", *root.glob("docs/**/*.md")]
    return sorted(path.relative_to(root) for path in there)


def linked(root: Path, page: Path) -> Iterator[Path]:
    """Yield what a page links to within the repository, relative to it, whether it is there or not."""
    for target in _LINK.findall((root / page).read_text(encoding="utf-8")):
        yield (root / page.parent / target).resolve().relative_to(root)


def navigation(root: Path) -> list[Path]:
    """Return the pages that the navigation names."""

    def leaves(value: object) -> Iterator[Path]:
        if isinstance(value, str):
            yield Path(value)
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from leaves(inner)

    told = tomllib.loads((root / CONFIGURATION).read_text(encoding="utf-8"))
    return list(leaves(told["project"]["nav"]))


def misplaced(root: Path) -> list[str]:
    """Return what is wrong with pages, navigation and links before anything is built."""
    there, named = pages(root), navigation(root)
    wrong = [f"{page}: is not in the navigation of {CONFIGURATION}" for page in there if page not in named]
    wrong += [f"{CONFIGURATION}: its navigation names {page}, which is no page" for page in named if page not in there]
    for page in there:
        for target in linked(root, page):
            if (root / target).is_dir():
                wrong.append(f"{page}: links to {target}, a folder, which a site can't show: link to a file in it")
            elif not (root / target).is_file():
                wrong.append(f"{page}: links to {target}, which isn't there")
            elif target.suffix == ".md" and target not in there:
                wrong.append(f"{page}: links to {target}, which is no page of the site")
    return wrong


def lay_out(root: Path, to: Path) -> None:
    """Copy the pages, and the files that they link to, into an empty folder."""
    shutil.rmtree(to, ignore_errors=True)
    there = pages(root)
    for path in {*there, *(target for page in there for target in linked(root, page))}:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, to / path)


class _Page(HTMLParser):
    """What a built page has, links to, and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag in _LOADING:
            self.loaded += [given[name] for name in ("src", "data") if name in given]
        elif tag == "link":
            self.loaded += [given["href"]] if "href" in given and given.get("rel") != "canonical" else []
        elif "href" in given:
            self.links.append(given["href"])


def broken(site: Path) -> list[str]:
    """Return what a reader of a built site would run into: links that lead nowhere, and anything from elsewhere."""
    # The page for what isn't there stands anywhere, so its links begin at the site's root.
    built = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    wrong = []
    for path, page in built.items():
        name = path.relative_to(site)
        outside = [link for link in page.loaded if urlsplit(link).netloc]
        wrong += [f"{name}: loads {link}" for link in outside]
        inside = (link for link in (*page.links, *page.loaded) if not (urlsplit(link).scheme or urlsplit(link).netloc))
        wrong += [f"{name}: {link} leads nowhere" for link in inside if not _leads(link, path, built)]
    for path in site.rglob("*.css"):
        found: Iterable[str] = _OUTSIDE.findall(path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(site)}: loads {link}" for link in found]
    return sorted(set(wrong))


def _leads(link: str, origin: Path, built: dict[Path, _Page]) -> bool:
    parts = urlsplit(link)
    target = (origin.parent / unquote(parts.path)).resolve() if parts.path else origin
    if target.is_dir():
        target /= "index.html"
    if target not in built:
        return target.is_file()
    return not parts.fragment or unquote(parts.fragment) in built[target].anchors


def main() -> int:
    """Build; return the exit status."""
    wrong = misplaced(ROOT)
    if not wrong:
        lay_out(ROOT, ROOT / PAGES)
        shutil.rmtree(ROOT / SITE, ignore_errors=True)
        zensical = Path(sys.executable).with_name("zensical")
        command = [zensical, "build", "--strict", "--clean", "--config-file", CONFIGURATION]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode != 0:
            return done.returncode
        wrong = broken(ROOT / SITE)
    for problem in wrong:
        print(problem, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
