"""`mlbatch demo`: a real Dag scores a real table on a real server, before your eyes.

`mlbatch ui`: Airflow's own pages, with the example Dags and the connection in place.
"""

from __future__ import annotations

import csv
import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from airflow_mlbatch.demo.airflow_home import DemoHome, examples_folder
from airflow_mlbatch.errors import InputError

__all__ = ["run_demo", "run_ui"]

DAG_FILE = "mlbatch_score_mtcars.py"
# The vendor's guide: the probability that a car of 120 hp and 2,800 lb has a manual transmission.
CHECKED_INPUTS = {"hp": 120, "wt": 2.8}
EXPECTED_ANSWER = 0.6418125

# Airflow's scheduler lets running tasks come to their end, for so long.
_END_SECONDS = 20.0
# What a shell makes of Ctrl-C.
_INTERRUPTED = 130

_READY = re.compile(r"ready on (\S+)")
_STARTING = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_PROGRESS = re.compile(
    r"\] +((?:started )?execution [^\[]*?|wrote [^\[]*?|downloaded [^\[]*?) +\[airflow"
)
# The last line of a traceback.
_FAILED = re.compile(r"^[\w.]*(?:Error|Exception): (.+)")


def run_demo(folder: Path) -> int:
    """Run the main job and show it; returns the exit code.

    :param folder: where everything goes; an earlier demonstration's results are replaced
    :raises MLBatchError: the folder cannot be used, or a process of the demonstration did not start
    """
    _go_past_proxies()
    with suppress(KeyboardInterrupt), _interruptible():
        return _run_demo(folder)
    return _INTERRUPTED


def _run_demo(folder: Path) -> int:
    console = Console(highlight=False, soft_wrap=True)
    home = DemoHome(folder)
    home.make()
    password = secrets.token_urlsafe(16)
    console.rule("airflow-mlbatch: from a table to its scores")
    with _server(home, password) as url:
        home.prepare()
        console.print(f"scoring server   {url} (mtService v1.0.0, fitted on mtcars)")
        environment = home.environment(url, password)
        console.print(f"Airflow          {environment['AIRFLOW_HOME']}")
        home.migrate(environment)
        dag_file = examples_folder() / DAG_FILE
        console.print(f"Dag              {dag_file}\n")
        if not _run_dag(dag_file, home, environment, console):
            console.print(f"[red]The Dag failed.[/red] Its whole log: {home.log}")
            return 1
        answer = _consume(url, password)
    return _show_results(home, answer, console)


