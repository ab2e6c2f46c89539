"""Executions, records, results and tokens in one SQLite file.

Law: one writer. Every write is one transaction on one thread, on disk before its caller goes on;
readers have connections of their own and never wait for it. A result is stored once for each
execution and position, whoever reports it how often.

Records and results lie in blocks, many to a row: a row for each would cost more than scoring it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.server.blocks import Block, blocks_of

__all__ = [
    "Execution",
    "OtherBodyError",
    "Pair",
    "Result",
    "StartKey",
    "StorageError",
    "Store",
    "stored_text",
]

T = TypeVar("T")
Result = tuple[int, Block]
"""Number of the execution, outcomes as they are sent."""

_SCHEMA_VERSION = 4
_SCHEMA = """
CREATE TABLE executions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL,
    version TEXT NOT NULL,
    parallel_count INTEGER NOT NULL,
    total INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    state TEXT NOT NULL,
    idempotency_key TEXT,
    body_digest BLOB,
    UNIQUE (service, version, idempotency_key)
);
CREATE INDEX executions_of_service ON executions (service, version);
CREATE TABLE records (
    execution INTEGER NOT NULL,
    first INTEGER NOT NULL,
    length INTEGER NOT NULL,
    texts BLOB NOT NULL,
    PRIMARY KEY (execution, first)
);
CREATE TABLE results (
    execution INTEGER NOT NULL,
    first INTEGER NOT NULL,
    length INTEGER NOT NULL,
    texts BLOB NOT NULL,
    PRIMARY KEY (execution, first)
);
CREATE TABLE pairs (
    refresh_hash TEXT PRIMARY KEY,
    access_hash TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    access_expires_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    renewable_until REAL NOT NULL
) WITHOUT ROWID;
"""
_Table = Literal["records", "results"]
_TABLES: tuple[_Table, ...] = ("records", "results")
_PURGE_ROWS = 200
_MAX_FREED_PAGES = 2_000
_MAX_IDLE_LOG = 64 * 1024 * 1024


class StorageError(Exception):
    """The disk does not take what has to be stored; later it may."""

    @property
    def is_full(self) -> bool:
        """Whether the disk is full, and not broken: SQLite's words and ours both say so."""
        return "full" in str(self)


@dataclass(frozen=True)
class StartKey:
    """The idempotency key of a start, and what tells its body from others."""

    key: str
    body_digest: bytes


class OtherBodyError(Exception):
    """A key was used before, with another body.

    :param execution_id: the execution that was started with it
    """

    def __init__(self, execution_id: str) -> None:
        super().__init__(execution_id)
        self.execution_id = execution_id


@dataclass(frozen=True)
class Execution:
    """One row of the executions, its columns in their order.

    ``state`` is pending, complete or failed: the rest is known by the runner only.
    """

    number: int
    id: str
    service: str
    version: str
    parallel_count: int
    total: int
    completed: int
    state: str
    idempotency_key: str | None = None
    body_digest: bytes | None = None

    @property
    def status(self) -> BatchStatus:
        """What a poll is told."""
        return BatchStatus(BatchState.parse(self.state), self.completed, self.total)


@dataclass(frozen=True)
class Pair:
    """An access token and its refresh token; times in epoch seconds.

    :param expires_at: when the refresh token ends
    :param renewable_until: until when the tokens that follow may be renewed
    """

    refresh_hash: str
    access_hash: str
    user: str
    access_expires_at: float
    expires_at: float
    renewable_until: float


