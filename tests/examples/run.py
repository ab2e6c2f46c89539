"""Runs example Dag files as ``python file.py`` would, one after another in this process.

Usage: ``run.py OUTCOME.json FILE …``
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any


def main(outcome: str, files: list[str]) -> None:
    Path(outcome).write_text(json.dumps({Path(file).stem: run(file) for file in files}))


def run(file: str) -> Any:
    """The exit code, ``False`` and 0 for success."""
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return "no exit code"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
