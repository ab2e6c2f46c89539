"""The first records of a batch, without reading the rest.

Law: whatever the size of a batch, at most 1 MiB of its results is read, once for all who look at the
same time. Filters and histograms are made in the browser, from the records that were read.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from airflow_mlbatch.plugins.notes import Batch
from airflow_mlbatch.plugins.servers import BusyError, Servers
from airflow_mlbatch.protocol.messages import KIB, MIB
from airflow_mlbatch.protocol.results import BeginningSink
from airflow_mlbatch.protocol.services import Service

__all__ = ["Beginnings"]

# The piece that passes the limit is read whole; it has at most 64 KiB.
_MAX_BYTES = 1 * MIB - 64 * KIB
_KEPT_SECONDS = 5.0
_MOST_KEPT = 16
_WAIT_SECONDS = 1.0


class Beginnings:
    """The beginnings of batches, as JSON, kept for a moment.

    :param clock: seconds, for their age
    """

    def __init__(self, servers: Servers, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers, self._clock = servers, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[Batch, tuple[float, bytes]] = OrderedDict()
        self._reading: dict[Batch, threading.Lock] = {}

    def read(self, batch: Batch) -> bytes:
        """The first records of a batch.

        :raises BusyError: somebody else is reading them, or other batches
        :raises MLBatchError: they cannot be read
        """
        with self._lock:
            reading = self._reading.setdefault(batch, threading.Lock())
        if not reading.acquire(timeout=_WAIT_SECONDS):
            raise BusyError("Somebody else is reading these records; this page tries again.")
        try:
            return self._fresh(batch) or self._read(batch)
        finally:
            reading.release()
            with self._lock:
                self._reading.pop(batch, None)

    def _fresh(self, batch: Batch) -> bytes | None:
        with self._lock:
            at, content = self._kept.get(batch, (float("-inf"), None))
        return content if self._clock() - at < _KEPT_SECONDS else None

    def _read(self, batch: Batch) -> bytes:
        names = (batch.service_name, batch.service_version)
        with self._servers.asked(batch.conn_id) as hook:
            beginning = hook.read_first_results(*names, batch.execution_id, _MAX_BYTES)
            content = _as_json(beginning, hook.get_service(*names))
        with self._lock:
            self._kept.pop(batch, None)
            self._kept[batch] = (self._clock(), content)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return content


def _as_json(beginning: BeginningSink, service: Service) -> bytes:
    records = [
        {
            "index": record.index,
            "success": record.success,
            "error": record.error,
            "outputs": record.outputs,
            "console": record.console_output,
            "artifacts": list(dict.fromkeys([*record.artifacts, *record.files])),
        }
        for block in beginning.blocks
        for record in block
    ]
    answer: dict[str, Any] = {
        "outputs": [{"name": out.name, "type": out.type} for out in service.outputs],
        "records": records,
        "is_whole": beginning.is_whole,
        "bytes_read": beginning.bytes_read,
    }
    return msgspec.json.encode(answer, enc_hook=str)
