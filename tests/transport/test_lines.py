"""What only a real line shows: addresses, redirects, limits, lines kept open, many flows at once."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_mlbatch.errors import (
    AuthenticationError,
    ConnectionLostError,
    ContractError,
    ForbiddenError,
    ReplyTooLargeError,
    SubmissionUnknownError,
    UnavailableError,
)
from airflow_mlbatch.protocol.flows import Flows, Policy, ReadyToken
from airflow_mlbatch.protocol.messages import MIB, Flow, Send, Sink
from airflow_mlbatch.protocol.results import StatusSink
from airflow_mlbatch.protocol.routes import BATCH
from airflow_mlbatch.transport.blocking import BlockingDriver
from airflow_mlbatch.transport.endpoint import CHUNK, Endpoint, proxy_for
from airflow_mlbatch.transport.nonblocking import NonblockingDriver
from tests.faults.server import (
    Act,
    Answer,
    FaultServer,
    Play,
    Request,
    Reset,
    as_json,
    closed_port,
)
from tests.faults.talk import DRIVERS, USER, Clock, DriverName, End, Talk, next_step

TOKENS = as_json({"access_token": "token-one", "expires_in": 3600, "refresh_token": "refresh-one"})
STATUS = as_json({"statusCode": "pass"})
PATIENCE = Policy(repeat_seconds=5, chance=lambda: 1.0)

both = pytest.mark.parametrize("driver", DRIVERS)


def redirect(location: str, status: int = 307) -> Answer:
    return Answer(status, b"", [("Location", location)])


def server_status(flows: Flows) -> Flow[Any]:
    return flows.get_server_status()


# --- addresses -----------------------------------------------------------------------------------


@both
def test_names_are_quoted_on_the_line(driver: DriverName) -> None:
    body = b"content"
    with FaultServer(Play({"POST": [TOKENS], "GET": [Answer(200, body)]})) as server:
        outcome = Talk(server.url).hold(
            driver,
            lambda flows: flows.get_artifact("my service/β", 'v"1 %', "a+b", 3, "x #?&=.csv"),
        )

    assert outcome.value == body
    target = server.requests[-1].target
    assert target == (
        "/api/my%20service%2F%CE%B2/v%221%20%25/batch/a%2Bb/3/files/x%20%23%3F%26%3D.csv"
    )
    assert [unquote(part) for part in target.split("/")][2:4] == ["my service/β", 'v"1 %']


@both
def test_an_endpoint_may_have_a_path(driver: DriverName) -> None:
    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS]})) as server:
        outcome = Talk(f"{server.url}/behind/a proxy".replace(" ", "%20")).hold(
            driver, server_status
        )

    assert outcome.error is None
    assert [request.target for request in server.requests] == [
        "/behind/a%20proxy/login",
        "/behind/a%20proxy/status",
    ]


@both
def test_nobody_listens(driver: DriverName) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    outcome = Talk(url, policy=PATIENCE).hold(driver, server_status)

    assert outcome.error is ConnectionLostError
    assert outcome.text == "POST /login at URL: connection refused"
    assert outcome.sent == ("POST /login",) * 4


@both
def test_a_batch_is_started_again_when_nothing_can_have_arrived(driver: DriverName) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    talk = Talk(url, login=ReadyToken("ready"), policy=PATIENCE)
    outcome = talk.hold(driver, lambda flows: flows.start_batch("s", "1", b"[]"))

    assert outcome.error is ConnectionLostError
    assert len(outcome.sent) == 4


@both
def test_a_host_that_is_not_known(driver: DriverName) -> None:
    outcome = Talk("http://nowhere.invalid:12800", policy=PATIENCE).hold(driver, server_status)

    assert outcome.error is ConnectionLostError
    assert outcome.text == "POST /login at URL: the host name is not known"


# --- redirects -----------------------------------------------------------------------------------


@both
def test_a_redirect_on_the_same_host_keeps_the_token(driver: DriverName) -> None:
    acts = {
        "POST": [TOKENS],
        "GET /status": [redirect("/elsewhere/status?a=1")],
        "GET /elsewhere/status": [STATUS],
    }
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is None
    assert [request.headers.get("authorization") for request in server.requests[1:]] == [
        "Bearer token-one",
        "Bearer token-one",
    ]
    assert server.requests[-1].target == "/elsewhere/status?a=1"


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_loses_the_token(driver: DriverName, status: int) -> None:
    with FaultServer(Play({"GET": [STATUS]})) as other:
        acts = {"POST": [TOKENS], "GET": [redirect(f"{other.url}/status", status)]}
        with FaultServer(Play(acts)) as server:
            outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is None
    assert len(other.requests) == 1
    assert "authorization" not in other.requests[0].headers
    assert "token-one" not in str(other.requests)


@both
def test_credentials_of_the_environment_go_nowhere(
    driver: DriverName, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password from-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS]})) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is None
    sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [None, "Bearer token-one"]


@both
@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("http://user:secret@127.0.0.1/status", "http(s) address"),
        ("ftp://127.0.0.1/status", "http(s) address"),
        ("http://[::1/status", "http(s) address"),
        ("http://127.0.0.1:port/status", "http(s) address"),
        ("", "http(s) address"),
    ],
)
def test_a_redirect_to_no_address(driver: DriverName, location: str, found: str) -> None:
    acts = {"POST": [TOKENS], "GET": [redirect(location)]}
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is ContractError
    assert outcome.text.startswith("GET /status: found status 307 with the location ")
    assert found in outcome.text


@both
def test_a_redirect_that_forgot_to_quote(driver: DriverName) -> None:
    acts = {
        "POST": [TOKENS],
        "GET /status": [redirect("/so many β/status")],
        "GET /so%20many%20%CE%B2/status": [STATUS],
    }
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert (outcome.error, outcome.text) == (None, "")


@both
def test_a_post_is_not_sent_on(driver: DriverName) -> None:
    with FaultServer(Play({"POST": [as_json("id", 202)]})) as other:
        acts = {"POST /login": [TOKENS], "POST": [redirect(f"{other.url}/x", 307)]}
        with FaultServer(Play(acts)) as server:
            outcome = Talk(server.url).hold(
                driver, lambda flows: flows.start_batch("s", "1", b"[1]")
            )

    assert outcome.error is ContractError
    assert "only reading requests are sent on" in outcome.text
    assert other.requests == []


@both
def test_a_password_is_not_sent_on(driver: DriverName) -> None:
    other = FaultServer(Play({"POST": [TOKENS], "GET": [TOKENS]}))
    acts = {"POST": [redirect(f"{other.url}/login", 302)]}
    with other, FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is ContractError
    assert other.requests == []


@both
def test_a_redirect_in_circles(driver: DriverName) -> None:
    acts = {"POST": [TOKENS], "GET": [redirect("/status")]}
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is ContractError
    assert outcome.text == "GET /status: more than 5 redirects"
    assert len(server.requests) == 1 + 6


# --- limits --------------------------------------------------------------------------------------


def endless_batch(total: int = 10**6) -> Iterator[bytes]:
    head = {"state": "Complete", "completedItemCount": total, "totalItemCount": total}
    yield json.dumps(head)[:-1].encode() + b',"batchExecutionResults":['
    record = json.dumps({"success": True, "outputParameters": {"answer": 0.5}}).encode() + b","
    while True:
        yield record * 500


def noting(flow: Flow[Any], sinks: list[Any]) -> Flow[Any]:
    """The same flow; the sinks that it opens are kept."""
    step = next_step(flow)
    while not isinstance(step, End):
        if isinstance(step, Send) and step.open_sink is not None:
            step = replace(step, open_sink=functools.partial(_noted, step.open_sink, sinks))
        step = next_step(flow, (yield step))
    return step.value


def _noted(open_sink: Callable[[], Sink], sinks: list[Any]) -> Sink:
    sinks.append(open_sink())
    sink: Sink = sinks[-1]
    return sink


@both
def test_a_poll_reads_no_more_than_it_needs(driver: DriverName) -> None:
    sinks: list[StatusSink] = []
    with FaultServer(Play({"POST": [TOKENS], "GET": [Answer(200, endless_batch)]})) as server:
        outcome = Talk(server.url).hold(
            driver, lambda flows: noting(flows.get_batch_status("s", "1", "id"), sinks)
        )
        sent = server.bytes_sent

    assert outcome.value.total_item_count == 10**6
    assert [sink.bytes_read <= CHUNK for sink in sinks] == [True]
    # What the line itself holds is a matter of buffers; without a stop it would not end at all.
    assert sent < 32 * MIB


def test_a_packed_reply_leaves_others_their_turn() -> None:
    """A few kilobytes off the line unpack to megabytes: the event loop is not held for all of it."""
    sinks: list[StatusSink] = []
    record = {"success": True, "errorMessage": "", "outputParameters": {"answer": 0.5}}
    counts = {"state": "Complete", "completedItemCount": 50_000, "totalItemCount": 50_000}
    document = json.dumps({"batchExecutionResults": [record] * 50_000, **counts}).encode()
    packed = Answer(200, gzip.compress(document), [("Content-Encoding", "gzip")])
    assert isinstance(packed.body, bytes) and len(packed.body) < CHUNK < len(document) / 50
    steps: list[int] = []

    async def watch() -> None:
        seen = 0
        while True:
            await asyncio.sleep(0)
            if sinks:
                steps.append(sinks[0].bytes_read - seen)
                seen = sinks[0].bytes_read

    async def talk(server: FaultServer) -> Any:
        flows, driver = Flows(USER, server.url), NonblockingDriver(Endpoint(server.url))
        watcher = asyncio.ensure_future(watch())
        try:
            return await driver.run(noting(flows.get_batch_status("s", "1", "id"), sinks))
        finally:
            watcher.cancel()
            await driver.close()

    with FaultServer(Play({"POST": [TOKENS], "GET": [packed]})) as server:
        assert asyncio.run(talk(server)).total_item_count == 50_000

    assert sinks[0].bytes_read == len(document)
    assert max(steps) <= CHUNK


@both
def test_a_list_that_is_longer_than_promised_is_not_read_to_its_end(driver: DriverName) -> None:
    taken: list[Any] = []
    answer = Answer(200, lambda: endless_batch(1000))
    with FaultServer(Play({"POST": [TOKENS], "GET": [answer]})) as server:
        outcome = Talk(server.url).hold(
            driver, lambda flows: flows.read_batch_results("s", "1", "id", None, taken.append)
        )

    assert outcome.error is ContractError
    assert "results, expected 1,000" in outcome.text
    assert sum(map(len, taken)) <= 1000


@both
def test_a_reply_that_is_too_large_is_refused_without_being_held(driver: DriverName) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * CHUNK

    with FaultServer(Play({"POST": [TOKENS], "GET": [Answer(200, endless)]})) as server:
        outcome = Talk(server.url).hold(
            driver, lambda flows: flows.get_artifact("s", "1", "id", 0, "f", max_body=300_000)
        )

    assert outcome.error is ReplyTooLargeError
    assert outcome.text.endswith("the reply holds more than 300,000 bytes, the limit")


@both
def test_a_reply_that_says_that_it_is_too_large_is_not_read(driver: DriverName) -> None:
    answer = Answer(200, lambda: iter([b"x"]), length=10**12)
    with FaultServer(Play({"POST": [TOKENS], "GET": [answer]})) as server:
        outcome = Talk(server.url).hold(
            driver, lambda flows: flows.get_artifact("s", "1", "id", 0, "f", max_body=300_000)
        )

    assert outcome.error is ReplyTooLargeError


@both
def test_a_small_reply_that_unpacks_to_a_large_one(driver: DriverName) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    answer = Answer(200, bomb, [("Content-Encoding", "gzip")])
    with FaultServer(Play({"POST": [TOKENS], "GET": [answer]})) as server:
        outcome = Talk(server.url).hold(
            driver, lambda flows: flows.get_artifact("s", "1", "id", 0, "f", max_body=4 * MIB)
        )

    assert outcome.error is ReplyTooLargeError
    assert "more than 4,194,304 bytes" in outcome.text


@both
def test_an_error_of_a_sink_is_not_taken_for_a_lost_line(driver: DriverName) -> None:
    class FullDisk:
        def feed(self, data: bytes) -> bool:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise AssertionError("it was never complete")

    acts = {"POST": [TOKENS], "GET": [Answer(200, b"x")]}
    with FaultServer(Play(acts)) as server, pytest.raises(OSError, match="No space left"):
        Talk(server.url).hold(
            driver,
            lambda flows: flows.get_artifact("s", "1", "id", 0, "f", open_sink=FullDisk),
        )

    assert len(server.requests) == 2


# --- lines kept open -----------------------------------------------------------------------------


@both
def test_a_line_is_used_again(driver: DriverName) -> None:
    acts = {"POST": [TOKENS], "GET": [STATUS, as_json({"statusCode": "pass"}, chunk_sizes=[4])]}
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, *[server_status] * 5)

    assert outcome.error is None
    assert (len(server.requests), server.connections) == (6, 1)


@both
def test_a_line_that_was_kept_and_died_is_no_second_request_by_itself(driver: DriverName) -> None:
    """aiohttp would send a GET again on its own; how often one is sent is the flow's decision."""
    acts = {
        "POST": [TOKENS],
        "GET": [STATUS, Answer(200, b'{"sta', length=99, stop_after=5), STATUS],
    }
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status, server_status)

    assert outcome.error is None
    assert outcome.sent[1:] == ("GET /status",) * 3
    assert [request.target for request in server.requests[1:]] == ["/status"] * 3


