"""The options of the commands about batches, and what ``--help`` says.

Law: nothing heavy is imported here. The work of a command is in the module of its subject.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from airflow_mlbatch.prompt.connecting import add_connection
from airflow_mlbatch.prompt.values import above_zero, natural, word

if TYPE_CHECKING:
    from airflow_mlbatch.prompt.screen import Screen

__all__ = ["add_commands"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

_EXITS = (
    "exit codes: 0 done; 1 the server or the network failed; 2 wrong options; 3 the batch failed; "
    "4 not found; 5 login or role refused; 6 the batch still runs; 130 interrupted"
)


def add_commands(commands: Commands) -> None:
    """Add the commands of this package to those of ``mlbatch``."""
    _add_services(commands)
    _add_batches(commands)
    _add_status(commands)
    _add_results(commands)
    _add_artifacts(commands)
    _add_cancel(commands)
    _add_test(commands)


def _command(
    commands: Commands, name: str, work: str, help: str, description: str
) -> argparse.ArgumentParser:
    """A command.

    :param work: ``module:function`` within this package, which does it
    """

    def run(options: argparse.Namespace) -> int:
        from airflow_mlbatch.prompt.screen import carry_out

        def do(screen: Screen) -> int:
            module, _, function = work.partition(":")
            done: int = getattr(import_module(f"airflow_mlbatch.prompt.{module}"), function)(
                options, screen
            )
            return done

        return carry_out(options, do)

    command = commands.add_parser(name, help=help, description=description, epilog=_EXITS)
    command.set_defaults(run=run, command=name)
    add_connection(command)
    return command


def _add_json(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def _add_service(command: argparse.ArgumentParser, purpose: str) -> None:
    command.add_argument("--service", type=word, metavar="NAME", help=purpose)
    command.add_argument(
        "--version", type=word, dest="service_version", metavar="V", help="of that service"
    )


def _add_execution(command: argparse.ArgumentParser, *, many: bool = False) -> None:
    command.add_argument(
        "execution_id",
        type=word,
        nargs="+" if many else None,
        metavar="EXECUTION_ID",
        help="of the batch",
    )
    _add_service(
        command, "the service of the batch; left out, the batch is looked for at every service"
    )


def _add_services(commands: Commands) -> None:
    command = _command(
        commands,
        "services",
        "services:show_services",
        "list the services of a server",
        "List the published services: versions, inputs, outputs and files.",
    )
    command.add_argument("name", type=word, nargs="?", help="of one service; left out, all of them")
    _add_json(command, "everything about them")


def _add_batches(commands: Commands) -> None:
    command = _command(
        commands,
        "batches",
        "batches:show_batches",
        "list the batches that a server keeps",
        "List the batches that the server keeps, running and finished, and how far each of them is.",
    )
    _add_service(command, "of this service only")
    command.add_argument(
        "--ids",
        action="store_true",
        help="print the execution ids alone, without asking for states",
    )
    _add_json(command, "them")


def _add_status(commands: Commands) -> None:
    command = _command(
        commands,
        "status",
        "batches:show_status",
        "say how far a batch is, or wait for its end",
        "Say how far a batch is: exit code 0 when it is complete, 3 when it failed, 6 while it runs.",
    )
    _add_execution(command)
    command.add_argument(
        "--wait",
        action="store_true",
        help="wait until it ends, with a progress bar and the time left",
    )
    command.add_argument(
        "--poll-interval",
        type=above_zero,
        default=3.0,
        metavar="SECONDS",
        help="between two questions while it waits (default: 3)",
    )
    command.add_argument(
        "--timeout",
        type=above_zero,
        metavar="SECONDS",
        help="wait no longer; the batch goes on",
    )
    _add_json(command, "it")


def _add_results(commands: Commands) -> None:
    command = _command(
        commands,
        "results",
        "results:show_results",
        "print or save the results of a batch",
        "Print the results of a batch as a table, or save them. The formats have the columns that "
        "BatchResultsOperator writes.",
    )
    _add_execution(command)
    command.add_argument(
        "--format",
        choices=("table", "csv", "tsv", "jsonl", "parquet"),
        help="left out: by the name of --output, otherwise a table; parquet needs --output",
    )
    command.add_argument(
        "--json", action="store_true", help="print one JSON object a line, as --format jsonl does"
    )
    command.add_argument("--output", type=word, metavar="FILE", help="save them in this file")
    command.add_argument(
        "--input", type=word, metavar="FILE", help="the table that was scored, for its columns"
    )
    command.add_argument(
        "--limit",
        type=natural,
        default=100,
        metavar="N",
        help="most records that a table on the screen shows; 0 for all (default: 100)",
    )
    command.add_argument(
        "--partial", action="store_true", help="take what there is while the batch still runs"
    )
    command.add_argument(
        "--max-failed-records",
        type=word,
        metavar="N",
        help="exit code 3 if more records failed: a count, or a fraction below 1; left out, any number may",
    )


def _add_artifacts(commands: Commands) -> None:
    command = _command(
        commands,
        "artifacts",
        "artifacts:show_artifacts",
        "list or download the files that records left",
        "List the files that the records of a batch left, or download them into a folder. A download "
        "that is interrupted goes on where it was when it is started again.",
    )
    _add_execution(command)
    command.add_argument("--output", type=word, metavar="FOLDER", help="download them into it")
    command.add_argument(
        "--index",
        type=natural,
        action="append",
        metavar="N",
        help="of this record only, from 0; may be given more than once",
    )
    command.add_argument(
        "--name",
        type=word,
        action="append",
        metavar="GLOB",
        help="only files of this name, for example '*.png'; may be given more than once",
    )
    _add_json(command, "them")


def _add_cancel(commands: Commands) -> None:
    command = _command(
        commands,
        "cancel",
        "batches:cancel",
        "cancel batches, and delete what they left",
        "Cancel batches. The server deletes their results and files, also of a batch that is complete.",
    )
    _add_execution(command, many=True)
    command.add_argument("--yes", action="store_true", help="do not ask first")
    _add_json(command, "what became of each")


def _add_test(commands: Commands) -> None:
    command = _command(
        commands,
        "test",
        "services:test_connection",
        "log in, and ask for the health of a server",
        "Log in and ask for the server's health. Exit code 0 means that the server can be used.",
    )
    _add_json(command, "it")
