"""Publications that nobody would send who means well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.publishing import Publisher
from tests.server_process import RunningServer, running_server

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        *("--allow-publish", "--workers", "1", "--load-timeout", "20"),
        data_dir=tmp_path_factory.mktemp("fuzz") / "data",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Publisher:
    return Publisher(server.url)


NAMES = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["..", ".", "../../etc", "a/b", "a\\b", "%2e%2e", "C:", "\0", " ", "ü" * 200]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CODES = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["y = x", "y =", "(" * 5_000, "x" + "+1" * 20_000, "#", "y = '\ud800'"[:5]]),
)
BODIES = st.fixed_dictionaries(
    {"runtimeType": st.just("Python"), "code": CODES},
    optional={
        "initCode": CODES,
        "snapshotId": st.just("nobody") | JSON,
        "description": JSON,
        "operationId": JSON,
        "inputParameterDefinitions": JSON,
        "outputParameterDefinitions": JSON,
        "outputFileNames": JSON | st.lists(NAMES, max_size=2),
    },
)


def assert_unharmed(server: RunningServer, client: Publisher) -> None:
    """Whether the server lives, and there is nothing but what it knows about."""
    assert client.get("/status").json()["statusCode"] == "pass"
    data = server.data_dir
    assert sorted(os.listdir(data.parent)) == ["data", "data.log"]
    assert {entry for entry in os.listdir(data) if not entry.startswith("mlbatch.sqlite")} == {
        *("lock", "account.json"),
        *("executions", "services", "trash", "work"),
    }


@SETTINGS
@given(name=NAMES, version=NAMES, body=BODIES)
def test_any_publication_is_taken_or_refused(
    server: RunningServer, client: Publisher, name: str, version: str, body: dict[str, Any]
) -> None:
    path = f"/services/{quote(name, safe='')}/{quote(version, safe='')}"
    reply = client.post(path, body)
    assert reply.status_code in (201, 400, 404, 405, 409), reply.text
    if reply.status_code == 201:
        assert client.delete(path).status_code == 200
    else:
        assert reply.json()["message"]
    assert_unharmed(server, client)


@SETTINGS
@given(name=NAMES, content=st.binary(max_size=200))
def test_any_object_is_taken_or_refused(
    server: RunningServer, client: Publisher, name: str, content: bytes
) -> None:
    session = client.open_session()
    taken = client.send_object(session, name, content)
    # 405: the client folds a name of dots, and asks for the session.
    assert taken.status_code in (200, 400, 404, 405), taken.text
    snapshot = client.take_snapshot(session)
    # An object that came whole is opened in the service's worker, and hardly any is a pickle.
    reply = client.post(
        "/services/fuzzed/1", {"code": "y=1", "runtimeType": "Python", "snapshotId": snapshot}
    )
    assert reply.status_code in (201, 400), reply.text
    for path in (f"/sessions/{session}", f"/snapshots/{snapshot}"):
        assert client.delete(path).status_code == 200
    if reply.status_code == 201:
        assert client.delete("/services/fuzzed/1").status_code == 200
    assert_unharmed(server, client)


def test_a_packed_body_is_not_unpacked(client: Publisher) -> None:
    session = client.open_session()
    reply = client.post(
        f"/sessions/{session}/workspace/model",
        data=b"\x1f\x8b\x08",
        headers={"content-encoding": "gzip"},
    )
    assert reply.status_code == 415
    assert client.delete(f"/sessions/{session}").status_code == 200
