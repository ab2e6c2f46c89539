"""A published R service: an R process that lives as long as the worker beside it.

Law: R starts once for a worker, not for each record. When it dies, the record that it was on fails with
its last words, and the worker leaves, so that the next one starts another.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.documents import shown
from airflow_mlbatch.server.programs import Program

__all__ = ["RProgram", "describe_r"]

_SCRIPT = Path(__file__).with_name("worker.R")
_LENGTH = struct.Struct("!i")
_LOOK_SECONDS = 0.2
_VERSIONS_SECONDS = 120
_VERSIONS = """cat(as.character(getRversion()), if (requireNamespace("jsonlite", quietly = TRUE))
    as.character(packageVersion("jsonlite")))"""
_MISSING_RSCRIPT = (
    "R services need Rscript, which this machine does not have "
    "(Debian: r-base-core and r-cran-jsonlite)"
)
_MISSING_JSONLITE = (
    "R services need the R package jsonlite, which is missing (Debian: r-cran-jsonlite)"
)
_MOST_CONSOLE_BYTES = 1024 * 1024
_LAST_WORDS_SHOWN = 280


class RError(Exception):
    """What R says about a record that it cannot score."""

    def __str__(self) -> str:
        return str(self.args[0])


class RProgram:
    """The R process of a service.

    :raises InputError: R is not here, or it cannot load the program; says why
    """

    def __init__(self, program: Program) -> None:
        self._order = [parameter.name for parameter in program.service.inputs]
        self.is_dead = False
        # Not the folder itself: that is removed when a record has left something in it.
        self._home = os.path.dirname(os.getcwd())
        self._console = tempfile.TemporaryFile()  # noqa: SIM115
        self._start(_rscript())
        self._say(_description(program, self._home))
        problem = self._answer()["problem"]
        self._new_console()
        if problem:
            raise InputError(problem)

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run the code for a record, in the current folder.

        What R has printed is printed here.

        :return: the declared outputs that the code has set
        :raises RError: in R's own words
        """
        listed = [values[name] for name in self._order]
        self._say({"folder": os.getcwd(), "values": listed})
        try:
            answer = self._answer()
        except InputError as error:
            self.is_dead = True
            raise RError(error) from None
        finally:
            print(self._new_console(), end="")
        if answer["problem"]:
            raise RError(answer["problem"])
        return dict(answer["outputs"])

    def _start(self, rscript: str) -> None:
        their_requests, ours = os.pipe()
        self._replies, theirs = os.pipe()
        self._requests = open(ours, "wb")  # noqa: SIM115
        lines = [f"/dev/fd/{number}" for number in (their_requests, theirs)]
        self._process = subprocess.Popen(
            [rscript, "--vanilla", str(_SCRIPT), *lines],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            pass_fds=(their_requests, theirs),
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        os.close(their_requests)
        os.close(theirs)
        # Made once, and not for each record.
        self._incoming = selectors.DefaultSelector()
        self._incoming.register(self._replies, selectors.EVENT_READ)

    def _say(self, message: Any) -> None:
        content = msgspec.json.encode(message)
        # It may be dead: its answer will not come, and that is where it is noticed.
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(_LENGTH.pack(len(content)) + content)
            self._requests.flush()

    def _answer(self) -> dict[str, Any]:
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return dict(msgspec.json.decode(self._read(size)))

    def _read(self, size: int) -> bytes:
        """Bytes of an answer.

        :raises InputError: R is dead; with its last words
        """
        content = bytearray()
        while len(content) < size:
            piece = b""
            if self._incoming.select(_LOOK_SECONDS):
                piece = os.read(self._replies, size - len(content))
            elif self._process.poll() is None or self._incoming.select(0):
                continue
            # Without a piece R is dead. What it has started may hold the pipe open after its death.
            if not piece:
                raise InputError(self._how_it_died())
            content += piece
        return bytes(content)

    def _how_it_died(self) -> str:
        code = self._process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by signal {signal.Signals(-code).name}"
        lines = [line.strip() for line in self._printed().splitlines() if line.strip()]
        said = "; ".join(lines)[-_LAST_WORDS_SHOWN:]
        return f"R {how}" + (f"; its last words: {shown(said.encode())}" if said else "")

    def _printed(self) -> str:
        size = os.fstat(self._console.fileno()).st_size
        content = os.pread(self._console.fileno(), min(size, _MOST_CONSOLE_BYTES), 0)
        return content.decode("utf-8", "replace")

    def _new_console(self) -> str:
        """What was printed since the last time."""
        printed = self._printed()
        if printed:
            # R goes on where the file ends: both use one place in it.
            os.ftruncate(self._console.fileno(), 0)
            os.lseek(self._console.fileno(), 0, os.SEEK_SET)
        return printed


def describe_r() -> str:
    """Which R this server has, or what it lacks for R services: a sentence for its log."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return _MISSING_RSCRIPT
    try:
        asked = subprocess.run(
            [rscript, "--vanilla", "-e", _VERSIONS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSIONS_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"R services need Rscript, but {rscript} cannot be used: {error}"
    r, *jsonlite = asked.stdout.split()
    if not jsonlite:
        return f"{_MISSING_JSONLITE} (found {rscript}, R {r})"
    return f"R services by {rscript}, R {r} with jsonlite {jsonlite[0]}"


def _rscript() -> str:
    found = shutil.which("Rscript")
    if found is None:
        raise InputError(f"runtimeType: {_MISSING_RSCRIPT}")
    return found


def _description(program: Program, home: str) -> dict[str, Any]:
    service = program.service
    return {
        "home": home,
        "inputs": [(one.name, one.type) for one in service.inputs],
        "outputs": [(one.name, one.type) for one in service.outputs],
        "code": service.code,
        "initCode": service.init_code,
        "objects": [(one.name, str(program.folder / one.file)) for one in program.objects],
    }
