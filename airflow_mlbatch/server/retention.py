"""Deletes finished executions that are too old, or that take too much space together.

Law: only what has ended is deleted, and what ended first goes first. It is deleted as a client deletes
it: the row of the execution goes in one transaction, and what belongs to it afterwards, also when the
server is killed in between.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from airflow_mlbatch.server.folder import DataFolder
from airflow_mlbatch.server.runner import Runner
from airflow_mlbatch.server.store import Execution, StorageError, Store

__all__ = ["Retention", "RetentionSettings"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 2.0
_DAY = 86_400.0
_GB = 1_000_000_000
# What SQLite needs beside a block of records or of results: its keys, its size, its place.
_ROW_BYTES = 32
# A table of its own: an execution does not say when it ended.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS endings (
    execution INTEGER PRIMARY KEY,
    ended_at REAL NOT NULL,
    bytes INTEGER
);
CREATE INDEX IF NOT EXISTS endings_in_order ON endings (ended_at, execution);
CREATE INDEX IF NOT EXISTS endings_unmeasured ON endings (execution) WHERE bytes IS NULL;
"""
_HAS_NEWS = """SELECT EXISTS (SELECT 1 FROM executions
        WHERE completed >= total AND number NOT IN (SELECT execution FROM endings))
    OR EXISTS (SELECT 1 FROM endings WHERE execution NOT IN (SELECT number FROM executions))"""
_NOTE_NEW = """INSERT INTO endings SELECT number, ?, NULL FROM executions
    WHERE completed >= total AND number NOT IN (SELECT execution FROM endings)"""
_FORGET_OLD = "DELETE FROM endings WHERE execution NOT IN (SELECT number FROM executions)"
_UNMEASURED = """SELECT number, id FROM endings
    CROSS JOIN executions ON number = endings.execution WHERE bytes IS NULL LIMIT 1000"""
_SIZES = """SELECT count(*), coalesce(sum(length(texts)), 0) FROM records WHERE execution = ?1
    UNION ALL
    SELECT count(*), coalesce(sum(length(texts)), 0) FROM results WHERE execution = ?1"""
_TOTAL = """SELECT coalesce(sum(bytes), 0) FROM endings
    WHERE execution IN (SELECT number FROM executions)"""
# CROSS JOIN keeps SQLite to this order: it reads as many as are due, and not all of them.
_OLDEST = """SELECT executions.*, ended_at, coalesce(bytes, 0) FROM endings
    CROSS JOIN executions ON number = endings.execution ORDER BY ended_at, endings.execution"""


@dataclass(frozen=True)
class RetentionSettings:
    """How long finished executions are kept; ``None`` for no limit.

    :param keep_days: days after their end
    :param keep_gb: GB (1,000,000,000 bytes) that they may take together: records, results, artifacts
    """

    keep_days: float | None = None
    keep_gb: float | None = None


class Retention:
    """Looks every few seconds for executions to delete.

    Their age counts from the moment at which this saw them finished. It notes that also while there
    is no limit, so that a limit which is set later finds the ages right.

    :param say: told about each execution that is deleted, and why
    """

    def __init__(
        self,
        store: Store,
        folder: DataFolder,
        runner: Runner,
        settings: RetentionSettings,
        say: Callable[[str], None],
    ) -> None:
        self._store, self._folder, self._runner = store, folder, runner
        self._settings, self._say = settings, say
        self._deleted = 0
        store.reader.executescript(_SCHEMA)

    @property
    def details(self) -> dict[str, Any]:
        """What the server's status says about it."""
        return {
            "keepDays": self._settings.keep_days,
            "keepGb": self._settings.keep_gb,
            "deletedExecutions": self._deleted,
        }

    async def run(self) -> None:
        """Sweep, for ever."""
        while True:
            try:
                await self._sweep()
            except StorageError as error:
                # A full disk, which /status tells of; the next sweep may go through.
                log.warning("finished executions cannot be looked through: %s", error)
            except Exception:
                log.exception("finished executions cannot be looked through")
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _sweep(self) -> None:
        if await asyncio.to_thread(self._has_news):
            await self._store.write(self._note_endings, time.time())
        if self._settings.keep_gb is not None:
            while sizes := await asyncio.to_thread(self._measured):
                await self._store.write(self._note_sizes, sizes)
        for execution, why in await asyncio.to_thread(self._due, time.time()):
            if await self._runner.delete(execution):
                self._deleted += 1
                self._say(
                    f"deleted execution {execution.id} of {execution.service} {execution.version}: "
                    f"{why}"
                )

    def _has_news(self) -> bool:
        return bool(self._store.reader.execute(_HAS_NEWS).fetchone()[0])

    def _measured(self) -> list[tuple[int, int]]:
        """Bytes and numbers of some finished executions whose bytes are not known yet."""
        sizes = []
        for number, execution_id in self._store.reader.execute(_UNMEASURED).fetchall():
            stored = self._store.reader.execute(_SIZES, (number,))
            size = sum(count * _ROW_BYTES + length for count, length in stored)
            size += _size_on_disk(str(self._folder.artifacts(execution_id)))
            sizes.append((size, number))
        return sizes

    def _due(self, now: float) -> list[tuple[Execution, str]]:
        """What is to be deleted, and why, in that order."""
        days, gb = self._settings.keep_days, self._settings.keep_gb
        reader, due, total = self._store.reader, [], 0
        if gb is not None:
            (total,) = reader.execute(_TOTAL).fetchone()
        with closing(reader.execute(_OLDEST)) as rows:
            for *execution, ended_at, size in rows:
                age = (now - ended_at) / _DAY
                if days is not None and age >= days:
                    why = f"it ended {age:,.1f} days ago (--keep-days {days:g})"
                elif gb is not None and total > gb * _GB:
                    why = f"finished executions take {total / _GB:,.3g} GB (--keep-gb {gb:g})"
                else:
                    break  # Those that follow ended later, and the space is enough for them.
                total -= size
                due.append((Execution(*execution), why))
        return due

    # --- only through the store's write() ---

    def _note_endings(self, now: float) -> None:
        self._store.writer.execute(_NOTE_NEW, (now,))
        self._store.writer.execute(_FORGET_OLD)

    def _note_sizes(self, sizes: list[tuple[int, int]]) -> None:
        self._store.writer.executemany("UPDATE endings SET bytes = ? WHERE execution = ?", sizes)


def _size_on_disk(folder: str) -> int:
    """Bytes of all files in a folder, which need not be there."""
    return sum(
        os.path.getsize(os.path.join(path, name))
        for path, _, names in os.walk(folder)
        for name in names
    )
