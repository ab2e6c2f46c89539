"""Runs a trigger as a triggerer does, and tells how long its event loop was held by one callback.

usage: python -m tests.system.loop_meter '{"service_name": …}' → one line of JSON

A process of its own, so that nothing is imported that a triggerer has not imported before.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any

_CLASS_PATH = "airflow_mlbatch.triggers.batch_state.BatchStateTrigger"


class LoopMeter:
    """Keeps the longest callbacks of all event loops of this process.

    Measured is the processor time of the loop's thread: what the machine does meanwhile does not count.
    Nor does Python's garbage collector: now and then it goes through all that Airflow has imported, a
    quarter of a second, in whatever callback happens to be running. ``collected`` is how long it took
    so far.
    """

    def __init__(self) -> None:
        self.longest: list[tuple[float, str]] = []
        self.collected = self._collecting_since = 0.0
        gc.callbacks.append(self._on_collection)
        original = asyncio.Handle._run

        def run(handle: asyncio.Handle) -> None:
            told, started = repr(handle), self.busy()
            original(handle)
            self.longest.append((self.busy() - started, told))
            self.longest.sort(reverse=True)
            del self.longest[5:]

        setattr(asyncio.Handle, "_run", run)  # noqa: B010

    def busy(self) -> float:
        """Processor time that this thread has had, without collections, in seconds."""
        return time.thread_time() - self.collected

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self.collected += time.thread_time() - self._collecting_since


async def watch(keywords: dict[str, Any]) -> dict[str, Any]:
    """The event of a trigger whose class is imported on the loop, as the triggerer does."""
    from airflow.sdk._shared.module_loading import import_string

    await asyncio.sleep(0)
    trigger = import_string(_CLASS_PATH)(**keywords)
    async for event in trigger.run():
        await trigger.cleanup()
        return dict(event.payload)
    raise AssertionError("no event")


def main() -> None:
    """What a triggerer has imported comes first, then the measured part."""
    import airflow.jobs.triggerer_job_runner
    import airflow.triggers.base  # noqa: F401

    meter = LoopMeter()
    event = asyncio.run(watch(json.loads(sys.argv[1])))
    print(json.dumps({"event": event, "longest": meter.longest}))


if __name__ == "__main__":
    main()
