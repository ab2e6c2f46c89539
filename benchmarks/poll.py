"""Asking how far a batch is, when it is finished and the server would send all of its results."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lines import KIB, Benchmark, Line, Say, at_most, kib, seconds
from benchmarks.pieces import Stopwatch, run
from benchmarks.services import NAME, VERSION
from benchmarks.surroundings import flows_to, scoring_server

SIZES = (1_000, 1_000_000)
_POLLS = 100
_MOST_READ = 64 * KIB
_MOST_CPU_SECONDS = 0.005
_WRITTEN_AT_ONCE = 20_000


def fill(data_dir: str, sizes: list[int]) -> dict[str, Any]:
    """Finished batches in the server's own store, put there without scoring a million records."""
    from airflow_mlbatch.protocol.results import write_record_result
    from airflow_mlbatch.server.store import Store

    async def put(store: Store, size: int) -> str:
        records = [b'{"x":%d}' % place for place in range(size)]
        named = (f"finished-{size}", NAME, VERSION, 10, records)
        execution, _ = await store.write(store.add_execution, *named)
        for start in range(0, size, _WRITTEN_AT_ONCE):
            await store.write(
                store.add_results,
                [
                    (
                        execution.number,
                        place,
                        write_record_result(success=True, outputs={"y": 2.0 * place}),
                    )
                    for place in range(start, min(start + _WRITTEN_AT_ONCE, size))
                ],
            )
        return execution.id

    async def put_all() -> list[str]:
        store = Store(Path(data_dir, "mlbatch.sqlite"))
        try:
            return [await put(store, size) for size in sizes]
        finally:
            store.close()

    Path(data_dir).mkdir(parents=True)
    return {"ids": asyncio.run(put_all())}


def blocking(url: str, password: str, execution_id: str, total: int) -> dict[str, Any]:
    """Polls as the hook sends them, with requests."""
    from airflow_mlbatch.transport.blocking import BlockingDriver

    endpoint, flows = flows_to(url, password)
    driver = BlockingDriver(endpoint)

    def poll() -> None:
        status = driver.run(flows.get_batch_status(NAME, VERSION, execution_id))
        assert status.is_terminal
        assert status.total_item_count == total

    poll()
    count = _count_received()
    with Stopwatch() as watch:
        for _ in range(_POLLS):
            poll()
    return _told(watch, count)


def nonblocking(url: str, password: str, execution_id: str, total: int) -> dict[str, Any]:
    """Polls as the trigger sends them, with aiohttp."""
    from airflow_mlbatch.transport.nonblocking import NonblockingDriver

    async def polls() -> dict[str, Any]:
        endpoint, flows = flows_to(url, password)
        driver = NonblockingDriver(endpoint)

        async def poll() -> None:
            status = await driver.run(flows.get_batch_status(NAME, VERSION, execution_id))
            assert status.is_terminal
            assert status.total_item_count == total

        await poll()
        count = _count_received()
        with Stopwatch() as watch:
            for _ in range(_POLLS):
                await poll()
        await driver.close()
        return _told(watch, count)

    return asyncio.run(polls())


def _count_received() -> list[int]:
    """Count what this process takes off its sockets, from now on."""
    count = [0]

    class Counting(socket.socket):
        def recv(self, *arguments: Any) -> bytes:
            data = super().recv(*arguments)
            count[0] += len(data)
            return data

        def recv_into(self, *arguments: Any) -> int:
            size = super().recv_into(*arguments)
            count[0] += size
            return size

    # Sockets that libraries make from now on are of this class; the lines that are open already are
    # closed by the poll before, which did not read its reply to the end.
    socket.socket = Counting  # type: ignore[misc]
    return count


def _told(watch: Stopwatch, count: list[int]) -> dict[str, Any]:
    return {
        "cpu_seconds": watch.cpu_seconds / _POLLS,
        "seconds": watch.seconds / _POLLS,
        "read": count[0] / _POLLS,
    }


def _run(say: Say) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder:
        data_dir = Path(folder, "data")
        ids = run(fill, data_dir=str(data_dir), sizes=list(SIZES))["ids"]
        say(f"finished batches of {' and '.join(f'{size:,}' for size in SIZES)} results")
        with scoring_server(data_dir) as server:
            found = {}
            for way in (blocking, nonblocking):
                for size, execution_id in zip(SIZES, ids, strict=True):
                    before = _cpu_of(server.pid)
                    polled = run(
                        way,
                        url=server.url,
                        password=server.password,
                        execution_id=execution_id,
                        total=size,
                    )
                    polled["server"] = (_cpu_of(server.pid) - before) / (_POLLS + 1)
                    found[way, size] = polled
                    say(f"{way.__name__}, {size:,} results: {_in_words(polled)}")
    small, large = SIZES
    lines = []
    for way, who in ((blocking, "hook"), (nonblocking, "trigger")):
        few, many = found[way, small], found[way, large]
        what = f"poll of a finished batch of {large:,} results by the {who}"
        compared = f"with {small:,} results:"
        lines += [
            at_most(
                f"{what}: read off the line",
                many["read"],
                _MOST_READ,
                kib,
                f"{compared} {kib(few['read'])}",
            ),
            at_most(
                f"{what}: CPU time",
                many["cpu_seconds"],
                _MOST_CPU_SECONDS,
                seconds,
                f"mean of {_POLLS} polls; {compared} {seconds(few['cpu_seconds'])}; "
                f"the server spends {seconds(many['server'])} ({seconds(few['server'])})",
            ),
        ]
    return lines


def _in_words(polled: dict[str, Any]) -> str:
    return (
        f"{kib(polled['read'])} read, CPU {seconds(polled['cpu_seconds'])}, "
        f"CPU of the server {seconds(polled['server'])}, in all {seconds(polled['seconds'])}"
    )


def _cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


BENCHMARK = Benchmark("poll", 30, _run)