@both
@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_replies_are_not_taken_for_the_last_word(driver: DriverName, status: int) -> None:
    """Each request gets its own reply, also on a line that is used again."""
    interim = f"HTTP/1.1 {status} Not yet\r\nLink: </style.css>\r\n\r\n".encode() * 2
    lists = [as_json([f"id-{number}"], interim=interim) for number in range(3)]
    found: list[str] = []

    def read(flows: Flows) -> Flow[None]:
        found.extend((yield from flows.list_batch_executions("s", "1")))

    acts = {"POST /login": [TOKENS], "GET": lists, "POST": [as_json("id-3", 202, interim=interim)]}
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(
            driver, read, read, read, lambda flows: flows.start_batch("s", "1", b"[]")
        )

    assert (outcome.value, outcome.text) == ("id-3", "")
    assert found == ["id-0", "id-1", "id-2"]
    assert len(server.requests) == 5


@both
def test_a_batch_is_started_on_a_line_of_its_own(driver: DriverName) -> None:
    """A line that was kept may be closing on the other side: then nobody knows what arrived."""

    def script(request: Request) -> Act:
        if request.path == "/login":
            return TOKENS
        if request.method == "GET":
            kept.add(request.connection)
            return STATUS
        # As a server does that gives up an idle line in this very moment.
        return Reset() if request.connection in kept else as_json("id-1", 202)

    kept: set[int] = set()
    with FaultServer(script) as server:
        outcome = Talk(server.url).hold(
            driver,
            server_status,
            lambda flows: flows.start_batch("s", "1", b"[]"),
            server_status,
            lambda flows: flows.start_batch("s", "1", b"[]"),
        )

    assert (outcome.value, outcome.text) == ("id-1", "")
    posts = [request.connection for request in server.requests if request.path.endswith("/batch")]
    assert len(set(posts)) == 2
    assert (len(server.requests), server.connections) == (5, 3)


