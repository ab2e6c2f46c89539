"""``python -m benchmarks [NAME ...]``: measure, print the table, and write it into README.md.

The exit code is 1 when a bound is missed. With names only these are measured, and README.md stays.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.lines import Benchmark, Line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as home:
        _set_airflow_aside(home)
        return _measure(arguments)


def _measure(arguments: Sequence[str] | None) -> int:
    found = {one.name: one for one in _benchmarks()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    names = parser.parse_args(arguments).names
    unknown = [name for name in names if name not in found]
    if unknown:
        parser.error(f"found {', '.join(unknown)}, expected some of: {', '.join(found)}")
    console = Console()
    lines = [line for name in names or found for line in _run(found[name], console)]
    report.show(lines, console)
    if not names:
        report.write(lines)
    return 0 if all(line.is_met for line in lines) else 1


def _set_airflow_aside(home: str) -> None:
    """Before anything imports Airflow: it makes a home where there is none, and reads one's own."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=home,
        AIRFLOW__CORE__UNIT_TEST_MODE="True",
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
    )


def _benchmarks() -> list[Benchmark]:
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [
        importlib.import_module(f"benchmarks.{name}") for name in names if name != "__main__"
    ]
    found = [module.BENCHMARK for module in modules if hasattr(module, "BENCHMARK")]
    return sorted(found, key=lambda one: (one.order, one.name))


def _run(benchmark: Benchmark, console: Console) -> list[Line]:
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False, markup=False)

    console.rule(benchmark.name, align="left")
    try:
        return benchmark.run(say)
    except Exception as error:
        # The others are measured all the same.
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Line(benchmark.name, "not measured", "an end", is_met=False, details=told[:300])]


if __name__ == "__main__":
    sys.exit(main())