class Store:
    """The server's memory.

    :param path: the database file; made when it is not there
    :raises InputError: the file is not a database of this server
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        try:
            # The files beside it (log, index) get the permissions of this one.
            path.touch(mode=0o600)
            self._writer = self._connect()
            self._prepare()
        except (OSError, sqlite3.DatabaseError) as error:
            raise InputError(f"data folder: {path} cannot be used: {error}") from None

    def close(self) -> None:
        """Wait for the writer and close every connection."""
        self._thread.shutdown()
        for connection in self._connections:
            connection.close()

    async def write(self, work: Callable[..., T], *args: Any) -> T:
        """Run one of this store's writing methods as a transaction on the writer's thread.

        :raises StorageError: the disk is full or broken; nothing was written
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._transaction, work, args
        )

    # --- writing: only through write() ---

    def add_execution(
        self,
        execution_id: str,
        service: str,
        version: str,
        parallel_count: int,
        records: Sequence[Block],
        key: StartKey | None = None,
    ) -> tuple[Execution, bool]:
        """Store a batch with its records.

        There is one writer, so of several starts with one key the first stores its batch and the
        others find it.

        :return: the execution that the key stands for, and whether it is new
        :raises OtherBodyError: the key has started an execution with another body
        """
        if key is not None:
            known = self._started_with(self._writer, service, version, key)
            if known is not None:
                return known, False
        total = records[-1].end if records else 0
        state = (BatchState.PENDING if total else BatchState.COMPLETE).value
        stored_key = (None, None) if key is None else (key.key, key.body_digest)
        row = (execution_id, service, version, parallel_count, total, 0, state, *stored_key)
        cursor = self._writer.execute(
            "INSERT INTO executions"
            " (id, service, version, parallel_count, total, completed, state,"
            " idempotency_key, body_digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        number = int(cursor.lastrowid or 0)
        self._writer.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?)", ((number, *block) for block in records)
        )
        return Execution(number, *row), True

    def add_results(self, results: Iterable[Result]) -> None:
        """Store outcomes; a second outcome of a record changes nothing.

        The execution is complete with its last record.
        """
        for number, rows in groupby(sorted(results), key=itemgetter(0)):
            self._count(number, sum(self._add_block(number, block) for _, block in rows))

    def _add_block(self, number: int, block: Block) -> int:
        """Store the outcomes of those records that have none; returns how many these are."""
        known = self._writer.execute(
            "SELECT first, length FROM results WHERE execution = ? AND first < ?"
            " ORDER BY first DESC LIMIT 1",
            (number, block.end),
        ).fetchone()
        if known is not None and sum(known) > block.first:
            done = set(chain.from_iterable(self._done(self._writer, number)))
            parts = [
                block.part(position, position + 1)
                for position in range(block.first, block.end)
                if position not in done
            ]
        else:
            parts = [block]
        self._writer.executemany(
            "INSERT INTO results VALUES (?, ?, ?, ?)", ((number, *part) for part in parts)
        )
        return sum(part.length for part in parts)

    def _count(self, number: int, added: int) -> None:
        self._writer.execute(
            "UPDATE executions SET completed = completed + ?1,"
            " state = CASE WHEN completed < total AND completed + ?1 >= total"
            " THEN ?2 ELSE state END WHERE number = ?3",
            (added, BatchState.COMPLETE.value, number),
        )

    def fail_execution(self, number: int, outcome: bytes) -> None:
        """End a batch that cannot be run: every record without an outcome gets this one."""
        (total,) = self._writer.execute(
            "SELECT total FROM executions WHERE number = ?", (number,)
        ).fetchone() or (0,)
        position = 0
        for done in (*self._done(self._writer, number), range(total, total)):
            missing = blocks_of([outcome] * (done.start - position), position)
            self._writer.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?)", ((number, *block) for block in missing)
            )
            position = done.stop
        self._writer.execute(
            "UPDATE executions SET completed = total, state = ? WHERE number = ?",
            (BatchState.FAILED.value, number),
        )

    def remove_execution(self, number: int) -> bool:
        """Forget an execution; its records and results go with :meth:`purge`."""
        cursor = self._writer.execute("DELETE FROM executions WHERE number = ?", (number,))
        return cursor.rowcount > 0

    def purge(self) -> bool:
        """Remove some of the rows that belong to no execution, and the space; whether there may be more.

        In steps, so that deleting a large batch does not hold up the results of the others.
        """
        for table in _TABLES:
            orphan = self._first_orphan(table)
            if orphan is None:
                continue
            self._writer.execute(
                _in(
                    table,
                    "DELETE FROM blocks WHERE rowid IN"
                    " (SELECT rowid FROM blocks WHERE execution = ? LIMIT ?)",
                ),
                (orphan, _PURGE_ROWS),
            )
            self._shrink()
            return True
        return self._shrink()

    def _shrink(self) -> bool:
        """Give some unused pages back to the disk; whether there may be more of them."""
        (unused,) = self._writer.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(unused, _MAX_FREED_PAGES)):
            # It gives back one page for each of its rows. As they have no columns, the module reads one
            # of them only, whatever number stands here.
            self._writer.execute("PRAGMA incremental_vacuum(1)")
        return bool(unused > _MAX_FREED_PAGES)

    def _first_orphan(self, table: _Table) -> int | None:
        """The lowest number in a table that is no execution's; skips from number to number."""
        number = 0
        while True:
            row = self._writer.execute(
                _in(
                    table,
                    "SELECT execution FROM blocks WHERE execution > ? ORDER BY execution LIMIT 1",
                ),
                (number,),
            ).fetchone()
            if row is None:
                return None
            number = int(row[0])
            known = self._writer.execute(
                "SELECT 1 FROM executions WHERE number = ?", (number,)
            ).fetchone()
            if known is None:
                return number

    def add_pair(self, pair: Pair, instead_of: str | None = None) -> bool:
        """Store a pair of tokens; false when the pair it takes the place of is gone already."""
        if instead_of is not None and not self.remove_pair(instead_of):
            return False
        self._writer.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?)", astuple(pair))
        return True

    def remove_pair(self, refresh_hash: str) -> bool:
        """Forget a pair of tokens; whether it was there."""
        cursor = self._writer.execute("DELETE FROM pairs WHERE refresh_hash = ?", (refresh_hash,))
        return cursor.rowcount > 0

    def remove_pairs(self, expired_at: float) -> None:
        """Forget the pairs that have expired by then."""
        self._writer.execute(
            "DELETE FROM pairs WHERE max(expires_at, access_expires_at) <= ?", (expired_at,)
        )

    @property
    def writer(self) -> sqlite3.Connection:
        """The connection of the writer's thread, for what others write through :meth:`write`."""
        return self._writer

    # --- reading: from any thread ---

    @property
    def reader(self) -> sqlite3.Connection:
        """A connection of this thread, for what others read."""
        return self._reader

    def execution(self, service: str, version: str, execution_id: str) -> Execution | None:
        """Find an execution of a service."""
        row = self._reader.execute(
            "SELECT * FROM executions WHERE id = ? AND service = ? AND version = ?",
            (execution_id, service, version),
        ).fetchone()
        return None if row is None else Execution(*row)

    def started_with(self, service: str, version: str, key: StartKey) -> Execution | None:
        """Find the execution that a key of a service has started.

        :raises OtherBodyError: it was started with another body
        """
        return self._started_with(self._reader, service, version, key)

    def execution_ids(self, service: str, version: str) -> list[str]:
        """Ids of a service's executions, oldest first."""
        rows = self._reader.execute(
            "SELECT id FROM executions WHERE service = ? AND version = ? ORDER BY number",
            (service, version),
        )
        return [row[0] for row in rows]

    def ids_by_key(self, service: str, version: str, key: str, *, is_prefix: bool) -> list[str]:
        """Ids of a service's executions that a key has started, oldest first.

        :param is_prefix: whether the key may go on after this text
        """
        # A key is visible ASCII, so this stands behind every key that begins with the text.
        last = f"{key}\x7f" if is_prefix else key
        rows = self._reader.execute(
            "SELECT id FROM executions WHERE service = ? AND version = ?"
            " AND idempotency_key BETWEEN ? AND ? ORDER BY number",
            (service, version, key, last),
        )
        return [row[0] for row in rows]

    def unfinished(self) -> list[Execution]:
        """Executions that have records to score, oldest first."""
        rows = self._reader.execute(
            "SELECT * FROM executions WHERE completed < total ORDER BY number"
        )
        return [Execution(*row) for row in rows]

    def known_ids(self) -> set[str]:
        """Ids of all executions."""
        return {row[0] for row in self._reader.execute("SELECT id FROM executions")}

    def done_positions(self, number: int) -> list[range]:
        """Positions that have an outcome, in order."""
        return list(self._done(self._reader, number))

    def records(self, number: int, start: int, max_bytes: int) -> list[Block]:
        """Blocks of records, at least one unless none begins at ``start`` or after."""
        return self._range("records", number, start, max_bytes)

    def outcomes(self, number: int, start: int, max_bytes: int) -> list[Block]:
        """Blocks of outcomes, at least one unless none begins at ``start`` or after."""
        return self._range("results", number, start, max_bytes)

    def outcome(self, number: int, position: int) -> bytes | None:
        """The outcome of one record."""
        return stored_text(self._reader, "results", number, position)

    def pairs(self) -> list[Pair]:
        """All pairs of tokens."""
        return [Pair(*row) for row in self._reader.execute("SELECT * FROM pairs")]

    # --- inside ---

    @staticmethod
    def _started_with(
        connection: sqlite3.Connection, service: str, version: str, key: StartKey
    ) -> Execution | None:
        row = connection.execute(
            "SELECT * FROM executions WHERE service = ? AND version = ? AND idempotency_key = ?",
            (service, version, key.key),
        ).fetchone()
        if row is None:
            return None
        execution = Execution(*row)
        if execution.body_digest != key.body_digest:
            raise OtherBodyError(execution.id)
        return execution

    @staticmethod
    def _done(connection: sqlite3.Connection, number: int) -> Iterator[range]:
        for first, count in connection.execute(
            "SELECT first, length FROM results WHERE execution = ? ORDER BY first", (number,)
        ):
            yield range(first, first + count)

    def _range(self, table: _Table, number: int, start: int, max_bytes: int) -> list[Block]:
        found: list[Block] = []
        size = 0
        for row in self._reader.execute(
            _in(
                table,
                "SELECT first, length, texts FROM blocks"
                " WHERE execution = ? AND first >= ? ORDER BY first",
            ),
            (number, start),
        ):
            found.append(Block(*row))
            size += len(row[2])
            if size >= max_bytes:
                break
        return found

    @property
    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Closed by close(), which runs on another thread than the one that opened it.
        connection = sqlite3.connect(
            self._path, timeout=10, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_MAX_IDLE_LOG}")
        self._connections.append(connection)
        return connection

    def _prepare(self) -> None:
        found = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise InputError(
                f"data folder: {self._path} has schema {found}, expected {_SCHEMA_VERSION}: "
                "it belongs to another release"
            )
        if found == 0:
            self._writer.execute("PRAGMA auto_vacuum=INCREMENTAL")
        self._writer.execute("PRAGMA journal_mode=WAL")
        if found == 0:
            self._writer.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;"
            )

    def _transaction(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            value = work(*args)
            self._writer.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.OperationalError):
                self._writer.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"storage: {error}") from error
            raise
        return value


def stored_text(
    connection: sqlite3.Connection, table: _Table, number: int, position: int
) -> bytes | None:
    """One record, or its outcome; ``None`` when it is not there.

    :param connection: to the database
    :param number: of the execution
    """
    row = connection.execute(
        _in(
            table,
            "SELECT first, length, texts FROM blocks"
            " WHERE execution = ? AND first <= ? ORDER BY first DESC LIMIT 1",
        ),
        (number, position),
    ).fetchone()
    if row is None or position >= Block(*row).end:
        return None
    return Block(*row).part(position, position + 1).texts


def _in(table: _Table, statement: str) -> str:
    """A statement about one of the two tables of blocks."""
    return statement.replace("blocks", table)
