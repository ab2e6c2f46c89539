"""The package as Airflow and pip see it: found, valid, pinned, and light to import."""

from __future__ import annotations

import ast
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import airflow_mlbatch
from airflow_mlbatch.provider_info import get_provider_info

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "airflow_mlbatch"

ROOMS = ("hooks", "triggers", "links", "operators", "sensors", "task_groups", "plugins")
HEAVY = frozenset(
    [
        "aiohttp",
        "azure",
        "fastapi",
        "matplotlib",
        "numpy",
        "pandas",
        "pyarrow",
        "requests",
        "starlette",
        "uvicorn",
    ]
)


def run_python(*arguments: str) -> str:
    """Run a fresh interpreter, and give what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------ provider info


def airflow_schema() -> dict[str, object]:
    text = importlib.resources.files("airflow").joinpath("provider_info.schema.json").read_text()
    return json.loads(text)


def test_provider_info_is_valid_by_airflow_s_own_schema() -> None:
    jsonschema.validate(get_provider_info(), airflow_schema())


def test_the_schema_would_notice_a_broken_connection_type() -> None:
    info = get_provider_info()
    del info["connection-types"][0]["hook-class-name"]
    with pytest.raises(jsonschema.ValidationError, match="hook-class-name"):
        jsonschema.validate(info, airflow_schema())


def test_provider_info_names_the_distribution_in_canonical_form() -> None:
    name = distribution("airflow-mlbatch").metadata["name"]
    assert get_provider_info()["package-name"] == canonicalize_name(name)


def test_every_class_and_module_of_provider_info_is_there() -> None:
    info = get_provider_info()
    classes = [*info["extra-links"]]
    classes += [kind["hook-class-name"] for kind in info["connection-types"]]
    decorators = [decorator["class-name"] for decorator in info["task-decorators"]]
    modules = [
        module
        for role in ("hooks", "operators", "sensors", "triggers")
        for entry in info[role]
        for module in entry["python-modules"]
    ]
    script = (
        "import importlib, sys\n"
        "for path in sys.argv[1:]:\n"
        "    module, _, name = path.partition(':')\n"
        "    found = importlib.import_module(module)\n"
        "    assert not name or callable(getattr(found, name)), path\n"
    )
    named = [":".join(path.rsplit(".", 1)) for path in (*classes, *decorators)]
    run_python("-c", script, *modules, *named)


def test_only_secrets_are_password_fields() -> None:
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    hidden = {name for name, field in fields.items() if field["schema"].get("format") == "password"}
    assert hidden == {"client_secret"}


def test_airflow_lists_the_provider() -> None:
    listed = run_python("-m", "airflow", "providers", "list", "--output", "json")
    providers = json.loads(listed[listed.index("[{") :])
    versions = {provider["package_name"]: provider["version"] for provider in providers}
    assert versions["airflow-mlbatch"] == airflow_mlbatch.__version__


def test_airflow_offers_the_connection_type() -> None:
    listed = run_python("-m", "airflow", "providers", "hooks", "--output", "json")
    hooks = {hook["connection_type"]: hook for hook in json.loads(listed[listed.index("[{") :])}
    assert hooks["mlbatch"]["class"] == "airflow_mlbatch.hooks.MLBatchHook"
    assert hooks["mlbatch"]["hook_name"] == "Machine Learning Server"


def test_provider_info_loads_nothing_but_the_package_itself() -> None:
    loaded = run_python(
        "-c",
        "import sys; before = set(sys.modules)\n"
        "import airflow_mlbatch.provider_info\n"
        "print(*sorted(set(sys.modules) - before))",
    )
    ours = [name for name in loaded.split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert ours == ["airflow_mlbatch", "airflow_mlbatch.provider_info"]


# ------------------------------------------------------------------------------ import budget


def names_from_sdk() -> list[str]:
    """The names that our rooms take from airflow.sdk, read from their source.

    What they take through common.compat is the same, under the name that each Airflow has for it.
    """
    modules = {"airflow.sdk", "airflow.providers.common.compat.sdk"}
    names: set[str] = set()
    for room in ROOMS:
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module in modules:
                    names.update(alias.name for alias in node.names)
    return sorted(names)


def heavy_modules_after(code: str) -> set[str]:
    report = f"\nimport sys\nprint('heavy:', *({set(HEAVY)!r} & set(sys.modules)))"
    return set(run_python("-c", code + report).rpartition("heavy:")[2].split())


@pytest.fixture(scope="module")
def baseline() -> set[str]:
    """What airflow.sdk loads by itself: nothing of ours can be lighter."""
    names = "".join(f"getattr(airflow.sdk, {name!r}, None)\n" for name in names_from_sdk())
    return heavy_modules_after("import airflow.sdk\n" + names)


@pytest.mark.parametrize("room", ROOMS)
def test_parsing_a_dag_loads_nothing_heavy(room: str, baseline: set[str]) -> None:
    # Every public name is asked for, so that a lazy __init__ hides nothing.
    code = (
        f"import airflow_mlbatch.{room} as room\n"
        "assert room.__all__\n"
        "for name in room.__all__: getattr(room, name)\n"
    )
    assert heavy_modules_after(code) - baseline == set()


@pytest.mark.parametrize("module", ["protocol", "transport", "datasets", "server", "cli"])
def test_other_rooms_load_neither_airflow_nor_anything_heavy(module: str) -> None:
    script = f"import sys, airflow_mlbatch.{module}\nprint('heavy:', 'airflow' in sys.modules)"
    assert run_python("-c", script).split() == ["heavy:", "False"]
    assert heavy_modules_after(f"import airflow_mlbatch.{module}") == set()


def test_the_budget_would_notice_a_heavy_import() -> None:
    assert "requests" in heavy_modules_after("import requests")


# ------------------------------------------------------------------------------ distribution


def test_entry_points_lead_to_functions() -> None:
    provided = {
        (entry.group, entry.name): entry.value
        for entry in distribution("airflow-mlbatch").entry_points
    }
    assert provided == {
        ("apache_airflow_provider", "provider_info"): (
            "airflow_mlbatch.provider_info:get_provider_info"
        ),
        ("airflow.plugins", "mlbatch"): "airflow_mlbatch.plugins:BatchPagesPlugin",
        ("console_scripts", "mlbatch"): "airflow_mlbatch.cli:main",
    }
    (entry,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        value="airflow_mlbatch.provider_info:get_provider_info"
    )
    assert entry.load() is get_provider_info


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_source_distribution_holds_what_building_and_testing_need() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[tool.hatch.build.targets.sdist]")[2].partition("]")[0]
    # hatch adds these by itself.
    held = {*re.findall(r'"/([^"]+)"', section), "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    tools = [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "scripts").iterdir()]
    text = "\n".join(path.read_text(encoding="utf-8") for path in tools)
    needed = {path.name for path in ROOT.iterdir() if path.name in text}
    assert {"constraints.txt", "constraints-floor.txt", "scripts", "tests"} <= needed
    # What tools leave behind is ignored by git, and so by hatch.
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/", "").split()
    assert {
        name for name in needed - held if not any(fnmatch(name, pattern) for pattern in ignored)
    } <= {".git"}


def check_changelog(root: Path) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "check_changelog.py")
    return subprocess.run([sys.executable, script, str(root)], capture_output=True, text=True)


def test_version_and_changelog_agree() -> None:
    done = check_changelog(ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_version_without_a_changelog_entry_is_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    (tmp_path / "airflow_mlbatch").mkdir()
    (tmp_path / "airflow_mlbatch" / "__init__.py").write_text('__version__ = "99.0.0"\n')
    done = check_changelog(tmp_path)
    assert done.returncode == 1
    assert f"is {airflow_mlbatch.__version__}, but airflow_mlbatch.__version__ is 99.0.0" in (
        done.stderr
    )


# ------------------------------------------------------------------------------ metadata

EXTRAS = {"server", "demo", "publish", "s3", "azure", "entra", "dask"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_extras_are_for_users_only() -> None:
    provided = distribution("airflow-mlbatch").metadata.get_all("Provides-Extra") or ()
    assert set(provided) == EXTRAS
    assert set(project()["dependency-groups"]) == {
        "test",
        "system",
        "lint",
        "bench",
        "browser",
        "docs",
        "lineage",
        "notebook",
    }


def test_the_demonstration_includes_the_server() -> None:
    assert "airflow-mlbatch[server]" in project()["project"]["optional-dependencies"]["demo"]


def test_neither_airflow_nor_python_has_an_upper_bound() -> None:
    metadata = distribution("airflow-mlbatch").metadata
    assert metadata["Requires-Python"] == ">=3.10"
    (airflow,) = (need for _, need in declared() if need.name == "apache-airflow")
    assert {each.operator for each in airflow.specifier} == {">="}


def test_the_page_on_a_package_index_has_no_link_that_only_a_checkout_can_follow() -> None:
    description = distribution("airflow-mlbatch").metadata.json["description"]
    assert isinstance(description, str)
    assert "# airflow-mlbatch" in description
    links = re.findall(r"\]\(([^)\s]*)\)", description)
    assert [link for link in links if not link.startswith("https://")] == []
    # The names of the files are still there.
    assert "`docs/connections.md`" in description
    assert "`dags_examples/mlbatch_score_mtcars.py`" in description


def test_no_address_is_invented() -> None:
    assert distribution("airflow-mlbatch").metadata.get_all("Project-URL") is None
    assert "Home-page" not in distribution("airflow-mlbatch").metadata


# ------------------------------------------------------------------------------ constraints

FILES: dict[str, Any] = {
    "constraints.txt": ("3.10", "3.11", "3.12", "3.13"),
    "constraints-floor.txt": ("3.10",),
}
FLOOR = {"demo", "server", "test"}


def pins(file: str) -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / file).read_text().splitlines()]


def declared() -> list[tuple[str, Requirement]]:
    """Each requirement with the extra or the dependency group it belongs to ("" for all users)."""
    found = [
        (group, Requirement(line))
        for group, lines in project()["dependency-groups"].items()
        for line in lines
    ]
    for line in distribution("airflow-mlbatch").requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        extras = [each for each in EXTRAS if marker and marker.evaluate({"extra": each})]
        if requirement.name != "airflow-mlbatch":  # an extra that includes another one
            found += [(extra, requirement) for extra in extras] or [("", requirement)]
    return found


@pytest.mark.parametrize("file", FILES)
def test_constraints_are_names_versions_and_markers_only(file: str) -> None:
    for pin in pins(file):
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert pin.url is None
        assert not pin.extras


@pytest.mark.parametrize(
    ("file", "python"), [(file, python) for file, pythons in FILES.items() for python in pythons]
)
def test_constraints_pin_every_requirement_within_its_range(file: str, python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    pinned = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins(file)
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    for extra, requirement in declared():
        if file == "constraints-floor.txt" and extra and extra not in FLOOR:
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({**environment, "extra": extra}):
            version = pinned[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement} on {python}: {version}"


def test_the_floor_is_the_oldest_airflow_that_the_package_allows() -> None:
    (floor,) = (pin for pin in pins("constraints-floor.txt") if pin.name == "apache-airflow")
    (airflow,) = (need for _, need in declared() if need.name == "apache-airflow")
    lowest = {spec.version for spec in airflow.specifier if spec.operator == ">="}
    assert {next(iter(floor.specifier)).version} == lowest
