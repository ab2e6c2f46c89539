"""Whether processes have ended."""

from __future__ import annotations

import time

import psutil

__all__ = ["assert_gone", "lives"]


def assert_gone(processes: list[psutil.Process]) -> None:
    """They end soon, if they have not yet."""
    deadline = time.monotonic() + 30
    while any(map(lives, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    """Whether it runs: the dead whom nobody has buried yet do not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
