"""The hook against a live server: the vendor's guide from its first line to its last."""

from __future__ import annotations

import copy
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_mlbatch.errors import (
    ArtifactNotFoundError,
    AuthenticationError,
    ConnectionConfigError,
    ExecutionNotFoundError,
    IdempotencyKeyReusedError,
    InputError,
    RecordError,
    ServiceNotFoundError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.settings import read_settings
from airflow_mlbatch.protocol.states import BatchState
from tests.faults.server import FaultServer, Play, as_json
from tests.server_process import RunningServer

CARS = [{"hp": 110, "wt": 2.62, "model": "Mazda RX4"}, {"hp": 93, "wt": 2.32, "model": "Datsun"}]


@pytest.fixture
def hook() -> MLBatchHook:
    return MLBatchHook()


def test_the_workflow_of_the_guide(hook: MLBatchHook, tmp_path: Path) -> None:
    api = hook.get_service("mtService", "v1.0.0")
    assert [(item.name, item.type) for item in api.inputs] == [("hp", "numeric"), ("wt", "numeric")]
    assert api.operation_id == "manualTransmission"
    result = hook.consume("mtService", "v1.0.0", {"hp": 120, "wt": 2.8})
    assert result.outputs["answer"] == pytest.approx(0.6418125, abs=5e-8)
    swagger = hook.get_swagger("mtService", "v1.0.0")
    assert swagger["paths"]["/api/mtService/v1.0.0"]["post"]["operationId"] == "manualTransmission"

    mtcars = pd.DataFrame(CARS)
    execution_id = hook.start_batch("mtService", "v1.0.0", mtcars, parallel_count=5)
    assert execution_id in hook.list_batch_executions("mtService", "v1.0.0")

    polls = []
    while True:
        results = hook.get_batch_results("mtService", "v1.0.0", execution_id, partial=True)
        polls.append(results.state)
        assert results.state is not BatchState.FAILED
        if results.state is BatchState.COMPLETE:
            break
        time.sleep(0.05)
    assert results.total_item_count == len(results) == 2
    assert [record.index for record in results] == [0, 1]

    for index in range(results.total_item_count):
        files = hook.list_artifacts("mtService", "v1.0.0", execution_id, index)
        assert files == ["Histogram.png"]
        for file_name in files:
            content = hook.get_artifact("mtService", "v1.0.0", execution_id, index, file_name)
            assert content.startswith(b"\x89PNG")
        dest = tmp_path / str(index)
        dest.mkdir()
        one = hook.download_artifacts(
            "mtService", "v1.0.0", execution_id, index, ["Histogram.png"], dest
        )
        assert one == [str(dest / "Histogram.png")]
        everything = hook.download_artifacts("mtService", "v1.0.0", execution_id, index, dest=dest)
        assert [Path(path).read_bytes()[:4] for path in everything] == [b"\x89PNG"]
    odds = math.exp(18.86630 + 0.03625560 * 110 - 8.083475 * 2.62)
    assert results[0].outputs["answer"] == pytest.approx(odds / (1 + odds), abs=1e-5)
    assert results[0].success and results[0].error is None

    again = hook.get_batch("mtService", "v1.0.0", execution_id)
    assert [record.outputs for record in again] == [record.outputs for record in results]
    assert hook.cancel_batch("mtService", "v1.0.0", execution_id) is True
    with pytest.raises(ExecutionNotFoundError, match="(?i)execution not found"):
        hook.get_batch("mtService", "v1.0.0", execution_id)
    assert hook.cancel_batch("mtService", "v1.0.0", execution_id) is False


def test_partial_results_and_cancel_of_a_running_batch(hook: MLBatchHook) -> None:
    records = {"x": [1, 2, 3], "seconds": [0, 0, 600]}
    execution_id = hook.start_batch("slow", "1", records, parallel_count=1)
    while hook.get_batch_status("slow", "1", execution_id).completed_item_count < 2:
        time.sleep(0.02)
    partial = hook.get_batch_results("slow", "1", execution_id, partial=True)
    assert [record.outputs["y"] for record in partial] == [1.0, 2.0]
    assert partial.total_item_count == 3
    assert not partial.state.is_terminal
    held_back = hook.get_batch_results("slow", "1", execution_id, partial=False)
    assert len(held_back) == 0 and held_back.completed_item_count == 2
    assert hook.cancel_batch("slow", "1", execution_id)
    assert execution_id not in hook.list_batch_executions("slow", "1")


def test_data_frame_service(hook: MLBatchHook) -> None:
    result = hook.consume("TxService", "1.0", {"hp": 120, "wt": 2.8})
    assert list(result.outputs["answer"]) == ["am_Pred"]
    assert len(result.outputs["answer"]["am_Pred"]) == 1


def test_every_type_comes_back_as_a_python_value(hook: MLBatchHook) -> None:
    frame = pd.DataFrame({"u": [1.5, None], "v": ["x", "y"]})
    records = [
        {
            "a": np.True_,
            "b": np.int64(7),
            "c": np.float32(0.5),
            "d": "grüße",
            "e": np.array([1.0, math.nan]),
            "f": np.eye(2),
            "g": frame,
        },
        dict.fromkeys("abcdefg", None),
        {**dict.fromkeys("abcdefg", pd.NA), "c": math.nan, "d": pd.NaT},
    ]
    execution_id = hook.start_batch("every-type", "1", records)
    hook.watch_batch("every-type", "1", execution_id, poll_interval=0.05)
    results = hook.get_batch_results("every-type", "1", execution_id)
    assert results[0].outputs == {
        "a": True,
        "b": 7,
        "c": 0.5,
        "d": "grüße",
        "e": [1.0, None],
        "f": [[1.0, 0.0], [0.0, 1.0]],
        "g": {"u": [1.5, None], "v": ["x", "y"]},
    }
    assert isinstance(results[0].outputs["b"], int) and isinstance(results[0].outputs["a"], bool)
    assert results[1].outputs == results[2].outputs == dict.fromkeys("abcdefg")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"hp": 1, "wt": 2}, {"hp": "much", "wt": 2}],
            r"record 1, field 'hp': found 'much' \(str\)",
        ),
        ([{"hp": 1}], r"record 0, field 'wt': found no such column \(there are: 'hp'\)"),
        (pd.DataFrame({"hp": [1.0], "weight": [2]}), r"field 'wt'.*there are: 'hp', 'weight'"),
        ({"hp": [1, math.inf], "wt": [1, 2]}, r"record 1, field 'hp': found inf"),
        ({"hp": [1, 2], "wt": [1]}, r"'hp' has 2, 'wt' has 1"),
    ],
)
def test_records_that_do_not_fit_are_named_before_anything_is_sent(
    hook: MLBatchHook, records: Any, message: str
) -> None:
    before = hook.list_batch_executions("mtService", "v1.0.0")
    with pytest.raises(InputError, match=message):
        hook.start_batch("mtService", "v1.0.0", records)
    assert hook.list_batch_executions("mtService", "v1.0.0") == before


