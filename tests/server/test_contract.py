"""Every row of the API's table, over HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
import time
import uuid
from pathlib import Path

import pytest
import requests

from tests.patience import wait_until
from tests.server.api import Api, log_in, service_path
from tests.server_process import RunningServer

MT = "/api/mtService/v1.0.0"


def assert_error(reply: requests.Response, status: int, words: str) -> None:
    """An error in the contract's shape."""
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"code", "message", "fields", "link", "exceptionType"}
    assert reply.json()["code"] == status
    assert words in reply.json()["message"]


def test_status_tells_the_health_of_the_parts(api: Api) -> None:
    found = api.get("/status").json()
    assert found["statusCode"] == "pass"
    assert {name: part["statusCode"] for name, part in found["components"].items()} == {
        "workers": "pass",
        "database": "pass",
    }
    assert isinstance(found["details"], dict)


def test_services_are_described(api: Api) -> None:
    every = api.get("/services").json()
    assert {("mtService", "v1.0.0"), ("TxService", "1.0"), ("double", "1")} <= {
        (item["name"], item["version"]) for item in every
    }
    (found,) = api.get("/services/mtService/v1.0.0").json()
    assert found in every
    assert found["operationId"] == "manualTransmission"
    assert found["runtimeType"] == "Python"
    assert found["inputParameterDefinitions"] == [
        {"name": "hp", "type": "numeric"},
        {"name": "wt", "type": "numeric"},
    ]
    assert found["outputParameterDefinitions"] == [{"name": "answer", "type": "numeric"}]
    assert found["outputFileNames"] == ["Histogram.png"]
    assert found["versionPublishedBy"] == "admin"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}", found["creationTime"])
    assert {"code", "initCode"} <= set(found)
    assert api.get("/services/mtService").json() == [found]


def test_consumption_answers_with_one_record_result(api: Api) -> None:
    found = api.consume("mtService", "v1.0.0", hp=120, wt=2.8)
    assert found["success"] is True
    assert found["errorMessage"] == ""
    assert found["outputParameters"]["answer"] == pytest.approx(0.6418125, abs=5e-8)
    assert found["changedFiles"] == ["Histogram.png"]
    assert set(found) == {
        "success",
        "errorMessage",
        "outputParameters",
        "outputFiles",
        "consoleOutput",
        "changedFiles",
    }
    assert found["outputFiles"]["Histogram.png"].startswith("iVBORw0KGgo")  # base64 of a PNG


def test_a_batch_from_start_to_deletion(api: Api) -> None:
    reply = api.post(
        f"{MT}/batch?parallelCount=5", [{"hp": 120, "wt": 2.8}, {"hp": 110, "wt": 2.62}]
    )
    assert reply.status_code == 202
    execution_id = reply.json()["batchExecutionId"]
    assert reply.json() == {
        "name": "mtService",
        "version": "v1.0.0",
        "batchExecutionId": execution_id,
        "BatchExecutionId": execution_id,
    }
    path = f"{MT}/batch/{execution_id}"
    assert execution_id in api.get(f"{MT}/batch").json()
    assert execution_id not in api.get("/api/double/1/batch").json()

    first, second = api.wait(path)
    assert first["outputParameters"]["answer"] == pytest.approx(0.6418125, abs=5e-8)
    assert second["success"] is True

    assert api.get(f"{path}/1/files").json() == ["Histogram.png"]
    picture = api.get(f"{path}/1/files/Histogram.png")
    assert picture.content.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.content.endswith(b"IEND\xaeB`\x82")

    assert api.delete(path).status_code == 200
    for gone in (path, f"{path}/0/files", f"{path}/0/files/Histogram.png"):
        assert_error(api.get(gone), 404, "Execution not found")
    assert_error(api.delete(path), 404, "Execution not found")
    assert execution_id not in api.get(f"{MT}/batch").json()


def test_deletion_leaves_nothing_on_the_disk(api: Api, server: RunningServer) -> None:
    path = api.start("TxService", [{"hp": 120, "wt": 2.8}], "1.0")
    api.wait(path)
    folder = server.data_dir / "executions" / path.rpartition("/")[2]
    assert (folder / "0" / "answer.csv").is_file()
    api.delete(path)
    assert not folder.exists()
    trash = server.data_dir / "trash"
    wait_until(lambda: not any(trash.iterdir()))


