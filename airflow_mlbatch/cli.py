"""The command line: ``mlbatch serve`` and its sisters.

Law: each subcommand imports what it needs when it runs, so that ``--help`` costs nothing. What
cannot be used is said in one line on stderr, with exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from airflow_mlbatch import __version__
from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.prompt.commands import EXITS, add_commands
from airflow_mlbatch.prompt.connecting import add_connection, open_hook
from airflow_mlbatch.prompt.values import above_zero as _above_zero
from airflow_mlbatch.prompt.values import checked as _checked
from airflow_mlbatch.prompt.values import natural as _natural
from airflow_mlbatch.prompt.values import word as _word

if TYPE_CHECKING:
    from airflow_mlbatch.prompt.screen import Screen
    from airflow_mlbatch.server.dask_engine import DaskSettings

__all__ = ["main"]

_MIB = 1024 * 1024
_DASK_OPTIONS = ("scheduler", "dask_ca", "dask_cert", "dask_key", "dask_file", "dask_shared_folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="mlbatch", description="Batch scoring, and a scoring server to try it with."
    )
    parser.add_argument("--version", action="version", version=f"mlbatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_demo(commands)
    _add_ui(commands)
    _add_publish(commands)
    add_commands(commands)
    _add_orphans(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except MLBatchError as error:
        # An exception of a services module may have several lines.
        message = " ".join(str(error).splitlines())
        print(f"mlbatch {options.command}: {message}", file=sys.stderr)
        return 2


# --- serve ---------------------------------------------------------------------------------------


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="run the scoring server",
        description="Serve Python functions marked with @service over the batch scoring API. The "
        "password of the user comes from MLBATCH_PASSWORD, or is made up and printed once.",
        formatter_class=_ShowsDefaults,
    )
    serve.set_defaults(run=_serve, command="serve")
    option = serve.add_argument
    option("--demo", action="store_true", help="serve the built-in services of the demonstration")
    option(
        "--services",
        type=_word,
        action="append",
        default=[],
        metavar="SOURCE",
        help="a module or a Python file with services; may be given more than once",
    )
    option("--host", type=_word, default="127.0.0.1", help="the address to listen on")
    option("--port", type=_port, default=12800, help="0 for any that is free")
    option(
        "--data-dir",
        type=_folder,
        default=Path("mlbatch-data"),
        metavar="FOLDER",
        help="where executions, results and artifacts are kept",
    )
    option("--username", type=_word, default="admin", help="the one user of the server")
    option(
        "--workers",
        type=_positive,
        metavar="N",
        help="worker processes; left out, as many as there are processors",
    )
    option(
        "--max-parallel",
        type=_positive,
        default=100,
        metavar="N",
        help="most records of one batch at once",
    )
    option(
        "--max-body-bytes",
        type=_positive,
        default=256 * _MIB,
        metavar="N",
        help="most bytes of a request",
    )
    option(
        "--max-records",
        type=_positive,
        default=1_000_000,
        metavar="N",
        help="most records of a batch",
    )
    option(
        "--record-timeout",
        type=_seconds,
        default=3600.0,
        metavar="SECONDS",
        help="a record that takes longer fails; 0 for no limit",
    )
    option(
        "--token-lifetime",
        type=_positive,
        default=3600,
        metavar="SECONDS",
        help="how long an access token lives",
    )
    option(
        "--max-records-per-worker",
        type=_natural,
        default=0,
        metavar="N",
        help="replace a worker after so many records; 0 for never",
    )
    option(
        "--max-worker-growth",
        type=_natural,
        default=1024,
        metavar="MIB",
        help="replace a worker whose memory has grown by so much; 0 for never",
    )
    option(
        "--without-idempotency-keys",
        action="store_true",
        help="for tests: ignore idempotency keys, as the vendor's server does",
    )
    option(
        "--allow-publish",
        action="store_true",
        help="accept services over HTTP; whoever logs in can then run code as the user of the server",
    )
    option(
        "--max-object-bytes",
        type=_positive,
        default=2048 * _MIB,
        metavar="N",
        help="most bytes of a model, or of another object, that a service is published with",
    )
    option(
        "--max-service-memory",
        type=_natural,
        metavar="MIB",
        help="most memory for each worker of a published service; 0 for no limit; left out, what the "
        "machine has",
    )
    option(
        "--load-timeout",
        type=_seconds,
        default=120.0,
        metavar="SECONDS",
        help="a published service that takes longer to be loaded is refused",
    )
    option(
        "--keep-days",
        type=_above_zero,
        metavar="D",
        help="delete finished executions so many days after their end; left out, they are kept",
    )
    option(
        "--keep-gb",
        type=_above_zero,
        metavar="X",
        help="delete finished executions, the oldest first, while all of them together take more "
        "GB (1,000,000,000 bytes); left out, they are kept",
    )
    _add_cluster(serve)


def _add_cluster(serve: argparse.ArgumentParser) -> None:
    option = serve.add_argument_group(
        "more than one machine", "needs airflow-mlbatch[dask], here and on the workers"
    ).add_argument
    option(
        "--engine",
        choices=("processes", "dask"),
        default="processes",
        help="what scores batches: the worker processes of this machine, or a Dask cluster",
    )
    option(
        "--scheduler",
        type=_word,
        metavar="URL",
        help="of the Dask cluster, tls://HOST:PORT; whoever reaches it can run code on its workers",
    )
    option(
        "--dask-ca",
        type=_folder,
        metavar="FILE",
        help="certificates that the cluster is trusted by",
    )
    option("--dask-cert", type=_folder, metavar="FILE", help="the certificate of this server")
    option("--dask-key", type=_folder, metavar="FILE", help="the key to the certificate")
    option(
        "--dask-file",
        type=_folder,
        action="append",
        default=[],
        metavar="PATH",
        help="a file or folder beside the files of --services that the workers need, too: a model, a "
        "module; may be given more than once",
    )
    option(
        "--dask-chunk-seconds",
        type=_above_zero,
        default=2.0,
        metavar="SECONDS",
        help="how long the records take that a worker gets at once",
    )
    option(
        "--dask-artifact-bytes",
        type=_natural,
        default=64 * _MIB,
        metavar="N",
        help="most bytes of the artifacts of one record that come back with the results",
    )
    option(
        "--dask-shared-folder",
        type=_folder,
        metavar="FOLDER",
        help="a folder that this server and the workers have under the same path; artifacts go through "
        "it, of any size",
    )


def _cluster(options: argparse.Namespace) -> DaskSettings | None:
    """What the options say about a Dask cluster; ``None`` where there is none."""
    if options.engine != "dask":
        given = [name for name in _DASK_OPTIONS if getattr(options, name)]
        if given:
            _fail("serve", f"--{given[0].replace('_', '-')} needs --engine dask")
        return None
    from airflow_mlbatch.server.dask_engine import DaskSettings

    scheduler = options.scheduler or ""
    if not scheduler.startswith(("tls://", "tcp://")):
        expected = "tls://HOST:PORT, or tcp://HOST:PORT for a cluster that others cannot reach"
        _fail("serve", f"--scheduler: found {scheduler or 'nothing'}, expected {expected}")
    files = {name: getattr(options, f"dask_{name}") for name in ("ca", "cert", "key")}
    for name, path in files.items():
        if scheduler.startswith("tls:") and (path is None or not path.is_file()):
            _fail("serve", f"--dask-{name}: found {path or 'nothing'}, expected a file, for tls://")
        if scheduler.startswith("tcp:") and path is not None:
            _fail("serve", f"--dask-{name}: found {path}, expected a scheduler with tls://")
    shared = options.dask_shared_folder
    if shared is not None and not shared.is_dir():
        _fail("serve", f"--dask-shared-folder: found {shared}, expected a folder that is there")
    return DaskSettings(
        scheduler=scheduler,
        **{name: str(path or "") for name, path in files.items()},
        files=options.dask_file,
        chunk_seconds=options.dask_chunk_seconds,
        artifact_bytes=options.dask_artifact_bytes,
        shared_folder=shared and shared.absolute(),
    )


def _serve(options: argparse.Namespace) -> int:
    try:
        from airflow_mlbatch.server.registry import DEMO_SERVICES
        from airflow_mlbatch.server.retention import RetentionSettings
        from airflow_mlbatch.server.serving import ServerSettings, serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        needs = f"needs the package {package}, which is not installed"
        _fail("serve", f"{needs}: pip install 'airflow-mlbatch[server]'")

    _hold_standard_files()
    sources = ([DEMO_SERVICES] if options.demo else []) + options.services
    if not sources and not options.allow_publish:
        _fail("serve", "nothing to serve: give --services SOURCE, --demo or --allow-publish")
    # Taken out, so that no service reads it.
    password = os.environ.pop("MLBATCH_PASSWORD", None)
    if password == "":
        _fail("serve", "MLBATCH_PASSWORD: found nothing, expected a password, or leave it unset")
    settings = ServerSettings(
        sources=sources,
        data_dir=options.data_dir,
        host=options.host,
        port=options.port,
        username=options.username,
        password=password,
        workers=options.workers or _processors(),
        max_parallel=options.max_parallel,
        max_body_bytes=options.max_body_bytes,
        max_records=options.max_records,
        record_timeout=options.record_timeout,
        token_lifetime=options.token_lifetime,
        max_records_per_worker=options.max_records_per_worker,
        max_worker_growth=options.max_worker_growth * _MIB,
        has_keys=not options.without_idempotency_keys,
        allow_publish=options.allow_publish,
        max_object_bytes=options.max_object_bytes,
        max_service_memory=(
            _memory() if options.max_service_memory is None else options.max_service_memory * _MIB
        ),
        load_timeout=options.load_timeout,
        retention=RetentionSettings(options.keep_days, options.keep_gb),
        cluster=_cluster(options),
    )
    try:
        serve(settings, _say)
    except KeyboardInterrupt:
        # Before it was ready; afterwards the server takes it for a wish to stop.
        return 130
    return 0


def _hold_standard_files() -> None:
    """Have the descriptors 0 to 2 open: what got their numbers would be taken for stdin or stdout."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _say(line: str) -> None:
    """Print a line, or raise :class:`OSError`."""
    if sys.stdout is None:
        raise OSError("it is closed")
    try:
        print(line, flush=True)
    except OSError:
        # What is left in the buffer would fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


