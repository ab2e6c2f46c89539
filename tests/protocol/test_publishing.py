"""The conversation that publishes a service, with replies that get lost."""

from __future__ import annotations

import json

import pytest

from airflow_mlbatch.errors import ConnectionLostError, ServiceExistsError
from airflow_mlbatch.protocol.messages import Lost, Reply
from airflow_mlbatch.protocol.publications import Publication, Published
from tests.protocol.test_conversations import World, always, reply, tokens

CUT = Lost("connection reset")
NOT_THERE = reply({"message": "Web service not found"}, 404)
SESSION = reply({"sessionId": "s"}, 201)
SNAPSHOT = reply({"snapshotId": "p"}, 201)
DONE = reply("done")
PUBLICATION = Publication(code="y = x", runtime_type="Python")
OPENED = [
    "POST /login",
    "GET /services/n/1",
    "POST /sessions",
    "POST /sessions/s/workspace/m",
    "POST /sessions/s/snapshot",
    "POST /services/n/1",
]
CLOSED = ["DELETE /sessions/s", "DELETE /snapshots/p"]


def there(snapshot: str) -> Reply:
    return reply([{"name": "n", "version": "1", "snapshotId": snapshot, "code": "y = x"}])


def publish(*answers: Reply | Lost) -> tuple[World, Published | Exception]:
    """Publish with an object; the answers are those from the publication itself on."""
    world = World([tokens(1), NOT_THERE, SESSION, DONE, SNAPSHOT, *answers])
    flow = always().publish_service("n", "1", PUBLICATION, {"m": b"model"})
    try:
        return world, world.run(flow)
    except Exception as error:
        return world, error


def test_the_requests_of_a_deployment() -> None:
    world, outcome = publish(reply("1", 201), DONE, DONE)
    assert outcome is Published.NEW
    assert world.lines == [*OPENED, *CLOSED]
    stored, sent = world.sent[3], json.loads(world.sent[5].body or b"")
    assert (stored.body, stored.headers["content-type"]) == (b"model", "application/octet-stream")
    assert sent == {"code": "y = x", "runtimeType": "Python", "snapshotId": "p"}


def test_a_reply_that_is_lost_after_the_service_was_published() -> None:
    world, outcome = publish(CUT, NOT_THERE, there("p"), DONE, DONE)
    assert outcome is Published.NEW
    # It is looked for, not sent again.
    assert world.lines == [*OPENED, *["GET /services/n/1"] * 2, *CLOSED]


def test_a_reply_that_is_lost_while_somebody_else_publishes() -> None:
    world, error = publish(CUT, there("another"), DONE, DONE)
    assert isinstance(error, ConnectionLostError)
    assert world.lines == [*OPENED, "GET /services/n/1", *CLOSED]


def test_a_publication_that_never_arrives() -> None:
    world, error = publish(CUT, *[NOT_THERE] * 100, DONE, DONE)
    assert isinstance(error, ConnectionLostError)
    assert world.lines.count("POST /services/n/1") == 1
    assert sum(world.waits) == pytest.approx(120, abs=2)


def test_a_version_that_appears_meanwhile() -> None:
    world, error = publish(reply({"message": "there already"}, 409), DONE, DONE)
    assert isinstance(error, ServiceExistsError)
    assert world.lines == [*OPENED, *CLOSED]


def test_what_cannot_be_cleared_away_does_not_fail_the_publication() -> None:
    refused = reply({"message": "no"}, 403)
    world, outcome = publish(reply("1", 201), refused, refused)
    assert outcome is Published.NEW
    assert len([report for report in world.reports if report.problem]) == 2