@both
def test_a_large_body_may_take_longer_than_a_connection(driver: DriverName) -> None:
    """What is sent has the time of a silence for each piece, not that of a connection for all."""
    body = b" " * 16 * MIB
    talk = Talk(
        "",
        login=ReadyToken("ready"),
        endpoint={"connect_timeout": 0.3, "read_timeout": 10},
    )
    with FaultServer(Play({"POST": [as_json("id-1", 202)]}), read_pause=0.005) as server:
        outcome = replace(talk, url=server.url).hold(
            driver, lambda flows: flows.start_batch("s", "1", body)
        )

    assert (outcome.value, outcome.text) == ("id-1", "")
    assert [request.body == body for request in server.requests] == [True]


def test_a_body_that_nobody_takes() -> None:
    """Only the blocking driver sends bodies that do not fit into the buffers of a line."""
    talk = Talk(
        "",
        login=ReadyToken("ready"),
        endpoint={"read_timeout": 0.3},
    )
    with FaultServer(Play({}), read_pause=60) as server:
        outcome = replace(talk, url=server.url).hold(
            "blocking", lambda flows: flows.start_batch("s", "1", b" " * 32 * MIB)
        )

    assert outcome.error is SubmissionUnknownError
    assert "no answer in time; the batch may have been started, or not" in outcome.text


