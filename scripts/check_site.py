"""Check the built documentation: every link leads to a page, a file or a heading that is there.

Links to other hosts are listed and not followed. Exits with 1 and one line for each problem.
usage: check_site.py FOLDER
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself.
LOADED = {("img", "src"), ("link", "href"), ("script", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """The ids and the targets of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif (tag, name) in LOADED and value:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


def find_problems(site: Path) -> list[str]:
    """One line for each link that leads nowhere, and for each thing loaded from another host."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        problems += [
            f"{name}: loads {target} from another host"
            for target in page.loaded
            if urlsplit(target).netloc
        ]
        for target in [*page.links, *page.loaded]:
            if not leads_somewhere(target, path, pages):
                problems.append(f"{name}: {target} leads nowhere")
    return problems


def leads_somewhere(target: str, path: Path, pages: dict[Path, Page]) -> bool:
    """Whether a target on a page is there; another host's is taken to be."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if found.is_dir():
        found /= "index.html"
    fragment = unquote(parts.fragment)
    if found in pages:
        return not fragment or fragment in pages[found].ids
    return found.is_file()


if __name__ == "__main__":
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        sys.exit(f"{site}: no index.html, so there is no site")
    problems = find_problems(site)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"Every link leads somewhere: {site}/index.html")
    sys.exit(1 if problems else 0)
