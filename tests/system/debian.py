"""PostgreSQL and Redis from Debian's packages, started for one test run on free ports.

Law: what is missing is installed where this user may do that, and otherwise named. A cluster of its own
is made in a folder of its own: no service of the machine is touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.ports import ReservedPort

__all__ = ["MissingPackageError", "running_postgres", "running_redis"]

_START_SECONDS = 60


class MissingPackageError(Exception):
    """A program is not there and cannot be installed; says why."""


@contextlib.contextmanager
def running_postgres(folder: Path, *settings: str) -> Iterator[str]:
    """Run PostgreSQL with an empty database; yields ``user@host:port/database`` for SQLAlchemy.

    :param folder: of the cluster; made, and given to the user that runs it
    :param settings: more of the server's, as ``name=value``
    :raises MissingPackageError: it cannot be had
    """
    initdb, server = _postgres("initdb"), _postgres("postgres")
    # PostgreSQL refuses to run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    folder.mkdir()
    if user is not None:
        shutil.chown(folder, user, user)
        _let_in(folder, user)
    run = functools.partial(
        subprocess.run, check=True, cwd=folder, stdout=subprocess.DEVNULL, **_as(user)
    )
    run([initdb, "--pgdata=data", "--username=airflow", "--auth=trust", "--no-sync"])
    with contextlib.closing(ReservedPort()) as place:
        port = place.number
        command = [server, "-D", "data", "-p", str(port), "-k", str(folder)]
        for setting in ("listen_addresses=127.0.0.1", "fsync=off", *settings):
            command += ["-c", setting]
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "airflow"]

        def is_ready() -> bool:
            # It listens before it lets anybody in.
            asked = subprocess.run(
                [_postgres("pg_isready"), *address], check=False, stdout=subprocess.DEVNULL
            )
            return asked.returncode == 0

        with _running(command, folder, user, is_ready):
            run([_postgres("createdb"), *address, "airflow"])
            yield f"airflow@127.0.0.1:{port}/airflow"


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run Redis, without anything on disk; yields its URL.

    :raises MissingPackageError: it cannot be had
    """
    server = _found("redis-server", "redis-server")
    folder.mkdir()
    with contextlib.closing(ReservedPort()) as place:
        port = place.number
        command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        with _running(command, folder, None, lambda: _accepts(port)):
            yield f"redis://127.0.0.1:{port}/0"


def _postgres(program: str) -> str:
    """Debian keeps PostgreSQL's own programs, one folder for each version, off the PATH."""

    def look() -> str | None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        return next((str(path / program) for path in folders if (path / program).exists()), None)

    return _found(program, "postgresql", look)


def _found(program: str, package: str, look: Callable[[], str | None] | None = None) -> str:
    look = look or functools.partial(shutil.which, program)
    path = look() or shutil.which(program)
    if path is None:
        _install(package)
        path = look() or shutil.which(program)
    if path is None:
        raise MissingPackageError(f"{package} is installed, but {program} is not found")
    return path


def _install(package: str) -> None:
    """Install a package of Debian's.

    :raises MissingPackageError: no apt-get, not allowed, or not to be had
    """
    if shutil.which("apt-get") is None:
        raise MissingPackageError(f"{package} is not installed, and there is no apt-get")
    prefix: Sequence[str] = ()
    if os.geteuid() != 0:
        allowed = (
            shutil.which("sudo")
            and not subprocess.run(
                ["sudo", "-n", "true"], check=False, capture_output=True
            ).returncode
        )
        if not allowed:
            raise MissingPackageError(f"{package} is not installed; try: apt-get install {package}")
        prefix = ("sudo", "-n")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        # policy-rc.d is not ours to write: RUNLEVEL=1 keeps the package from starting its service.
        done = subprocess.run(
            [*prefix, "env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise MissingPackageError(f"apt-get {' '.join(command)}: {' '.join(last)}")


@contextlib.contextmanager
def _running(
    command: Sequence[str], folder: Path, user: str | None, is_ready: Callable[[], bool]
) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            **_as(user),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while not is_ready():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        # Of PostgreSQL's three ways, SIGINT waits for no client.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _as(user: str | None) -> dict[str, Any]:
    """What makes a child run as another user, its groups included."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def _let_in(folder: Path, user: str) -> None:
    """Let another user pass through the folders above: temporary ones are private."""
    uid = pwd.getpwnam(user).pw_uid
    for parent in folder.parents:
        mode = parent.stat()
        if mode.st_uid != uid and not mode.st_mode & 0o001:
            parent.chmod(mode.st_mode | 0o001)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
