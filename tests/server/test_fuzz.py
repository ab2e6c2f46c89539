"""Whatever is sent, the server answers in the contract's shape and goes on."""

from __future__ import annotations

import http.client
import json
from urllib.parse import quote, urlsplit

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.api import Api

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
RECORDS = st.fixed_dictionaries(dict.fromkeys("abcdefg", VALUES))


def assert_in_shape(status: int, body: bytes) -> None:
    """An error of the caller, in the contract's shape."""
    assert 400 <= status < 500, (status, body)
    assert set(json.loads(body)) == {"code", "message", "fields", "link", "exceptionType"}


@EXAMPLES
@given(records=st.lists(RECORDS, max_size=3) | VALUES)
def test_any_json_is_scored_or_refused(api: Api, records: object) -> None:
    # Python writes NaN and lone surrogates; a server has to bear them.
    reply = api.post("/api/types/1/batch", data=json.dumps(records).encode())
    if reply.status_code != 202:
        assert_in_shape(reply.status_code, reply.content)
        return
    assert isinstance(records, list)
    path = f"/api/types/1/batch/{reply.json()['batchExecutionId']}"
    results = api.wait(path)
    assert len(results) == len(records)
    assert all(item["success"] for item in results), results


@EXAMPLES
@given(body=st.binary(max_size=200), where=st.sampled_from(["/login", "/api/double/1/batch"]))
def test_any_bytes_are_refused(api: Api, body: bytes, where: str) -> None:
    reply = api.post(where, data=b"\xff" + body)
    assert_in_shape(reply.status_code, reply.content)


@EXAMPLES
@given(
    segments=st.lists(
        st.sampled_from(
            ["api", "double", "1", "batch", "services", "..", "%2e%2e", "%00", "%ff", ""]
        )
        | st.text(max_size=6).map(lambda text: quote(text.encode("utf-8", "replace"), safe="")),
        max_size=7,
    ),
    verb=st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH"]),
)
def test_any_path_is_found_or_refused(api: Api, segments: list[str], verb: str) -> None:
    address = urlsplit(api.url)
    line = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    line.putrequest(verb, "/" + "/".join(segments), skip_accept_encoding=True)
    line.putheader("Authorization", str(api.session.headers["Authorization"]))
    line.putheader("Content-Length", "0")
    line.endheaders()
    reply = line.getresponse()
    body = reply.read()
    line.close()
    if reply.status != 200:
        assert_in_shape(reply.status, body)