@both
def test_nothing_is_left_open_after_an_error(driver: DriverName) -> None:
    """The error is held, and with it all frames that it went through."""
    acts: dict[str, list[Act]] = {"POST": [TOKENS], "GET": [Answer(200, b"no JSON")]}
    server = FaultServer(Play(acts))
    outcome = Talk(server.url).hold(driver, server_status)
    server.close()

    assert outcome.error is ContractError
    assert not any(thread.is_alive() for thread in server._threads)


# --- many at once --------------------------------------------------------------------------------


def test_two_hundred_flows_share_one_login() -> None:
    def script(request: Request) -> Act:
        return TOKENS if request.path == "/login" else STATUS

    async def talk(server: FaultServer) -> list[Any]:
        flows = Flows(USER, server.url)
        driver = NonblockingDriver(Endpoint(server.url))
        try:
            runs = [driver.run(flows.get_server_status()) for _ in range(200)]
            return await asyncio.gather(*runs)
        finally:
            await driver.close()

    with FaultServer(script) as server:
        found = asyncio.run(talk(server))

    assert [status.status_code for status in found] == ["pass"] * 200
    targets = [request.target for request in server.requests]
    assert (targets.count("/login"), targets.count("/status")) == (1, 200)
    assert server.connections <= 100


def test_threads_share_one_login() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS]})) as server:
        flows = Flows(USER, server.url)
        driver = BlockingDriver(Endpoint(server.url), max_connections=16)
        with ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(driver.run, flows.get_server_status()) for _ in range(100)]
            assert {run.result().status_code for run in runs} == {"pass"}
        driver.close()

    targets = [request.target for request in server.requests]
    assert (targets.count("/login"), targets.count("/status")) == (1, 100)


