"""How long a test waits for an event.

Law: tests wait for events and judge no time. The limits here only end a test that hangs, so they are
far longer than a machine needs that runs ten other things.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "wait_until"]

# Seconds.
PATIENCE = 300.0


def wait_until(is_so: Callable[[], bool], pause: float = 0.02) -> None:
    """Ask until it is so.

    :param pause: seconds between two questions
    :raises AssertionError: it is still not so after :data:`PATIENCE`
    """
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {PATIENCE:.0f} seconds"
        time.sleep(pause)
