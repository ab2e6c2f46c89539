"""The commands in a terminal, in a pipe that ends early, and under Ctrl-C: real processes."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from tests.patience import PATIENCE
from tests.prompt.conftest import command


class Terminal:
    """A command in a pseudo-terminal of 200 columns; ``text`` is what it has shown."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._mine, theirs = pty.openpty()
        self.text = ""
        variables = {**os.environ, "TERM": "xterm", "COLUMNS": "200", **env}
        self._process = subprocess.Popen(
            command(*arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=variables,
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, words: str) -> None:
        """Wait until it has shown some words."""
        while words not in self.text:
            piece = self._read()
            assert piece, f"it ended before {words!r}: {self.text}"

    def type(self, line: str) -> None:
        os.write(self._mine, f"{line}\n".encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        os.close(self._mine)
        return self._process.wait(PATIENCE)

    def _read(self) -> bytes:
        try:
            piece = os.read(self._mine, 65536)
        except OSError:
            # How Linux says that the other side is closed.
            return b""
        self.text += piece.decode("utf-8", "replace")
        return piece


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def picky(hook: MLBatchHook) -> str:
    execution_id = hook.start_batch("picky", "1", {"x": [4.0, -1.0, 9.0]})
    hook.watch_batch("picky", "1", execution_id, poll_interval=0.05)
    return execution_id


def test_a_terminal_shows_a_drawn_table(picky: str) -> None:
    terminal = Terminal("results", picky, "--service", "picky", "--version", "1")
    assert terminal.end() == 0
    lines = plain(terminal.text).split("\r\n")
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["index"])
    assert lines[head].split() == ["index", "y", "success", "error"]
    assert set(lines[head + 1]) <= {"─", "━", " "}
    assert "x is negative" in terminal.text


def test_waiting_shows_a_bar_that_moves(hook: MLBatchHook, markers: Path) -> None:
    gate = "gate-bar"
    execution_id = hook.start_batch("gated", "1", {"gate": [None, gate], "x": [1.0, 2.0]})
    named = ("--service", "gated", "--version", "1")
    terminal = Terminal("status", execution_id, *named, "--wait", "--poll-interval", "0.05")
    terminal.read_until("1/2")
    assert "50%" in plain(terminal.text)
    (markers / gate).touch()
    assert terminal.end() == 0
    assert "2/2" in plain(terminal.text)
    assert "complete" in plain(terminal.text).splitlines()[-1]


def test_ctrl_c_ends_the_wait_and_not_the_batch(hook: MLBatchHook, markers: Path) -> None:
    gate = "gate-interrupted"
    execution_id = hook.start_batch("gated", "1", {"gate": [None, gate], "x": [1.0, 2.0]})
    named = ("--service", "gated", "--version", "1")
    terminal = Terminal("status", execution_id, *named, "--wait", "--poll-interval", "0.05")
    terminal.read_until("1/2")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "mlbatch status: interrupted" in plain(terminal.text)
    assert "Traceback" not in terminal.text
    assert not hook.get_batch_status("gated", "1", execution_id).is_terminal
    (markers / gate).touch()


def test_a_password_is_asked_for_and_not_shown(
    picky: str, hook: MLBatchHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = os.environ["MLBATCH_PASSWORD"]
    monkeypatch.delenv("MLBATCH_PASSWORD")
    terminal = Terminal("cancel", picky, "--service", "picky", "--version", "1")
    terminal.read_until("Password of admin at http://")
    terminal.type(password)
    terminal.read_until("Cancel and delete it? [y/N]")
    terminal.type("n")
    assert terminal.end() == 0
    assert "nothing was cancelled" in terminal.text
    assert password not in terminal.text
    assert picky in hook.list_batch_executions("picky", "1")


def test_a_reader_that_has_seen_enough(hook: MLBatchHook) -> None:
    execution_id = hook.start_batch("long", "1", {"x": list(range(2000))})
    hook.watch_batch("long", "1", execution_id, poll_interval=0.05)
    process = subprocess.Popen(
        command("results", execution_id, "--service", "long", "--version", "1", "--format", "csv"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'"text","mlbatch_index"')
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE) == 141
    # What Airflow says about its own settings is not ours.
    assert b"Traceback" not in error
    assert b"BrokenPipe" not in error
    assert b"mlbatch results" not in error
