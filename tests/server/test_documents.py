"""schemathesis holds the server to its own Swagger document."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api import Api, log_in
from tests.server_process import RunningServer

# It warns about its own internals and about those of the libraries that it drives.
pytestmark = pytest.mark.filterwarnings("default")

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis")


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Any:
    """The document of a service, as the server gives it to anybody who asks."""
    token = {"Authorization": f"Bearer {log_in(server.url)['access_token']}"}
    schema = schemathesis.openapi.from_url(
        f"{server.url}/api/types/1/swagger.json", headers=token, wait_for_schema=30
    )
    schema.config.update(base_url=server.url, headers=token)
    # Whoever guesses passwords is slowed down, and with a revoked token the rest would be 401s.
    return schema.exclude(path_regex="^/login")


def test_no_request_breaks_the_server(document: Any, api: Api) -> None:
    """Whatever the document allows, there is an answer in JSON, and never a 5xx."""
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.CHECKS.get_one("content_type_conformance"),
    ]
    operations = [found.ok() for found in document.get_all_operations()]
    tried: set[str] = set()
    record = dict.fromkeys("abcdefg")
    known_id = api.start("types", [record]).rpartition("/")[2]
    for operation in operations:

        @hypothesis.settings(  # type: ignore[untyped-decorator]
            max_examples=25,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            database=None,
            derandomize=True,
        )
        @hypothesis.given(  # type: ignore[untyped-decorator]
            case=operation.as_strategy(), is_known=hypothesis.strategies.booleans()
        )
        def ask(case: Any, is_known: bool) -> None:
            if is_known and "executionId" in case.path_parameters and case.method == "GET":
                case.path_parameters["executionId"] = known_id
            response = case.call(timeout=60)
            tried.add(f"{case.method} {case.path}")
            case.validate_response(response, checks=checks)

        ask()
    assert len(tried) == len(operations) == 7