def test_odd_names_are_quoted(hook: MLBatchHook) -> None:
    assert hook.get_service("my service/β", "v 1").name == "my service/β"
    execution_id = hook.start_batch("my service/β", "v 1", [{"x": 1}])
    hook.watch_batch("my service/β", "v 1", execution_id, poll_interval=0.05)
    assert hook.get_batch_results("my service/β", "v 1", execution_id)[0].outputs == {"y": 2.0}


def test_what_is_not_there_is_named(hook: MLBatchHook, tmp_path: Path) -> None:
    with pytest.raises(ServiceNotFoundError, match="nothing"):
        hook.get_service("nothing", "1")
    execution_id = hook.start_batch("double", "1", [{"x": 1}])
    hook.watch_batch("double", "1", execution_id, poll_interval=0.05)
    with pytest.raises(ArtifactNotFoundError, match=r"none\.txt"):
        hook.get_artifact("double", "1", execution_id, 0, "none.txt")
    with pytest.raises(InputError, match="nowhere"):
        hook.download_artifacts("double", "1", execution_id, 0, dest=tmp_path / "nowhere")
    with pytest.raises(RecordError, match="field 'x'"):
        hook.consume("double", "1", {"z": 1})


def test_a_hook_without_a_connection(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MLBATCH_DEFAULT")
    hook = MLBatchHook.at(server.url, "admin", server.password, max_connections=2)
    records = [{"hp": 120, "wt": 2.8}]
    execution_id = hook.start_batch("mtService", "v1.0.0", records)
    hook.watch_batch("mtService", "v1.0.0", execution_id, poll_interval=0.05)
    (record,) = hook.get_batch("mtService", "v1.0.0", execution_id).records
    assert record.outputs["answer"] == pytest.approx(0.6418125)
    assert hook.test_connection() == (True, f"{server.url} says 'pass'")
    hook.close()


@pytest.mark.parametrize(
    ("url", "extra", "field"),
    [("", {}, "host"), ("ftp://ml", {}, "host"), ("http://ml", {"verify_ssl": False}, "extra")],
)
def test_a_hook_at_an_address_that_makes_no_sense(
    url: str, extra: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConnectionConfigError, match=f"connection '{url}', {field}: ") as caught:
        MLBatchHook.at(url, "ada", "correct-horse", extra=extra)
    assert "correct-horse" not in str(caught.value)


def test_a_key_starts_one_batch(hook: MLBatchHook) -> None:
    named = ("double", "1")
    assert hook.find_batch_executions(*named, "key-of-a-test") == ([], True)
    again: dict[str, Any] = {"idempotency_key": "key-of-a-test", "server_knows_keys": True}
    first = hook.start_batch(*named, [{"x": 1}, {"x": 2}], **again)
    assert hook.start_batch(*named, [{"x": 1}, {"x": 2}], **again) == first
    assert hook.find_batch_executions(*named, "key-of-a-test") == ([first], True)
    with pytest.raises(IdempotencyKeyReusedError, match="422 .*key-of-a-test"):
        hook.start_batch(*named, [{"x": 3}], **again)


def test_server_status_and_services(hook: MLBatchHook) -> None:
    assert hook.get_server_status().is_healthy
    names = {service.name for service in hook.list_services()}
    assert {"mtService", "TxService", "double"} <= names
    assert [service.version for service in hook.list_services("mtService")] == ["v1.0.0"]


def test_test_connection_tells_and_never_raises(
    hook: MLBatchHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hook.test_connection() == (True, f"{hook.url} says 'pass'")
    uri = json.loads(__import__("os").environ["AIRFLOW_CONN_MLBATCH_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps({**uri, "password": "wrong-secret"}))
    is_fine, told = MLBatchHook("wrong").test_connection()
    assert not is_fine
    assert "refused the login of user 'admin'" in told and "wrong-secret" not in told
    assert MLBatchHook("not_there").test_connection()[0] is False
    with pytest.raises(AuthenticationError):
        MLBatchHook("wrong").list_services()


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "ml"}, "http://ml:12800"),
        ({"host": "ml", "schema": "https", "port": 443}, "https://ml:443"),
        ({"host": "https://proxy.example/ml/"}, "https://proxy.example/ml"),
        ({"host": "http://proxy:8080/ml"}, "http://proxy:8080/ml"),
        ({"host": "https://proxy/ml", "port": 12800}, "https://proxy:12800/ml"),
        ({"host": "::1", "port": 1}, None),
        ({"host": ""}, None),
        ({"host": "ml", "schema": "ftp"}, None),
        ({"host": "ml", "extra": {"auth": "magic"}}, None),
        ({"host": "ml", "extra": {"read_timeout": "soon"}}, None),
        ({"host": "ml", "extra": {"client_key": "/k.pem"}}, None),
        ({"host": "ml", "password": ""}, None),
        ({"host": "ml", "login": ""}, None),
        ({"host": "ml", "login": "", "extra": {"auth": "token"}}, "http://ml:12800"),
        ({"host": "[fd00::5]"}, "http://[fd00::5]:12800"),
        ({"host": "https://[fd00::5]/ml"}, "https://[fd00::5]/ml"),
        ({"host": "bücher.example"}, "http://bücher.example:12800"),
        ({"host": "https://proxy/mein ml/β%20"}, "https://proxy/mein%20ml/%CE%B2%20"),
        ({"host": "ml", "port": 99999}, None),
        ({"host": "ml", "port": -1}, None),
        ({"host": "ml..example"}, None),
        ({"host": "ml" * 40}, None),
        ({"host": "ml server"}, None),
        ({"host": "ml", "extra": {"auth": "token"}, "password": "ready-token\n"}, None),
        ({"host": "ml", "extra": {"auth": "token"}, "password": "Bearer ready-token"}, None),
        ({"host": "ml", "extra": {"auth": "token"}, "password": "ready-token☃"}, None),
    ],
)
def test_fields_of_the_connection(
    fields: dict[str, Any], url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"conn_type": "mlbatch", "login": "admin", "password": "secret", **fields}
    monkeypatch.setenv("AIRFLOW_CONN_FIELDS", json.dumps(whole))
    hook = MLBatchHook("fields")
    if url is None:
        field = list(fields if "password" in fields else fields.get("extra", fields))[-1]
        field = "host" if fields["host"] == "::1" else field
        with pytest.raises(
            ConnectionConfigError, match=f"connection 'fields', .*{field}"
        ) as caught:
            hook.flows  # noqa: B018
        assert "ready-token" not in str(caught.value)
    else:
        hook.flows  # noqa: B018
        assert hook.url == url


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"verify_ssl": False},
            "extra: found 'verify_ssl' (did you mean 'verify'?), expected some of",
        ),
        ({"timeout": 5}, "found 'timeout' (did you mean 'read_timeout'?)"),
        ({"Verify": True}, "found 'Verify' (did you mean 'verify'?)"),
        ({"tenantId": "t"}, "found 'tenantId' (did you mean 'tenant_id'?)"),
        ({"zzz": 1}, "found 'zzz', expected some of auth, verify,"),
        ({"zzz": 1, "verify": True, "cert": "/c"}, "found 'zzz', 'cert'"),
        ({"__extra__": "{}", "extra__mlbatch__auth": "", "verify": True}, None),
    ],
)
def test_a_key_that_nobody_reads(
    extra: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"conn_type": "mlbatch", "host": "ml", "login": "ada", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_FIELDS", json.dumps({**whole, "extra": extra}))
    if words is None:
        assert MLBatchHook("fields").url == "http://ml:12800"
        return
    with pytest.raises(ConnectionConfigError) as caught:
        MLBatchHook("fields").list_services()
    assert str(caught.value).startswith("connection 'fields', extra: found ")
    assert words in str(caught.value)


def test_an_extra_field_that_is_no_object() -> None:
    """Airflow 3.0 refuses such a connection itself; later ones hand it on."""
    connection = Connection(conn_id="fields", conn_type="mlbatch", host="ml")
    with pytest.raises(ConnectionConfigError) as caught:
        read_settings(connection, [1])  # type: ignore[arg-type]
    assert str(caught.value) == "connection 'fields', extra: found list, expected an object"


def test_threads_that_share_a_new_hook_share_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the threads of a download do, which may be the first to use it."""

    look_up = BaseHook.get_connection

    def slowly(conn_id: str) -> Any:
        """A secrets backend takes its time."""
        time.sleep(0.05)
        return look_up(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", slowly)
    tokens = as_json({"access_token": "token-one", "expires_in": 3600})
    with FaultServer(Play({"POST": [tokens], "GET": [as_json(["a.png"])]})) as server:
        whole = {"conn_type": "mlbatch", "host": server.url, "login": "ada", "password": "s3cret"}
        monkeypatch.setenv("AIRFLOW_CONN_SHARED", json.dumps(whole))
        hook = MLBatchHook("shared", max_connections=16)
        with ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(hook.list_artifacts, "s", "1", "id", n) for n in range(16)]
            assert [run.result() for run in runs] == [["a.png"]] * 16
        copy.deepcopy(MLBatchHook("shared"))
        hook.close()

    targets = [request.target for request in server.requests]
    assert (targets.count("/login"), len(targets)) == (1, 17)
