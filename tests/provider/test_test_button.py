"""The Test button: one attempt, an end within its time, and a sentence that helps."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.protocol.flows import Policy
from tests.faults.server import Answer, FaultServer, Play, Silence, as_json, closed_port
from tests.transport.test_tls import papers, tls

__all__ = ["papers", "tls"]

TOKENS = as_json({"access_token": "token-one", "expires_in": 3600})
STATUS = as_json({"statusCode": "pass"})
BUSY = as_json({"message": "too busy"}, 503)


def no_pause(seconds: float) -> None:
    raise AssertionError(f"a test of the connection repeats nothing, but paused for {seconds} s")


def press(
    monkeypatch: pytest.MonkeyPatch, url: str, seconds: float = 10.0, **fields: Any
) -> tuple[bool, str]:
    connection = {"conn_type": "mlbatch", "host": url, "login": "ada", "password": "s3cret"}
    monkeypatch.setenv("AIRFLOW_CONN_TESTED", json.dumps({**connection, **fields}))
    timing = Timing(Policy(test_seconds=seconds), sleep=no_pause)
    return MLBatchHook("tested", timing=timing).test_connection()


def test_ten_seconds_are_the_most() -> None:
    assert Policy().test_seconds == 10.0


def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS]})) as server:
        assert press(monkeypatch, server.url) == (True, f"{server.url} says 'pass'")


def test_a_server_that_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"POST": [TOKENS], "GET": [as_json({"statusCode": "fail"})]})) as server:
        assert press(monkeypatch, server.url) == (False, f"{server.url} says 'fail'")


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    is_well, words = press(monkeypatch, url)
    assert not is_well
    assert words.startswith(
        f"POST /login at {url}: connection refused; check host and port of {url}"
    )
    assert words.endswith("it is http, and a server that speaks https does not answer that")


def test_a_host_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    is_well, words = press(monkeypatch, "http://nowhere.invalid:12800")
    assert not is_well
    assert "the host name is not known; check host and port of http://nowhere.invalid" in words


@pytest.mark.parametrize("act", [BUSY, Answer(429, b"{}", [("Retry-After", "60")])])
def test_a_busy_server_is_asked_once(act: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"POST": [act]})) as server:
        is_well, words = press(monkeypatch, server.url)
    assert (is_well, len(server.requests)) == (False, 1)
    assert f"POST /login: {act.status}" in words


@pytest.mark.parametrize("path", ["POST", "GET"])
def test_a_server_that_says_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS], path: [Silence()]})) as server:
        is_well, words = press(monkeypatch, server.url, seconds=1.0)
    assert not is_well
    assert "no answer" in words


def test_a_server_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole never."""
    drip = as_json({"statusCode": "pass" * 100}, pause=0.1)
    with FaultServer(Play({"POST": [TOKENS], "GET": [drip]})) as server:
        is_well, words = press(monkeypatch, server.url, seconds=1.0)
    assert not is_well
    assert "no answer" in words


def test_one_time_for_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is refused again and again, and each answer takes a good part of the time."""
    denied = as_json({"message": "expired"}, 401, pause=0.02)
    with FaultServer(Play({"POST": [TOKENS], "GET": [denied]})) as server:
        is_well, words = press(monkeypatch, server.url, seconds=1.0)
    assert not is_well
    assert "401 expired" in words or "no answer" in words


def test_a_name_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit of a request holds for the look-up of a name."""
    with answered_by_nobody(monkeypatch):
        is_well, words = press(monkeypatch, "http://slow.example:12800", seconds=0.5)
    assert (is_well, words) == (False, "http://slow.example:12800: no answer within 0.5 seconds")


@contextmanager
def answered_by_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    over = threading.Event()

    def look_up(*arguments: Any, **more: Any) -> Any:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield
    finally:
        over.set()


def test_https_to_a_server_that_speaks_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"POST": [TOKENS]})) as server:
        is_well, words = press(monkeypatch, server.url.replace("http:", "https:"))
    assert not is_well
    assert "TLS failed" in words
    assert "it is https, and a server that speaks http does not answer that" in words


def test_http_to_a_server_that_speaks_https(
    monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext
) -> None:
    with FaultServer(Play({"POST": [TOKENS]}), tls) as server:
        is_well, words = press(monkeypatch, server.url.replace("https:", "http:"))
    assert not is_well
    assert "it is http, and a server that speaks https does not answer that" in words


def test_another_program_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = [("Content-Type", "application/json"), ("Server", "uvicorn")]
    other = Answer(405, b'{"detail":"Method Not Allowed"}', headers)
    with FaultServer(Play({"POST": [other]})) as server:
        is_well, words = press(monkeypatch, server.url)
    assert not is_well
    assert words.startswith(
        'POST /login: 405 {"detail":"Method Not Allowed"}; a server that calls '
    )
    assert words.endswith(
        "'uvicorn' answered and does not know this address: check host, port and path"
    )


def test_a_page_for_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Answer(200, b"<html>Welcome</html>", [("Server", "nginx/1.25")])
    with FaultServer(Play({"POST": [page]})) as server:
        is_well, words = press(monkeypatch, server.url)
    assert not is_well
    assert "found <html>Welcome</html>; a server that calls itself 'nginx/1.25' answered" in words
