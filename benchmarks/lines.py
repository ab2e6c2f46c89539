"""A benchmark, and the lines that it adds to the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "KIB",
    "MB",
    "Benchmark",
    "Line",
    "Say",
    "at_most",
    "kib",
    "mb",
    "ratio",
    "reported",
    "seconds",
]

KIB, MB = 1024, 1_000_000

# Tells whoever waits how far it is.
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One row of the table.

    :param what: the thing measured, with its size
    :param measured: the number
    :param bound: what it has to keep to; empty where the number is only reported
    :param is_met: whether it does
    :param details: what the number is made of, and what it was held against
    """

    what: str
    measured: str
    bound: str = ""
    is_met: bool = True
    details: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Something that can be measured.

    :param name: what it is called on the command line
    :param order: its place in the table
    :param run: measures, and returns its lines
    """

    name: str
    order: int
    run: Callable[[Say], list[Line]]


def ratio(what: str, *, ours: float, theirs: float, least: float, details: str = "") -> Line:
    """How many times as fast as the other way.

    :param ours: seconds
    :param theirs: seconds of the other way
    """
    times = theirs / ours
    told = f"{seconds(ours)} against {seconds(theirs)}"
    details = f"{told}; {details}" if details else told
    return Line(
        what, f"{times:.1f} times as fast", f"at least {least:g} times", times >= least, details
    )


def at_most(
    what: str, value: float, limit: float, show: Callable[[float], str], details: str = ""
) -> Line:
    """Something that may not be more than so much."""
    return Line(what, show(value), f"at most {show(limit)}", value <= limit, details)


def reported(what: str, measured: str, details: str = "") -> Line:
    """A number without a bound."""
    return Line(what, measured, details=details)


def seconds(value: float) -> str:
    """A time as a person reads it."""
    if value < 0.1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def mb(value: float) -> str:
    """A size in memory."""
    return f"{value / MB:,.0f} MB"


def kib(value: float) -> str:
    """A small size."""
    return f"{value / KIB:,.1f} KiB"
