"""A Dask cluster of real processes on this machine, whose processes a test may kill, and its server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.certificates import Papers
from tests.patience import wait_until
from tests.ports import ReservedPort
from tests.server.publishing import Publisher
from tests.server_process import RunningServer, running_server

__all__ = ["SERVICES", "Cluster", "Place", "dask_worker_of", "records", "running_place"]

_ROOT = Path(__file__).resolve().parents[2]
SERVICES = Path(__file__).with_name("cluster_services.py")


class Cluster:
    """A scheduler and workers, with TLS between all of them.

    :param folder: for logs, and for what the workers keep
    :param env: variables for the workers' processes
    """

    def __init__(self, folder: Path, papers: Papers, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.workers: list[psutil.Popen] = []
        self._papers, self._env = papers, dict(env or {})
        self._scheduler: psutil.Popen | None = None
        self._port = ReservedPort()
        self._count = 0

    @property
    def options(self) -> list[str]:
        """What makes a server use it."""
        certificate, key = self._papers.server
        options = ["--engine", "dask", "--scheduler", self._url]
        options += ["--dask-ca", self._papers.authority]
        return [*options, "--dask-cert", certificate, "--dask-key", key]

    @property
    def _url(self) -> str:
        return f"tls://127.0.0.1:{self._port.number}"

    def start_scheduler(self) -> None:
        """Start it, on the port that it had before."""
        self._scheduler = self._run("scheduler", "--port", str(self._port.number))

    def kill_scheduler(self) -> None:
        """End it at once."""
        assert self._scheduler is not None
        _kill(self._scheduler)

    def add_worker(self, threads: int = 1, **env: str) -> psutil.Popen:
        """Start a worker, with variables of its own."""
        self._count += 1
        folder = self.folder / f"worker-{self._count}"
        worker = self._run(
            *("worker", self._url, "--no-nanny", "--nthreads", str(threads)),
            *("--local-directory", str(folder), "--name", f"w{self._count}"),
            **env,
        )
        self.workers.append(worker)
        return worker

    def kill_worker(self, worker: psutil.Popen) -> None:
        """End it at once, as when its machine is lost."""
        _kill(worker)
        self.workers.remove(worker)

    def close(self) -> None:
        """End everything."""
        for process in [*self.workers, *([self._scheduler] if self._scheduler else [])]:
            _kill(process)
        self._port.close()

    def _run(self, *arguments: str, **env: str) -> psutil.Popen:
        certificate, key = self._papers.server
        tls = ["--tls-ca-file", self._papers.authority, "--tls-cert", certificate, "--tls-key", key]
        command = [
            sys.executable,
            "-m",
            "dask",
            *arguments,
            "--host",
            "127.0.0.1",
            "--no-dashboard",
        ]
        with (self.folder / f"{arguments[0]}-{self._count}.log").open("ab") as log:
            return psutil.Popen(
                [*command, *tls],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(_ROOT), **self._env, **env},
            )


def _kill(process: psutil.Popen) -> None:
    # It may have ended by itself.
    if process.poll() is None:
        process.kill()
    process.wait()


@dataclass
class Place:
    """A cluster with a server in front of it."""

    cluster: Cluster
    server: RunningServer
    api: Publisher
    traces: Path

    def runs(self, n: int) -> list[int]:
        """The processes that have scored a record."""
        return [int(path.name.split("-")[1]) for path in self.traces.glob(f"{n}-*")]

    def forget(self) -> None:
        """No record was scored yet."""
        for path in self.traces.iterdir():
            path.unlink()

    @property
    def dask(self) -> dict[str, Any]:
        """What the server says about the cluster."""
        return dict(self.api.get("/status").json()["components"]["dask"])

    def wait_for_workers(self, count: int) -> None:
        wait_until(lambda: len(self.dask["details"]["workers"]) == count)


@contextmanager
def running_place(folder: Path, papers: Papers, *options: str) -> Iterator[Place]:
    traces, services = folder / "traces", folder / "services"
    traces.mkdir()
    services.mkdir()
    shutil.copy(SERVICES, services / "cluster_services.py")
    (services / "factor.txt").write_text("3")
    cluster = Cluster(folder / "cluster", papers, {"TRACES": str(traces)})
    try:
        cluster.start_scheduler()
        with running_server(
            *("--services", str(services / "cluster_services.py"), "--allow-publish"),
            *("--dask-file", str(services / "factor.txt"), "--workers", "1"),
            *("--dask-artifact-bytes", "1000000", *cluster.options, *options),
            data_dir=folder / "data",
            env={"TRACES": str(traces)},
        ) as server:
            yield Place(cluster, server, Publisher(server.url), traces)
    finally:
        cluster.close()


def records(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def dask_worker_of(pid: int) -> int:
    """The process of the Dask worker that a record runs on."""
    return psutil.Process(pid).parents()[2].pid
