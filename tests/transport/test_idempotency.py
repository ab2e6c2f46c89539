"""Starts of batches with an idempotency key, through both drivers: when a repeat is safe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    ConnectionLostError,
    IdempotencyKeyReusedError,
    InputError,
    MLBatchError,
    RejectedError,
    SubmissionUnknownError,
    UnavailableError,
)
from airflow_mlbatch.protocol.flows import Flows, Policy
from airflow_mlbatch.protocol.messages import Flow
from tests.faults.server import (
    Act,
    Answer,
    FaultServer,
    HangUp,
    Play,
    Raw,
    Request,
    Reset,
    as_json,
    closed_port,
)
from tests.faults.talk import DRIVERS, DriverName, Outcome, Talk

KEY = "dag/run/score:-1#1"
BATCH = "/api/mtService/v1.0.0/batch"
TOKENS = as_json({"access_token": "token-one", "expires_in": 3600, "refresh_token": "refresh-one"})
NEW_TOKENS = as_json({"access_token": "token-two", "expires_in": 3600})
STARTED = as_json({"batchExecutionId": "id-1"}, 202)
PAGE = Answer(202, b"<html><body>Please wait</body></html>", [("Content-Type", "text/html")])
HALF = as_json({"batchExecutionId": "id-1"}, 202, stop_after=10)
REUSED = as_json({"message": "this key belongs to another payload"}, 422)
GATEWAY = as_json({"message": "the gateway waited in vain"}, 504)
BUSY = as_json({"message": "too busy"}, 503)
DENIED = as_json({"message": "your token has expired"}, 401)
# Two repeats, after 0.5 and after 1 second.
PATIENCE = Policy(repeat_seconds=2, chance=lambda: 1.0)

both = pytest.mark.parametrize("driver", DRIVERS)


def start(server_knows_keys: bool, key: str | None = KEY) -> Any:
    return lambda flows: flows.start_batch(
        "mtService", "v1.0.0", b"[{}]", idempotency_key=key, server_knows_keys=server_knows_keys
    )


def hold(
    driver: DriverName, acts: Sequence[Act], say: Any, **more: Sequence[Act]
) -> tuple[Outcome, list[Request]]:
    """The outcome, and the starts that reached the server."""
    play: dict[str, Any] = {
        "POST /login": [TOKENS],
        "POST /login/refreshToken": [NEW_TOKENS],
        f"POST {BATCH}": list(acts),
    }
    with FaultServer(Play({**play, **more})) as server:
        outcome = Talk(server.url, policy=PATIENCE).hold(driver, say)
    return outcome, [request for request in server.requests if request.path == BATCH]


@both
@pytest.mark.parametrize(
    "acts",
    [
        [STARTED],
        [Reset(), STARTED],
        [HangUp(), HangUp(), STARTED],
        [HALF, STARTED],
        [PAGE, STARTED],
        [Raw(b"not HTTP at all\r\n\r\n"), STARTED],
        [GATEWAY, BUSY, STARTED],
        [Reset(), DENIED, STARTED],
    ],
    ids=["at once", "reset", "cut", "half a reply", "a page", "noise", "gateway", "expired"],
)
def test_a_start_that_the_server_knows_is_repeated(driver: DriverName, acts: list[Act]) -> None:
    outcome, starts = hold(driver, acts, start(server_knows_keys=True))
    assert outcome.value == "id-1", outcome.text
    assert [request.headers["idempotency-key"] for request in starts] == [KEY] * len(acts)
    assert {request.body for request in starts} == {b"[{}]"}


@both
@pytest.mark.parametrize(
    ("acts", "error", "words", "posts"),
    [
        ([Reset()], SubmissionUnknownError, "connection reset; the batch may have been started", 3),
        ([PAGE], SubmissionUnknownError, "the batch may have been started, or not", 3),
        # The last word says that nothing was done; the first request may have been.
        ([Reset(), BUSY], SubmissionUnknownError, "503 too busy; the batch may have been", 3),
        ([Reset(), DENIED, BUSY], SubmissionUnknownError, "503 too busy; the batch may have", 5),
        ([BUSY], UnavailableError, "503 too busy", 3),
        ([as_json({"message": "broken"}, 500)], UnavailableError, "500 broken", 1),
        ([REUSED], IdempotencyKeyReusedError, "422 this key belongs to another payload", 1),
        ([Reset(), REUSED], IdempotencyKeyReusedError, "422 this key belongs", 2),
        ([as_json({"message": "no"}, 400)], RejectedError, "400 no", 1),
    ],
)
def test_how_a_start_that_the_server_knows_fails(
    driver: DriverName, acts: list[Act], error: type[MLBatchError], words: str, posts: int
) -> None:
    outcome, starts = hold(driver, acts, start(server_knows_keys=True))
    assert outcome.error is error
    assert words in outcome.text
    assert len(starts) == posts


@both
@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("act", [Reset(), HALF, PAGE, GATEWAY])
def test_a_start_that_the_server_may_not_know_is_sent_once(
    driver: DriverName, act: Act, key: str | None
) -> None:
    for server_knows_keys in (False, True) if key is None else (False,):
        outcome, starts = hold(driver, [act, STARTED], start(server_knows_keys, key))
        assert outcome.error is SubmissionUnknownError
        assert [request.headers.get("idempotency-key") for request in starts] == [key]


@both
def test_422_without_a_key_is_an_ordinary_refusal(driver: DriverName) -> None:
    outcome, _ = hold(driver, [REUSED], start(False, None))
    assert outcome.error is RejectedError


@both
def test_nobody_listens(driver: DriverName) -> None:
    """Nothing was sent, so nothing is in doubt."""
    talk = Talk(f"http://127.0.0.1:{closed_port()}", policy=PATIENCE)
    assert talk.hold(driver, start(server_knows_keys=True)).error is ConnectionLostError


@both
@pytest.mark.parametrize("key", ["", "two words", "line\r\nend", "schlüssel", 7])
def test_a_key_that_no_header_can_carry(driver: DriverName, key: Any) -> None:
    for say in (start(True, key), lambda flows: flows.find_batch_executions("s", "1", key)):
        outcome, starts = hold(driver, [STARTED], say)
        assert outcome.error is InputError
        assert outcome.text.startswith("idempotency_key: found ")
        assert starts == []


@both
@pytest.mark.parametrize("headers", [[], [("Accept-Idempotency-Key", "1")]])
def test_executions_are_found_by_their_key(
    driver: DriverName, headers: list[tuple[str, str]]
) -> None:
    def find(flows: Flows) -> Flow[Any]:
        return flows.find_batch_executions("mtService", "v1.0.0", KEY)

    listed = Answer(200, json.dumps(["id-1"]).encode(), headers)
    outcome, asked = hold(driver, [], find, **{f"GET {BATCH}": [listed]})
    assert outcome.value == (["id-1"], bool(headers))
    query = "idempotencyKey=dag%2Frun%2Fscore%3A-1%231"
    assert [request.target for request in asked] == [f"{BATCH}?{query}"]
