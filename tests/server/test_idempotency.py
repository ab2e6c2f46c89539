"""Idempotency keys: however often a start is sent, there is one execution for its key."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.api import Api
from tests.server.conftest import SERVICES
from tests.server.cutting_proxy import cutting_proxy
from tests.server_process import RunningServer, running_server

BATCHES = "/api/double/1/batch"
SLEEPS = "/api/sleep/1/batch"
RECORDS = [{"x": 1}, {"x": 2}]


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return uuid.uuid4().hex


def start(
    api: Api, key: str, records: list[Any] = RECORDS, batches: str = BATCHES, **more: Any
) -> requests.Response:
    return api.post(batches, records, headers={"Idempotency-Key": key}, **more)


def started(reply: requests.Response, *, is_replayed: bool) -> str:
    """The execution that a good reply names."""
    assert reply.status_code == 202, reply.text
    assert reply.headers.get("idempotency-replayed") == ("true" if is_replayed else None)
    assert reply.headers["accept-idempotency-key"] == "true"
    return str(reply.json()["batchExecutionId"])


def listed(api: Api, batches: str = BATCHES, **query: str) -> list[str]:
    reply = api.get(batches, params=query)
    assert reply.status_code == 200, reply.text
    assert reply.headers["accept-idempotency-key"] == "true"
    return list(reply.json())


def test_a_repeated_key_answers_with_the_execution_that_it_started(api: Api, key: str) -> None:
    first = start(api, key)
    execution_id = started(first, is_replayed=False)
    again = start(api, key)
    assert started(again, is_replayed=True) == execution_id
    assert again.json() == first.json()
    results = api.wait(f"{BATCHES}/{execution_id}")
    # Also when it is complete, and however many records at once are asked for.
    again = start(api, key, params={"parallelCount": 1})
    assert started(again, is_replayed=True) == execution_id
    assert [item["outputParameters"]["y"] for item in results] == [2.0, 4.0]


def test_a_key_belongs_to_one_version_of_one_service(api: Api, key: str) -> None:
    first = started(start(api, key), is_replayed=False)
    other = start(api, key, [{"seconds": 0}], SLEEPS)
    assert started(other, is_replayed=False) != first
    assert listed(api, idempotencyKey=key) == [first]


def test_another_body_is_refused(api: Api, key: str) -> None:
    execution_id = started(start(api, key), is_replayed=False)
    reply = start(api, key, [{"x": 1}, {"x": 3}])
    assert reply.status_code == 422
    assert reply.json()["message"] == (
        f"idempotency-key: the key {key!r} has started execution {execution_id} with another body. "
        "Send the same body again, or a new key"
    )
    assert listed(api, idempotencyKey=key) == [execution_id]


def test_a_body_that_was_refused_leaves_its_key_free(api: Api, key: str) -> None:
    assert start(api, key, [{"x": "one"}]).status_code == 400
    assert listed(api, idempotencyKey=key) == []
    started(start(api, key), is_replayed=False)


def test_a_deleted_execution_frees_its_key(api: Api, key: str) -> None:
    first = started(start(api, key), is_replayed=False)
    assert api.delete(f"{BATCHES}/{first}").status_code == 200
    second = started(start(api, key, [{"x": 7}]), is_replayed=False)
    assert second != first
    assert listed(api, idempotencyKey=key) == [second]


def test_of_concurrent_starts_one_starts_and_the_others_join(api: Api, key: str) -> None:
    clients = 10
    together = threading.Barrier(clients)
    records = [{"x": n} for n in range(5_000)]

    def send(_: int) -> requests.Response:
        own = Api(api.url)
        together.wait()
        return start(own, key, records)

    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(send, range(clients)))
    assert [reply.status_code for reply in replies] == [202] * clients
    (execution_id,) = {reply.json()["batchExecutionId"] for reply in replies}
    replayed = [reply.headers.get("idempotency-replayed") for reply in replies]
    assert sorted(replayed, key=str) == [None] + ["true"] * (clients - 1)
    assert listed(api, idempotencyKey=key) == [execution_id]


def test_executions_are_found_by_key_and_by_its_beginning(api: Api, key: str) -> None:
    keys = [f"{key}:a", f"{key}:b1", f"{key}:b2", f"{key}:b~"]
    ids = [started(start(api, one), is_replayed=False) for one in keys]
    assert listed(api, idempotencyKey=keys[1]) == [ids[1]]
    assert listed(api, idempotencyKey=key) == []
    assert listed(api, idempotencyKeyPrefix=key) == ids
    assert listed(api, idempotencyKeyPrefix=f"{key}:b") == ids[1:]
    assert listed(api, idempotencyKeyPrefix=f"{key}:b~") == ids[3:]
    assert listed(api, idempotencyKeyPrefix=f"{key}:c") == []
    # What SQL or a shell would take for a wildcard is a character like others.
    assert listed(api, idempotencyKeyPrefix=f"{key}:%") == []
    assert set(ids) < set(listed(api))


def test_a_start_without_a_key_is_always_a_new_one(api: Api) -> None:
    replies = [api.post(BATCHES, RECORDS) for _ in range(2)]
    first, second = (started(reply, is_replayed=False) for reply in replies)
    assert first != second


@pytest.mark.parametrize("bad", ["", "two words", "k" * 256, "schlüssel", "tab\tbed", "del\x7f"])
def test_a_key_that_is_invalid(api: Api, bad: str) -> None:
    before = listed(api)
    reply = api.post(BATCHES, RECORDS, headers={"Idempotency-Key": bad.encode("latin-1")})
    assert reply.status_code == 400
    assert reply.json()["message"] == (
        f"header idempotency-key: found {bad!r:.80} ({len(bad)} characters), "
        "expected 1 to 255 characters of visible ASCII"
    )
    assert reply.headers["accept-idempotency-key"] == "true"
    assert listed(api) == before


def test_the_longest_key(api: Api, key: str) -> None:
    longest = key.ljust(255, "~")
    execution_id = started(start(api, longest), is_replayed=False)
    assert started(start(api, longest), is_replayed=True) == execution_id


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("idempotencyKey=", "idempotencyKey: found ''"),
        ("idempotencyKeyPrefix=", "idempotencyKeyPrefix: found ''"),
        ("idempotencyKey=a%20b", "idempotencyKey: found 'a b'"),
        ("idempotencyKeyPrefix=a&idempotencyKey=ab", "found both, expected one"),
    ],
)
def test_a_question_that_is_invalid(api: Api, query: str, words: str) -> None:
    reply = api.get(f"{BATCHES}?{query}")
    assert reply.status_code == 400
    assert words in reply.json()["message"]


def test_refusals_say_that_the_server_knows_keys(api: Api, server: RunningServer) -> None:
    for reply in (
        api.post("/api/nobody/1/batch", []),
        api.get("/api/nobody/1/batch"),
        requests.get(server.url + BATCHES, timeout=60),
        api.post(BATCHES, data=b"{"),
    ):
        assert reply.status_code >= 400
        assert reply.headers["accept-idempotency-key"] == "true"
    assert "accept-idempotency-key" not in api.get("/services").headers


def test_a_key_is_good_also_after_a_kill(tmp_path: Path, key: str) -> None:
    records = [{"seconds": 0}, {"seconds": 60}]
    folder = tmp_path / "data"
    with running_server("--services", SERVICES, "--workers", "1", data_dir=folder) as server:
        running = started(start(Api(server.url), key, records, SLEEPS), is_replayed=False)
        server.restart()
        again = start(Api(server.url), key, records, SLEEPS)
        assert started(again, is_replayed=True) == running
        assert start(Api(server.url), key, [], SLEEPS).status_code == 422
    with running_server("--demo", "--workers", "1", data_dir=folder) as server:
        assert Api(server.url).batch(f"{SLEEPS}/{running}")["state"] == "failed"
    # A batch that is there is no new one: neither its failure nor a smaller limit changes that.
    with running_server(
        "--services", SERVICES, "--workers", "1", "--max-records", "1", data_dir=folder
    ) as server:
        again = start(Api(server.url), key, records, SLEEPS)
        assert started(again, is_replayed=True) == running
        assert listed(Api(server.url), SLEEPS, idempotencyKey=key) == [running]


def test_a_server_without_keys_is_like_the_vendors(tmp_path: Path, key: str) -> None:
    with running_server(
        "--services",
        SERVICES,
        "--workers",
        "1",
        "--without-idempotency-keys",
        data_dir=tmp_path / "data",
    ) as server:
        api = Api(server.url)
        replies = [start(api, one) for one in (key, key, "not a key")]
        assert [reply.status_code for reply in replies] == [202] * 3
        ids = [reply.json()["batchExecutionId"] for reply in replies]
        assert len(set(ids)) == 3
        everything = api.get(BATCHES, params={"idempotencyKey": key})
        assert everything.json() == ids
        for reply in (*replies, everything):
            assert not {"accept-idempotency-key", "idempotency-replayed"} & set(reply.headers)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that may be killed."""
    with running_server(
        "--services", SERVICES, "--workers", "1", data_dir=tmp_path / "data"
    ) as server:
        yield server


