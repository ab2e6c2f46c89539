"""A worker process: loads the services and scores records, one after another.

Law: user code runs here and nowhere else. Whatever it does (raise, print, fill its folder, change
the working directory, exit, hang) concerns its own record only; what cannot be put right in this
process ends it, and the server starts another.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.results import write_record_result
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.protocol.types import TYPES, to_wire
from airflow_mlbatch.protocol.values import Misfit
from airflow_mlbatch.server.folder import has_room
from airflow_mlbatch.server.outbox import Outbox
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.registry import load_services
from airflow_mlbatch.server.signals import bear_sigterm
from airflow_mlbatch.server.wire import LENGTH, Described, Hello, Task, decode_task, frame

if TYPE_CHECKING:
    import msgspec

    from airflow_mlbatch.server.r_program import RProgram

__all__ = ["WorkerSettings", "work"]

MAX_CONSOLE_CHARACTERS = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 4_000
_MOST_RESULT_BYTES = 64 * 1024 * 1024
_MEMORY_CHECK_SECONDS = 0.1
# No folder is from this second of the year 2001, which every file system can hold.
_UNTOUCHED = 1_000_000_008 * 10**9


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with.

    :param sources: modules and files that publish services
    :param scratch: where it makes the folders that records run in
    :param max_records: leave after so many records; 0 for never
    :param max_growth: leave when memory has grown by so many bytes since the services were loaded;
        0 for never
    :param program: the published service that it belongs to, in place of those of ``sources``
    :param max_memory: most bytes of memory for a program; 0 for no limit
    :param last_words: a file for what a program says on stderr while it is loaded
    """

    sources: Sequence[str]
    scratch: Path
    max_records: int
    max_growth: int
    program: Program | None = None
    max_memory: int = 0
    last_words: Path | None = None


def work(line: socket.socket, memory: Any, settings: WorkerSettings) -> None:
    """The life of a worker process: until the server hangs up, or it has to leave.

    :param memory: for outcomes that are not sent yet
    """
    _become_worker()
    with contextlib.suppress(ConnectionError):  # The server has gone.
        _work(line, memory, settings)


def _work(line: socket.socket, memory: Any, settings: WorkerSettings) -> None:
    folder = _Folder(settings.scratch / f"worker-{os.getpid()}")
    try:
        with _LastWords(settings.last_words):
            runners = _loaded(settings, folder)
    except MLBatchError as error:
        cause = error.__cause__
        details = "".join(traceback.format_exception(cause)) if cause is not None else ""
        line.sendall(frame(Hello([], _sendable(str(error)), _sendable(details))))
        return
    line.sendall(frame(Hello([Described.of(scorer.service) for scorer in runners.values()])))
    limits, outbox = _Limits(settings), Outbox(line, memory)
    with line, line.makefile("rb") as words:
        while True:
            head = words.read(LENGTH.size)
            if len(head) < LENGTH.size:
                break
            task = decode_task(words.read(*LENGTH.unpack(head)))
            if not _run(task, runners[task.name, task.version], outbox, limits):
                break
    folder.remove()


def _loaded(settings: WorkerSettings, folder: _Folder) -> dict[tuple[str, str], _Scorer]:
    """What this worker can run.

    :raises MLBatchError: it cannot be loaded
    """
    if settings.program is None:
        # A server may have no service but those that are published on it.
        published = load_services(settings.sources) if settings.sources else {}
        return {
            key: _Scorer(one.description, folder, one.function) for key, one in published.items()
        }
    _become_expendable(settings.max_memory)
    # What it writes while it is loaded is nobody's, and goes with the folder.
    folder.enter()
    try:
        return {settings.program.key: _ProgramScorer(settings.program, folder)}
    finally:
        folder.leave()


