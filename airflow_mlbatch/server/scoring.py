"""Records scored one by one, by the function of a service.

Law: whatever the function does (raise, print, fill its folder, change the working directory) concerns
its own record only.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.results import write_record_result
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.protocol.types import TYPES, to_wire
from airflow_mlbatch.protocol.values import Misfit
from airflow_mlbatch.server.folder import has_room, is_disk_full
from airflow_mlbatch.server.outbox import Outbox
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.wire import Task

if TYPE_CHECKING:
    import msgspec

    from airflow_mlbatch.server.r_program import RProgram

__all__ = [
    "MOST_RESULT_BYTES",
    "OutputError",
    "Outputs",
    "ProgramScorer",
    "RecordFolder",
    "Scorer",
    "error_text",
    "failure",
    "sendable",
    "too_large",
]

MOST_RESULT_BYTES = 64 * 1024 * 1024
_MAX_CONSOLE_CHARACTERS = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 4_000
# No folder is from this second of the year 2001, which every file system can hold.
_UNTOUCHED = 1_000_000_008 * 10**9


class RecordFolder:
    """The folder a record runs in: empty at the start of each.

    Making and removing a folder for each of a hundred thousand trivial records costs more than
    scoring them, so a folder that was left empty is used again.
    """

    def __init__(self, path: Path) -> None:
        self._root, self._count = path, 0
        self._current = ""

    def enter(self) -> None:
        """Be in an empty folder."""
        if not self._current:
            self._count += 1
            self._current = str(self._root / str(self._count))
            os.makedirs(self._current)
            self._mark()
        os.chdir(self._current)

    def _mark(self) -> None:
        # Whatever is put into a folder changes its time: to see whether that is still this one is
        # quicker than to look into the folder.
        with contextlib.suppress(OSError):
            os.utime(self._current, ns=(_UNTOUCHED, _UNTOUCHED))

    def take(self, names: Sequence[str], keep_in: str) -> list[str]:
        """Move the regular files of these names to ``keep_in``; returns those that were there."""
        found: list[str] = []
        for name in names:
            path = os.path.join(self._current, name)
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    continue
            except OSError:
                continue
            if not found:
                # Left from a run whose outcome was not stored before the server stopped.
                shutil.rmtree(keep_in, ignore_errors=True)
                os.makedirs(keep_in)
            os.replace(path, os.path.join(keep_in, name))
            found.append(name)
        return found

    def leave(self) -> None:
        """Forget the folder unless it is empty."""
        with contextlib.suppress(OSError):
            if os.stat(self._current).st_mtime_ns == _UNTOUCHED:
                return
        os.chdir(self._root)
        try:
            with os.scandir(self._current) as entries:
                is_empty = next(entries, None) is None
        except OSError:
            is_empty = False
        if is_empty:
            self._mark()
            return
        shutil.rmtree(self._current, ignore_errors=True)
        self._current = ""

    def is_too_full(self, error: BaseException) -> bool:
        """Whether it failed because the disk of the data folder is full, and not some other one."""
        return is_disk_full(error) and not has_room(self._root.parent)

    def remove(self) -> None:
        """Leave nothing behind."""
        os.chdir(self._root.parent)
        shutil.rmtree(self._root, ignore_errors=True)


class _Console(io.TextIOBase):
    """Takes what a record prints, up to a limit."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._room = _MAX_CONSOLE_CHARACTERS

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._room > 0:
            self._pieces.append(text[: self._room])
        self._room -= len(text)
        return len(text)

    def close(self) -> None:
        """Stay open: the next record prints here, too."""

    def drain(self) -> str:
        """What was printed since the last time, as text that UTF-8 can carry."""
        if not self._pieces:
            return ""
        text = "".join(self._pieces)
        if self._room < 0:
            text += f"\n… ({-self._room:,} more characters were printed)"
        self._pieces, self._room = [], _MAX_CONSOLE_CHARACTERS
        return sendable(text)