# --- demo and ui ---------------------------------------------------------------------------------


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="score a table with a real Dag on a real server, and show it",
        description="Start the scoring server, run an example Dag that scores the 32 cars of mtcars, "
        "and print the scored table. Exit code 0 means that all of it is right.",
        formatter_class=_ShowsDefaults,
    )
    demo.set_defaults(run=_demo, command="demo")
    _add_folder(demo)


def _add_ui(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ui = commands.add_parser(
        "ui",
        help="open Airflow with the example Dags and a scoring server behind them",
        description="Start the scoring server and Airflow standalone, with the example Dags and the "
        "connection in place. Ctrl-C ends both.",
        formatter_class=_ShowsDefaults,
    )
    ui.set_defaults(run=_ui, command="ui")
    _add_folder(ui)
    ui.add_argument("--port", type=_port, default=8080, help="of Airflow's pages")


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--folder",
        type=_folder,
        default=Path("mlbatch-demo"),
        help="where Airflow, the server and the results are kept",
    )


def _demo(options: argparse.Namespace) -> int:
    from airflow_mlbatch.demo.show import run_demo

    return run_demo(options.folder)


def _ui(options: argparse.Namespace) -> int:
    from airflow_mlbatch.demo.show import run_ui

    # The start of a task keeps a processor busy for seconds: more slots would only cause time-outs.
    return run_ui(options.folder, options.port, slots=2 * _processors())


