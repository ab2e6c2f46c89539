"""A Dask cluster of real processes on this machine, whose processes a test may kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.certificates import Papers
from tests.ports import ReservedPort

__all__ = ["Cluster"]

_ROOT = Path(__file__).resolve().parents[2]


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

    def add_worker(self, threads: int = 1) -> psutil.Popen:
        """Start a worker."""
        self._count += 1
        folder = self.folder / f"worker-{self._count}"
        worker = self._run(
            *("worker", self._url, "--no-nanny", "--nthreads", str(threads)),
            *("--local-directory", str(folder), "--name", f"w{self._count}"),
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

    def _run(self, *arguments: str) -> psutil.Popen:
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
                env={**os.environ, "PYTHONPATH": str(_ROOT), **self._env},
            )


def _kill(process: psutil.Popen) -> None:
    # It may have ended by itself.
    if process.poll() is None:
        process.kill()
    process.wait()
