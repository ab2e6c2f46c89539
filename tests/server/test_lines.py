"""What reaches the server below HTTP, and beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest
from starlette.requests import Request

from airflow_mlbatch.server import requests as server_requests
from airflow_mlbatch.server.replies import Refusal
from tests.server.api import Api
from tests.server_process import RunningServer


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def read_all(line: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    pieces = []
    while piece := line.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def exchange(server: RunningServer, sent: bytes) -> tuple[int, bytes]:
    """Send bytes; status and body of the first answer, on a line that then closes."""
    with connect(server) as line:
        line.sendall(sent)
        head, _, body = read_all(line).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def head(api: Api, request_line: str, *lines: str) -> bytes:
    token = f"Authorization: {api.session.headers['Authorization']!s}"
    return "\r\n".join([request_line, "Host: x", token, *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "sent",
    [
        b"NO HTTP AT ALL\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /services/\xce\xb2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_contracts_shape(
    server: RunningServer, sent: bytes
) -> None:
    status, body = exchange(server, sent)
    assert status == 400
    assert json.loads(body) == {
        "code": 400,
        "message": "Invalid HTTP request received.",
        "fields": "",
        "link": "",
        "exceptionType": "",
    }


def test_a_head_without_an_end_does_not_fill_the_memory(server: RunningServer) -> None:
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with connect(server) as line, pytest.raises(OSError):
        line.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n")
        for number in range(1000):
            line.sendall(b"X-%d: %s\r\n" % (number, b"x" * 50_000))
    assert process.memory_info().rss - before < 20_000_000


def test_the_offer_of_another_protocol_is_declined(server: RunningServer, api: Api) -> None:
    # As the HTTP client of Java makes it with every request.
    body = b'{"x": 21}'
    offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"]
    length = f"Content-Length: {len(body)}"
    before = server.log.read_text()
    with connect(server) as line:
        line.sendall(head(api, "POST /api/double/1 HTTP/1.1", length, *offer) + body)
        line.sendall(head(api, "GET /status HTTP/1.1", "Connection: close"))
        first, second = read_all(line).split(b"HTTP/1.1 200 OK")[1:]
    assert b'"outputParameters":{"y":42.0}' in first
    assert b'"statusCode":"pass"' in second
    assert server.log.read_text() == before


def test_requests_that_do_not_wait_for_their_answers(server: RunningServer, api: Api) -> None:
    with connect(server) as line:
        for number in range(5):
            body = b'{"x": %d}' % number
            length = f"Content-Length: {len(body)}"
            line.sendall(head(api, "POST /api/double/1 HTTP/1.1", length) + body)
        line.sendall(head(api, "GET /status HTTP/1.1", "Connection: close"))
        answers = read_all(line).split(b"HTTP/1.1 200 OK")[1:]
    for number, answer in enumerate(answers[:5]):
        assert b'{"y":%d.0}' % (2 * number) in answer
    assert len(answers) == 6


def test_a_body_in_chunks_and_a_client_that_asks_first(server: RunningServer, api: Api) -> None:
    ask = ["Expect: 100-continue", "Transfer-Encoding: chunked", "Connection: close"]
    with connect(server) as line:
        line.sendall(head(api, "POST /api/double/1 HTTP/1.1", *ask))
        assert line.recv(100).startswith(b"HTTP/1.1 100 ")
        line.sendall(b'4\r\n{"x"\r\n5\r\n: 21}\r\n0\r\n\r\n')
        assert b'{"y":42.0}' in read_all(line)


def test_the_whole_address_in_the_request_line(server: RunningServer, api: Api) -> None:
    line = "GET http://proxied:80/services/my%20service%2F%CE%B2 HTTP/1.1"
    status, body = exchange(server, head(api, line, "Connection: close"))
    assert status == 200
    assert json.loads(body)[0]["name"] == "my service/β"


def silence(line: socket.socket) -> None:
    """Say nothing."""


def half_a_head(line: socket.socket) -> None:
    """Go on with a head for ever, a byte at a time."""
    line.sendall(b"GET /status HTTP/1.1\r\nX: ")
    line.settimeout(0.2)
    while True:
        try:
            line.sendall(b"x")
            if not line.recv(1):
                return
        except TimeoutError:
            continue


def half_a_second_head(line: socket.socket) -> None:
    """The same after a good request."""
    line.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 401 " in line.recv(1000)
    half_a_head(line)


def test_who_sends_no_request_is_hung_up_on(server: RunningServer) -> None:
    def wait(behave: Callable[[socket.socket], None]) -> bytes:
        with connect(server) as line, contextlib.suppress(ConnectionError):
            behave(line)
            return line.recv(1000)
        return b""

    behaviours = (silence, half_a_head, half_a_second_head)
    with ThreadPoolExecutor(len(behaviours)) as clients:
        assert list(clients.map(wait, behaviours)) == [b""] * len(behaviours)


async def trickle() -> dict[str, object]:
    await asyncio.sleep(0.01)
    return {"type": "http.request", "body": b"x", "more_body": True}


def test_a_body_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock of a day's wait, set forward: it is never silent for long.
    monkeypatch.setattr(server_requests, "_SILENCE_SECONDS", 0.2)
    request = Request({"type": "http", "headers": []}, trickle)
    with pytest.raises(Refusal) as caught:
        asyncio.run(server_requests.read_body(request, 1_000_000))
    assert caught.value.status == 408


def test_a_body_that_comes_slowly_but_surely_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than the whole takes, more than any pause of a busy machine.
    monkeypatch.setattr(server_requests, "_SILENCE_SECONDS", 2.0)
    left = 50

    async def receive() -> dict[str, object]:
        nonlocal left
        left -= 1
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": left > 0}

    request = Request({"type": "http", "headers": []}, receive)
    assert len(asyncio.run(server_requests.read_body(request, 1_000_000))) == 50_000
