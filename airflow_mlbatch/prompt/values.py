"""Values of options, checked."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TypeVar

__all__ = ["above_zero", "checked", "natural", "word"]

N = TypeVar("N", int, float)


def word(text: str) -> str:
    """A text that is not blank."""
    # A variable that is not set would mean every address of this machine, or a user without a name.
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected some text")
    return text


def natural(text: str) -> int:
    """A whole number from 0."""
    return checked(text, int, lambda number: number >= 0, "a whole number from 0")


def above_zero(text: str) -> float:
    """A number above 0."""
    return checked(text, float, lambda number: 0 < number < float("inf"), "a number above 0")


def checked(text: str, kind: Callable[[str], N], fits: Callable[[N], bool], expected: str) -> N:
    """A number.

    :param kind: reads it
    :param fits: whether it can be used
    :param expected: what would have fitted, in words
    """
    with contextlib.suppress(ValueError):
        number = kind(text)
        if fits(number):
            return number
    raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
