"""How a session keeps time. Tests replace this, and nothing else, to let minutes pass in no time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from airflow_mlbatch.protocol.flows import Policy

__all__ = ["Timing"]


@dataclass(frozen=True)
class Timing:
    """How patient a session is, which clock it reads, and how it sleeps.

    :param policy: repeats and limits
    :param clock: returns epoch seconds
    :param sleep: waits for so many seconds in the calling thread
    :param sleep_on_loop: waits for so many seconds on an event loop
    """

    policy: Policy = field(default_factory=Policy)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    sleep_on_loop: Callable[[float], Awaitable[None]] = asyncio.sleep