def _become_expendable(max_memory: int) -> None:
    """Let what was published by others harm this process only."""
    with contextlib.suppress(OSError):
        # Whom Linux kills first when memory runs out: not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        if max_memory:
            resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _LastWords:
    """Sends stderr into a file for a while, so that somebody can read it if this process dies."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is None:
            return
        self._stderr = os.dup(2)
        with self._path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        faulthandler.enable(2, all_threads=False)

    def __exit__(self, *error: object) -> None:
        if self._path is None:
            return
        faulthandler.disable()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)


def _run(task: Task, scorer: _Scorer, outbox: Outbox, limits: _Limits) -> bool:
    """Score the records of a task; whether this worker may go on."""
    outbox.begin(task.serial)
    for position, record in enumerate(task.records.split(), task.first):
        result = scorer.score(record, task, position)
        is_last = limits.are_reached() or scorer.is_spent
        if result:
            outbox.put(position, result, is_last=is_last)
        else:
            outbox.put_again(position, is_last=is_last)
        if is_last:
            return False
    outbox.flush()
    return True


def _become_worker() -> None:
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bear_sigterm()
    if hasattr(os, "setsid"):
        # A group of its own: what a service has started goes with the worker when it is killed.
        os.setsid()
    # What a library prints below Python goes to the log: stdout belongs to the ready line.
    os.dup2(2, 1)
    threading.Thread(target=_die_with_server, name="die-with-server", daemon=True).start()


def _die_with_server() -> None:
    server = parent_process()
    if server is None:
        return
    server.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class _Limits:
    """Says when a worker has done its share."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._count = 0
        self._checked_at = 0.0
        self._memory_at_start = _resident_bytes()

    def are_reached(self) -> bool:
        """Count a record; whether it was the last one."""
        self._count += 1
        if self._settings.max_records and self._count >= self._settings.max_records:
            return True
        now = time.monotonic()
        if not self._settings.max_growth or now - self._checked_at < _MEMORY_CHECK_SECONDS:
            return False
        self._checked_at = now
        return _resident_bytes() - self._memory_at_start > self._settings.max_growth


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Folder:
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
        if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
            return False
        return not has_room(self._root.parent)

    def remove(self) -> None:
        """Leave nothing behind."""
        os.chdir(self._root.parent)
        shutil.rmtree(self._root, ignore_errors=True)


class _Console(io.TextIOBase):
    """Takes what a record prints, up to a limit."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._room = MAX_CONSOLE_CHARACTERS

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
        self._pieces, self._room = [], MAX_CONSOLE_CHARACTERS
        return _sendable(text)


class _Scorer:
    """Scores records with one service.

    :param function: what it calls for each
    """

    def __init__(self, service: Service, folder: _Folder, function: Callable[..., Any]) -> None:
        self.service = service
        self._function = function
        self._reader = RecordReader(service.inputs)
        self._outputs = _Outputs(service)
        self._folder = folder
        self._console = _Console()

    @property
    def is_spent(self) -> bool:
        """Whether it cannot score another record."""
        return False

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
            problem = _told(error)
        keep_in = os.path.join(task.keep_in, str(position)) if self.service.artifacts else ""
        try:
            names = self._folder.take(self.service.artifacts, keep_in)
        except OSError as error:
            if self._folder.is_too_full(error):
                return b""
            outputs, problem = {}, problem or _told(error)
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
            return _failure(_told(error), names)
        if len(result) > _MOST_RESULT_BYTES:
            told = f"the result has {len(result):,} bytes, expected at most {_MOST_RESULT_BYTES:,}"
            return _failure(told, names)
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


class _ProgramScorer(_Scorer):
    """Scores records with a program: its outputs always come by name."""

    def __init__(self, program: Program, folder: _Folder) -> None:
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


def _failure(problem: str, names: Sequence[str]) -> bytes:
    return write_record_result(success=False, outputs={}, error=problem, changed_files=names)


class OutputError(Exception):
    """What the function returned is not what its service declares."""


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be shown)"
    name = type(error).__name__
    if name == "RError":
        # R's own sentence needs no word of Python's in front.
        return _sendable(text)[:_MAX_MESSAGE_CHARACTERS]
    return _sendable(f"{name}: {text}" if text else name)[:_MAX_MESSAGE_CHARACTERS]


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


class _Outputs:
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
            told = ", ".join(repr(name) for name in self._kinds)
            raise OutputError(f"found {type(returned).__name__}, expected a dict with {told}")
        for name in returned:
            if name not in self._kinds:
                raise OutputError(f"output {name!r} is not declared")
        return self.named(returned)

    def named(self, returned: Mapping[str, Any]) -> Mapping[str, Any]:
        """:raises OutputError: names the output that is missing or of another type"""
        for name in self._kinds:
            if name not in returned:
                raise OutputError(f"output {name!r} is missing")
        return {name: self._value(name, returned[name]) for name in self._kinds}

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
