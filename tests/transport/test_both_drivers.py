"""Every case twice, blocking and nonblocking: the same result or error, the same requests."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    ArtifactNotFoundError,
    AuthenticationError,
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    ForbiddenError,
    MLBatchError,
    RejectedError,
    ServiceNotFoundError,
    SubmissionUnknownError,
    UnavailableError,
)
from airflow_mlbatch.protocol.flows import Flows, Login, Policy, ReadyToken
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.states import BatchState
from tests.faults.server import (
    Act,
    Answer,
    FaultServer,
    HangUp,
    Play,
    Raw,
    Request,
    Reset,
    Silence,
    as_json,
)
from tests.faults.talk import DRIVERS, DriverName, Outcome, Talk

TOKENS = {
    "token_type": "Bearer",
    "access_token": "token-one",
    "expires_in": 3600,
    "refresh_token": "refresh-one",
}
LOGIN = {"POST /login": [as_json(TOKENS)]}
STATUS = {"statusCode": "pass", "components": {}, "details": {}}
SERVICE = "/services/mtService/v1.0.0"
DESCRIPTION = {
    "name": "mtService",
    "version": "v1.0.0",
    "inputParameterDefinitions": [{"name": "hp", "type": "numeric"}],
    "outputParameterDefinitions": [{"name": "answer", "type": "numeric"}],
}
BATCH = "/api/mtService/v1.0.0/batch"
NAMED = ("mtService", "v1.0.0")
OUTPUTS = (Parameter("answer", "numeric"),)


def result(answer: float) -> dict[str, Any]:
    return {
        "success": True,
        "errorMessage": "",
        "consoleOutput": "",
        "changedFiles": [],
        "outputParameters": {"answer": answer},
    }


def batch(state: str, count: int, total: int | None = None) -> dict[str, Any]:
    return {
        "state": state,
        "completedItemCount": count,
        "totalItemCount": count if total is None else total,
        "batchExecutionResults": [result(float(place)) for place in range(count)],
    }


def server_status(flows: Flows) -> Flow[Any]:
    return flows.get_server_status()


def service(flows: Flows) -> Flow[Any]:
    return flows.get_service(*NAMED)


def start(flows: Flows) -> Flow[Any]:
    return flows.start_batch(*NAMED, b'[{"hp":120}]', 5)


def status(flows: Flows) -> Flow[Any]:
    return flows.get_batch_status(*NAMED, "id-1")


def results(flows: Flows) -> Flow[Any]:
    """State and answers; a restart forgets the answers that were taken."""
    taken: list[Any] = []

    def read() -> Flow[Any]:
        done = yield from flows.read_batch_results(
            *NAMED,
            "id-1",
            OUTPUTS,
            lambda block: taken.extend(block.outputs["answer"]),
            restart=taken.clear,
        )
        return done, taken

    return read()


def artifact(flows: Flows) -> Flow[Any]:
    return flows.get_artifact(*NAMED, "id-1", 0, "Histogram.png")


def cancel(flows: Flows) -> Flow[Any]:
    return flows.cancel_batch(*NAMED, "id-1")


def watch(flows: Flows) -> Flow[Any]:
    return flows.watch_batch(*NAMED, "id-1", poll_interval=5)


@dataclass(frozen=True)
class Case:
    """A script, what to say, and how it ends.

    :param value: what comes back, or a test of it
    :param targets: the request lines that reach the server, logins left out
    """

    name: str
    say: Callable[[Flows], Flow[Any]]
    acts: Mapping[str, Sequence[Act]]
    value: Any = None
    error: type[MLBatchError] | None = None
    text: str = ""
    targets: Sequence[str] | None = None
    waits: Sequence[float] | None = None
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=lambda: Policy(chance=lambda: 1.0))
    login: Login | None = None


ERROR = {"code": 400, "message": "no such thing", "fields": ""}
OLD_ERROR = {"message": "no such thing", "link": None, "exceptionType": "Oops"}
PAGE = b"<html><body><h1>Please sign in</h1></body></html>"
HTML = [("Content-Type", "text/html")]
GZIP = [("Content-Encoding", "gzip")]
STATUS_BODY = json.dumps(STATUS).encode()
OK = lambda found: found.status_code == "pass"  # noqa: E731
COMPLETE = as_json(batch("Complete", 3))
BUSY = as_json({"message": "too busy"}, 503)


def headers(*pairs: tuple[str, str], status: int = 200, body: bytes = b"") -> Answer:
    return Answer(status, body, pairs)


FAST = Policy(repeat_seconds=5, chance=lambda: 1.0)
CASES = [
    # --- replies that arrive well, in every packing
    Case("plain", server_status, {"GET": [as_json(STATUS)]}, OK, targets=["GET /status"]),
    Case("chunked", server_status, {"GET": [as_json(STATUS, chunk_sizes=[1, 2, 7])]}, OK),
    Case("gzip", server_status, {"GET": [Answer(200, gzip.compress(STATUS_BODY), GZIP)]}, OK),
    Case(
        "gzip in chunks",
        server_status,
        {"GET": [Answer(200, gzip.compress(STATUS_BODY), GZIP, chunk_sizes=[1])]},
        OK,
    ),
    Case(
        "gzip in two members",
        server_status,
        {
            "GET": [
                Answer(200, gzip.compress(STATUS_BODY[:9]) + gzip.compress(STATUS_BODY[9:]), GZIP)
            ]
        },
        OK,
    ),
    Case(
        "deflate",
        server_status,
        {"GET": [Answer(200, zlib.compress(STATUS_BODY), [("Content-Encoding", "deflate")])]},
        OK,
    ),
    Case(
        "until the line ends",
        server_status,
        {"GET": [Raw(b"HTTP/1.1 200 OK\r\n\r\n" + STATUS_BODY)]},
        OK,
    ),
    Case(
        "drip that ends in time",
        server_status,
        {"GET": [as_json(STATUS, pause=0.001)]},
        OK,
        targets=["GET /status"],
    ),
    Case(
        "a byte order mark",
        server_status,
        {"GET": [Answer(200, b"\xef\xbb\xbf" + STATUS_BODY)]},
        OK,
    ),
    Case(
        "a long head",
        server_status,
        {"GET": [headers(("Set-Cookie", "x" * 40_000), body=STATUS_BODY)]},
        OK,
    ),
    Case("empty file", artifact, {"GET": [Answer()]}, b""),
    Case("bytes", artifact, {"GET": [Answer(200, bytes(range(256)))]}, bytes(range(256))),
    # --- bodies that are not what they should be
    Case(
        "a page with status 200",
        server_status,
        {"GET": [Answer(200, PAGE, HTML)]},
        error=ContractError,
        text="server status: expected JSON (JSON is malformed: invalid character (byte 0)), "
        "found <html><body><h1>Please sign in</h1></body></html>",
    ),
    Case(
        "truncated JSON",
        server_status,
        {"GET": [Answer(200, STATUS_BODY[:-5])]},
        error=ContractError,
        text="server status: expected JSON (Input data was truncated)",
    ),
    Case(
        "JSON too deep to mean anything",
        server_status,
        {"GET": [Answer(200, b"[" * 100_000)]},
        error=ContractError,
        text="server status: expected JSON (maximum recursion depth",
    ),
    Case(
        "bytes that are no text",
        server_status,
        {"GET": [Answer(200, b'{"statusCode":"\xff\xfe"}')]},
        error=ContractError,
        text="server status: expected JSON",
    ),
    Case(
        "no body",
        server_status,
        {"GET": [Answer(204)]},
        error=ContractError,
        text="found nothing",
    ),
    Case(
        "gzip that does not unpack",
        server_status,
        {"GET": [Answer(200, b"this was never packed", GZIP)]},
        error=ContractError,
        text="GET /status: the packed reply cannot be unpacked",
        targets=["GET /status"],
    ),
    Case(
        "gzip that ends too early",
        server_status,
        {"GET": [Answer(200, gzip.compress(STATUS_BODY)[:-9], GZIP)]},
        error=ContractError,
        text="GET /status: the packed reply ends too early",
    ),
    Case(
        "gzip that ends in its header",
        artifact,
        {"GET": [Answer(200, gzip.compress(b"content")[:8], GZIP)]},
        error=ContractError,
        text="the packed reply ends too early",
    ),
    Case(
        "a packing that was not offered",
        server_status,
        {"GET": [headers(("Content-Encoding", "br"), body=b"??")]},
        error=ContractError,
        text="GET /status: found content-encoding 'br', expected gzip, deflate",
    ),
    # --- errors that the server words
    Case(
        "error of a service",
        service,
        {"GET": [as_json(ERROR, 400)]},
        error=RejectedError,
        text=f"GET {SERVICE}: 400 no such thing",
        targets=[f"GET {SERVICE}"],
    ),
    Case(
        "error of the core",
        service,
        {"GET": [as_json(OLD_ERROR, 409)]},
        error=RejectedError,
        text=f"GET {SERVICE}: 409 no such thing",
    ),
    Case(
        "error as text",
        service,
        {"GET": [Answer(500, b"something\n  broke")]},
        error=UnavailableError,
        text=f"GET {SERVICE}: 500 something broke",
        targets=[f"GET {SERVICE}"],
    ),
    Case(
        "error as a page",
        service,
        {"GET": [Answer(403, PAGE, HTML)]},
        error=ForbiddenError,
        text=f"GET {SERVICE}: 403 <html><body>",
    ),
    Case(
        "error without a word",
        service,
        {"GET": [Answer(422)]},
        error=RejectedError,
        text=f"GET {SERVICE}: 422 nothing",
    ),
    Case(
        "error that is packed wrongly",
        service,
        {"GET": [Answer(403, b"never packed", GZIP)]},
        error=ForbiddenError,
        text=f"GET {SERVICE}: 403 nothing",
    ),
    Case(
        "error in a packing that was not offered",
        service,
        {"GET": [headers(("Content-Encoding", "br"), status=403, body=b"??")]},
        error=ForbiddenError,
        text=f"GET {SERVICE}: 403 nothing",
    ),
    Case(
        "error page of a gigabyte",
        service,
        {"GET": [Answer(403, b"x" * 600_000)]},
        error=ForbiddenError,
        text=f"GET {SERVICE}: 403 xxx",
    ),
    Case(
        "no such service",
        start,
        {"POST": [as_json({"message": "web service not found"}, 404)]},
        error=ServiceNotFoundError,
        text=f"POST {BATCH}: 404 web service not found",
    ),
    Case(
        "no such execution",
        status,
        {"GET": [as_json({"message": "execution not found"}, 404)]},
        error=ExecutionNotFoundError,
        text=f"GET {BATCH}/id-1: 404 execution not found",
    ),
    Case(
        "no such file",
        artifact,
        {"GET": [as_json({"message": "file not found"}, 404)]},
        error=ArtifactNotFoundError,
        text="404 file not found",
    ),
    # --- lines that break
    Case(
        "reset, then well",
        server_status,
        {"GET": [Reset(), Reset(), as_json(STATUS)]},
        OK,
        targets=["GET /status"] * 3,
        waits=[0.5, 1.0],
    ),
    Case(
        "reset every time",
        server_status,
        {"GET": [Reset()]},
        error=ConnectionLostError,
        text="GET /status at URL: connection reset",
        targets=["GET /status"] * 4,
        waits=[0.5, 1.0, 2.0],
        policy=FAST,
    ),
    Case(
        "hung up every time",
        server_status,
        {"GET": [HangUp()]},
        error=ConnectionLostError,
        text="GET /status at URL: the server closed the connection before the reply was whole",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "cut in the head",
        server_status,
        {"GET": [Raw(b"HTTP/1.1 200 OK\r\nContent-Le")]},
        error=ConnectionLostError,
        text="GET /status at URL: the server closed the connection before the reply was whole",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "cut in the body",
        server_status,
        {"GET": [as_json(STATUS, stop_after=20)]},
        error=ConnectionLostError,
        text="GET /status at URL: the server closed the connection before the reply was whole",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "cut between chunks",
        server_status,
        {"GET": [as_json(STATUS, chunk_sizes=[10], stop_after=30)]},
        error=ConnectionLostError,
        text="GET /status at URL: the server closed the connection before the reply was whole",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "cut inside a chunk",
        server_status,
        {"GET": [as_json(STATUS, chunk_sizes=[10], stop_after=5)]},
        error=ConnectionLostError,
        text="GET /status at URL: the server closed the connection before the reply was whole",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "not HTTP",
        server_status,
        {"GET": [Raw(b"SSH-2.0-OpenSSH_9.6\r\n")]},
        error=ConnectionLostError,
        text="GET /status at URL: the reply is not HTTP",
        targets=["GET /status"] * 4,
        policy=FAST,
    ),
    Case(
        "silence",
        server_status,
        {"GET": [Silence()]},
        error=ConnectionLostError,
        text="GET /status at URL: no answer in time",
        targets=["GET /status"] * 4,
        endpoint={"read_timeout": 0.15},
        policy=FAST,
    ),
    Case(
        "silence after the head",
        server_status,
        {"GET": [as_json(STATUS, pause=30, piece=5)]},
        error=ConnectionLostError,
        text="GET /status at URL: no answer in time",
        targets=["GET /status"] * 4,
        endpoint={"read_timeout": 0.15},
        policy=FAST,
    ),
    Case(
        "a drip without end",
        server_status,
        {"GET": [Answer(200, b" " * 100_000, pause=0.02)]},
        error=ConnectionLostError,
        text="GET /status at URL: no answer in time",
        targets=["GET /status"] * 4,
        policy=replace(FAST, small_seconds=0.25),
    ),
    Case(
        "a head that drips without end",
        server_status,
        {"GET": [Raw(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20, pause=0.02)]},
        error=ConnectionLostError,
        text="GET /status at URL: no answer in time",
        targets=["GET /status"] * 4,
        policy=replace(FAST, small_seconds=0.25),
    ),
    # --- a server that is busy
    Case(
        "503, then well",
        server_status,
        {"GET": [BUSY, as_json(STATUS, 502), as_json(STATUS, 504), as_json(STATUS)]},
        OK,
        targets=["GET /status"] * 4,
        waits=[0.5, 1.0, 2.0],
    ),
    Case(
        "429 with seconds",
        server_status,
        {"GET": [headers(("Retry-After", "7"), status=429), as_json(STATUS)]},
        OK,
        waits=[7.0],
    ),
    Case(
        "429 with a date",
        server_status,
        {
            "GET": [
                headers(("Retry-After", "Tue, 14 Nov 2023 22:13:29 GMT"), status=429),
                as_json(STATUS),
            ]
        },
        OK,
        waits=[9.0],
    ),
    Case(
        "429 for longer than anybody waits",
        server_status,
        {"GET": [headers(("Retry-After", "86400"), status=429)]},
        error=UnavailableError,
        text="GET /status: 429 nothing",
        targets=["GET /status"],
    ),
    # --- the start of a batch
    Case(
        "start",
        start,
        {"POST": [as_json({"batchExecutionId": "id-1"}, 202)]},
        "id-1",
        targets=[f"POST {BATCH}?parallelCount=5"],
    ),
    Case(
        "start, the other spelling",
        start,
        {"POST": [as_json({"BatchExecutionId": "id-1"}, 202)]},
        "id-1",
    ),
    Case(
        "start is told to wait",
        start,
        {"POST": [headers(("Retry-After", "3"), status=429), as_json("id-1", 202)]},
        "id-1",
        targets=[f"POST {BATCH}?parallelCount=5"] * 2,
        waits=[3.0],
    ),
    *(
        Case(
            f"start meets {name}",
            start,
            {"POST": [act]},
            error=SubmissionUnknownError,
            text=text,
            targets=[f"POST {BATCH}?parallelCount=5"],
            endpoint={"read_timeout": 0.15} if isinstance(act, Silence) else {},
        )
        for name, act, text in (
            ("a reset", Reset(), "connection reset; the batch may have been started, or not"),
            ("a polite end", HangUp(), "before the reply was whole; the batch may have been"),
            ("silence", Silence(), "no answer in time; the batch may have been started, or not"),
            ("a cut", as_json("id-1", 202, stop_after=3), "closed the connection before the reply"),
            (
                "a page",
                Answer(202, PAGE, HTML),
                "may have been started, or not: reply to the start",
            ),
            (
                "bad packing",
                Answer(202, b"no", GZIP),
                "or not: POST /api/{name}/{version}/batch: the",
            ),
            ("an odd packing", headers(("Content-Encoding", "br"), status=202, body=b"."), "'br'"),
            ("a bad gateway", Answer(502), "502 nothing; the batch may have been started, or not"),
            ("a slow gateway", Answer(504), "504 nothing; the batch may have been started, or not"),
        )
    ),
    Case(
        "start meets a busy server",
        start,
        {"POST": [BUSY]},
        error=UnavailableError,
        text=f"POST {BATCH}: 503 too busy",
        targets=[f"POST {BATCH}?parallelCount=5"],
    ),
    Case(
        "cancel is repeated, and gone is as good",
        cancel,
        {"DELETE": [Reset(), as_json({"message": "execution not found"}, 404)]},
        value=lambda found: found is False,
        targets=[f"DELETE {BATCH}/id-1"] * 2,
    ),
    # --- tokens
    Case(
        "401 once",
        server_status,
        {
            "GET": [as_json({}, 401), as_json(STATUS)],
            "POST /login/refreshToken": [as_json({**TOKENS, "access_token": "token-two"})],
        },
        OK,
        targets=["GET /status", "POST /login/refreshToken", "GET /status"],
    ),
    Case(
        "401 and a dead refresh token",
        server_status,
        {
            "GET": [as_json({}, 401), as_json(STATUS)],
            "POST /login": [as_json(TOKENS), as_json({**TOKENS, "access_token": "token-two"})],
            "POST /login/refreshToken": [as_json({"message": "too old"}, 400)],
        },
        OK,
        targets=["GET /status", "POST /login/refreshToken", "GET /status"],
    ),
    Case(
        "401 for ever",
        server_status,
        {
            "GET": [as_json({"message": "who are you?"}, 401)],
            "POST /login/refreshToken": [as_json({**TOKENS, "access_token": "token-two"})],
        },
        error=AuthenticationError,
        text="GET /status: 401 who are you?",
        targets=["GET /status", "POST /login/refreshToken", "GET /status"],
    ),
    Case(
        "a wrong password",
        server_status,
        {"POST /login": [as_json({"message": "bad s3cret-passw0rd for ada"}, 401)]},
        error=AuthenticationError,
        text="the server refused the login of user 'ada': POST /login: 401 bad *** for ada",
        targets=[],
    ),
    Case(
        "a login page instead of tokens",
        server_status,
        {"POST /login": [Answer(200, PAGE, HTML)]},
        error=ContractError,
        text="reply to the login: expected JSON (JSON is malformed: invalid character (byte 0)), "
        "found <html>",
        targets=[],
    ),
    Case(
        "half a reply to the login",
        server_status,
        {"POST /login": [Answer(200, json.dumps(TOKENS)[:60].encode())]},
        error=ContractError,
        text="reply to the login: expected JSON (Input data was truncated), "
        "found 60 bytes that are not shown here",
        targets=[],
    ),
    Case(
        "a ready token that is refused",
        server_status,
        {"GET": [as_json({"message": "token-zero is not known"}, 401)]},
        error=AuthenticationError,
        text="the server does not accept the token in the connection's password field",
        targets=["GET /status"],
        login=ReadyToken("token-zero"),
    ),
    # --- batches
    Case(
        "status",
        status,
        {"GET": [COMPLETE]},
        lambda found: (found.state, found.total_item_count) == (BatchState.COMPLETE, 3),
        targets=[f"GET {BATCH}/id-1?showPartialResults=false&showPartialResult=false"],
    ),
    Case(
        "results",
        results,
        {"GET": [as_json(batch("Complete", 3), chunk_sizes=[5])]},
        lambda found: found[1] == [0.0, 1.0, 2.0],
        targets=[f"GET {BATCH}/id-1?showPartialResults=true&showPartialResult=true"],
    ),
    Case(
        "results start over",
        results,
        {"GET": [as_json(batch("Complete", 3), stop_after=400), COMPLETE]},
        lambda found: found[1] == [0.0, 1.0, 2.0],
        targets=[f"GET {BATCH}/id-1?showPartialResults=true&showPartialResult=true"] * 2,
    ),
    Case(
        "fewer results than promised",
        results,
        {"GET": [as_json(batch("complete", 2, 3))]},
        error=ContractError,
        text="execution id-1: complete with 2 results, expected 3",
    ),
    Case(
        "watch",
        watch,
        {"GET": [as_json(batch("pending", 0, 3)), as_json(batch("inProgress", 1, 3)), COMPLETE]},
        lambda found: str(found) == "3 of 3 records, 100 %",
        waits=[5, 5],
    ),
    Case(
        "watch meets a state that nobody knows",
        watch,
        {"GET": [as_json(batch("Pausiert", 1, 3))]},
        error=MLBatchError,
        text="field 'state': found 'Pausiert', expected one of pending, inProgress, ready",
    ),
]


def hold(case: Case, driver: DriverName, server: FaultServer) -> Outcome:
    talk = Talk(server.url, policy=case.policy, endpoint=dict(case.endpoint))
    if case.login is not None:
        talk = replace(talk, login=case.login)
    return talk.hold(driver, case.say)


def run(case: Case, driver: DriverName) -> tuple[Outcome, list[Request]]:
    with FaultServer(Play({**LOGIN, **case.acts})) as server:
        outcome = hold(case, driver, server)
    return outcome, server.requests


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_both_drivers_agree(case: Case) -> None:
    (first, first_seen), (second, second_seen) = (run(case, driver) for driver in DRIVERS)

    assert (first.error, first.text) == (second.error, second.text)
    assert first.value == second.value
    assert (first.sent, first.waits, first.reports) == (second.sent, second.waits, second.reports)
    assert [seen.shown() for seen in first_seen] == [seen.shown() for seen in second_seen]

    if case.error is None:
        assert first.error is None, first.text
        assert case.value(first.value) if callable(case.value) else first.value == case.value
    else:
        assert first.error is not None
        assert issubclass(first.error, case.error)
        assert case.text in first.text
    lines = [f"{seen.method} {seen.target}" for seen in first_seen]
    if case.targets is not None:
        assert [line for line in lines if line != "POST /login"] == list(case.targets)
    if case.waits is not None:
        assert list(first.waits) == list(case.waits)
    for secret in ("s3cret-passw0rd", "token-one", "token-two", "token-zero", "refresh-one"):
        assert secret not in first.text