def run_ui(folder: Path, port: int, slots: int) -> int:
    """Open Airflow with the examples; runs until it is interrupted.

    :param port: of Airflow's pages
    :param slots: how many tasks run at once
    :raises MLBatchError: the folder cannot be used, or a process of the demonstration did not start
    """
    _go_past_proxies()
    console = Console(highlight=False, soft_wrap=True)
    if not _is_free(port):
        console.print(f"port: found {port} in use, expected a free one; choose it with --port")
        return 1
    home = DemoHome(folder)
    home.make()
    password = secrets.token_urlsafe(16)
    with suppress(KeyboardInterrupt), _interruptible(), _server(home, password) as url:
        home.prepare()
        console.print(f"scoring server   {url}")
        console.print(f"log              {home.log}")
        console.print("Airflow          starting, which takes half a minute; Ctrl-C ends both")
        environment = home.environment_of_pages(port, (_free_port(), _free_port()), slots)
        home.migrate(environment)
        home.keep_connection(environment, url, password)
        with home.log.open("ab") as log:
            # A group of its own: Airflow's processes end together, and when we say so.
            airflow = subprocess.Popen(
                [sys.executable, "-m", "airflow", "standalone"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            if _wait_until_up(airflow, port):
                console.print(f"Airflow          http://127.0.0.1:{port} is up (no login)")
            airflow.wait()
        finally:
            _end_group(airflow)
        console.print(f"[red]Airflow ended by itself.[/red] Its whole log: {home.log}")
        return 1
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> bool:
    """Ask until there is an answer; false when the process has ended instead."""
    while process.poll() is None:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with closing(line), suppress(OSError, http.client.HTTPException):
            line.request("GET", "/api/v2/version")
            if line.getresponse().status == 200:
                return True
        time.sleep(0.5)
    return False


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, politely at first."""
    deadline = time.monotonic() + _END_SECONDS
    number: int = signal.SIGTERM
    # The group is there for as long as one process of it is.
    with suppress(ProcessLookupError):
        while True:
            os.killpg(leader.pid, number)
            number = signal.SIGKILL if time.monotonic() > deadline else 0
            leader.poll()
            time.sleep(0.2)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take a closed terminal and a polite kill for Ctrl-C, so that nothing is left running."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    # One that is ignored was meant to be: nohup, for one, outlives its terminal.
    before = {
        number: signal.signal(number, interrupt)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _go_past_proxies() -> None:
    """All servers of the demonstration are on this machine, which no proxy reaches."""
    for name in ("NO_PROXY", "no_proxy"):
        kept = os.environ.get(name)
        os.environ[name] = ",".join(filter(None, (kept, "127.0.0.1", "localhost")))


@contextmanager
def _server(home: DemoHome, password: str) -> Iterator[str]:
    """The scoring server as a process of its own, on a free port; yields its address.

    It keeps other servers, and so other demonstrations, off the folder.
    """
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "airflow_mlbatch.cli", "serve", "--demo", "--port", "0"),
            # One of the examples publishes a service.
            *("--allow-publish", "--data-dir", str(home.folder / "server")),
        ],
        env={**os.environ, "MLBATCH_PASSWORD": password},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            ready = _READY.search(line)
            if ready:
                yield ready.group(1)
                return
        raise InputError(
            f"the scoring server ended with exit code {server.wait()}, its words are above; where "
            "another demonstration uses the folder, end that one or choose another --folder"
        )
    finally:
        server.terminate()
        server.wait()


def _run_dag(dag_file: Path, home: DemoHome, environment: dict[str, str], console: Console) -> bool:
    """Run the Dag in a process; its log goes to a file, its milestones to the terminal."""
    process = subprocess.Popen(
        [sys.executable, str(dag_file)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    reason = ""
    try:
        with home.log.open("a") as log:
            for line in process.stdout:
                log.write(line)
                task, progress, failed = (
                    each.search(line) for each in (_STARTING, _PROGRESS, _FAILED)
                )
                if task:
                    console.print(f"[bold]{task.group(1)}[/bold]")
                elif progress:
                    console.print(f"  {progress.group(1).strip()}")
                elif failed and failed.group(1) != reason:
                    # Once, though Airflow's exception repeats the one that it comes from.
                    reason = failed.group(1)
                    console.print(f"  [red]{escape(reason)}[/red]")
        return process.wait() == 0
    finally:
        process.kill()
        process.stdout.close()


def _consume(url: str, password: str) -> float:
    """Ask the service for one record, as the vendor's guide does after publishing it."""
    from airflow_mlbatch.protocol.flows import Flows, PasswordLogin
    from airflow_mlbatch.transport.blocking import BlockingDriver
    from airflow_mlbatch.transport.endpoint import Endpoint

    flows = Flows(PasswordLogin("admin", password), url)
    driver = BlockingDriver(Endpoint(url))
    try:
        service = driver.run(flows.get_service("mtService", "v1.0.0"))
        return float(driver.run(flows.consume(service, CHECKED_INPUTS)).outputs["answer"])
    finally:
        driver.close()


def _show_results(home: DemoHome, answer: float, console: Console) -> int:
    scores = home.scored / "scores.csv"
    with scores.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = ["model", "hp", "wt", "am", "answer", "mlbatch_success"]
    table = Table(title=f"{len(rows)} scored cars: is the transmission manual?")
    for name in shown:
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(*(_short(row.get(name, "")) for name in shown))
    console.print(table)
    pictures = sorted((home.scored / "artifacts").rglob("*.png"))
    console.print(f"scores    {scores}")
    console.print(f"pictures  {len(pictures)} in {home.scored / 'artifacts'}")
    console.print(f"log       {home.log}\n")
    is_right = abs(answer - EXPECTED_ANSWER) < 5e-8
    verdict = "[green]as in the vendor's guide[/green]" if is_right else "[red]wrong[/red]"
    console.print(
        f"manualTransmission(120, 2.8) = {answer:.7f}, expected {EXPECTED_ANSWER}: {verdict}"
    )
    is_whole = len(rows) == len(pictures) == 32
    if not is_whole:
        console.print("[red]expected 32 rows and 32 pictures[/red]")
    return 0 if is_right and is_whole else 1


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.6g}"
    except ValueError:
        return cell