def test_one_execution_for_each_key_whatever_is_lost(own_server: RunningServer) -> None:
    starts, clients, kills = 1_000, 20, 3
    token = str(Api(own_server.url).session.headers["Authorization"])

    def insist(number: int) -> tuple[int, str]:
        """Send a start until its reply arrives whole."""
        while True:
            try:
                reply = requests.post(
                    url + BATCHES,
                    json=[{"x": number}],
                    headers={
                        "Authorization": token,
                        "Idempotency-Key": f"start-{number}",
                        "Connection": "close",
                    },
                    timeout=60,
                )
                assert reply.status_code in (202, 503), reply.text
                return number, reply.json()["batchExecutionId"]
            except (requests.RequestException, KeyError):
                # Cut off, the server is down, or it is stopping.
                time.sleep(0.05)

    replied: dict[int, str] = {}
    with cutting_proxy(own_server.url, seed=starts) as url, ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(insist, number) for number in range(starts)]
        for count, future in enumerate(as_completed(running), 1):
            number, replied[number] = future.result()
            if count % (starts // (kills + 1)) == 0 and count < starts:
                own_server.restart()
    api = Api(own_server.url)
    assert len(set(replied.values())) == starts
    assert sorted(listed(api)) == sorted(replied.values())
    for number, execution_id in replied.items():
        assert listed(api, idempotencyKey=f"start-{number}") == [execution_id]
