"""What the server offers: the services of its modules, and those that were published over HTTP.

Law: one transaction makes a publication, an update or a deletion true; before it the old form is
whole, after it the new one. A program is kept while it is published or a batch that began with it is
unfinished, and its files are removed after its row.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.folder import DataFolder
from airflow_mlbatch.server.programs import Program, read_program, write_program
from airflow_mlbatch.server.store import Execution, StartKey, Store

__all__ = ["Catalogue", "Entry", "SupersededError"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS programs (
    id TEXT PRIMARY KEY,
    document BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS published (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    program TEXT NOT NULL,
    PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (
    execution INTEGER PRIMARY KEY,
    program TEXT NOT NULL
);
"""
_UNUSED = """SELECT id FROM programs
    WHERE id NOT IN (SELECT program FROM published) AND id NOT IN (
        SELECT pins.program FROM pins JOIN executions ON executions.number = pins.execution
        WHERE executions.completed < executions.total
    )"""


class SupersededError(Exception):
    """What a batch should begin with has been replaced meanwhile."""


@dataclass(frozen=True)
class Entry:
    """One version of a service.

    :param reader: reads records for its inputs
    :param program: what runs, where it was published over HTTP; ``None`` for one of a module
    """

    service: Service
    reader: RecordReader
    program: Program | None = None

    @classmethod
    def of(cls, service: Service, program: Program | None = None) -> Entry:
        """Make one."""
        return cls(service, RecordReader(service.inputs), program)


class Catalogue:
    """The table of services, in memory and on the disk.

    :param built_in: the services of modules
    :raises InputError: one of them was published over HTTP, too
    """

    def __init__(
        self, store: Store, folder: DataFolder, built_in: Mapping[tuple[str, str], Service]
    ) -> None:
        self._store, self._folder = store, folder
        self._entries = {key: Entry.of(service) for key, service in built_in.items()}
        store.reader.executescript(_SCHEMA)
        for name, version, program_id, document in store.reader.execute(
            "SELECT name, version, program, document FROM published"
            " JOIN programs ON programs.id = published.program ORDER BY name, version"
        ):
            if (name, version) in self._entries:
                raise InputError(
                    f"service {name!r} version {version!r}: found in --services, and published over "
                    "HTTP before: leave it out of --services, or unpublish it without them first"
                )
            program = read_program(program_id, document, folder.program(program_id))
            self._entries[name, version] = Entry.of(program.service, program)
        folder.discard_unknown_programs(
            {row[0] for row in store.reader.execute("SELECT id FROM programs")}
        )

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, version: str) -> Entry | None:
        """Find one version of a service."""
        return self._entries.get((name, version))

    def services(self, name: str | None = None) -> list[Service]:
        """All of them, or all versions of one, in order of name and version."""
        return [
            entry.service
            for key, entry in sorted(self._entries.items())
            if name is None or key[0] == name
        ]

    def programs(self) -> list[Program]:
        """What was published over HTTP."""
        return [entry.program for entry in self._entries.values() if entry.program is not None]

    # --- changes: each is true, for everybody, when its transaction is ---

    async def add(self, program: Program) -> bool:
        """Publish a version; false when it is there already."""
        if program.key in self._entries:
            return False
        try:
            await self._store.write(self._insert, program)
        except sqlite3.IntegrityError:
            return False
        self._entries[program.key] = Entry.of(program.service, program)
        return True

    async def replace(self, program: Program) -> None:
        """Publish another form of a version that is there."""
        await self._store.write(self._update, program)
        self._entries[program.key] = Entry.of(program.service, program)

    async def remove(self, name: str, version: str) -> None:
        """Publish a version no longer."""
        await self._store.write(self._delete, name, version)
        self._entries.pop((name, version), None)

    async def start_batch(
        self,
        entry: Entry,
        execution_id: str,
        parallel_count: int,
        records: Sequence[Block],
        key: StartKey | None = None,
    ) -> tuple[Execution, bool]:
        """Store a batch that keeps its program to the end.

        :return: the execution, and whether it is new: as :meth:`Store.add_execution`
        :raises SupersededError: there is another one meanwhile
        """
        return await self._store.write(
            self._start, entry, execution_id, parallel_count, records, key
        )

    async def collect(self, in_use: Collection[str]) -> None:
        """Remove the programs that nobody needs any more.

        :param in_use: ids of those that are being run
        """
        for program_id in await self._store.write(self._forget_unused, in_use):
            await asyncio.to_thread(self._folder.discard_program, program_id)

    def program_of(self, number: int) -> Program | None:
        """What a batch began with, where that was published over HTTP."""
        row = self._store.reader.execute(
            "SELECT id, document FROM pins JOIN programs ON programs.id = pins.program"
            " WHERE execution = ?",
            (number,),
        ).fetchone()
        return None if row is None else read_program(row[0], row[1], self._folder.program(row[0]))

    # --- inside: only through the store's write() ---

    def _insert(self, program: Program) -> None:
        self._add_program(program)
        self._store.writer.execute(
            "INSERT INTO published VALUES (?, ?, ?)", (*program.key, program.id)
        )

    def _update(self, program: Program) -> None:
        self._add_program(program)
        self._store.writer.execute(
            "UPDATE published SET program = ? WHERE name = ? AND version = ?",
            (program.id, *program.key),
        )

    def _delete(self, name: str, version: str) -> None:
        self._store.writer.execute(
            "DELETE FROM published WHERE name = ? AND version = ?", (name, version)
        )

    def _add_program(self, program: Program) -> None:
        self._store.writer.execute(
            "INSERT INTO programs VALUES (?, ?)", (program.id, write_program(program))
        )

    def _start(
        self,
        entry: Entry,
        execution_id: str,
        parallel_count: int,
        records: Sequence[Block],
        key: StartKey | None,
    ) -> tuple[Execution, bool]:
        service, program = entry.service, entry.program
        if program is not None and not self._is_published(program):
            raise SupersededError
        execution, is_new = self._store.add_execution(
            execution_id, service.name, service.version, parallel_count, records, key
        )
        if program is not None and is_new:
            self._store.writer.execute(
                "INSERT INTO pins VALUES (?, ?)", (execution.number, program.id)
            )
        return execution, is_new

    def _is_published(self, program: Program) -> bool:
        row = self._store.writer.execute(
            "SELECT 1 FROM published WHERE program = ?", (program.id,)
        ).fetchone()
        return row is not None

    def _forget_unused(self, in_use: Iterable[str]) -> list[str]:
        writer = self._store.writer
        writer.execute("DELETE FROM pins WHERE execution NOT IN (SELECT number FROM executions)")
        unused = writer.execute(_UNUSED).fetchall()
        ids = [row[0] for row in unused if row[0] not in in_use]
        writer.executemany("DELETE FROM programs WHERE id = ?", [(one,) for one in ids])
        return ids
