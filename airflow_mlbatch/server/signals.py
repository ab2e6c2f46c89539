"""SIGTERM in a worker and in what its service starts.

Law: the worker bears the signal, and everything that it starts dies of it, as it would elsewhere.

The worker must not ignore the signal: a program that it executes would ignore it as well. So it has a
handler, which is gone after an exec. It is not gone after a fork, and a handler written in Python
loses signals there. The interpreter drops what arrives while a child is being forked, and what
arrives just before a blocking call is noticed only when that call returns. A pool, for example, ends
its processes with SIGTERM while they wait for work, and then waits for them for ever. So the signal
waits until the child has the system's own handling again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

__all__ = ["bear_sigterm"]


def bear_sigterm() -> None:
    """Let this process, but no other that it starts, live on after SIGTERM.

    A signal for all processes at once must not fail a record: the server is told to stop, too, and
    decides when its workers end.
    """
    signal.signal(signal.SIGTERM, _bear)
    if sys.platform != "win32":
        forking = _Forking()
        os.register_at_fork(
            before=forking.hold_back,
            after_in_parent=forking.release,
            after_in_child=forking.release_in_child,
        )


def _bear(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


if sys.platform != "win32":

    class _Forking(threading.local):
        """Holds SIGTERM back while a thread forks. Each thread has a mask of its own."""

        def hold_back(self) -> None:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        def release(self) -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

        def release_in_child(self) -> None:
            # A service may have a handler of its own.
            if signal.getsignal(signal.SIGTERM) is _bear:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.release()
