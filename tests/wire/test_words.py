"""Literal bytes as servers and clients of this family send them, read and written in both roles.

One table for each kind of document. What a server of this package writes is read by its client, and
what the client writes is read by the server.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    ContractError,
    InputError,
    MLBatchError,
    RecordError,
    UnknownStateError,
)
from airflow_mlbatch.protocol import documents
from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.records import encode_record, encode_records
from airflow_mlbatch.protocol.results import (
    BatchStatus,
    RecordResult,
    batch_document,
    read_record_result,
    write_record_result,
)
from airflow_mlbatch.protocol.routes import ROUTES, match
from airflow_mlbatch.protocol.services import Parameter, Service, read_services, write_service
from airflow_mlbatch.protocol.states import BatchState
from tests.wire.reading import read_results, read_status

NOW = 1_479_934_000.0

# --- tokens, ids, names, health ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expires_at", "refresh"),
    [
        (
            (
                b'{"token_type":"Bearer","access_token":"a","expires_in":3600,'
                b'"expires_on":1479937454,"refresh_token":"r"}'
            ),
            NOW + 3600,
            "r",
        ),
        (b'{"token_type":"Bearer","access_token":"a","expires_on":"1479937454"}', 1479937454, None),
        (b'{"access_token":"a","expires_in":"3600","refresh_token":""}', NOW + 3600, None),
        (b'{"access_token":"a"}', None, None),
        (b'{"Access_token":"a","Refresh_token":"r","Expires_in":null}', None, "r"),
        (b'{"access_token":"a","expires_in":"soon","expires_on":"NaN"}', None, None),
        (b'{"access_token":"a","expires_in":1e999999}'.replace(b"1e999999", b'"inf"'), None, None),
    ],
)
def test_tokens(body: bytes, expires_at: float | None, refresh: str | None) -> None:
    assert documents.read_tokens(body, NOW) == documents.Tokens("a", refresh, expires_at)


def test_tokens_of_our_own_server() -> None:
    body = json.dumps(documents.write_tokens("a", "r", NOW, 3600)).encode()
    assert documents.read_tokens(body, NOW) == documents.Tokens("a", "r", NOW + 3600)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "found no access_token"),
        (b'{"access_token":null}', "found no access_token"),
        (b'{"access_token":17}', "found no access_token"),
        (b'{"access_token":"secret-token\\n"}', "found an access_token that no header can carry"),
        ('{"access_token":"secret-token\u2603"}'.encode(), "that no header can carry"),
        (b'{"access_token":"Bearer secret-token"}', "that no header can carry"),
        (b'["secret-token"]', "found list, expected an object"),
        (b'"secret-token"', "found str, expected an object"),
        (b'{"access_token":"secret-token', "found 29 bytes that are not shown here"),
        (b"  <html>Sign in</html>", "found <html>Sign in</html>"),
        (b"", "found 0 bytes"),
    ],
)
def test_no_tokens(body: bytes, words: str) -> None:
    with pytest.raises(ContractError, match="^reply to the login: ") as caught:
        documents.read_tokens(body, NOW)
    assert words in str(caught.value)
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"batchExecutionId":"5f7f8a90-0000"}',
        b'{"BatchExecutionId":"5f7f8a90-0000"}',
        b'"5f7f8a90-0000"',
        json.dumps(documents.write_execution_id("5f7f8a90-0000", "s", "1")).encode(),
    ],
)
def test_an_execution_id(body: bytes) -> None:
    assert documents.read_execution_id(body) == "5f7f8a90-0000"


@pytest.mark.parametrize("body", [b"{}", b"null", b'{"batchExecutionId":""}', b"[]", b"17", b"<p>"])
def test_no_execution_id(body: bytes) -> None:
    with pytest.raises(ContractError, match="reply to the start of a batch"):
        documents.read_execution_id(body)


@pytest.mark.parametrize(
    ("body", "names"),
    [(b"null", []), (b"[]", []), (b'["a b.png","\\u03b2.csv"]', ["a b.png", "β.csv"])],
)
def test_names(body: bytes, names: list[str]) -> None:
    assert documents.read_names(body, "files") == names


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'["a",null]', b'"a"', b"", b'["a"'])
def test_no_names(body: bytes) -> None:
    with pytest.raises(ContractError, match="^files: "):
        documents.read_names(body, "files")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"message":"gone","link":null,"exceptionType":"X"}', "gone"),
        (b'{"Message":"gone"}', "gone"),
        (b'{"code":404,"message":"gone","fields":""}', "gone"),
        (b'{"code":400,"message":"bad","fields":"hp, wt"}', "bad: hp, wt"),
        (b"gone\r\n away", "gone away"),
        (b"<html>\n<b>gone</b></html>", "<html> <b>gone</b></html>"),
        (b"", "nothing"),
        (b"{}", "{}"),
        (b"null", "null"),
        (b"\xff\x00\x1b[31m", "\ufffd\ufffd\ufffd[31m"),
        (b"[" * 100_000, "[" * 300 + "…"),
        (json.dumps(documents.write_error("gone", 404)).encode(), "gone"),
    ],
)
def test_errors(body: bytes, words: str) -> None:
    assert documents.read_error(body) == words


@pytest.mark.parametrize(
    ("body", "is_healthy"),
    [
        (b'{"statusCode":"pass","components":{"web":{}},"details":{}}', True),
        (b'{"StatusCode":"Warn","components":null}', True),
        (b'{"statusCode":"fail"}', False),
    ],
)
def test_health(body: bytes, is_healthy: bool) -> None:
    assert documents.read_server_status(body).is_healthy is is_healthy


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_means_nothing() -> None:
    assert documents.read_tokens(MARK + b'{"access_token":"a"}', NOW).access_token == "a"
    assert documents.read_execution_id(MARK + b'{"batchExecutionId":"5f7f"}') == "5f7f"
    assert documents.read_names(MARK + b"null", "files") == []
    assert documents.read_error(MARK + b'{"message":"gone"}') == "gone"
    assert documents.read_error(MARK + b"gone") == "gone"
    assert documents.read_server_status(MARK + b'{"statusCode":"pass"}').is_healthy
    assert len(read_services(MARK + DESCRIPTION)) == 1
    with pytest.raises(ContractError, match="found <html>"):
        documents.read_tokens(MARK + b"<html>", NOW)


# --- services ------------------------------------------------------------------------------------

DESCRIPTION = (
    b'{"creationTime":"2017-10-26T17:56:34.4000000","description":null,"initCode":"",'
    b'"inputParameterDefinitions":[{"name":"hp","type":"numeric"},{"name":"wt","type":"numeric"}],'
    b'"myPermissionOnService":"read/write","name":"mtService","operationId":"manualTransmission",'
    b'"outputFileNames":null,"outputParameterDefinitions":[{"name":"answer","type":"numeric"}],'
    b'"runtimeType":"R","snapshotId":null,"version":"v1.0.0","versionPublishedBy":"admin"}'
)


@pytest.mark.parametrize("body", [DESCRIPTION, b"[" + DESCRIPTION + b"]"])
def test_a_service_bare_or_in_a_list(body: bytes) -> None:
    (service,) = read_services(body)

    assert (service.name, service.version, service.operation_id) == (
        "mtService",
        "v1.0.0",
        "manualTransmission",
    )
    assert service.inputs == (Parameter("hp", "numeric"), Parameter("wt", "numeric"))
    assert service.outputs == (Parameter("answer", "numeric"),)
    assert (service.artifacts, service.description, service.snapshot_id) == ((), "", "")
    assert service.runtime_type == "R"


def test_a_service_as_our_server_writes_it() -> None:
    service = Service(
        name="my service/β",
        version="1",
        inputs=(Parameter('a "quoted" name', "data.frame"),),
        outputs=(Parameter("m", "matrix"),),
        artifacts=("answer.csv",),
        operation_id="f",
        snapshot_id="s",
    )
    assert read_services(json.dumps([write_service(service)]).encode()) == [service]


def test_keys_in_pascal_case() -> None:
    body = (
        b'{"Name":"s","Version":"1","InputParameterDefinitions":[{"Name":"x","Type":"integer"}],'
        b'"OutputFileNames":["f"]}'
    )
    (service,) = read_services(body)
    assert service.inputs == (Parameter("x", "integer"),)
    assert service.artifacts == ("f",)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"null", "expected a list of objects"),
        (b'["mtService"]', "expected a list of objects"),
        (b'[{"name":"s"}]', "expected a name and a version"),
        (b'[{"name":"s","version":1}]', "expected a name and a version"),
        (
            b'[{"name":"s","version":"1","inputParameterDefinitions":[{"name":"x"}]}]',
            "service 's', inputParameterDefinitions: found",
        ),
        (
            (
                b'[{"name":"s","version":"1","inputParameterDefinitions":'
                b'[{"name":"x","type":"tensor"}]}]'
            ),
            "found type 'tensor', expected one of logical",
        ),
        (b"<html>", "list of services: expected JSON"),
    ],
)
def test_no_services(body: bytes, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        read_services(body)
    assert words in str(caught.value)


# --- states and counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("pending", BatchState.PENDING),
        ("inProgress", BatchState.IN_PROGRESS),
        ("InProgress", BatchState.IN_PROGRESS),
        ("INPROGRESS", BatchState.IN_PROGRESS),
        ("ready", BatchState.READY),
        ("Complete", BatchState.COMPLETE),
        ("complete", BatchState.COMPLETE),
        ("Failed", BatchState.FAILED),
    ],
)
def test_states(word: str, state: BatchState) -> None:
    body = json.dumps({"state": word, "completedItemCount": 0, "totalItemCount": 2}).encode()
    assert read_status(body).state is state
    assert state.is_terminal is (word.casefold() in ("complete", "failed"))


@pytest.mark.parametrize("word", ["", "done", "complete ", None, 3, True])
def test_a_state_that_nobody_knows(word: Any) -> None:
    body = json.dumps({"state": word, "completedItemCount": 0, "totalItemCount": 2}).encode()
    with pytest.raises(UnknownStateError, match="field 'state': found "):
        read_status(body)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (
            (
                b'{"state":"Complete","completedItemCount":2,"totalItemCount":2,'
                b'"batchExecutionResults":['
            ),
            BatchStatus(BatchState.COMPLETE, 2, 2),
        ),
        (
            (
                b'{"BatchExecutionResults":[{"a":"}]"}],"TotalItemCount":5,"CompletedItemCount":1,'
                b'"State":"inProgress"}'
            ),
            BatchStatus(BatchState.IN_PROGRESS, 1, 5),
        ),
        (
            b' {\r\n "state" : "pending" ,\n\t"completedItemCount" : null , "totalItemCount":null}',
            BatchStatus(BatchState.PENDING, 0, 0),
        ),
        (b'{"state":"ready"}', BatchStatus(BatchState.READY, 0, 0)),
        (MARK + b'{"state":"ready"}', BatchStatus(BatchState.READY, 0, 0)),
    ],
)
def test_a_status(body: bytes, status: BatchStatus) -> None:
    assert read_status(body, is_whole=body.endswith(b"}")) == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "found no state"),
        (b"[]", "expected an object"),
        (b"<html>", "expected an object, found <html>"),
        (b'{"state":"ready","completedItemCount":-1}', "completedItemCount: found -1"),
        (b'{"state":"ready","totalItemCount":"many"}', "totalItemCount: found 'many'"),
        (b'{"state":"ready","totalItemCount":true}', "totalItemCount: found True"),
        (b'{"state":"ready"} again', "something follows"),
        (b'{"state":}', "'state'"),
        (b'{"state":nul}', "batch document"),
        (b'{"state":"ready" "x":1}', "batch document"),
        (b"", "ends too early"),
        (MARK[:2], "ends too early"),
        (MARK, "ends too early"),
        (MARK[:2] + b'{"state":"ready"}', "expected an object"),
    ],
)
def test_no_status(body: bytes, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        read_status(body)
    assert words in str(caught.value) or "ends too early" in str(caught.value)


# --- results of records --------------------------------------------------------------------------

ALL_TYPES = (
    Parameter("l", "logical"),
    Parameter("i", "integer"),
    Parameter("n", "numeric"),
    Parameter("c", "character"),
    Parameter("v", "vector"),
    Parameter("m", "matrix"),
    Parameter("d", "data.frame"),
)


def outputs(text: str) -> bytes:
    return b'{"success":true,"outputParameters":' + text.encode() + b"}"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            (
                '{"l":true,"i":3,"n":0.5,"c":"\\u03b2","v":[1,"a",null],"m":[[1,2],[3,4]],'
                '"d":{"am_Pred":[0.64]}}'
            ),
            {
                "l": True,
                "i": 3,
                "n": 0.5,
                "c": "β",
                "v": [1, "a", None],
                "m": [[1, 2], [3, 4]],
                "d": {"am_Pred": [0.64]},
            },
        ),
        # R boxes scalars in lists of one, writes whole numbers as 3.0 and truth as 1.
        (
            '{"l":[1],"i":[3.0],"n":[2],"c":["x"],"v":[],"m":[],"d":{}}',
            {"l": True, "i": 3, "n": 2.0, "c": "x", "v": [], "m": [], "d": {}},
        ),
        ("{}", dict.fromkeys("lincvmd")),
        (json.dumps(dict.fromkeys("lincvmd")), dict.fromkeys("lincvmd")),
    ],
)
def test_outputs_by_declared_type(text: str, values: dict[str, Any]) -> None:
    one = read_record_result(outputs(text), ALL_TYPES)
    (many,) = read_results([outputs(text)], ALL_TYPES)

    assert one.outputs == many.outputs == values
    assert [type(value) for value in one.outputs.values()] == [
        type(value) for value in many.outputs.values()
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"l":2}', "l"),
        ('{"i":0.5}', "i"),
        ('{"i":9007199254740993}', "i"),
        ('{"n":"12"}', "n"),
        ('{"n":[1,2]}', "n"),
        ('{"c":1}', "c"),
        ('{"v":1}', "v"),
        ('{"v":[[1]]}', "v"),
        ('{"m":[1]}', "m"),
        ('{"m":[[1],[1,2]]}', "m"),
        ('{"d":[1]}', "d"),
        ('{"d":{"a":[1],"b":[]}}', "d"),
    ],
)
def test_outputs_that_are_something_else(text: str, name: str) -> None:
    words = f"^result of record 1, output {name!r}: found "
    with pytest.raises(ContractError, match=words):
        read_results([outputs("{}"), outputs(text)], ALL_TYPES)
    with pytest.raises(ContractError, match=words):
        read_record_result(outputs(text), ALL_TYPES, index=1)


def test_an_output_that_nobody_declared() -> None:
    (record,) = read_results(
        [outputs('{"answer":1,"more":[{"x":1}]}')], [Parameter("answer", "numeric")]
    )
    assert record.outputs == {"answer": 1.0, "more": [{"x": 1}]}


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "new\nline", "β", "f0", ""])
def test_an_output_of_any_name(name: str) -> None:
    body = write_record_result(success=True, outputs={name: 1.5})
    (record,) = read_results([body], [Parameter(name, "numeric")])
    assert record.outputs == {name: 1.5}


@pytest.mark.parametrize(
    ("body", "record"),
    [
        (
            (
                b'{"success":true,"errorMessage":"","consoleOutput":"","changedFiles":'
                b'["Histogram.png"],"outputParameters":{"answer":0.6418125}}'
            ),
            RecordResult(0, True, {"answer": 0.6418125}, artifacts=("Histogram.png",)),
        ),
        (
            (
                b'{"Success":false,"ErrorMessage":"no horses","ConsoleOutput":"hm","ChangedFiles":null,'
                b'"OutputParameters":null}'
            ),
            RecordResult(0, False, {"answer": None}, "no horses", "hm"),
        ),
        (b'{"errorMessage":"no horses"}', RecordResult(0, False, {"answer": None}, "no horses")),
        (b"{}", RecordResult(0, True, {"answer": None})),
        (b'{"success":null}', RecordResult(0, True, {"answer": None})),
        (
            b'{"success":false}',
            RecordResult(0, False, {"answer": None}, "the server gave no message"),
        ),
        (
            b'{"success":true,"outputFiles":{"a.bin":"AAEC"},"changedFiles":["b","a.bin"]}',
            RecordResult(
                0, True, {"answer": None}, artifacts=("b", "a.bin"), files={"a.bin": b"\0\1\2"}
            ),
        ),
        (
            b'{"success":true,"outputFiles":null,"later":"keys of later versions"}',
            RecordResult(0, True, {"answer": None}),
        ),
    ],
)
def test_a_result(body: bytes, record: RecordResult) -> None:
    answer = (Parameter("answer", "numeric"),)
    assert read_record_result(body, answer) == record
    assert read_results([body], answer) == [record]
    # Beside a record of the usual spelling, which alone would take the straight road.
    usual = b'{"success":true,"outputParameters":{"answer":1}}'
    assert read_results([body, usual], answer)[0] == record


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"outputParameters":[1]}', "result of record 0, outputParameters: found [1]"),
        (b'{"outputParameters":"x"}', "result of record 0, outputParameters: found 'x'"),
        (b'{"changedFiles":"x.png"}', "result of record 0, changedFiles: found 'x.png'"),
        (b'{"changedFiles":7}', "result of record 0, changedFiles: found 7"),
        (b'{"outputFiles":["x"]}', "result of record 0, outputFiles: expected an object"),
        (b'{"outputFiles":{"x":"*"}}', "result of record 0, outputFiles: expected base64"),
        (b'{"outputFiles":{"x":7}}', "result of record 0, outputFiles: expected base64"),
    ],
)
def test_no_result(body: bytes, words: str) -> None:
    for read in (lambda: read_record_result(body), lambda: read_results([body], ())):
        with pytest.raises(ContractError) as caught:
            read()
        assert words in str(caught.value)


def test_a_result_as_our_server_writes_it() -> None:
    body = write_record_result(
        success=False,
        outputs={"answer": None},
        error='it said "no"},{',
        console_output="line\n",
        changed_files=["a.png"],
        files={"a.png": bytes(range(256))},
    )
    assert base64.b64encode(bytes(range(256))) in body
    assert read_record_result(body, [Parameter("answer", "numeric")], 7) == RecordResult(
        7,
        False,
        {"answer": None},
        'it said "no"},{',
        "line\n",
        ("a.png",),
        {"a.png": bytes(range(256))},
    )


def test_a_batch_as_our_server_writes_it() -> None:
    records = [write_record_result(success=True, outputs={"answer": float(n)}) for n in range(5)]
    document = b"".join(batch_document(BatchStatus(BatchState.COMPLETE, 5, 5), records))

    found = json.loads(document)
    assert list(found) == ["state", "completedItemCount", "totalItemCount", "batchExecutionResults"]
    assert read_status(document) == BatchStatus(BatchState.COMPLETE, 5, 5)
    assert read_results(records, [Parameter("answer", "numeric")])[4].outputs == {"answer": 4.0}


# --- records -------------------------------------------------------------------------------------

ROWS = [
    {"l": True, "i": 3, "n": 0.1, "c": 'β"', "v": [1, None], "m": [[1.5]], "d": {"a": [1]}},
    dict.fromkeys("lincvmd"),
    {"l": False, "i": -1, "n": math.nan, "c": "", "v": [], "m": [], "d": {}},
]


def test_what_a_client_encodes_a_server_reads() -> None:
    body, count = encode_records(ALL_TYPES, ROWS)
    reader = RecordReader(ALL_TYPES)
    found = [reader.values(raw) for raw in reader.split(body)]

    assert count == 3
    assert found == [ROWS[0], ROWS[1], {**ROWS[2], "n": None}]
    assert reader.values(encode_record(ALL_TYPES, ROWS[0])) == ROWS[0]


@pytest.mark.parametrize("name", ["hp", 'a "quoted" name', "back\\slash", "new\nline", "β", ""])
@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_records_of_any_name_and_number(name: str, count: int) -> None:
    rows = [{name: place, "other": 1} for place in range(count)]
    body, found = encode_records([Parameter(name, "integer")], rows)

    assert found == count
    reader = RecordReader([Parameter(name, "integer")])
    assert [reader.values(raw) for raw in reader.split(body)] == json.loads(body)
    assert json.loads(body) == [{name: place} for place in range(count)]


def test_only_declared_inputs_in_declared_order() -> None:
    inputs = [Parameter("wt", "numeric"), Parameter("hp", "integer")]
    expected = b'[{"wt":2.8,"hp":120},{"wt":null,"hp":110}]'

    assert encode_records(inputs, {"hp": [120, 110.0], "x": [0], "wt": (2.8, None)})[0] == expected
    rows = [{"hp": 120, "wt": 2.8, "am": 1}, {"wt": None, "hp": 110}]
    assert encode_records(inputs, iter(rows)) == (expected, 2)


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 9999])
def test_a_misfit_is_named_wherever_it_stands(place: int) -> None:
    column: list[Any] = [1.5] * 10_000
    column[place] = "high"
    with pytest.raises(RecordError) as caught:
        encode_records([Parameter("hp", "numeric")], {"hp": column})
    assert str(caught.value) == (
        f"record {place}, field 'hp': found 'high' (str), expected a number (numeric)"
    )


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({"hp": [1, 2], "wt": [1]}, "columns of different lengths ('hp' has 2, 'wt' has 1)"),
        ({"hp": [1]}, "records, field 'wt': found no such column (there are: 'hp')"),
        ([{"hp": 1, "wt": 2}, {"hp": 1}], "record 1, field 'wt': found no such column"),
        ([{"hp": 1, "wt": 2}, 3], "record 1: found int, expected a dict"),
        ("text", "records: found str, expected a list of dicts"),
        (3, "records: found int"),
        ({"hp": "12", "wt": [1]}, "records, field 'hp': found '12', expected a column"),
        ({"hp": 3, "wt": [1]}, "records, field 'hp': found 3, expected a column"),
    ],
)
def test_records_of_no_shape(records: Any, words: str) -> None:
    inputs = [Parameter("hp", "numeric"), Parameter("wt", "numeric")]
    with pytest.raises(InputError) as caught:
        encode_records(inputs, records)
    assert words in str(caught.value)


def test_a_frame_whose_index_is_no_count() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"hp": range(9000), "name": [f"car {n}" for n in range(9000)]}, index=range(9000, 0, -1)
    )
    inputs = [Parameter("name", "character"), Parameter("hp", "numeric")]
    body, count = encode_records(inputs, frame)

    assert count == 9000
    assert json.loads(body)[8999] == {"name": "car 8999", "hp": 8999}


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "int64[pyarrow]"])
def test_whole_numbers_with_gaps_in_a_frame(dtype: str) -> None:
    """As doubles, which is what pandas makes of them for NumPy, the larger one would be another."""
    import pandas as pd

    inputs = [Parameter("n", "integer")]
    frame = pd.DataFrame({"n": pd.Series([2**53 - 1, None, 7], dtype=dtype)})
    assert encode_records(inputs, frame) == (b'[{"n":9007199254740991},{"n":null},{"n":7}]', 3)
    frame = pd.DataFrame({"n": pd.Series([None, 2**53 + 1], dtype=dtype)})
    with pytest.raises(RecordError, match="record 1, field 'n': found 9007199254740993"):
        encode_records(inputs, frame)
    frame = pd.DataFrame({"n": pd.Series([1, 2], dtype=dtype)})
    assert encode_records(inputs, frame) == (b'[{"n":1},{"n":2}]', 2)


def test_a_double_that_is_longer_than_any_of_json() -> None:
    import numpy as np

    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("this machine has none")
    with pytest.raises(RecordError, match="record 0, field 'x': found .*longdouble.*a number"):
        encode_records([Parameter("x", "numeric")], {"x": np.array([0.5], dtype=np.longdouble)})


# --- routes --------------------------------------------------------------------------------------

NAMES = [
    "mtService",
    "my service/β",
    'v"1"',
    "100%",
    "a+b",
    "%2F",
    "a?b#c",
    "..x",
    "\x00",
    "€" * 99,
]


@pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_client_fills_in_a_server_finds(route: Any, name: str) -> None:
    keys = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
    path = route.path(**dict.fromkeys(keys, name))

    assert path.isascii()
    assert not set(path) & set(' "<>?#\0')
    assert match(route.method, path) == (route, dict.fromkeys(keys, name))


# Errors speak of what the caller gave, whatever the Swagger documents call it.
ARGUMENTS = {
    "name": "service_name",
    "version": "service_version",
    "executionId": "execution_id",
    "fileName": "file_name",
    "id": "session or snapshot id",
    "objectName": "object name",
}


@pytest.mark.parametrize("name", ["", ".", "..", "\ud800"])
def test_names_that_cannot_stand_in_an_address(name: str) -> None:
    for route in ROUTES:
        keys = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
        for key in keys:
            argument = ARGUMENTS.get(key, key)
            with pytest.raises(InputError, match=f"^{argument}: found "):
                route.path(**{**dict.fromkeys(keys, "x"), key: name})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/login"),
        ("PUT", "/services"),
        ("GET", "/services//"),
        ("GET", "/api/s/1/batch/id/0"),
        ("GET", "/api//1/batch"),
        ("GET", ""),
        ("GET", "services"),
    ],
)
def test_addresses_that_are_none(method: str, path: str) -> None:
    assert match(method, path) is None


def test_every_error_is_ours() -> None:
    """Whatever the bytes, what comes out is a value or an error of this package."""
    readers = [
        lambda body: documents.read_tokens(body, NOW),
        documents.read_execution_id,
        lambda body: documents.read_names(body, "files"),
        documents.read_server_status,
        read_services,
        read_record_result,
        read_status,
    ]
    bodies = [
        b"",
        b"\xff",
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b"1e999",
        b'"\\ud800"',
        b"nan",
        b"{}x",
    ]
    for body in bodies:
        for read in readers:
            with pytest.raises(MLBatchError):
                read(body)
