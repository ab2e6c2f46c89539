"""One session for each server and user in a process that runs an event loop.

A triggerer runs thousands of triggers in one process. They share a login, a token and a pool of
connections for as long as one of them needs it; the last one to leave closes the pool.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_mlbatch.hooks.lookup import look_up, why_not_found
from airflow_mlbatch.hooks.settings import Settings, read_settings
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.protocol.flows import Flows

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_mlbatch.protocol.messages import Flow, Report
    from airflow_mlbatch.transport.nonblocking import NonblockingDriver

__all__ = ["AsyncSession", "acquire_session"]

T = TypeVar("T")


class AsyncSession:
    """A share in the session with a server: release it when done.

    ``flows`` are its conversations.
    """

    def __init__(self, key: _Key, flows: Flows, driver: NonblockingDriver) -> None:
        self.flows = flows
        self._key, self._driver = key, driver
        self._users = 0

    def share(self) -> AsyncSession:
        """Take one more share."""
        self._users += 1
        return self

    async def run(self, flow: Flow[T], on_report: Callable[[Report], None] | None = None) -> T:
        """Carry out a conversation."""
        return await self._driver.run(flow, on_report)

    async def release(self) -> None:
        """Give the share back."""
        self._users -= 1
        if self._users == 0:
            _sessions.pop(self._key, None)
            await self._driver.close()


_Key = tuple[asyncio.AbstractEventLoop, Settings, Timing]
_sessions: dict[_Key, AsyncSession] = {}
_USUAL = Timing()


async def acquire_session(conn_id: str, timing: Timing | None = None) -> AsyncSession:
    """Take a share in the session of a connection; the connection is looked up once.

    :param timing: how patient the session is, its clock and its way to sleep
    :raises ConnectionConfigError: a field of the connection makes no sense
    """
    settings = read_settings(*await _looked_up(conn_id))
    # The first import of aiohttp takes a tenth of a second: not on the loop.
    transport = await asyncio.to_thread(
        importlib.import_module, "airflow_mlbatch.transport.nonblocking"
    )
    timing = timing or _USUAL
    key = (asyncio.get_running_loop(), settings, timing)
    # No await between look-up and entry: two triggers that start together share what the first made.
    session = _sessions.get(key)
    if session is None:
        flows = Flows(settings.login, settings.endpoint.url, timing.policy)
        driver = transport.NonblockingDriver(
            settings.endpoint, conceal=_conceal, clock=timing.clock, sleep=timing.sleep_on_loop
        )
        session = _sessions[key] = AsyncSession(key, flows, driver)
    return session.share()


async def _looked_up(conn_id: str) -> tuple[Connection, Mapping[str, Any]]:
    """A connection and its extra field, without a synchronous call on the event loop."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection

    if hasattr(Connection, "aextra_dejson"):
        try:
            connection = await BaseHook.aget_connection(conn_id)
        except AirflowNotFoundException as error:
            # Asking the secrets backends can block: not on the loop.
            raise await asyncio.to_thread(why_not_found, conn_id) from error
        return connection, await connection.aextra_dejson()
    # Before Airflow 3.3.2 the asynchronous look-up masks secrets with a synchronous call, which can
    # raise DeadlockImminentError (apache/airflow#68377). The releases of common.compat that guard
    # against it do not exist for every Python that Airflow supports, so the guard stands here.
    from asgiref.sync import sync_to_async

    connection = await sync_to_async(look_up)(conn_id)
    return connection, await sync_to_async(lambda: connection.extra_dejson)()


async def _conceal(secret: str) -> None:
    try:
        from airflow.sdk.log import amask_secret
    except ImportError:
        # Before Airflow 3.3 there is only the synchronous one, which must not run on the loop.
        from airflow.sdk.log import mask_secret

        await asyncio.to_thread(mask_secret, secret)
    else:
        await amask_secret(secret)
