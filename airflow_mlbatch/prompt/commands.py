"""The options of the commands about batches, and what ``--help`` says.

Law: nothing heavy is imported here. The work of a command is in the module of its subject.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_mlbatch.prompt.connecting import add_connection
from airflow_mlbatch.prompt.values import above_zero, natural, word

if TYPE_CHECKING:
    from airflow_mlbatch.prompt.screen import Screen

__all__ = ["EXITS", "add_commands"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

EXITS = (
    "exit codes: 0 done; 1 the server or the network failed; 2 wrong options; 3 the batch failed; "
    "4 not found; 5 login or role refused; 6 the batch still runs; 130 interrupted"
)
_MANY = "; may be given more than once"


def add_commands(commands: Commands) -> None:
    """Add the commands of this package to those of ``mlbatch``."""
    _add_services(commands)
    _add_unpublish(commands)
    _add_batches(commands)
    _add_status(commands)
    _add_results(commands)
    _add_artifacts(commands)
    _add_cancel(commands)
    _add_test(commands)


class _Command:
    """A command, and how its options are told.

    :param work: ``module:function`` within this package, which does it
    """

    def __init__(
        self, commands: Commands, name: str, work: str, help: str, description: str
    ) -> None:
        self._work = work
        self._parser = commands.add_parser(name, help=help, description=description, epilog=EXITS)
        self._parser.set_defaults(run=self._run, command=name)
        add_connection(self._parser)

    def _run(self, options: argparse.Namespace) -> int:
        from airflow_mlbatch.prompt.screen import carry_out

        def do(screen: Screen) -> int:
            module, _, function = self._work.partition(":")
            work = getattr(import_module(f"airflow_mlbatch.prompt.{module}"), function)
            done: int = work(options, screen)
            return done

        return carry_out(options, do)

    def value(self, name: str, metavar: str | None, help: str, **more: Any) -> None:
        """An argument, or an option with a value; text unless ``type`` says something else."""
        self._parser.add_argument(name, **{"type": word, "metavar": metavar, "help": help, **more})

    def flag(self, name: str, help: str) -> None:
        """An option without a value."""
        self._parser.add_argument(name, action="store_true", help=help)

    def json(self, what: str) -> None:
        """``--json``."""
        self.flag("--json", f"print {what} as JSON")

    def service(self, purpose: str) -> None:
        """``--service`` and ``--version``."""
        self.value("--service", "NAME", purpose)
        self.value("--version", "V", "of that service", dest="service_version")

    def execution(self, **more: Any) -> None:
        """The id of an execution, and where it is."""
        self.value("execution_id", "EXECUTION_ID", "of the batch", **more)
        self.service("the service of the batch; left out, the batch is looked for at every service")


def _add_services(commands: Commands) -> None:
    command = _Command(
        commands,
        "services",
        "services:show_services",
        "list the services of a server",
        "List the published services: versions, inputs, outputs and files.",
    )
    command.value("name", None, "of one service; left out, all of them", nargs="?")
    command.json("everything about them")


def _add_unpublish(commands: Commands) -> None:
    command = _Command(
        commands,
        "unpublish",
        "services:unpublish",
        "take a version of a service away from a running server",
        "Take a version of a service away. Batches that run go on.",
    )
    command.value("name", None, "of the service")
    command.value("version", None, "of the service")


def _add_batches(commands: Commands) -> None:
    command = _Command(
        commands,
        "batches",
        "batches:show_batches",
        "list the batches that a server keeps",
        "List the batches that the server keeps, running and finished, and how far each of them is.",
    )
    command.service("of this service only")
    command.flag("--ids", "print the execution ids alone, without asking for states")
    command.json("them")


def _add_status(commands: Commands) -> None:
    command = _Command(
        commands,
        "status",
        "batches:show_status",
        "say how far a batch is, or wait for its end",
        "Say how far a batch is: exit code 0 when it is complete, 3 when it failed, 6 while it runs.",
    )
    command.execution()
    command.flag("--wait", "wait until it ends, with a progress bar and the time left")
    command.value(
        "--poll-interval",
        "SECONDS",
        "between two questions while it waits (default: 3)",
        type=above_zero,
        default=3.0,
    )
    command.value("--timeout", "SECONDS", "wait no longer; the batch goes on", type=above_zero)
    command.json("it")


def _add_results(commands: Commands) -> None:
    command = _Command(
        commands,
        "results",
        "results:show_results",
        "print or save the results of a batch",
        "Print the results of a batch as a table, or save them. The formats have the columns that "
        "BatchResultsOperator writes.",
    )
    command.execution()
    command.value(
        "--format",
        None,
        "left out: by the name of --output, otherwise a table; parquet needs --output",
        type=str,
        choices=("table", "csv", "tsv", "jsonl", "parquet"),
    )
    command.flag("--json", "print one JSON object a line, as --format jsonl does")
    command.value("--output", "FILE", "save them in this file")
    command.value("--input", "FILE", "the table that was scored, for its columns")
    command.value(
        "--limit",
        "N",
        "most records that a table on the screen shows; 0 for all (default: 100)",
        type=natural,
        default=100,
    )
    command.flag("--partial", "take what there is while the batch still runs")
    command.value(
        "--max-failed-records",
        "N",
        "exit code 3 if more records failed: a count, or a fraction below 1; left out, any number may",
    )


def _add_artifacts(commands: Commands) -> None:
    command = _Command(
        commands,
        "artifacts",
        "artifacts:show_artifacts",
        "list or download the files that records left",
        "List the files that the records of a batch left, or download them into a folder. A download "
        "that is interrupted goes on where it was when it is started again.",
    )
    command.execution()
    command.value("--output", "FOLDER", "download them into it")
    command.value(
        "--index", "N", f"of this record only, from 0{_MANY}", type=natural, action="append"
    )
    command.value(
        "--name",
        "GLOB",
        f"only files of this name, for example '*.png'{_MANY}",
        action="append",
    )
    command.json("them")


def _add_cancel(commands: Commands) -> None:
    command = _Command(
        commands,
        "cancel",
        "batches:cancel",
        "cancel batches, and delete what they left",
        "Cancel batches. The server deletes their results and files, also of a batch that is complete.",
    )
    command.execution(nargs="+")
    command.flag("--yes", "do not ask first")
    command.json("what became of each")


def _add_test(commands: Commands) -> None:
    command = _Command(
        commands,
        "test",
        "services:test_connection",
        "log in, and ask for the health of a server",
        "Log in and ask for the server's health. Exit code 0 means that the server can be used.",
    )
    command.json("it")
