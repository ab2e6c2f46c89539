"""Triggers beside ours: one that measures the event loop, and one that polls in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from tests.system.loop_meter import LoopMeter

__all__ = ["PulseTrigger", "ThreadTrigger"]

_PULSE_SECONDS = 0.005


class PulseTrigger(BaseTrigger):
    """Logs every second how long the event loop has kept it waiting at most.

    By the wall, which includes what the machine did meanwhile and Python's collections of garbage; by
    the processor time of the loop's thread, without both; and the longest callback, likewise.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.deferred.triggers.PulseTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        meter = LoopMeter()
        while True:
            pause = busy = 0.0
            until = time.monotonic() + 1
            while (began := time.monotonic()) < until:
                busy_before = meter.busy()
                await asyncio.sleep(_PULSE_SECONDS)
                pause = max(pause, time.monotonic() - began - _PULSE_SECONDS)
                busy = max(busy, meter.busy() - busy_before)
            self.log.info("pulse %.6f %.6f %.6f", pause, busy, meter.longest[0][0])
            meter.longest.clear()
        yield TriggerEvent(None)  # type: ignore[unreachable]  # makes this a generator


class ThreadTrigger(BaseTrigger):
    """The other way: each poll is the synchronous hook's, in a thread.

    All share one hook, and with it a login: with one for each trigger, as is usual, the server would
    see as many logins as triggers.
    """

    _hook: MLBatchHook | None = None

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.keywords = keywords

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.deferred.triggers.ThreadTrigger", self.keywords

    async def run(self) -> AsyncIterator[TriggerEvent]:
        names = self.keywords
        if ThreadTrigger._hook is None:
            ThreadTrigger._hook = MLBatchHook()
        poll = ThreadTrigger._hook.get_batch_status
        named = (names["service_name"], names["service_version"], names["execution_id"])
        while True:
            try:
                status = await asyncio.to_thread(poll, *named)
            except MLBatchError as error:
                yield TriggerEvent(event_of(names["execution_id"], error))
                return
            self.log.info("execution %s: %s", names["execution_id"], status)
            if status.is_terminal:
                yield TriggerEvent(event_of(names["execution_id"], status))
                return
            await asyncio.sleep(names["poll_interval"])