class Scorer:
    """Scores records with one service.

    :param function: what it calls for each
    """

    def __init__(
        self, service: Service, folder: RecordFolder, function: Callable[..., Any]
    ) -> None:
        self.service = service
        self._function = function
        self._reader = RecordReader(service.inputs)
        self._outputs = Outputs(service)
        self._folder = folder
        self._console = _Console()

    @property
    def is_spent(self) -> bool:
        """Whether it cannot score another record."""
        return False

    def run(self, task: Task, outbox: Outbox, is_enough: Callable[[int], bool]) -> bool:
        """Score the records of a task.

        :param is_enough: told how many records were just scored; says whether this worker leaves
        :return: whether the worker may go on
        """
        outbox.begin(task.serial)
        for position, record in enumerate(task.records.split(), task.first):
            result = self.score(record, task, position)
            is_last = is_enough(1) or self.is_spent
            if result:
                outbox.put(position, result, is_last=is_last)
            else:
                outbox.put_again(position, is_last=is_last)
            if is_last:
                return False
        outbox.flush()
        return True

    def score(self, record: bytes | msgspec.Raw, task: Task, position: int) -> bytes:
        """Run the function on a record.

        :return: the outcome as it is sent; empty when it has to be run again on a disk with space
        """
        outputs: Mapping[str, Any] = {}
        names: Sequence[str] = ()
        problem = ""
        try:
            self._folder.enter()
            outputs = self._call(record)
        except BaseException as error:
            if self._folder.is_too_full(error):
                self._folder.leave()
                return b""
            problem = error_text(error)
        keep_in = os.path.join(task.keep_in, str(position)) if self.service.artifacts else ""
        try:
            names = self._folder.take(self.service.artifacts, keep_in)
        except OSError as error:
            if self._folder.is_too_full(error):
                return b""
            outputs, problem = {}, problem or error_text(error)
        finally:
            console = self._console.drain()
            self._folder.leave()
        try:
            result = write_record_result(
                success=not problem,
                outputs=outputs,
                error=problem,
                console_output=console,
                changed_files=names,
                files=_contents(names, keep_in) if task.with_files else None,
            )
        except (OSError, ValueError, MemoryError) as error:
            return failure(error_text(error), names)
        if len(result) > MOST_RESULT_BYTES:
            return failure(too_large(len(result)), names)
        return result

    def _call(self, record: bytes | msgspec.Raw) -> Mapping[str, Any]:
        # As contextlib.redirect_stdout, which takes as long as all the rest of a trivial record.
        stdout, sys.stdout = sys.stdout, self._console
        try:
            return self._read(self._reader.values(record))
        finally:
            sys.stdout = stdout

    def _read(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._outputs.read(self._function(**values))


class ProgramScorer(Scorer):
    """Scores records with a program: its outputs always come by name."""

    def __init__(self, program: Program, folder: RecordFolder) -> None:
        self._r: RProgram | None = None
        if program.service.runtime_type == "R":
            from airflow_mlbatch.server.r_program import RProgram

            self._r = RProgram(program)
            run = self._r.run
        else:
            from airflow_mlbatch.server.python_program import PythonProgram

            run = PythonProgram(program).run
        super().__init__(program.service, folder, run)

    @property
    def is_spent(self) -> bool:
        return self._r is not None and self._r.is_dead

    def _read(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._outputs.named(self._function(values))


def _contents(names: Sequence[str], folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in names}


def failure(
    problem: str,
    names: Sequence[str] = (),
    console: str = "",
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """The outcome of a record that failed.

    :param names: of the files that it left
    :param files: their contents, where the outcome is sent with them
    """
    return write_record_result(
        success=False,
        outputs={},
        error=problem,
        changed_files=names,
        console_output=console,
        files=files,
    )


def too_large(size: int) -> str:
    """What is said about a result of so many bytes."""
    return f"the result has {size:,} bytes, expected at most {MOST_RESULT_BYTES:,}"


class OutputError(Exception):
    """What the function returned is not what its service declares."""


def error_text(error: BaseException) -> str:
    """An error in the words that its record fails with."""
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be shown)"
    name = type(error).__name__
    if name == "RError":
        # R's own sentence needs no word of Python's in front.
        return sendable(text)[:_MAX_MESSAGE_CHARACTERS]
    return sendable(f"{name}: {text}" if text else name)[:_MAX_MESSAGE_CHARACTERS]


def sendable(text: str) -> str:
    """The text as far as UTF-8 can carry it."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Outputs:
    """Reads what the function returns.

    With one output it may be the bare value. A dict is taken for the outputs by name; for a
    ``data.frame`` it may as well be the columns, and is, unless it holds just a table under the
    name of the output.
    """

    def __init__(self, service: Service) -> None:
        self._kinds = {parameter.name: parameter.type for parameter in service.outputs}
        self._only = next(iter(self._kinds)) if len(self._kinds) == 1 else None

    def read(self, returned: Any) -> Mapping[str, Any]:
        """:raises OutputError: names the output that is missing, undeclared or of another type"""
        if not self._kinds:
            return {}
        if self._only is not None and self._is_bare(returned, self._only):
            return {self._only: self._value(self._only, returned)}
        if not isinstance(returned, Mapping):
            raise self._no_names(returned)
        self._check_declared(returned)
        return self.named(returned)

    def named(self, returned: Mapping[str, Any]) -> Mapping[str, Any]:
        """:raises OutputError: names the output that is missing or of another type"""
        self._check_complete(returned)
        return {name: self._value(name, returned[name]) for name in self._kinds}

    def _no_names(self, returned: Any) -> OutputError:
        names = ", ".join(repr(name) for name in self._kinds)
        return OutputError(f"found {type(returned).__name__}, expected a dict with {names}")

    def _check_declared(self, names: Iterable[Any]) -> None:
        for name in names:
            if name not in self._kinds:
                raise OutputError(f"output {name!r} is not declared")

    def _check_complete(self, returned: Container[str]) -> None:
        for name in self._kinds:
            if name not in returned:
                raise OutputError(f"output {name!r} is missing")

    def _is_bare(self, returned: Any, only: str) -> bool:
        if not isinstance(returned, Mapping):
            return True
        if TYPES[self._kinds[only]].shape != "frame":
            return False
        inner = returned.get(only)
        is_table = isinstance(inner, Mapping) or hasattr(inner, "columns")
        return set(returned) != {only} or not is_table

    def _value(self, name: str, value: Any) -> Any:
        try:
            return to_wire(self._kinds[name], value)
        except Misfit as misfit:
            raise OutputError(f"output {name!r}: {misfit}") from None
