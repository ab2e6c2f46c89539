"""Whether processes have ended."""

from __future__ import annotations

import psutil

from tests.patience import wait_until

__all__ = ["assert_gone", "lives"]


def assert_gone(processes: list[psutil.Process]) -> None:
    """They end, if they have not yet."""
    wait_until(lambda: not any(map(lives, processes)))


def lives(process: psutil.Process) -> bool:
    """Whether it runs: the dead whom nobody has buried yet do not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
