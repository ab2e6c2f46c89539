"""The table: on the screen, and in README.md."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from airflow_mlbatch import __version__
from benchmarks.lines import Line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show", "write"]

_README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_PACKAGES = ("apache-airflow", "pandas", "pyarrow", "msgspec", "requests", "aiohttp")


def show(lines: Sequence[Line], console: Console) -> None:
    """Print the table."""
    table = Table(title="airflow-mlbatch, measured", show_lines=True)
    for title in ("", "measured", "bound", ""):
        table.add_column(title)
    for line in lines:
        mark = "[green]kept[/]" if line.is_met else "[bold red]missed[/]"
        what = f"{line.what}\n[dim]{line.details}[/]" if line.details else line.what
        table.add_row(what, line.measured, line.bound or "reported", mark if line.bound else "")
    console.print(table)


def write(lines: Sequence[Line]) -> None:
    """Put the table into README.md, in the place of the one before."""
    before, _, rest = _README.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    text = f"{before}{_BEGIN}\n{_as_markdown(lines)}\n{_END}{after}"
    _README.write_text(text, encoding="utf-8")


def _as_markdown(lines: Sequence[Line]) -> str:
    rows = ["| what | measured | bound | | how |", "| --- | --- | --- | --- | --- |"]
    for line in lines:
        kept = ("kept" if line.is_met else "**missed**") if line.bound else ""
        cells = [line.what, line.measured, line.bound or "reported", kept, line.details]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([f"{machine()}.", "", *rows])


def machine() -> str:
    """What all of this ran on."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return (
        f"Measured on {day} with airflow-mlbatch {__version__} on {cores()} cores "
        f"({platform.machine()}, {platform.system()}), Python {platform.python_version()}, {packages}"
    )


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