def test_a_refused_token_is_renewed_once_for_all() -> None:
    """Two hundred flows are told 401 for the same token: one renewal, two hundred replays."""
    second = as_json({"access_token": "token-two", "expires_in": 3600, "refresh_token": "r2"})

    def script(request: Request) -> Act:
        if request.path == "/login":
            return TOKENS
        if request.path == "/login/refreshToken":
            return second
        is_new = request.headers.get("authorization") == "Bearer token-two"
        return STATUS if is_new else as_json({"message": "expired"}, 401)

    async def talk(server: FaultServer) -> list[Any]:
        flows = Flows(USER, server.url)
        driver = NonblockingDriver(Endpoint(server.url))
        try:
            return await asyncio.gather(
                *(driver.run(flows.get_server_status()) for _ in range(200))
            )
        finally:
            await driver.close()

    with FaultServer(script) as server:
        asyncio.run(talk(server))

    targets = [request.target for request in server.requests]
    assert (targets.count("/login"), targets.count("/login/refreshToken")) == (1, 1)


@pytest.mark.parametrize(
    ("status", "error", "logins"), [(401, AuthenticationError, 1), (503, UnavailableError, 3)]
)
def test_a_login_that_fails_fails_for_all_who_wait_for_it(
    status: int, error: type[Exception], logins: int
) -> None:
    """Two hundred flows do not lock an account, nor wait for a dead server one after another."""
    policy = Policy(first_wait=0.01, longest_wait=0.01, repeat_seconds=0.025, chance=lambda: 1.0)

    async def talk(server: FaultServer) -> list[Any]:
        flows = Flows(USER, server.url, policy)
        driver = NonblockingDriver(Endpoint(server.url))
        try:
            runs = [driver.run(flows.get_server_status()) for _ in range(200)]
            return await asyncio.gather(*runs, return_exceptions=True)
        finally:
            await driver.close()

    with FaultServer(Play({"POST": [as_json({"message": "no"}, status)]})) as server:
        found = asyncio.run(talk(server))

    assert {type(raised) for raised in found} == {error}
    assert len({str(raised) for raised in found}) == 1
    assert 1 <= len(server.requests) <= logins


