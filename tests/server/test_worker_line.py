"""What the server hears from a worker: on the line, and from the journal while that is silent."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.outbox import Journal, shared_memory
from airflow_mlbatch.server.processes import Work, Worker
from airflow_mlbatch.server.wire import LENGTH, Again, Outcomes, Task, decode_task, frame
from tests.patience import PATIENCE

LONG = 60
"""Seconds after which the server looks into the journal of a worker that says nothing."""


class OtherEnd:
    """The worker's end of the line, and its journal; the test says what happens there, and when."""

    def __init__(self, line: socket.socket, journal: Journal) -> None:
        self._line, self.journal = line, journal

    async def task(self) -> Task:
        """The next task that the server has sent."""
        body = await asyncio.to_thread(self._read)
        task = decode_task(body)
        self.journal.serial = task.serial
        return task

    def _read(self) -> bytes:
        with self._line.makefile("rb") as words:
            return words.read(*LENGTH.unpack(words.read(LENGTH.size)))

    def say(self, message: Outcomes | Again) -> None:
        self._line.sendall(frame(message))


class Clock:
    """The clock of the event loop, which can be set forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        now, self.offset = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: now() + self.offset)


def play(
    monkeypatch: pytest.MonkeyPatch,
    scene: Callable[[Worker, OtherEnd, Clock], Awaitable[None]],
) -> None:
    """Have a scene played with the server's end of a line and the worker's."""

    async def stage() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        memory = shared_memory(multiprocessing.get_context("spawn"))
        reader, writer = await asyncio.open_connection(sock=ours)
        # It lives, and says nothing: the test speaks at its end of the line.
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(PATIENCE,))
        process.start()
        worker = Worker(process, reader, writer, Journal(memory), Path("unused"))
        try:
            with theirs:
                await scene(worker, OtherEnd(theirs, Journal(memory)), Clock(monkeypatch))
        finally:
            writer.close()
            process.kill()
            process.join()

    asyncio.run(stage())


def begun(
    worker: Worker, records: Block, taken: list[Block], again: list[Block]
) -> asyncio.Task[bool]:
    work = Work(object(), "echo", "1", "unused")
    return asyncio.create_task(worker.run(work, records, taken.append, again.append))


def test_an_outcome_on_the_line_is_never_one_of_the_next_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long record, with the outcomes before it in the journal and on the line at the same time."""

    async def scene(worker: Worker, end: OtherEnd, clock: Clock) -> None:
        first: list[Block] = []
        task = begun(worker, Block(0, 2, b"0,1"), first, [])
        await end.task()
        clock.offset += LONG
        end.journal.add(0, b'"zero"')
        worker.look_after()
        # The server has not read this yet when it looks again.
        end.say(Outcomes(*end.journal.take()))
        end.journal.clear()
        end.journal.add(1, b'"one"')
        worker.look_after()
        assert first == [Block(0, 1, b'"zero"'), Block(1, 1, b'"one"')]
        end.say(Outcomes(*end.journal.take()))
        end.journal.clear()
        assert await task

        # Records of another execution, at the position of the last message.
        second: list[Block] = []
        task = begun(worker, Block(1, 2, b"1,2"), second, [])
        await end.task()
        end.say(Outcomes(1, 2, b'"new one","new two"'))
        assert await task
        assert second == [Block(1, 2, b'"new one","new two"')]
        assert first == [Block(0, 1, b'"zero"'), Block(1, 1, b'"one"')]

    play(monkeypatch, scene)


def test_records_for_a_disk_with_space_come_back_beside_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(worker: Worker, end: OtherEnd, clock: Clock) -> None:
        taken: list[Block] = []
        again: list[Block] = []
        task = begun(worker, Block(4, 3, b"4,5,6"), taken, again)
        await end.task()
        clock.offset += LONG
        end.journal.add(4, b'"four"')
        worker.look_after()
        end.say(Outcomes(*end.journal.take()))
        end.journal.clear()
        end.say(Again(5, 1))
        end.say(Outcomes(6, 1, b'"six"'))
        assert await task
        assert taken == [Block(4, 1, b'"four"'), Block(6, 1, b'"six"')]
        assert again == [Block(5, 1, b"5")]

    play(monkeypatch, scene)


def test_a_worker_is_not_used_again_whose_task_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(worker: Worker, end: OtherEnd, clock: Clock) -> None:
        def refuse(outcomes: Block) -> None:
            raise ValueError(f"not {outcomes.first}")

        work = Work(object(), "echo", "1", "unused")
        task = asyncio.create_task(worker.run(work, Block(0, 2, b"0,1"), refuse, refuse))
        await end.task()
        end.say(Outcomes(0, 1, b'"zero"'))
        with pytest.raises(ValueError, match="not 0"):
            await task
        assert not worker.is_alive

    play(monkeypatch, scene)
