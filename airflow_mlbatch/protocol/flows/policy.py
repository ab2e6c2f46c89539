"""How patient a conversation is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Policy"]


@dataclass(frozen=True)
class Policy:
    """How patient a conversation is.

    :param repeat_seconds: longest time that the repeats of one request may take, pauses included
    :param first_wait: seconds before the first repeat; each further pause is twice as long, and all
        are jittered
    :param longest_wait: longest pause between two repeats, in seconds
    :param small_seconds: longest time for an exchange whose reply is small
    :param poll_problems: how many polls in a row may fail before a watch gives up
    :param whole_seconds: longest time for all requests of a session together; ``None`` for no limit
    :param test_seconds: longest time for a test of the connection
    :param chance: returns a number in [0, 1) for the jitter
    """

    repeat_seconds: float = 120.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    small_seconds: float = 120.0
    poll_problems: int = 10
    whole_seconds: float | None = None
    test_seconds: float = 10.0
    chance: Callable[[], float] = random.random
