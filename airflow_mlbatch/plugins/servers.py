"""One patient hook for each connection, shared by all viewers.

Law: passwords stay in this process. Somebody waits for every answer, so nothing is repeated and
nothing takes long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_mlbatch.errors import (
    AuthenticationError,
    ConnectionConfigError,
    ExecutionNotFoundError,
    ForbiddenError,
    LineError,
    MLBatchError,
    ServiceNotFoundError,
    UnavailableError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.protocol.flows import Policy

__all__ = ["GONE", "BusyError", "Servers", "sentence"]

_SHORT = Timing(policy=Policy(repeat_seconds=0.0, small_seconds=4.0))
# A connection that was edited is read anew after this time, and after every failure.
_KEPT_SECONDS = 300.0
_MOST_CALLS = 8
_QUEUE_SECONDS = 0.2

GONE = "The scoring server does not have this batch any more: it was cancelled or deleted there."


class BusyError(MLBatchError):
    """Too many requests to scoring servers are under way."""


class Servers:
    """Hooks by connection id.

    :param clock: seconds, for the age of a hook
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hooks: dict[str, tuple[MLBatchHook, float]] = {}
        self._slots = threading.BoundedSemaphore(_MOST_CALLS)

    @contextmanager
    def asked(self, conn_id: str) -> Iterator[MLBatchHook]:
        """A hook for one call.

        :raises BusyError: there are too many calls already
        :raises MLBatchError: what the call or the look-up of the connection raises
        """
        if not self._slots.acquire(timeout=_QUEUE_SECONDS):
            raise BusyError("Airflow is asking for other batches; this page tries again.")
        try:
            yield self._hook(conn_id)
        except (AuthenticationError, ConnectionConfigError, LineError):
            # Somebody may correct the connection now: read it again next time.
            with self._lock:
                self._hooks.pop(conn_id, None)
            raise
        finally:
            self._slots.release()

    def url(self, conn_id: str) -> str | None:
        """The address of a server that was asked already; looking it up would take time."""
        with self._lock:
            kept = self._hooks.get(conn_id)
        return None if kept is None else kept[0].url

    def _hook(self, conn_id: str) -> MLBatchHook:
        now = self._clock()
        with self._lock:
            kept = self._hooks.get(conn_id)
            if kept is not None and now - kept[1] < _KEPT_SECONDS:
                return kept[0]
        hook = self._checked(conn_id)
        with self._lock:
            self._hooks[conn_id] = (hook, now)
        return hook

    def _checked(self, conn_id: str) -> MLBatchHook:
        """A hook whose connection is there and is one of ours: no other password is ever sent."""
        try:
            connection = MLBatchHook.get_connection(conn_id)
        except Exception as error:
            raise ConnectionConfigError(
                f"The API server does not find the connection {conn_id!r}."
            ) from error
        if connection.conn_type != MLBatchHook.conn_type:
            raise ConnectionConfigError(
                f"The connection {conn_id!r} has the type {connection.conn_type!r}, "
                f"expected {MLBatchHook.conn_type!r}."
            )
        return MLBatchHook(conn_id, max_connections=_MOST_CALLS, timing=_SHORT)


def sentence(error: MLBatchError, conn_id: str) -> str:
    """An error as somebody who looks at a page reads it."""
    if isinstance(error, ExecutionNotFoundError):
        return GONE
    if isinstance(error, ServiceNotFoundError):
        return f"The scoring server does not publish this service any more: {error}"
    if isinstance(error, LineError | UnavailableError):
        return f"The scoring server of connection {conn_id!r} does not answer: {error}"
    if isinstance(error, AuthenticationError | ForbiddenError):
        return f"The scoring server refuses the user of connection {conn_id!r}: {error}"
    return str(error)