@both
def test_a_login_that_failed_is_tried_again_by_who_comes_later(driver: DriverName) -> None:
    def twice(flows: Flows) -> Flow[Any]:
        with pytest.raises(AuthenticationError):
            yield from flows.get_server_status()
        return (yield from flows.get_server_status())

    acts = {"POST": [as_json({"message": "locked for a minute"}, 401), TOKENS], "GET": [STATUS]}
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, twice)

    assert outcome.error is None
    assert [request.target for request in server.requests] == ["/login", "/login", "/status"]


@both
def test_an_error_shows_its_tokens_to_nobody(driver: DriverName) -> None:
    acts = {
        "POST": [TOKENS],
        "GET": [as_json({"message": "refresh-one is unknown, token-one too"}, 403)],
    }
    with FaultServer(Play(acts)) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is ForbiddenError
    assert outcome.text == "GET /status: 403 *** is unknown, *** too"
    assert outcome.secrets == ("token-one", "refresh-one")


# --- proxies -------------------------------------------------------------------------------------


@both
def test_a_proxy_of_the_environment_is_used(
    driver: DriverName, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(Play({"POST": [TOKENS], "GET": [STATUS]})) as proxy:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
        outcome = Talk("http://scoring.invalid:12800/prefix").hold(driver, server_status)

    assert outcome.error is None
    assert [request.target for request in proxy.requests] == [
        "http://scoring.invalid:12800/prefix/login",
        "http://scoring.invalid:12800/prefix/status",
    ]


@both
def test_a_proxy_that_refuses(driver: DriverName, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(Play({"CONNECT": [Answer(407, close=True)]})) as proxy:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", proxy.url)
        talk = Talk("https://scoring.invalid", policy=PATIENCE)
        outcome = talk.hold(driver, server_status)

    assert outcome.error is ConnectionLostError
    assert outcome.text == "POST /login at URL: the proxy refused the connection"


def test_hosts_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "localhost,10.0.0.0/8")

    assert proxy_for("http://scoring.invalid/x") == "http://proxy.invalid:3128"
    assert proxy_for("http://localhost:12800/x") is None
    assert proxy_for("http://10.1.2.3:12800/x") is None
    assert proxy_for("https://scoring.invalid/x") is None


def test_the_clock_of_these_tests_is_its_own() -> None:
    """The harness answers ``Now`` and ``Wait`` and passes on the rest."""
    flow = Clock().over(Flows(USER, "http://x").get_batch_status("s", "1", "id"))
    step: Any = next(flow)
    login = next(step.flow)
    assert isinstance(login, Send)
    assert login.route is not BATCH