def test_the_table_service_answers_with_a_table_and_a_file(api: Api) -> None:
    path = api.start("TxService", [{"hp": 120, "wt": 2.8}, {"hp": None, "wt": 2}], "1.0")
    known, unknown = api.wait(path)
    predicted = known["outputParameters"]["answer"]["am_Pred"]
    assert len(predicted) == 1
    assert unknown["outputParameters"]["answer"] == {"am_Pred": [None]}
    rows = list(csv.DictReader(io.StringIO(api.get(f"{path}/0/files/answer.csv").text)))
    assert [float(row["am_Pred"]) for row in rows] == predicted


def test_all_seven_types_come_back_as_they_went(api: Api) -> None:
    record = {
        "a": True,
        "b": 7,
        "c": 1.5,
        "d": "zwölf € \U0001f600",
        "e": [1, "x", None, True],
        "f": [[1, 2], [3, None]],
        "g": {"u": [1, 2], "v": ["a", None]},
    }
    nothing = dict.fromkeys(record)
    full, empty = api.score("types", [record, nothing])
    kinds = full["outputParameters"].pop("kinds")
    assert full["outputParameters"] == record
    assert kinds == "bool int float str list list dict"
    empty["outputParameters"].pop("kinds")
    assert empty["outputParameters"] == nothing


def test_numpy_and_pandas_values_are_accepted_from_a_service(api: Api) -> None:
    found = api.consume("numpy", n=3)
    assert found["outputParameters"] == {
        "mean": 1.0,
        "table": {"v": [0.0, 1.0, 2.0], "w": [False, True, True]},
    }


def test_a_name_that_needs_quoting(api: Api) -> None:
    path = api.start("my service/β", [{"x": 1}], "v 1?")
    (found,) = api.wait(path)
    assert found["outputParameters"] == {"y": 1.0}
    assert api.get(f"{path}/0/files").json() == ["täble 1.csv"]
    assert api.get(f"{path}/0/files/t%C3%A4ble%201.csv").text == "1.0\n"
    (described,) = api.get("/services/my%20service%2F%CE%B2/v%201%3F").json()
    assert described["name"] == "my service/β"


def test_results_stand_in_the_order_of_the_records(api: Api) -> None:
    results = api.score("double", [{"x": n} for n in range(3000)])
    assert [item["outputParameters"]["y"] for item in results] == [2 * n for n in range(3000)]


def test_an_empty_batch_is_complete_at_once(api: Api) -> None:
    assert api.batch(api.start("double", [])) == {
        "state": "complete",
        "completedItemCount": 0,
        "totalItemCount": 0,
        "batchExecutionResults": [],
    }


def test_a_service_without_inputs_and_outputs(api: Api) -> None:
    (found,) = api.score("no outputs", [{}])
    assert found["success"] is True
    assert found["outputParameters"] == {}


# --- partial results -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["showPartialResults", "showPartialResult", "SHOWPARTIALRESULTS"])
def test_partial_results_are_held_back_on_request(api: Api, flag: str) -> None:
    path = api.start("sleep", [{"seconds": 0}, {"seconds": 30}])
    while api.batch(path)["completedItemCount"] == 0:
        time.sleep(0.01)
    shown = api.get(path, params={flag: "TRUE"}).json()
    held = api.get(path, params={flag: "false"}).json()
    assert {shown["state"].casefold(), held["state"].casefold()} == {"inprogress"}
    assert shown["completedItemCount"] == held["completedItemCount"] == 1
    assert len(shown["batchExecutionResults"]) == 1
    assert held["batchExecutionResults"] == []
    api.delete(path)


def test_partial_results_stop_at_the_first_gap_so_that_place_is_index(api: Api) -> None:
    path = api.start("sleep", [{"seconds": 30}, {"seconds": 0}], parallel=2)
    while api.batch(path)["completedItemCount"] == 0:
        time.sleep(0.01)
    found = api.batch(path)
    assert found["completedItemCount"] == 1
    assert found["batchExecutionResults"] == []
    assert api.get(f"{path}/0/files").json() == []
    api.delete(path)


def test_no_more_records_at_once_than_asked_for(api: Api, tmp_path: Path) -> None:
    records = [{"folder": str(tmp_path)}] * 30

    def most_others(parallel: int) -> int:
        results = api.wait(api.start("alone", records, parallel=parallel))
        return max(item["outputParameters"]["others"] for item in results)

    assert most_others(parallel=1) == 0
    assert most_others(parallel=2) == 1
    # Beyond the limits of the server: it takes what it has.
    assert most_others(parallel=1_000_000) == 1