# --- publish -------------------------------------------------------------------------------------


def _add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    publish = commands.add_parser(
        "publish",
        help="publish the services of a Python file on a running server",
        description="Publish each function marked with @service. The file travels as source text: "
        "what it reads from its own folder is not sent along.",
        epilog=EXITS,
    )
    publish.set_defaults(run=_publish, command="publish")
    publish.add_argument("source", type=_folder, metavar="FILE", help="a Python file with services")
    publish.add_argument(
        "--overwrite", action="store_true", help="replace versions that are there already"
    )
    add_connection(publish)


def _publish(options: argparse.Namespace) -> int:
    # Not with the other commands: what reads the file belongs to the server, of which they know nothing.
    from airflow_mlbatch.prompt.screen import carry_out

    def work(screen: Screen) -> int:
        from airflow_mlbatch.service_files import deployments_of_file

        deployments = list(deployments_of_file(options.source))
        with closing(open_hook(options)) as hook:
            for name, version, deployment in deployments:
                found = hook.publish_deployment(
                    name, version, deployment, overwrite=options.overwrite
                )
                screen.write(f"{found.value} {name} {version}")
        return 0

    return carry_out(options, work)


def _fail(command: str, message: str) -> NoReturn:
    print(f"mlbatch {command}: {message}", file=sys.stderr)
    raise SystemExit(2)


