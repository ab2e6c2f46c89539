"""ArtifactDownloadOperator: against a live server, and against one that means no good."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from airflow_mlbatch.errors import BatchError, NoBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import ArtifactDownloadOperator
from tests.faults.server import Act, Answer, FaultServer, Request, as_json
from tests.provider.conftest import on_object_stores

# Airflow 3.0's own way of making paths: nothing that we could do otherwise.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in a future version of UPath:PendingDeprecationWarning"
)

BINARY = bytes(range(256)) * 4


def download(**kwargs: Any) -> ArtifactDownloadOperator:
    named = {"service_name": "files", "service_version": "1", **kwargs}
    return ArtifactDownloadOperator(task_id="download", **named)


@pytest.fixture(scope="module")
def kept() -> dict[str, str]:
    return {}


@pytest.fixture
def execution_id(kept: dict[str, str], hook: MLBatchHook) -> str:
    """Three records of three files each."""
    if "files" not in kept:
        kept["files"] = hook.start_batch("files", "1", {"name": ["a", "b", "c"]})
        hook.watch_batch("files", "1", kept["files"], poll_interval=0.05)
    return kept["files"]


def below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


# --- storage -------------------------------------------------------------------------------------


def test_all_files(context: Any, execution_id: str, tmp_path: Path) -> None:
    told = download(execution_id=execution_id, dest=f"file://{tmp_path}/new").execute(context)
    found = below(tmp_path / "new")
    assert found == {
        f"{index}/{name}": content
        for index, letter in enumerate("abc")
        for name, content in {
            "größe.txt": f"größe {letter}\n".encode(),
            "data.bin": BINARY,
            "empty.log": b"",
        }.items()
    }
    assert told["file_count"] == 9
    assert told["byte_count"] == sum(map(len, found.values()))
    assert [file["path"] for file in told["files"]] == sorted(found)
    for file in told["files"]:
        content = found[file["path"]]
        assert file["bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert json.loads(json.dumps(told)) == told
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["files"] == told["files"]
    assert manifest["execution_id"] == execution_id


@pytest.mark.parametrize(
    ("indexes", "file_names", "template", "expected"),
    [
        ([1], None, "{file_name}", {"größe.txt", "data.bin", "empty.log"}),
        ("1", "*.bin", "{index:03d}-{file_name}", {"001-data.bin"}),
        ("[0, 2]", "['*.bin', 'e*']", "{index}/{file_name}", None),
        (["0", 2, 2], ("data.*", "empty.log"), "{index}/{file_name}", None),
        (None, ["gr*"], "x/{file_name}/{index}/{file_name}", None),
        ([0], ["nothing"], "{file_name}", set()),
        ([], None, "{file_name}", set()),
    ],
)
def test_choice(
    context: Any,
    execution_id: str,
    tmp_path: Path,
    indexes: Any,
    file_names: Any,
    template: str,
    expected: set[str] | None,
) -> None:
    told = download(
        execution_id=execution_id,
        indexes=indexes,
        file_names=file_names,
        path_template=template,
        dest=str(tmp_path),
        max_connections="3",
    ).execute(context)
    if expected is None and template.startswith("x"):
        expected = {f"x/größe.txt/{index}/größe.txt" for index in range(3)}
    elif expected is None:
        expected = {f"{index}/{name}" for index in (0, 2) for name in ("data.bin", "empty.log")}
    assert set(below(tmp_path)) == expected
    assert told["file_count"] == len(expected)


def test_templates_and_default_args(context: Any, execution_id: str, tmp_path: Path) -> None:
    with DAG("d", default_args={"service_name": "files", "service_version": "1"}):
        operator = ArtifactDownloadOperator(  # type: ignore[call-arg]  # from default_args
            task_id="download",
            execution_id="{{ id }}",
            indexes="{{ [0, 1] }}",
            file_names=["{{ glob }}"],
            dest="{{ tmp }}/{{ ds }}",
            max_connections="{{ 2 }}",  # type: ignore[arg-type]  # a template
        )
    values: Any = {"id": execution_id, "glob": "*.bin", "tmp": str(tmp_path), "ds": "2026-01-01"}
    operator.render_template_fields(values)
    operator.execute(context)
    assert set(below(tmp_path)) == {"2026-01-01/0/data.bin", "2026-01-01/1/data.bin"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"indexes": [3]}, "indexes: found 3, expected less than 3"),
        ({"indexes": ["one"]}, "indexes: found"),
        ({"indexes": [-1]}, "indexes: found"),
        ({"indexes": [1.5]}, "indexes: found"),
        ({"indexes": {"a": 1}}, "indexes: found"),
        ({"file_names": [1]}, "file_names: found"),
        ({"file_names": ""}, "file_names: found"),
        ({"max_connections": 0}, "max_connections: found 0, expected a whole number from 1 on"),
        ({"max_connections": "many"}, "max_connections: found 'many'"),
        ({"max_xcom_bytes": -1}, "max_xcom_bytes: found -1"),
        ({"path_template": "../{file_name}"}, "path_template: found"),
        ({"path_template": "{index}"}, "path_template: found no {file_name}"),
        ({"path_template": "{file_name.__class__}"}, "path_template: found"),
        ({"execution_id": ["a", "b"]}, "execution_id: found .*, expected the id of one batch"),
    ],
)
def test_bad_arguments(
    context: Any, execution_id: str, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    arguments = {"execution_id": execution_id, "dest": str(tmp_path), **given}
    with pytest.raises(AirflowFailException, match=told):
        download(**arguments).execute(context)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("attempt", "wanted"), [(1, NoBatchError), (2, AirflowFailException)])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("nobody", "Execution not found"),
        (None, "execution_id: found None, expected the id of a batch"),
        ("None", "execution_id: found 'None', expected the id of a batch"),
    ],
)
def test_no_batch_fails_the_attempt(
    context: Any,
    tmp_path: Path,
    found: Any,
    told: str,
    attempt: int,
    wanted: type[Exception],
) -> None:
    """The task that starts it may have been cleared: the next attempt finds it."""
    context["ti"].try_number = attempt
    with pytest.raises(wanted, match=told):
        download(execution_id=found, dest=str(tmp_path)).execute(context)
    assert list(tmp_path.iterdir()) == []


def test_a_running_batch_is_refused(context: Any, hook: MLBatchHook, tmp_path: Path) -> None:
    running = hook.start_batch("slow", "1", {"x": [1.0], "seconds": [30.0]})
    try:
        with pytest.raises(BatchError, match="is not complete"):
            download(service_name="slow", execution_id=running, dest=str(tmp_path)).execute(context)
    finally:
        hook.cancel_batch("slow", "1", running)
    assert list(tmp_path.iterdir()) == []


def test_same_place_for_two_records(context: Any, execution_id: str, tmp_path: Path) -> None:
    operator = download(
        execution_id=execution_id,
        file_names="data.bin",
        path_template="{file_name}",
        dest=str(tmp_path),
    )
    with pytest.raises(AirflowFailException, match="found its place 'data.bin' taken|taken by"):
        operator.execute(context)


@on_object_stores
def test_object_storage(
    context: Any,
    execution_id: str,
    request: pytest.FixtureRequest,
    storage: str,
    scheme: str,
    connection_id: str,
) -> None:
    bucket, fs = request.getfixturevalue(storage)
    operator = download(
        execution_id=execution_id,
        file_names=["*.txt", "*.bin"],
        dest=f"{scheme}://{bucket}/plots",
        dest_conn_id=connection_id,
    )
    told = operator.execute(context)
    fs.invalidate_cache()
    found = {path.removeprefix(f"{bucket}/plots/"): fs.cat_file(path) for path in fs.find(bucket)}
    assert sorted(found) == sorted(
        [
            "manifest.json",
            *(f"{n}/{name}" for n in range(3) for name in ("data.bin", "größe.txt")),
        ]
    )
    assert found["1/data.bin"] == BINARY
    assert told["manifest_path"].startswith(f"{scheme}://")
    assert json.loads(found["manifest.json"])["file_count"] == 6


# --- XCom ----------------------------------------------------------------------------------------


def test_xcom(context: Any, execution_id: str) -> None:
    told = download(execution_id=execution_id, indexes=[2]).execute(context)
    by_name = {file["file_name"]: file for file in told}
    assert by_name["größe.txt"] == {
        "index": 2,
        "file_name": "größe.txt",
        "encoding": "text",
        "content": "größe c\n",
    }
    assert by_name["data.bin"]["encoding"] == "base64"
    assert base64.b64decode(by_name["data.bin"]["content"]) == BINARY
    assert by_name["empty.log"]["content"] == ""
    assert json.loads(json.dumps(told)) == told


def test_xcom_has_a_limit(context: Any, execution_id: str) -> None:
    operator = download(execution_id=execution_id, file_names="*.bin", max_xcom_bytes=3000)
    told = "max_xcom_bytes: found more than 3,000 bytes of files at 'data.bin' of record 2.*dest"
    with pytest.raises(AirflowFailException, match=told):
        operator.execute(context)
    operator.max_xcom_bytes = 3072
    assert len(operator.execute(context)) == 3


# --- a server of our own -------------------------------------------------------------------------


class Files:
    """A script for a server that keeps the files of one complete batch."""

    def __init__(self, files: dict[int, dict[str, bytes]]) -> None:
        self.files = files
        self.broken: Callable[[int, str], Act | None] = lambda index, name: None
        self.fetched: list[tuple[int, str]] = []

    def __call__(self, request: Request) -> Act:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        if parts[0] == "login":
            return as_json({"access_token": "t", "token_type": "Bearer", "expires_in": 3600})
        if parts[-1] == "files":
            return as_json(list(self.files[int(parts[-2])]))
        if len(parts) > 2 and parts[-2] == "files":
            index, name = int(parts[-3]), parts[-1]
            self.fetched.append((index, name))
            return self.broken(index, name) or Answer(200, self.files[index][name])
        count = len(self.files)
        counts = {"completedItemCount": count, "totalItemCount": count}
        return as_json({"state": "complete", **counts, "batchExecutionResults": []})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Files], FaultServer]]:
    """Let the connection point to a scripted server."""
    servers = []

    def start(files: Files) -> FaultServer:
        server = FaultServer(files)
        servers.append(server)
        connection = {"conn_type": "mlbatch", "host": server.url, "login": "a", "password": "b"}
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))
        return server

    yield start
    for server in servers:
        server.close()


def test_a_retry_fetches_only_what_is_missing(
    context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path
) -> None:
    files = Files({index: {"x": b"x" * index, "y": b"y" * 1000} for index in range(20)})
    files.broken = lambda index, name: Answer(404, b"gone") if (index, name) == (13, "y") else None
    server = serve(files)
    operator = download(execution_id="e", dest=str(tmp_path), max_connections=2)
    with pytest.raises(AirflowFailException):
        operator.execute(context)
    assert not (tmp_path / "manifest.json").exists()
    first = set(files.fetched)
    assert len(first) >= 13
    files.fetched.clear()
    files.broken = lambda index, name: None
    told = download(execution_id="e", dest=str(tmp_path), max_connections=2).execute(context)
    assert told["file_count"] == 40
    everything = {(index, name) for index in range(20) for name in "xy"}
    assert len(files.fetched) == len(set(files.fetched))
    assert everything - first <= set(files.fetched)
    # What the first attempt had in place is not asked for again.
    assert len(set(files.fetched) & first) <= 1
    assert {path: len(data) for path, data in below(tmp_path).items()} == {
        f"{index}/{name}": index if name == "x" else 1000 for index, name in everything
    }
    files.fetched.clear()
    assert download(execution_id="e", dest=str(tmp_path)).execute(context) == told
    assert files.fetched == []
    assert server.connections < 30


def test_connections_are_bounded(
    context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path
) -> None:
    server = serve(Files({index: {"x": b"x"} for index in range(40)}))
    download(execution_id="e", dest=str(tmp_path), max_connections=4).execute(context)
    # One for each thread, one for the status before.
    assert 1 <= server.connections <= 5
    assert len(below(tmp_path)) == 40


def test_a_file_cut_short_is_fetched_again(
    context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path
) -> None:
    files = Files({0: {"x": b"x" * 5000}})
    files.broken = lambda index, name: (
        Answer(200, b"x" * 5000, stop_after=700) if len(files.fetched) == 1 else None
    )
    serve(files)
    download(execution_id="e", dest=str(tmp_path)).execute(context)
    assert below(tmp_path) == {"0/x": b"x" * 5000}
    assert len(files.fetched) == 2


def test_no_half_file_is_left(
    context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path
) -> None:
    files = Files({0: {"x": b"x" * 5000}})
    files.broken = lambda index, name: (
        Answer(200, b"x" * 5000, stop_after=700)
        if len(files.fetched) == 1
        else Answer(404, b"gone")
    )
    serve(files)
    with pytest.raises(AirflowFailException):
        download(execution_id="e", dest=str(tmp_path)).execute(context)
    # The journal of what is in place, which is nothing.
    (left,) = below(tmp_path)
    assert left.startswith(".mlbatch-artifacts-")


HOSTILE = ["../../x", "/etc/passwd", "C:\\x", "..", "a\0b", "\\\\host\\x", "a/../../b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(
    context: Any,
    serve: Callable[[Files], FaultServer],
    tmp_path: Path,
    name: str,
) -> None:
    serve(Files({0: {"good.txt": b"good", name: b"evil"}}))
    dest = tmp_path / "a" / "b" / "dest"
    with pytest.raises(AirflowFailException, match="artifact: found the name"):
        download(execution_id="e", dest=str(dest)).execute(context)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"] == []
    # Through XCom a name is a text like any other; only one that no URL can carry is refused.
    if name != "..":
        told = download(execution_id="e").execute(context)
        assert [file["file_name"] for file in told] == ["good.txt", name]


def test_odd_names(context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path) -> None:
    names = [
        "A.txt",
        "a.txt",
        "CON",
        "x" * 300,
        "plot[1].png",
        "q?&#%2F.txt",
        "end.",
        "\u202egpj.x",
    ]
    serve(Files({index: {name: name.encode() for name in names} for index in range(2)}))
    told = download(execution_id="e", dest=str(tmp_path / "all")).execute(context)
    assert told["file_count"] == 2 * len(names)
    paths = [file["path"] for file in told["files"]]
    assert len({path.casefold() for path in paths}) == len(paths)
    assert all(len(Path(path).name.encode()) <= 255 for path in paths)
    for file in told["files"]:
        assert (tmp_path / "all" / file["path"]).read_bytes() == file["file_name"].encode()
    # A name with brackets means itself, and a place does not depend on what else is wanted.
    some = download(
        execution_id="e", file_names=["plot[1].png", "a.txt"], dest=str(tmp_path / "some")
    ).execute(context)
    assert {file["path"] for file in some["files"]} < set(paths)
    assert len(some["files"]) == 4


def test_a_file_called_manifest(
    context: Any, serve: Callable[[Files], FaultServer], tmp_path: Path
) -> None:
    """It keeps its content, or is refused where the manifest of the download would replace it."""
    serve(Files({0: {"Manifest.json": b"mine"}}))
    told = download(execution_id="e", dest=str(tmp_path / "a")).execute(context)
    (file,) = told["files"]
    assert (tmp_path / "a" / file["path"]).read_bytes() == b"mine"
    operator = download(execution_id="e", dest=str(tmp_path / "b"), path_template="{file_name}")
    with pytest.raises(AirflowFailException, match=r"'Manifest.json' of record 0.*path_template"):
        operator.execute(context)