# --- what various clients send -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("", "complete"),
        ("?showPartialResults=true", "complete"),
        ("?showPartialResult=true", "Complete"),
        ("?showpartialresult=false", "Complete"),
        ("?showPartialResult=false&showPartialResults=false", "complete"),
    ],
)
def test_the_vendors_clients_get_the_states_word_that_they_wait_for(
    api: Api, query: str, word: str
) -> None:
    path = api.start("double", [{"x": 1}])
    empty = api.start("double", [])
    api.wait(path)
    assert api.get(path + query).json()["state"] == word
    assert api.get(empty + query).json()["state"] == word


def test_the_vendors_clients_see_a_running_batch(api: Api) -> None:
    path = api.start("sleep", [{"seconds": 30}])
    wait_until(lambda: api.batch(path)["state"] == "inProgress")
    assert api.get(path, params={"showPartialResult": "true"}).json()["state"] == "InProgress"
    api.delete(path)


def test_a_slash_at_the_end_of_a_path(api: Api, server: RunningServer) -> None:
    body = {"username": "admin", "password": server.password}
    assert requests.post(f"{server.url}/login/", json=body, timeout=60).status_code == 200
    assert api.get("/services/").json() == api.get("/services").json()
    assert api.get("/services/double/").json() == api.get("/services/double").json()


def test_a_byte_order_mark_before_a_body(api: Api, server: RunningServer) -> None:
    mark = b"\xef\xbb\xbf"
    body = json.dumps({"username": "admin", "password": server.password}).encode()
    pair = requests.post(f"{server.url}/login", data=mark + body, timeout=60).json()
    renewal = json.dumps({"refreshToken": pair["refresh_token"]}).encode()
    url = f"{server.url}/login/refreshToken"
    assert requests.post(url, data=mark + renewal, timeout=60).status_code == 200
    assert api.post("/api/double/1", data=mark + b'{"x": 1}').json()["outputParameters"] == {"y": 2}
    assert api.post("/api/double/1/batch", data=mark + b'[{"x": 1}]').status_code == 202


def test_a_token_is_revoked_in_the_way_of_9_1(server: RunningServer) -> None:
    pair = log_in(server.url)
    url = f"{server.url}/login/refreshToken/{pair['refresh_token']}"
    assert requests.delete(url, timeout=60).status_code == 200
    assert requests.delete(url, timeout=60).status_code == 401


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/services/nobody",
        "/services/mtService/v9",
        "/api/nobody/1/swagger.json",
        "/api/mtService/v9/batch",
        f"/api/nobody/1/batch/{uuid.UUID(int=7)}",
    ],
)
def test_a_service_that_is_not_there(api: Api, path: str) -> None:
    assert_error(api.get(path), 404, "Web service not found")


def test_a_404_says_which_services_and_versions_there_are(api: Api) -> None:
    version = api.get("/services/mtService/v9").json()["message"]
    assert version == (
        "Web service not found: 'mtService' has no version 'v9', its versions: 'v1.0.0'"
    )
    name = api.get("/api/nobody/1/swagger.json").json()["message"]
    names = sorted({repr(item["name"]) for item in api.get("/services").json()})
    assert len(names) > 10
    assert name == (
        "Web service not found: there is no 'nobody', there are: "
        f"{', '.join(names[:10])} and {len(names) - 10} more"
    )
    assert api.get("/services/nobody").json()["message"] == name


def test_consuming_and_starting_what_is_not_there(api: Api) -> None:
    assert_error(api.post("/api/nobody/1", {}), 404, "Web service not found")
    assert_error(api.post("/api/nobody/1/batch", []), 404, "Web service not found")


def test_an_execution_that_is_not_there_or_belongs_to_another_service(api: Api) -> None:
    assert_error(api.get(f"{MT}/batch/{uuid.UUID(int=7)}"), 404, "Execution not found")
    assert_error(api.delete(f"{MT}/batch/{uuid.UUID(int=7)}"), 404, "Execution not found")
    path = api.start("double", [{"x": 1}])
    assert_error(api.get(f"{MT}/batch/{path.rpartition('/')[2]}"), 404, "Execution not found")


@pytest.mark.parametrize(
    "name",
    [
        "other.png",
        "..%2F..%2Faccount.json",
        "%2Fetc%2Fpasswd",
        "%00",
        "..",
        "kept.txt%00",
        "x" * 5000,
    ],
)
def test_no_file_but_those_of_the_record(api: Api, name: str) -> None:
    path = api.start("moody", [{"mood": "files"}])
    api.wait(path)
    assert api.get(f"{path}/0/files/kept.txt").text == "kept"
    # Prepared by hand: requests would fold the dots.
    request = requests.Request(
        "GET", f"{api.url}{path}/0/files/x", headers=dict(api.session.headers)
    )
    prepared = request.prepare()
    prepared.url = f"{api.url}{path}/0/files/{name}"
    assert_error(api.session.send(prepared, timeout=60), 404, "File not found")


