"""Compare the package's version with the newest entry of the changelog.

Exits with 1 and one sentence where they differ: a release whose changelog forgot it, or the other
way round. usage: check_changelog.py [root of the project]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def find_problem(root: Path) -> str | None:
    """The sentence to show, or None where version and changelog agree."""
    source = (root / "airflow_mlbatch" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if version is None:
        return 'airflow_mlbatch/__init__.py: no line __version__ = "…"'
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^]]+)\]", changelog, re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    if not released:
        return "CHANGELOG.md: no heading of the form ## [1.2.3] - date"
    if released[0] != version[1]:
        return (
            f"CHANGELOG.md: the newest entry is {released[0]}, "
            f"but airflow_mlbatch.__version__ is {version[1]}"
        )
    return None


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    problem = find_problem(root)
    if problem is not None:
        sys.exit(problem)
