"""How `make docs` builds the site.

The source folder is the root of the repository, so a link from one page to another is the same path
in a checkout and on the site.
"""

from __future__ import annotations

import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Airflow writes its settings where it is imported; the pages need none.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="mlbatch-docs-"))
logging.disable(logging.INFO)

ROLES = tuple(
    f"airflow_mlbatch.{room}" for room in ("operators", "sensors", "task_groups", "triggers")
)

project = "airflow-mlbatch"
author = "The authors of airflow-mlbatch"
copyright = "the authors of airflow-mlbatch"  # noqa: A001

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "benchmarks/README.md",
]
exclude_patterns = ["docs/_root", "docs/_static"]
source_suffix = {".md": "markdown"}
# Links to headings work as they do on a Git host.
myst_heading_anchors = 4

html_theme = "furo"
html_title = "airflow-mlbatch"
html_static_path = ["_static"]
# Leads from the root of the site to docs/index.html.
html_extra_path = ["_root"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
templates_path: list[str] = []

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Every name of a module's __all__, wherever it is defined.
autodoc_default_options = {"members": True, "imported-members": True}

# Airflow calls these; nobody else does.
CALLED_BY_AIRFLOW = {
    "cleanup",
    "execute",
    "execute_complete",
    "on_kill",
    "poke",
    "resume_execution",
    "run",
    "serialize",
}


def skip_what_airflow_calls(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave a member out of the reference (true), or let Sphinx decide (``None``)."""
    is_ours = str(getattr(obj, "__module__", "")).startswith(ROLES)
    return True if is_ours and name in CALLED_BY_AIRFLOW else None


def drop_docstrings_of_modules(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """The pages introduce each module themselves; its docstring is for those who change it."""
    if what == "module":
        lines.clear()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip_what_airflow_calls)
    app.connect("autodoc-process-docstring", drop_docstrings_of_modules)