@pytest.mark.parametrize("index", ["1", "-1", "x", "1.0", "٣", "9" * 40, "%2e%2e"])
def test_an_index_that_is_none(api: Api, index: str) -> None:
    path = api.start("double", [{"x": 1}])
    for rest in ("files", "files/a.txt"):
        assert_error(api.get(f"{path}/{index}/{rest}"), 400, "index: found")


@pytest.mark.parametrize("path", ["/", "/api", "/api/a/b/c/d", "/status//", "/%2e%2e/status"])
def test_a_path_that_is_not_there(api: Api, path: str) -> None:
    assert_error(api.get(path), 404, "no such path")


def test_a_verb_that_a_path_does_not_have(api: Api) -> None:
    reply = api.session.put(f"{api.url}{MT}/batch/x", timeout=60)
    assert_error(reply, 405, "Expected one of DELETE, GET")
    assert reply.headers["allow"] == "DELETE, GET"
    assert api.session.head(f"{api.url}/status", timeout=60).status_code == 405


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "1e3", "99999999999"])
def test_a_parallel_count_that_is_none(api: Api, value: str) -> None:
    reply = api.post(f"{service_path('double')}/batch?parallelCount={value}", [{"x": 1}])
    assert_error(reply, 400, "parallelCount: found")


def test_a_flag_that_is_none(api: Api) -> None:
    path = api.start("double", [{"x": 1}])
    assert_error(api.get(f"{path}?showPartialResults=yes"), 400, "showPartialResults: found 'yes'")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: expected a JSON list of records"),
        (b"{}", "body: expected a JSON list of records"),
        (b'[{"x": 1}', "body: expected a JSON list of records"),
        (b"[" * 50_000, "body: expected a JSON list of records"),
        (b'[{"x": 1}, 2]', "record 1: found 2, expected an object"),
        (b'[{"x": 1}, {}]', "record 1, field 'x': found no such field"),
        (b'[{"x": 1, "z": 2}]', "record 0, field 'z': found an undeclared input"),
        (b'[{"x": 1}, {"x": "1"}]', "record 1, field 'x': found '1' (str), expected a number"),
        (b'[{"x": [1, 2]}]', "record 0, field 'x': found [1, 2]"),
        (b'[{"x": NaN}]', "body: expected a JSON list of records"),
        (b'[{"x": 1e999}]', "record 0"),
        (b'[{"x": "\xff"}]', "record 0"),
    ],
)
def test_records_that_cannot_be_scored(api: Api, body: bytes, words: str) -> None:
    before = api.get("/api/double/1/batch").json()
    assert_error(api.post("/api/double/1/batch", data=body), 400, words)
    assert api.get("/api/double/1/batch").json() == before


def test_a_record_that_cannot_be_consumed(api: Api) -> None:
    assert_error(api.post("/api/double/1", {"x": "a"}), 400, "inputs, field 'x': found 'a'")
    assert_error(api.post("/api/double/1", [1]), 400, "expected an object")
    assert_error(api.post("/api/double/1", data=b"{"), 400, "expected a JSON object")


def test_a_boxed_scalar_is_read_as_r_clients_write_it(api: Api) -> None:
    assert api.consume("double", x=[21])["outputParameters"] == {"y": 42.0}


def test_a_body_over_the_limit(api: Api) -> None:
    assert_error(api.post("/api/double/1/batch", data=b" " * 1_000_001), 413, "1,000,000 bytes")
    # Without a length in the header, and then with one that says too little.
    pieces = (b" " * 10_000 for _ in range(200))
    assert_error(api.post("/api/double/1/batch", data=pieces), 413, "1,000,000 bytes")
    assert_error(api.post("/login", data=b" " * 100_000), 413, "bytes")
    assert api.get("/status").status_code == 200


def test_too_many_records(api: Api) -> None:
    assert_error(api.post("/api/double/1/batch", [{"x": 1}] * 5001), 413, "found 5,001 records")


def test_a_packed_body_is_not_unpacked(api: Api) -> None:
    reply = api.post("/api/double/1/batch", data=b"x", headers={"Content-Encoding": "gzip"})
    assert_error(reply, 415, "content-encoding: found 'gzip'")
