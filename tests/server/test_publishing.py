"""Services that come over HTTP, as the vendor's Python client brings them."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from airflow_mlbatch.protocol.routes import NOT_OFFERED
from tests.patience import wait_until
from tests.server.api import Api
from tests.server.conftest import SERVICES
from tests.server.publishing import NUMBER, Publisher, definitions
from tests.server_process import RunningServer, running_server

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that accepts services."""
    with running_server(
        *("--allow-publish", "--services", SERVICES, "--workers", "2"),
        *("--load-timeout", "5", "--max-service-memory", "4096"),
        data_dir=tmp_path_factory.mktemp("open") / "data",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def publisher(open_server: RunningServer) -> Publisher:
    return Publisher(open_server.url)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that the code of a test waits for."""
    return tmp_path / "gate"


def waiting_for(gate: Path, code: str) -> str:
    """Code that runs once there is a file."""
    return f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n{code}"


def wait_until_published_folders_are(server: RunningServer, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        left = os.listdir(server.data_dir / "trash")
        if len(os.listdir(server.data_dir / "services")) == count and not left:
            return
        time.sleep(0.02)
    raise AssertionError(f"{os.listdir(server.data_dir / 'services')}, expected {count}")


# --- the vendor's client, from its first line to its last -------------------------------------------

CARS_CODE = """\
def manualTransmission(hp, wt):
    print("scoring")
    with open("note.txt", "w") as file:
        file.write(str(hp))
    score = carsModel[0] + carsModel[1] * hp + carsModel[2] * wt
    return float(1 / (1 + np.exp(-score)))

answer = manualTransmission(hp, wt)"""
CARS: dict[str, Any] = {
    "description": "A car's transmission",
    "operationId": "manualTransmission",
    "inputParameterDefinitions": definitions(hp="numeric", wt="numeric"),
    "outputParameterDefinitions": definitions(answer="numeric"),
    "initCode": "import numpy as np\ndef init():\n    pass\ninit()",
    "outputFileNames": ["note.txt"],
}
MODEL = np.array([18.86630, 0.03625560, -8.083475])


def test_the_vendors_client_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    with running_server("--allow-publish", "--workers", "2", data_dir=tmp_path / "data") as server:
        client = Publisher(server.url)
        reply = client.publish("cars", "v1.0.0", CARS_CODE, {"carsModel": MODEL}, **CARS)
        assert (reply.status_code, reply.json()) == (201, "v1.0.0")
        (described,) = client.get("/services/cars/v1.0.0").json()
        assert described["code"] == CARS_CODE
        assert described["initCode"] == CARS["initCode"]
        assert described["description"] == "A car's transmission"
        assert described["operationId"] == "manualTransmission"
        assert described["runtimeType"] == "Python"
        assert described["inputParameterDefinitions"] == CARS["inputParameterDefinitions"]
        assert described["outputFileNames"] == ["note.txt"]
        assert described["myPermissionOnService"] == "read/write"
        found = client.consume("cars", "v1.0.0", hp=120, wt=2.8)
        assert found["outputParameters"]["answer"] == pytest.approx(0.6418125, abs=1e-5)
        assert found["consoleOutput"] == "scoring\n"
        server.restart()
        client = Publisher(server.url)
        records = [{"hp": float(hp), "wt": 2.8} for hp in range(100, 160)]
        batch = client.start("cars", records, "v1.0.0")
        results = client.wait(batch)
        assert len({item["outputParameters"]["answer"] for item in results}) == 60
        assert {item["changedFiles"][0] for item in results} == {"note.txt"}
        assert client.get(f"{batch}/7/files/note.txt").text == "107.0"
        # A new session, a new snapshot; what is not mentioned stays.
        session, snapshot = client.snapshot({"carsModel": MODEL * 2})
        changes = {"snapshotId": snapshot, "description": "Another model"}
        assert client.patch("/services/cars/v1.0.0", changes).json() == "v1.0.0"
        assert client.delete(f"/sessions/{session}").status_code == 200
        assert client.delete(f"/snapshots/{snapshot}").status_code == 200
        again = client.consume("cars", "v1.0.0", hp=120, wt=2.8)["outputParameters"]["answer"]
        assert again != pytest.approx(0.6418125, abs=1e-3)
        (described,) = client.get("/services/cars/v1.0.0").json()
        assert (described["code"], described["description"]) == (CARS_CODE, "Another model")
        server.restart()
        client = Publisher(server.url)
        assert client.consume("cars", "v1.0.0", hp=120, wt=2.8)["outputParameters"] == {
            "answer": again
        }
        assert client.delete("/services/cars/v1.0.0").status_code == 200
        assert client.get("/services/cars/v1.0.0").status_code == 404
        assert client.get("/services").json() == []
        # Its batches can still be fetched, and deleted.
        assert client.wait(batch) == results
        assert client.delete(batch).status_code == 200
        wait_until_published_folders_are(server, 0)
        server.stop()
        # Nothing but the server's own files, whatever the objects were called.
        assert os.listdir(server.data_dir / "work") == []


def test_without_a_session(publisher: Publisher) -> None:
    body = {
        "code": "y = x * 2",
        "description": "Doubles the input parameter",
        "runtimeType": "Python",
        "inputParameterDefinitions": definitions(x="integer"),
        "outputParameterDefinitions": definitions(y="integer"),
    }
    assert publisher.post("/services/Double/V1.0", body).status_code == 201
    assert publisher.consume("Double", "V1.0", x=5)["outputParameters"] == {"y": 10}
    assert publisher.get("/services/Double/V1.0").json()[0]["operationId"] is None
    document = publisher.get("/api/Double/V1.0/swagger.json").json()
    assert document["paths"]["/api/Double/V1.0"]["post"]["operationId"] == "consume"


def test_without_a_version(publisher: Publisher) -> None:
    body = {"code": "y = x", "runtimeType": "Python", **NUMBER}
    first, second = (publisher.post("/services/versionless", body) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert re.fullmatch(r"[0-9a-f-]{36}", first.json())
    versions = {service["version"] for service in publisher.get("/services/versionless").json()}
    assert versions == {first.json(), second.json()}


# --- what is refused --------------------------------------------------------------------------------


def test_publishing_is_off_by_default(api: Api) -> None:
    reply = api.post("/services/new/1", {"code": "y = 1", "runtimeType": "Python"})
    assert reply.status_code == 403
    assert "--allow-publish" in reply.json()["message"]
    assert api.post("/sessions", {"runtimeType": "Python"}).status_code == 403
    assert api.delete("/services/double/1").status_code == 403
    assert api.get("/services/new").status_code == 404


def test_a_version_that_is_there_is_not_overwritten(publisher: Publisher) -> None:
    assert publisher.publish("once", "1", "y = 1", **NUMBER).status_code == 201
    reply = publisher.publish("once", "1", "y = 2", **NUMBER)
    assert reply.status_code == 409
    assert "there already" in reply.json()["message"]
    assert publisher.consume("once", x=0)["outputParameters"] == {"y": 1}
    assert publisher.publish("double", "1", "y = 2", **NUMBER).status_code == 409


def test_what_comes_from_a_module_cannot_be_changed(publisher: Publisher) -> None:
    for reply in (
        publisher.patch("/services/double/1", {"code": "y = 0"}),
        publisher.delete("/services/double/1"),
    ):
        assert reply.status_code == 403
        assert "comes from a module" in reply.json()["message"]


def test_what_is_not_there(publisher: Publisher) -> None:
    for reply, what in (
        (publisher.patch("/services/nobody/1", {"code": "y = 0"}), "Web service not found"),
        (publisher.delete("/services/nobody/1"), "Web service not found"),
        (publisher.delete("/sessions/nobody"), "Session not found"),
        (publisher.delete("/snapshots/nobody"), "Snapshot not found"),
        (publisher.send_object("nobody", "x", b""), "Session not found"),
        (publisher.publish("late", "1", "y = 1", snapshotId="nobody"), "Snapshot not found"),
    ):
        assert reply.status_code == 404
        assert reply.json()["message"].split(":")[0] == what


@pytest.mark.parametrize("route", NOT_OFFERED, ids=lambda route: route.name)
def test_the_vendors_other_operations(publisher: Publisher, route: Any) -> None:
    path = re.sub(r"\{\w+\}", "x", route.template)
    reply = publisher.session.request(route.method, publisher.url + path, timeout=60)
    assert (reply.status_code, reply.json()["message"]) == (
        501,
        f"This server does not offer {route.name}",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "  "}, "code: found nothing, expected source text"),
        ({"code": 7}, "code: found 7, expected text"),
        ({"code": "y = ("}, "code: SyntaxError: '(' was never closed"),
        ({"code": "y = 1\0"}, "code: expected text without null characters"),
        ({"initCode": "y = 1 / 0"}, "initCode: ZeroDivisionError: division by zero"),
        ({"initCode": "unknown"}, "initCode: NameError: name 'unknown' is not defined"),
        ({"initCode": "raise SystemExit(4)"}, "initCode: SystemExit: 4"),
        ({"runtimeType": "Cobol"}, "runtimeType: found 'Cobol', expected one of R, Python"),
        (
            {"inputParameterDefinitions": definitions(x="number")},
            "inputs, 'x': found type 'number', expected one of",
        ),
        ({"inputParameterDefinitions": {"x": "numeric"}}, "expected a list of names and types"),
        ({"inputParameterDefinitions": [7]}, "found 7, expected an object with name and type"),
        (
            {"inputParameterDefinitions": definitions(x="numeric") * 2},
            "inputParameterDefinitions: found a name twice",
        ),
        (
            {"outputParameterDefinitions": [{"name": "a-b", "type": "numeric"}]},
            "outputs: found the name 'a-b', expected a Python name",
        ),
        ({"outputFileNames": ["../../up"]}, "found '../../up', expected a plain file name"),
        ({"outputFileNames": "a.txt"}, "outputFileNames: found 'a.txt', expected a list"),
    ],
)
def test_what_cannot_be_published(
    publisher: Publisher, change: dict[str, Any], message: str
) -> None:
    before = publisher.get("/services").json()
    body = {"code": "y = x", "runtimeType": "Python", **NUMBER, **change}
    reply = publisher.post("/services/bad/1", body)
    assert reply.status_code == 400
    assert message in reply.json()["message"]
    assert publisher.get("/services").json() == before


@pytest.mark.parametrize("name", ["../../up", "a/b", "a b", "1a", "", "x\0", "x" * 300])
def test_objects_that_no_code_can_name(
    publisher: Publisher, open_server: RunningServer, name: str
) -> None:
    session = publisher.open_session()
    reply = publisher.send_object(session, name, pickle.dumps(1))
    assert reply.status_code in (400, 404)
    assert publisher.delete(f"/sessions/{session}").status_code == 200
    assert not list(open_server.data_dir.parent.rglob("up"))


def of_a_script(code: str, name: str) -> bytes:
    """What dill makes of something that a notebook or a script defines: no module has it."""
    script = f"{code}\nimport dill, sys\nsys.stdout.buffer.write(dill.dumps({name}, protocol=3))"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout


class Reduced:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "object 'model': EOFError"),
        (b"\x80\x03]", "object 'model': "),
        (b"no pickle at all", "object 'model': UnpicklingError"),
        (pickle.dumps(Reduced(os._exit, 3)), "the worker process ended with exit code 3"),
        (
            pickle.dumps(Reduced(os.abort)),
            "killed by signal SIGABRT); its last words: Fatal Python error: Aborted",
        ),
        (pickle.dumps(Reduced(bytearray, 10**13)), "object 'model': MemoryError"),
        (pickle.dumps(Reduced(time.sleep, 600)), "found nothing loaded within 5 seconds"),
        (
            pickle.dumps(Reduced(os.write, 2, b"these are my last words\n"))[:-1]
            + pickle.dumps(Reduced(os._exit, 9))[2:],
            "its last words: these are my last words",
        ),
        (
            pickle.dumps(np.zeros(2)).replace(b"numpy", b"numbo"),
            "object 'model': ModuleNotFoundError: No module named 'numbo",
        ),
    ],
    ids=["empty", "cut", "text", "exits", "aborts", "bomb", "hangs", "speaks", "other library"],
)
def test_objects_that_cannot_be_opened(
    publisher: Publisher, open_server: RunningServer, content: bytes, message: str
) -> None:
    count = len(os.listdir(open_server.data_dir / "services"))
    reply = publisher.publish("broken", "1", "y = 1", {"model": content}, **NUMBER)
    assert reply.status_code == 400
    assert reply.json()["message"].startswith("service 'broken' version '1'")
    assert message in reply.json()["message"]
    assert publisher.get("/services/broken").status_code == 404
    wait_until_published_folders_are(open_server, count)
    assert publisher.get("/status").json()["statusCode"] == "pass"


def test_an_update_that_fails_changes_nothing(publisher: Publisher) -> None:
    assert publisher.publish("steady", "1", "y = n", {"n": 1}, **NUMBER).status_code == 201
    for code, objects in (("y = (", {"n": 2}), ("y = n", {"n": b"broken"})):
        reply = publisher.publish("steady", "1", code, objects, is_update=True)
        assert reply.status_code == 400
    assert publisher.patch("/services/steady/1", {"runtimeType": "R"}).status_code == 400
    assert publisher.consume("steady", x=0)["outputParameters"] == {"y": 1}


def test_objects_of_dill_without_dill(tmp_path: Path) -> None:
    (tmp_path / "dill.py").write_text("raise ImportError")
    root = Path(__file__).resolve().parents[2]
    with running_server(
        "--allow-publish", "--workers", "1", env={"PYTHONPATH": f"{tmp_path}:{root}"}
    ) as server:
        client = Publisher(server.url)
        plain = client.publish("plain", "1", "y = n", {"n": 7}, **NUMBER)
        assert plain.status_code == 201
        twice = of_a_script("def twice(x): return 2 * x", "twice")
        reply = client.publish("made", "1", "y = twice(x)", {"twice": twice}, **NUMBER)
        assert reply.status_code == 400
        assert reply.json()["message"] == (
            "service 'made' version '1', object 'twice': it was made by dill, which this machine "
            "does not have: pip install 'airflow-mlbatch[publish]'"
        )


# --- how it runs ------------------------------------------------------------------------------------


def test_functions_that_dill_has_made(publisher: Publisher) -> None:
    objects = {"scaled": of_a_script("def scaled(x): return factor * x", "scaled"), "factor": 3}
    assert publisher.publish("dilled", "1", "y = scaled(x)", objects, **NUMBER).status_code == 201
    assert publisher.consume("dilled", x=2)["outputParameters"] == {"y": 6}


def test_an_init_code_that_reads_the_inputs_runs_for_each_record(publisher: Publisher) -> None:
    init = "calls = globals().get('calls', 0) + 1\nz = x * 10"
    reply = publisher.publish("eager", "1", "y = z + calls", initCode=init, **NUMBER)
    assert reply.status_code == 201
    results = publisher.score("eager", [{"x": 1}, {"x": 2}, {"x": 3}])
    assert [item["outputParameters"]["y"] for item in results] == [11, 21, 31]


def test_an_init_code_that_does_not_runs_once(publisher: Publisher) -> None:
    init = "import uuid\nmark = uuid.uuid4().int % 1000"
    assert publisher.publish("lazy", "1", "y = mark", initCode=init, **NUMBER).status_code == 201
    results = publisher.score("lazy", [{"x": n} for n in range(20)])
    # Two workers, at most.
    assert len({item["outputParameters"]["y"] for item in results}) <= 2


def test_a_record_does_not_find_what_another_has_left(publisher: Publisher) -> None:
    code = "if x > 0:\n    y = x\n    n.append(x)"
    assert publisher.publish("tidy", "1", code, {"n": []}, **NUMBER).status_code == 201
    first, second = publisher.score("tidy", [{"x": 1}, {"x": 0}])
    assert first["outputParameters"] == {"y": 1}
    assert second["success"] is False
    assert second["errorMessage"] == "OutputError: output 'y' is missing"


def test_a_record_that_kills_its_worker_fails_alone(publisher: Publisher) -> None:
    code = "import os\nif x == 3: os._exit(7)\ny = x"
    assert publisher.publish("deadly", "1", code, **NUMBER).status_code == 201
    results = publisher.score("deadly", [{"x": n} for n in range(6)])
    assert [item["success"] for item in results] == [True, True, True, False, True, True]
    assert results[3]["errorMessage"] == "the worker process ended with exit code 7"


def test_a_new_service_is_with_all_workers_at_once(publisher: Publisher, tmp_path: Path) -> None:
    # Each record waits until both are at it.
    code = f"""
import os, time
open(os.path.join({str(tmp_path)!r}, str(x)), "w").close()
while len(os.listdir({str(tmp_path)!r})) < 2: time.sleep(0.01)
y = os.getpid()
"""
    assert publisher.publish("both", "1", code, **NUMBER).status_code == 201
    results = publisher.score("both", [{"x": 1}, {"x": 2}])
    assert len({item["outputParameters"]["y"] for item in results}) == 2


@pytest.mark.parametrize("end", ["update", "deletion", "restart"])
def test_a_batch_ends_with_the_code_it_began_with(tmp_path: Path, gate: Path, end: str) -> None:
    with running_server("--allow-publish", "--workers", "2", data_dir=tmp_path / "data") as server:
        client = Publisher(server.url)
        code = waiting_for(gate, "y = n")
        assert client.publish("gated", "1", code, {"n": 1}, **NUMBER).status_code == 201
        batch = client.start("gated", [{"x": n} for n in range(50)], parallel=1)
        while client.batch(batch)["state"] != "inProgress":
            time.sleep(0.01)
        if end == "deletion":
            assert client.delete("/services/gated/1").status_code == 200
        else:
            reply = client.publish("gated", "1", "y = n", {"n": 2}, is_update=True)
            assert reply.status_code == 200
            assert client.consume("gated", x=0)["outputParameters"] == {"y": 2}
        if end == "restart":
            server.restart()
            client = Publisher(server.url)
        # Its code is still there, although nobody can ask for it any more.
        assert len(os.listdir(server.data_dir / "services")) == (1 if end == "deletion" else 2)
        gate.touch()
        results = client.wait(batch)
        assert [item["outputParameters"] for item in results] == [{"y": 1}] * 50
        wait_until_published_folders_are(server, 0 if end == "deletion" else 1)


def test_a_batch_whose_code_cannot_be_loaded_any_more_fails_and_says_why(
    tmp_path: Path, gate: Path
) -> None:
    data = tmp_path / "data"
    gate.touch()
    with running_server("--allow-publish", "--workers", "1", data_dir=data) as server:
        client = Publisher(server.url)
        init = f"open({str(gate)!r}).close()"
        assert client.publish("needy", "1", "y = x", initCode=init, **NUMBER).status_code == 201
        gate.unlink()
        batch = client.start("needy", [{"x": 1}, {"x": 2}])
        while (found := client.batch(batch))["state"] not in ("failed", "complete"):
            time.sleep(0.05)
        assert found["state"] == "failed"
        for result in found["batchExecutionResults"]:
            assert "the service cannot be loaded" in result["errorMessage"]
            assert "FileNotFoundError" in result["errorMessage"]
        found = client.consume("needy", x=1)
        assert "the service cannot be loaded" in found["errorMessage"]


def test_a_full_disk_while_it_is_loaded_is_not_the_fault_of_a_service(
    tmp_path: Path, gate: Path, small_disk: Path
) -> None:
    with running_server(
        "--allow-publish", "--workers", "1", data_dir=small_disk / "data"
    ) as server:
        client = Publisher(server.url)
        gate.touch()
        init = waiting_for(gate, "open('cache', 'wb').write(bytes(1_000_000))")
        assert client.publish("large", "1", "y = x", initCode=init, **NUMBER).status_code == 201
        gate.unlink()
        batch = client.start("large", [{"x": 1}, {"x": 2}])
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 * 1024))
        gate.touch()

        def state() -> str:
            return str(client.batch(batch)["state"])

        def is_held_up() -> bool:
            database = client.get("/status").json()["components"]["database"]
            return database["statusCode"] == "fail" or state() == "failed"

        wait_until(is_held_up)
        filler.unlink()
        wait_until(lambda: state() in ("complete", "failed"))
        results = client.batch(batch)["batchExecutionResults"]
        assert [one["outputParameters"] for one in results] == [{"y": 1}, {"y": 2}]


def test_a_server_that_accepts_none_still_serves_what_was_published(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server("--allow-publish", "--workers", "1", data_dir=data) as server:
        reply = Publisher(server.url).publish("double", "1", "y = 3 * x", **NUMBER)
        assert reply.status_code == 201
    with running_server("--demo", "--workers", "1", data_dir=data) as server:
        assert Api(server.url).consume("double", x=1)["outputParameters"] == {"y": 3}
        assert Api(server.url).delete("/services/double/1").status_code == 403
    with (
        pytest.raises(AssertionError, match="found in --services, and published over HTTP before"),
        running_server("--services", SERVICES, "--workers", "1", data_dir=data),
    ):
        pass


def test_a_model_of_300_megabytes_is_not_held_by_the_server(
    publisher: Publisher, open_server: RunningServer
) -> None:
    size = 300 * 1024 * 1024
    process = psutil.Process(open_server.pid)
    before = process.memory_info().rss
    highest = before

    def content() -> Iterator[bytes]:
        nonlocal highest
        # An array of bytes as pickle writes one: what is before the bytes, and what is after.
        head, tail = pickle.dumps(np.zeros(size, dtype=np.uint8)).split(bytes(1000), 1)
        yield head
        for _ in range(size // 2**20):
            highest = max(highest, process.memory_info().rss)
            yield bytes(2**20)
        yield tail.lstrip(b"\0")

    session = publisher.open_session()
    assert publisher.send_object(session, "model", content()).status_code == 200
    snapshot = publisher.take_snapshot(session)
    reply = publisher.publish("large", "1", "y = len(model)", snapshotId=snapshot, **NUMBER)
    assert reply.status_code == 201, reply.text
    highest = max(highest, process.memory_info().rss)
    assert publisher.delete(f"/sessions/{session}").status_code == 200
    assert publisher.delete(f"/snapshots/{snapshot}").status_code == 200
    assert publisher.consume("large", x=0)["outputParameters"] == {"y": size}
    assert publisher.delete("/services/large/1").status_code == 200
    assert highest - before < size / 4
