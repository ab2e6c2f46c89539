"""Replies by chance, through both drivers: they agree, they end, and what they raise is ours."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_mlbatch.protocol.flows import Policy
from tests.faults.server import Act, Answer, FaultServer, HangUp, Play, Reset, as_json
from tests.faults.table import SCENES, TOKENS, Path
from tests.faults.talk import DRIVERS, Outcome, Talk

POLICY = Policy(repeat_seconds=3, poll_problems=2, chance=lambda: 1.0)
HEADERS = [
    ("Retry-After", "1"),
    ("Retry-After", "Tue, 14 Nov 2023 22:13:21 GMT"),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "deflate"),
    ("Content-Encoding", "identity"),
    ("Content-Encoding", "zstd"),
    ("Location", "/elsewhere"),
    ("Location", "//"),
    ("Location", "http://127.0.0.1:1/elsewhere"),
    ("Content-Type", "text/html"),
]
STATUSES = [
    200,
    200,
    200,
    202,
    204,
    301,
    303,
    307,
    400,
    401,
    403,
    404,
    409,
    429,
    500,
    502,
    503,
    504,
]
GOOD = [scene.good.body for scene in SCENES.values() if isinstance(scene.good.body, bytes)]
BODIES = [*GOOD, b"", b"null", b"[]", b"{}", b"<html>", json.dumps(TOKENS).encode()]


@st.composite
def answers(draw: st.DrawFn) -> Act:
    body = draw(st.sampled_from(BODIES) | st.binary(max_size=40))
    if draw(st.booleans()):
        body = body[: draw(st.integers(0, len(body)))]
    if draw(st.booleans()):
        body = gzip.compress(body, mtime=0)
    status = draw(st.sampled_from(STATUSES))
    if status == 204:
        body = b""
    is_cut = draw(st.booleans()) and len(body) > 1
    return Answer(
        status,
        body,
        draw(st.lists(st.sampled_from(HEADERS), max_size=2, unique_by=lambda pair: pair[0])),
        chunk_sizes=draw(st.lists(st.integers(1, 9), max_size=2)) if body else (),
        stop_after=draw(st.integers(0, len(body) - 1)) if is_cut else None,
    )


acts = answers() | st.sampled_from([Reset(), HangUp()])


def talk(path: Path, logins: list[Act], played: list[Act]) -> list[tuple[Outcome, list[Any]]]:
    found = []
    scene = SCENES[path]
    for driver in DRIVERS:
        script = {
            "POST /login": logins,
            "POST /login/refreshToken": logins,
            f"{scene.method} {scene.target}": played,
            "GET /elsewhere": played[-1:],
        }
        with FaultServer(Play(script)) as server:
            outcome = Talk(server.url, policy=POLICY).hold(driver, scene.say)
        found.append((outcome, [request.shown() for request in server.requests]))
    return found


def comparable(text: str) -> str:
    """Without the server's port, and without the quotation: it shows as much as had arrived."""
    return re.sub(r"\d", "", text.partition(", found ")[0])


@given(
    st.sampled_from(list(Path)),
    st.lists(acts, max_size=1).map(lambda more: [*more, as_json(TOKENS)]),
    st.lists(acts, min_size=1, max_size=3),
)
@example(Path.CALL, [as_json(TOKENS)], [Answer(307, b"", [("Location", "//")])])
@example(Path.CALL, [as_json(TOKENS, 400)], [Reset()])
@example(Path.CALL, [Answer(400, json.dumps(TOKENS).encode()[:40])], [Reset()])
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_both_drivers_agree_on_anything(path: Path, logins: list[Act], played: list[Act]) -> None:
    (first, first_seen), (second, second_seen) = talk(path, logins, played)

    assert (first.error, comparable(first.text)) == (second.error, comparable(second.text))
    assert first.value == second.value
    assert first.waits == second.waits
    assert [line for line in first.sent if "http:" not in line] == [
        line for line in second.sent if "http:" not in line
    ]
    assert first_seen == second_seen
    for secret in TOKENS.values():
        assert str(secret) not in first.text or isinstance(secret, int)
