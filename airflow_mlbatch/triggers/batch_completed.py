"""Watches a service for batches that complete, whoever started them; for an ``AssetWatcher``.

Law: the triggerer starts a watcher that ends at once again, and nobody is told of its failure. So it
never ends: what goes wrong is a line of the triggerer's log, and the next look may be better. A mistake
in its arguments fails the Dag's file instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.triggers.lazily import loaded

if TYPE_CHECKING:
    from airflow_mlbatch.hooks.async_session import AsyncSession
    from airflow_mlbatch.hooks.timing import Timing
    from airflow_mlbatch.protocol.flows.endings import Endings
    from airflow_mlbatch.protocol.messages import Report
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["BatchCompletedTrigger"]

# The triggerer hands events on about once a second. What it has not handed on is lost when it dies.
_HANDING_ON_SECONDS = 3.0
_END_STATES = tuple(state.value for state in BatchState if state.is_terminal)


class BatchCompletedTrigger(BaseEventTrigger):
    """Fires once for each execution of a service that completes, whoever started it.

    The event holds ``mlbatch_conn_id``, ``service_name``, ``service_version``, ``execution_id``,
    ``state``, ``completed_item_count``, ``total_item_count`` and ``message`` (the server's words about a
    batch that failed).

    Airflow 3.3 and later keep which executions have fired, so a restart of the triggerer neither loses
    one nor fires it again. If the triggerer stops within the few seconds after it fired, the execution
    fires once more. Earlier versions of Airflow keep nothing: each restart begins anew.

    :param service_name: a published service
    :param service_version: its version; not ``latest``
    :param states: which ends fire, of ``complete`` and ``failed``
    :param include_existing: whether executions fire that have ended before the watch first began
    :param mlbatch_conn_id: connection of type ``mlbatch``
    :param poll_interval: seconds between two looks at the server
    :raises TypeError: an argument makes no sense
    """

    timing: Timing | None = None
    """How its session keeps time; ``None`` for the usual way."""

    def __init__(
        self,
        service_name: str = "",
        service_version: str = "",
        states: Sequence[str] = (BatchState.COMPLETE.value,),
        include_existing: bool = False,
        mlbatch_conn_id: str = "mlbatch_default",
        poll_interval: float = 30.0,
    ) -> None:
        super().__init__()
        _check(service_name, service_version, states, poll_interval)
        self.service_name = service_name
        self.service_version = service_version
        self.states = list(states)
        self.include_existing = include_existing
        self.mlbatch_conn_id = mlbatch_conn_id
        self.poll_interval = poll_interval
        self._session: AsyncSession | None = None
        self._stored: list[str] | None = None
        self._has_warned = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and every keyword."""
        return (
            "airflow_mlbatch.triggers.batch_completed.BatchCompletedTrigger",
            {
                "service_name": self.service_name,
                "service_version": self.service_version,
                "states": self.states,
                "include_existing": self.include_existing,
                "mlbatch_conn_id": self.mlbatch_conn_id,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the server again and again; never ends by itself."""
        pause = await self._pause()
        ended = await self._kept(pause)
        while True:
            rest = self.poll_interval
            found = await self._look(ended or ())
            if found is not None:
                is_first = ended is None and not self.include_existing
                events = [] if is_first else self._events(found)
                for event in events:
                    yield event
                if events:
                    # What is kept as fired before it was handed on would be lost with this process.
                    waited = min(rest, _HANDING_ON_SECONDS)
                    rest -= waited
                    await pause(waited)
                ended = await self._keep(ended, found)
            await pause(rest)

    async def cleanup(self) -> None:
        """Give the shared session back."""
        session, self._session = self._session, None
        if session is not None:
            await session.release()

    async def _look(self, ended: Sequence[str]) -> Endings | None:
        """What has ended since; ``None`` where the server could not be asked."""
        try:
            if self._session is None:
                acquire_session = await loaded("async_session", "acquire_session")
                self._session = await acquire_session(self.mlbatch_conn_id, self.timing)
            flow = self._session.flows.find_endings(
                self.service_name, self.service_version, frozenset(ended)
            )
            found: Endings = await self._session.run(flow, self._log_report)
        except MLBatchError as error:
            self.log.warning("%s cannot be watched now: %s", self._watched, error)
        except Exception:
            self.log.exception("%s cannot be watched now", self._watched)
        else:
            return found
        # The connection may be mended meanwhile: it is read anew.
        await self.cleanup()
        return None

    def _events(self, found: Endings) -> list[TriggerEvent]:
        return [
            TriggerEvent(self._payload(execution_id, status))
            for execution_id, status in found.ended.items()
            if status.state.value in self.states
        ]

    def _payload(self, execution_id: str, status: BatchStatus) -> dict[str, Any]:
        return {
            "mlbatch_conn_id": self.mlbatch_conn_id,
            "service_name": self.service_name,
            "service_version": self.service_version,
            "execution_id": execution_id,
            "state": status.state.value,
            "completed_item_count": status.completed_item_count,
            "total_item_count": status.total_item_count,
            "message": status.message,
        }

    @property
    def _watched(self) -> str:
        return f"service {self.service_name!r} version {self.service_version!r}"

    async def _pause(self) -> Any:
        timing = self.timing or (await loaded("timing", "Timing"))()
        return timing.sleep_on_loop

    def _log_report(self, report: Report) -> None:
        if report.warning is not None:
            self.log.warning("%s: %s", self._watched, report.warning)

    # --- what Airflow keeps ----------------------------------------------------------------------

    @property
    def _key(self) -> str:
        """Names what is kept for the asset, which may have several watchers."""
        states = " or ".join(self.states)
        return f"{states} executions of {self.service_name} {self.service_version}, {self.mlbatch_conn_id}"

    async def _kept(self, pause: Any) -> list[str] | None:
        """Ids that have ended before this triggerer began; ``None`` where the watch begins anew."""
        while True:
            try:
                found = await self._ask_store("get", self._key)
            except Exception:
                # Beginning anew would lose what has completed meanwhile.
                self.log.exception("Airflow does not say which executions have fired; asking again")
                await pause(self.poll_interval)
            else:
                self._stored = found["execution_ids"] if found else None
                return self._stored

    async def _keep(self, before: list[str] | None, found: Endings) -> list[str]:
        """Ids of the executions that have ended, without those that the server has no more."""
        ended = [each for each in (*(before or ()), *found.ended) if each in found.listed]
        if ended != self._stored:
            try:
                await self._ask_store("set", self._key, {"execution_ids": ended})
                self._stored = ended
            except Exception:
                self.log.exception(
                    "Airflow does not keep which executions of %s have fired; after a restart of the "
                    "triggerer they may fire once more",
                    self._watched,
                )
        return ended

    async def _ask_store(self, method: str, *arguments: Any) -> Any:
        """Call the state store of the watched asset; nothing where there is none."""
        store: Any = getattr(self, "asset_state_store", None)
        if store is None:
            return None
        try:
            if hasattr(store, f"a{method}"):
                return await getattr(store, f"a{method}")(*arguments)
            # Airflow 3.3.0 and 3.3.1 have the blocking calls only.
            return await asyncio.to_thread(getattr(store, method), *arguments)
        except ValueError:
            if not self._has_warned:
                self._has_warned = True
                self.log.warning(
                    "%s: several assets have the same watcher, so Airflow cannot keep which executions "
                    "have fired; use one asset",
                    self._watched,
                )
            return None


def _check(
    service_name: str, service_version: str, states: Sequence[str], poll_interval: float
) -> None:
    """:raises TypeError: the only error that the triggerer survives"""
    for name, value in (("service_name", service_name), ("service_version", service_version)):
        if not isinstance(value, str) or not value:
            raise TypeError(f"{name}: found {value!r}, expected text")
    if service_version == "latest":
        raise TypeError("service_version: found 'latest', expected the name of one version")
    known = " and ".join(_END_STATES)
    if isinstance(states, str) or not states or not set(states) <= set(_END_STATES):
        raise TypeError(f"states: found {states!r}, expected a list of {known}")
    if isinstance(poll_interval, bool) or not isinstance(poll_interval, int | float):
        raise TypeError(f"poll_interval: found {poll_interval!r}, expected seconds")
    if poll_interval <= 0:
        raise TypeError(f"poll_interval: found {poll_interval!r}, expected more than 0")