class _ShowsDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []):
            return action.help
        return super()._get_help_string(action)


# --- orphans -------------------------------------------------------------------------------------


def _add_orphans(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    orphans = commands.add_parser(
        "orphans",
        help="list, or delete, executions whose Airflow task has ended without them",
        description="Ask Airflow's REST API which score tasks of a Dag have ended, and list the "
        "executions that they have left over on the server. Airflow's API does not say which tasks "
        "have cancel_on_kill=False: theirs are listed too, so read the list before you use --delete, "
        "and choose tasks with --task-id. For Airflow, set AIRFLOW_API_TOKEN, or AIRFLOW_USERNAME and "
        "AIRFLOW_PASSWORD.",
        formatter_class=_ShowsDefaults,
    )
    orphans.set_defaults(run=_orphans, command="orphans")
    option = orphans.add_argument
    option("--service", type=_word, required=True, metavar="NAME", help="of the service")
    option(
        "--version",
        type=_word,
        required=True,
        dest="service_version",
        metavar="V",
        help="of the service",
    )
    option("--dag-id", type=_word, required=True, metavar="D", help="the Dag of the score tasks")
    option(
        "--task-id",
        type=_word,
        action="append",
        default=[],
        metavar="T",
        help="look at this task only; may be given more than once; left out, at all tasks whose class "
        "is BatchScoreOperator",
    )
    option("--delete", action="store_true", help="delete what is listed")
    option("--airflow-url", type=_word, default="http://localhost:8080", help="of Airflow's API")
    add_connection(orphans)


def _orphans(options: argparse.Namespace) -> int:
    from airflow_mlbatch.cli_orphans import sweep

    def tell(looked_at: int, total: int) -> None:
        print(f"looked at {looked_at:,} of {total:,} task instances", file=sys.stderr, flush=True)

    for line in sweep(options, tell):
        print(line, flush=True)
    return 0


# --- values of options ---------------------------------------------------------------------------


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """Bytes of memory that this machine has; 0 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the path of a folder")
    return Path(text)


def _positive(text: str) -> int:
    return _checked(text, int, lambda number: number >= 1, "a whole number from 1")


def _port(text: str) -> int:
    return _checked(text, int, lambda number: 0 <= number <= 65535, "a port from 0 to 65535")


def _seconds(text: str) -> float:
    return _checked(text, float, lambda number: 0 <= number < float("inf"), "seconds from 0")


if __name__ == "__main__":
    sys.exit(main())
