"""What README.md and docs/ show and claim, tried."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_mlbatch import cli
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.settings import read_settings
from airflow_mlbatch.prompt.commands import add_commands
from airflow_mlbatch.provider_info import get_provider_info
from tests.provider.airflow_side import tell_of_assets
from tests.provider.conftest import connection_to
from tests.server_process import running_server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOP = sorted((ROOT / "docs").glob("*.md"))
OWNERS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
PAGES = [ROOT / "README.md", *OWNERS, *TOP, *sorted((ROOT / "docs").glob("*/*.md"))]
HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
EXAMPLES = sorted((ROOT / "dags_examples").glob("*.py"))
ROOMS = ("operators", "sensors", "task_groups", "triggers")
PUBLIC = [
    getattr(module, name)
    for module in (importlib.import_module(f"airflow_mlbatch.{room}") for room in ROOMS)
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- the first look ------------------------------------------------------------------------------


def test_the_first_40_lines_hold_what_it_is_how_to_see_it_and_a_dag_to_copy() -> None:
    head = "\n".join(README.splitlines()[:40])
    assert "Machine Learning Server" in head
    assert "$ make demo" in head
    (dag,) = re.findall(r"```python\n(.*?)```", head, re.DOTALL)
    assert "with DAG(" in dag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", TOP, ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    assert f"(docs/{page.name})" in README


# --- pages for the next owner ---------------------------------------------------------------------

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
# Files of changes that nobody has made yet.
INVENTED = {"datasets/kinds/avro.py"}


def test_the_files_that_the_architecture_names_are_there() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]*)+(?:\.py)?|[a-z_]+\.py)`", ARCHITECTURE))
    assert len(named) > 40
    places = (ROOT, ROOT / "airflow_mlbatch")
    lost = {name for name in named if not any((place / name).exists() for place in places)}
    assert lost == INVENTED


def test_the_likely_changes_touch_at_most_three_files() -> None:
    table = ARCHITECTURE.partition("| change | files |")[2].partition("\n\n")[0]
    rows = [row.split(" | ")[1] for row in table.splitlines()[2:]]
    assert len(rows) >= 10
    for row in rows:
        assert 1 <= len(set(re.findall(r"`[a-z_]+(?:/[a-z_]+)*(?:\.py|/)`", row))) <= 3, row


def test_the_rooms_of_the_architecture_are_those_of_the_package() -> None:
    table = ARCHITECTURE.partition("| room |")[2].partition("\n\n")[0]
    told = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([a-z_]+)/`", row.split("|")[1])
    }
    rooms = {path.parent.name for path in (ROOT / "airflow_mlbatch").glob("*/__init__.py")}
    assert told == rooms


# --- pages that include the examples -------------------------------------------------------------


def test_every_class_that_a_dag_uses_has_a_page_of_its_own() -> None:
    """The reference is generated from the code; these are written, and may be forgotten."""
    told = "".join(page.read_text(encoding="utf-8").splitlines()[0] for page in HOWTO)
    modules = [
        importlib.import_module(f"airflow_mlbatch.{room}")
        for room in ("hooks", "operators", "sensors", "task_groups")
    ]
    for name in (name for module in modules for name in module.__all__):
        assert f"`{name}`" in told


def test_pages_and_examples_share_their_markers() -> None:
    """What a page includes is there, each marked part is included, and no page copies a Dag."""
    included = set()
    for page in HOWTO:
        text = page.read_text(encoding="utf-8")
        assert blocks(page, "python") == []
        for path, start, end in re.findall(
            r"literalinclude} (\S+)\n:start-after: \"\[START (\w+)]\"\n:end-before: \"\[END (\w+)]\"",
            text,
        ):
            assert start == end
            included.add(((page.parent / path).resolve(), start))
        assert text.count("```{literalinclude}") == text.count(":start-after:")
    marked = {
        (file, marker)
        for file in EXAMPLES
        for marker in re.findall(r"# \[START (\w+)]", file.read_text(encoding="utf-8"))
    }
    assert included == marked
    for file, marker in marked:
        text = file.read_text(encoding="utf-8")
        assert 0 < text.index(f"[START {marker}]") < text.index(f"[END {marker}]")


def test_entries_of_the_task_state_store_have_the_names_of_the_page() -> None:
    from airflow_mlbatch.hooks.latest_version import VERSION_KEY
    from airflow_mlbatch.operators import publish_service, rescoring
    from airflow_mlbatch.protocol import submission
    from airflow_mlbatch.sensors import batch_state

    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(mlbatch_\w+)`", page, re.MULTILINE)
    assert sorted(named) == sorted(
        [
            submission.NOTE_KEY,
            *submission._keys_of_known({"known_keys": 1}),
            submission._CANCELLING_KEY,
            rescoring.STORE_KEY,
            batch_state._STORE_KEY,
            publish_service.STORE_KEY,
            VERSION_KEY,
        ]
    )


def test_the_page_of_examples_shows_every_one() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r"literalinclude} \.\./dags_examples/(\w+\.py)", page)
    assert sorted(shown) == [file.name for file in EXAMPLES]


# --- tutorials -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["airflow", "old_server", "own_model"])
def test_the_tutorials_run(name: str, airflow_database: str, tmp_path: Path) -> None:
    """Every block of Python, one after another, as files of somebody who follows the page."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "cars.csv").write_text("car,hp,wt\nMazda,110,2.62\nFiat,66,2.2\n")
    steps = [
        text.replace('"/data/', f'"{data}/')
        for text in blocks(ROOT / "docs" / "tutorials" / f"{name}.md", "python")
    ]
    options = ["--demo"]
    if name == "own_model":
        services = [text for text in steps if "@service(" in text]
        (tmp_path / "services.py").write_text("\n\n".join(services))
        steps = [text for text in steps if text not in services]
        options = ["--services", str(tmp_path / "services.py"), "--workers", "1"]
    dags = tmp_path / "dags"
    dags.mkdir()
    files = [
        (dags if "DAG(" in text else tmp_path) / f"step_{number}.py"
        for number, text in enumerate(steps)
    ]
    for file, text in zip(files, steps, strict=True):
        file.write_text(text)
    outcome, log = tmp_path / "outcome.json", tmp_path / "log"
    runner = Path(__file__).with_name("run.py")
    with running_server(*options, data_dir=tmp_path / "server") as server, log.open("w") as output:
        environment = {
            **os.environ,
            "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        }
        tell_of_assets(environment, output)
        done = subprocess.run(
            [sys.executable, str(runner), str(outcome), *map(str, files)],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-4000:]
    codes = json.loads(outcome.read_text())
    # A script ends by itself, a Dag with the exit code 0.
    assert {*codes.values()} <= {"no exit code", 0}, log.read_text()[-4000:]
    assert codes[files[-1].stem] in (0, False)
    (scored,) = (data / "scored").glob("*.csv")
    assert len(pd.read_csv(scored)) == 2


# --- Dags ----------------------------------------------------------------------------------------

RUN_BOTH = """
if __name__ == "__main__":
    readme = globals()["dag"]
    raise SystemExit(first.test().state != "success" or readme.test().state != "success")
"""


def test_the_dags_of_the_readme_run(airflow_database: str, tmp_path: Path) -> None:
    first, *parts, _ = blocks(ROOT / "README.md", "python")
    assert len(parts) == 3  # a table, a large table, files
    text = first.replace("with DAG(", "first = DAG(").replace(
        "service):\n", "service)\nwith first:\n"
    )
    text += 'with DAG("more_of_the_readme", default_args=service) as dag:\n'
    text += "".join(f"    {line}\n" for part in parts for line in part.splitlines())
    # Storage that is at hand, and its connections.
    text = text.replace("s3://lake", str(tmp_path / "lake")).replace("abfs://lake", str(tmp_path))
    text = text.replace('"azure_lake"', "None") + RUN_BOTH
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "readme.py").write_text(text)
    (tmp_path / "lake").mkdir()
    cars = pd.DataFrame({"car_id": range(40), "hp": [110.0] * 40, "wt": [2.62] * 40})
    cars.to_parquet(tmp_path / "lake" / "cars.parquet", index=False)
    named = cars.rename(columns={"hp": "horse_power", "wt": "weight"})
    named.to_parquet(tmp_path / "cars.parquet", index=False)
    with running_server("--demo", data_dir=tmp_path / "server") as server:
        environment = {
            **os.environ,
            "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        }
        log = tmp_path / "log"
        with log.open("w") as file:
            tell_of_assets(environment, file)
            done = subprocess.run(
                [sys.executable, str(dags / "readme.py")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
    assert done.returncode == 0, log.read_text()[-4000:]
    lake = tmp_path / "lake"
    assert parquet.read_table(lake / "scored" / "cars.parquet").num_rows == 40
    (table,) = (path for path in (lake / "scored").glob("*.parquet") if path.name != "cars.parquet")
    assert parquet.read_table(table).schema.names[:2] == ["car_id", "answer"]
    assert (lake / "scored" / "cars" / "_SUCCESS").exists()
    assert len(list((lake / "plots").rglob("*.png"))) == 40


# --- commands ------------------------------------------------------------------------------------


def test_the_extras_of_the_readme_are_there() -> None:
    told = set(re.findall(r"airflow-mlbatch\[(\w+)\]", "".join(p.read_text() for p in PAGES)))
    assert {"s3", "azure", "entra", "demo"} <= told
    assert told <= set(metadata("airflow-mlbatch").get_all("Provides-Extra") or ())


def test_the_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`(?:\$ )?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def connections() -> list[str]:
    (exported,) = re.findall(r"^export AIRFLOW_CONN_MLBATCH_DEFAULT=.*$", README, re.MULTILINE)
    texts = [shlex.split(exported)[1].partition("=")[2]]
    return texts + blocks(ROOT / "docs" / "connections.md", "json")


@pytest.mark.parametrize("text", connections())
def test_the_connections_shown_are_understood(text: str) -> None:
    values = json.loads(text.replace("…", "x"))
    connection = Connection(conn_id="shown", **{**values, "extra": json.dumps(values.get("extra"))})
    if values["conn_type"] == "mlbatch":
        extra = values.get("extra", {})
        assert read_settings(connection, extra).endpoint.url
        assert set(extra) <= set(conn_fields())
    else:
        assert values["conn_type"] in ("aws", "wasb")


def conn_fields() -> dict[str, Any]:
    return dict(get_provider_info()["connection-types"][0]["conn-fields"])


def test_the_readme_names_every_field_of_the_connection() -> None:
    table = README.partition("## The connection")[2].partition("```")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| extra (.*?) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(conn_fields())


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "server.md"])
def test_the_services_shown_can_be_served(page: Path, tmp_path: Path) -> None:
    shown = [text for text in blocks(page, "python") if "@service(" in text]
    (tmp_path / "services.py").write_text("\n\n".join(shown))
    options = ("--services", str(tmp_path / "services.py"), "--workers", "1")
    with running_server(*options, data_dir=tmp_path / "data") as server:
        settings = Connection.from_json(connection_to(server))
        hook = MLBatchHook()
        hook._settings = read_settings(settings, {})
        services = hook.list_services()
        assert len(services) == len(shown)
        values = {"numeric": 2.0, "vector": ["red"]}
        for service in services:
            inputs = {each.name: values[each.type] for each in service.inputs}
            result = hook.consume(service.name, service.version, inputs)
            assert result.success, result.error
            assert set(result.outputs) == {each.name for each in service.outputs}
        hook.close()


PROMPT = ("services", "batches", "status", "results", "artifacts", "cancel", "test")


def options_of(name: str) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_commands(commands)
    if name not in commands.choices:
        getattr(cli, f"_add_{name}")(commands)
    options = (action for action in commands.choices[name]._actions if action.option_strings)
    return {action.option_strings[-1]: action for action in options if action.dest != "help"}


def test_the_page_of_the_server_names_every_option_and_its_default() -> None:
    page = (ROOT / "docs" / "server.md").read_text()
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^`]*` \| ([^|]*)\|", page, re.MULTILINE))
    options = options_of("serve")
    assert set(rows) == set(options)
    for name, told in rows.items():
        default = options[name].default
        if default not in (None, False, []):
            assert told.strip() == f"`{default}`", name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_told_of_exist(page: Path) -> None:
    commands = ("serve", "demo", "orphans", *PROMPT)
    known = {option for command in commands for option in options_of(command)}
    told = set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")))
    assert told <= known


# --- names ---------------------------------------------------------------------------------------


def parameters(of: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(of.__init__).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_every_parameter_is_in_the_docstring(public: Any) -> None:
    told = re.findall(r":param (\w+):", inspect.getdoc(public) or "")
    assert set(parameters(public)) <= set(told)
    assert len(told) == len(set(told))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_arguments_that_are_told_of_exist(page: Path) -> None:
    known = {name for public in PUBLIC for name in parameters(public)} | {"mode", "outlets"}
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    told = re.findall(r"`[^`\n]*?\b([a-z]+(?:_[a-z]+)+|columns|timeout|mode)=[^`]*`", text)
    assert set(told) <= known | {"parallel_count", "partial"}


def test_the_defaults_that_the_readme_claims() -> None:
    by_name = {public.__name__: parameters(public) for public in PUBLIC}
    score = by_name["BatchScoreOperator"]
    results = by_name["BatchResultsOperator"]
    group = by_name["BatchScoreTaskGroup"]
    assert results["keep_columns"].default == group["keep_columns"].default == "all"
    assert results["max_failed_records"].default == group["max_failed_records"].default == 0
    assert score["cancel_on_kill"].default is score["durable"].default is True
    assert score["on_ambiguous_submission"].default == "fail"
    assert by_name["BatchStateSensor"]["cancel_on_kill"].default is False
    assert group["records_per_batch"].default == 100_000
    # The group leaves it to its tasks, which may have another one from default_args.
    assert group["mlbatch_conn_id"].default is None
    assert {
        cls["mlbatch_conn_id"].default
        for cls in by_name.values()
        if "mlbatch_conn_id" in cls and cls is not group
    } == {"mlbatch_default"}


def test_the_hook_has_every_method_that_the_readme_promises() -> None:
    table = README.partition("| R | here |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        for call in re.findall(r"`(\w+)\(([^`]*)\)", row.split(" | ")[1]):
            method = getattr(MLBatchHook, call[0])
            names = [argument.split("=")[0].strip() for argument in call[1].split(",")]
            bound = [name for name in names if name in inspect.signature(method).parameters]
            inspect.signature(method).bind(
                None,
                *[name for name in names if name not in bound],
                **dict.fromkeys(bound),
            )
