"""Whoever watches a conversation is told of each repeat: what happened, which try, when the next."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mlbatch.errors import UnavailableError
from airflow_mlbatch.protocol.flows import Flows, Policy
from airflow_mlbatch.protocol.messages import Flow
from tests.faults.server import Act, FaultServer, Play, Reset, as_json, closed_port
from tests.faults.talk import DRIVERS, USER, DriverName, Talk

LOGIN = as_json({"access_token": "token-one", "expires_in": 3600})
STATUS = as_json({"statusCode": "pass"})
BUSY = as_json({"message": f"too busy for token-one and {USER.password}"}, 503)
AT_WORK = as_json({"state": "inProgress", "completedItemCount": 1, "totalItemCount": 3})
COMPLETE = as_json({"state": "Complete", "completedItemCount": 3, "totalItemCount": 3})
POLL = "GET /api/s/1/batch/id"
BUSY_POLL = f"{POLL}: 503 too busy for *** and ***"

both = pytest.mark.parametrize("driver", DRIVERS)


def server_status(flows: Flows) -> Flow[Any]:
    return flows.get_server_status()


def watch(flows: Flows) -> Flow[Any]:
    return flows.watch_batch("s", "1", "id", poll_interval=20)


def warnings(
    driver: DriverName, say: Any, posts: list[Act], gets: list[Act], **policy: Any
) -> tuple[str, ...]:
    patience = Policy(chance=lambda: 1.0, **policy)
    with FaultServer(Play({"POST": posts, "GET": gets})) as server:
        return Talk(server.url, policy=patience).hold(driver, say).warnings


@both
def test_each_repeat_of_a_request(driver: DriverName) -> None:
    told = warnings(driver, server_status, [LOGIN], [BUSY, Reset(), STATUS])
    assert told == (
        "GET /status: 503 too busy for *** and *** (try 1 failed, the next in 0.5 s)",
        "GET /status at URL: connection reset (try 2 failed, the next in 1 s)",
    )


@both
def test_each_repeat_of_the_login(driver: DriverName) -> None:
    told = warnings(driver, server_status, [Reset(), LOGIN], [STATUS])
    assert told == ("POST /login at URL: connection reset (try 1 failed, the next in 0.5 s)",)


@both
def test_a_server_that_asks_for_time(driver: DriverName) -> None:
    late = as_json({"message": "later"}, 429)
    late = type(late)(429, late.body, [("Retry-After", "90")])
    told = warnings(driver, server_status, [LOGIN], [late, STATUS])
    assert told == ("GET /status: 429 later (try 1 failed, the next in 90 s)",)


@both
def test_each_poll_and_the_repeats_within_it(driver: DriverName) -> None:
    """Two requests for each poll: the second pause of a poll would take more than 1 second."""
    told = warnings(
        driver, watch, [LOGIN], [AT_WORK, *[BUSY] * 4, AT_WORK, COMPLETE], repeat_seconds=1
    )
    assert told == (
        f"{BUSY_POLL} (try 1 failed, the next in 0.5 s)",
        f"{BUSY_POLL} (try 1 failed, the next in 20 s)",
        f"{BUSY_POLL} (try 1 failed, the next in 0.5 s)",
        f"{BUSY_POLL} (try 2 failed, the next in 20 s)",
    )


@both
def test_nobody_listens(driver: DriverName) -> None:
    patience = Policy(repeat_seconds=2, chance=lambda: 1.0)
    outcome = Talk(f"http://127.0.0.1:{closed_port()}", policy=patience).hold(driver, server_status)
    refused = "POST /login at URL: connection refused"
    assert outcome.warnings == (
        f"{refused} (try 1 failed, the next in 0.5 s)",
        f"{refused} (try 2 failed, the next in 1 s)",
    )
    assert outcome.text == refused


@both
def test_what_is_not_repeated_is_only_raised(driver: DriverName) -> None:
    broken = as_json({"message": "broken"}, 500)
    with FaultServer(Play({"POST": [LOGIN], "GET": [broken]})) as server:
        outcome = Talk(server.url).hold(driver, server_status)
    assert (outcome.error, outcome.warnings) == (UnavailableError, ())
