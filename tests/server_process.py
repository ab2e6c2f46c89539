"""A real scoring server in a process of its own, for tests of everything that talks to one."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.patience import PATIENCE
from tests.ports import ReservedPort

__all__ = ["PASSWORD", "RunningServer", "running_server"]

PASSWORD = "correct horse battery staple"
_ROOT = Path(__file__).resolve().parent.parent
_READY = re.compile(r"mlbatch serve: ready on (http://\S+) ")


class RunningServer:
    """A running ``mlbatch serve``.

    ``url``, ``password``, ``pid`` and ``data_dir`` are what a client or a test may want; ``lines``
    is what it has printed, ``log`` where its standard error goes.
    """

    def __init__(
        self, arguments: tuple[str, ...], data_dir: Path, env: Mapping[str, str | None]
    ) -> None:
        self.password = PASSWORD
        self.data_dir = data_dir
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self.lines: list[str] = []
        self.url = ""
        self._arguments = arguments
        settings = {**os.environ, "MLBATCH_PASSWORD": PASSWORD, "PYTHONPATH": str(_ROOT), **env}
        # A name set to None is one that the server must not find.
        self._env = {name: value for name, value in settings.items() if value is not None}
        self._process: subprocess.Popen[str] | None = None
        # While it is down nobody else is given its port.
        self._place: ReservedPort | None = None
        try:
            self.start()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The server's own process; its workers are children of another one."""
        assert self._process is not None
        return self._process.pid

    @property
    def username(self) -> str:
        """Who logs in."""
        return "admin"

    def start(self) -> None:
        """Start it, on the port that it had before, and wait until it is ready."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "airflow_mlbatch.cli", "serve", *self._arguments]
        command += ["--port", port, "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._env,
            )
        printed: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process, printed), daemon=True).start()
        while True:
            try:
                line = printed.get(timeout=PATIENCE)
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            found = _READY.match(line)
            if found:
                self.url = found[1]
                self._release()
                return

    def _read(self, process: subprocess.Popen[str], printed: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))
                printed.put(line)
        printed.put(None)

    def stop(self) -> int:
        """End it politely (SIGTERM); returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End it at once (SIGKILL), as a power cut would."""
        return self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same folder and port; kill it first if it runs."""
        if self._process is not None:
            self.kill()
        self.start()

    def close(self) -> None:
        """End it for good."""
        try:
            self.stop()
        finally:
            self._release()

    def _release(self) -> None:
        if self._place is not None:
            self._place.close()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        if self.url:
            # A dying child may still listen: then nobody else can have the port either.
            with contextlib.suppress(OSError):
                self._place = ReservedPort(int(self.url.rpartition(":")[2]))
        return code


@contextlib.contextmanager
def running_server(
    *args: str, data_dir: Path | None = None, env: Mapping[str, str | None] | None = None
) -> Iterator[RunningServer]:
    """Run ``mlbatch serve`` with these arguments on a free port of this machine.

    :param data_dir: where it keeps its data; without one, a folder that is removed afterwards
    :param env: variables for it, on top of this process' own; ``None`` takes one away
    """
    own = None if data_dir is not None else Path(tempfile.mkdtemp(prefix="mlbatch-server-"))
    server = None
    try:
        server = RunningServer(args, data_dir or Path(str(own), "data"), env or {})
        yield server
    finally:
        if server is not None:
            server.close()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
