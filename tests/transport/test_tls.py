"""TLS with certificates made for the occasion: whom both drivers trust, and how they say no."""

from __future__ import annotations

import gc
import ssl
from typing import Any

import pytest

from airflow_mlbatch.errors import ConnectionConfigError, ConnectionLostError
from airflow_mlbatch.protocol.flows import Flows, Policy, ReadyToken
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.transport.endpoint import Endpoint
from tests.certificates import Papers, make_papers
from tests.faults.server import FaultServer, Play, as_json
from tests.faults.talk import DRIVERS, DriverName, Talk

both = pytest.mark.parametrize("driver", DRIVERS)
SCRIPT = {
    "POST": [as_json({"access_token": "token-one"})],
    "GET": [as_json({"statusCode": "pass"})],
}
PATIENCE = Policy(repeat_seconds=5, chance=lambda: 1.0)


def server_status(flows: Flows) -> Flow[Any]:
    return flows.get_server_status()


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture
def tls(papers: Papers) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*papers.server)
    return context


@both
def test_a_certificate_that_nobody_vouches_for(driver: DriverName, tls: ssl.SSLContext) -> None:
    """The next try would meet the same certificate, so there is none."""
    with FaultServer(Play(SCRIPT), tls) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert outcome.error is ConnectionLostError
    assert outcome.text == "POST /login at URL: TLS failed (unable to get local issuer certificate)"
    assert outcome.sent == ("POST /login",)
    assert server.requests == []


@both
def test_a_submission_to_a_server_that_is_not_trusted_was_never_sent(
    driver: DriverName, tls: ssl.SSLContext
) -> None:
    with FaultServer(Play(SCRIPT), tls) as server:
        talk = Talk(server.url, login=ReadyToken("ready"))
        outcome = talk.hold(driver, lambda flows: flows.start_batch("s", "1", b"[]"))

    assert outcome.error is ConnectionLostError


@both
def test_a_bundle_of_ones_own(driver: DriverName, tls: ssl.SSLContext, papers: Papers) -> None:
    with FaultServer(Play(SCRIPT), tls) as server:
        talk = Talk(server.url, endpoint={"verify": papers.authority})
        outcome = talk.hold(driver, server_status)

    assert (outcome.error, outcome.text) == (None, "")


@both
def test_a_bundle_of_the_machine(
    driver: DriverName, tls: ssl.SSLContext, papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", papers.authority)
    with FaultServer(Play(SCRIPT), tls) as server:
        outcome = Talk(server.url).hold(driver, server_status)

    assert (outcome.error, outcome.text) == (None, "")


@both
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_no_verification_when_told_so(driver: DriverName, tls: ssl.SSLContext) -> None:
    with FaultServer(Play(SCRIPT), tls) as server:
        outcome = Talk(server.url, endpoint={"verify": False}).hold(driver, server_status)

    assert (outcome.error, outcome.text) == (None, "")


@both
def test_a_client_certificate(driver: DriverName, tls: ssl.SSLContext, papers: Papers) -> None:
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(papers.authority)
    settings = {
        "verify": papers.authority,
        "client_cert": papers.client[0],
        "client_key": papers.client[1],
    }
    with FaultServer(Play(SCRIPT), tls) as server:
        outcome = Talk(server.url, endpoint=settings).hold(driver, server_status)

    assert (outcome.error, outcome.text) == (None, "")


# Python 3.10's asyncio forgets to close a line whose other side ends it with an alert.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@both
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_is_missing(
    driver: DriverName, version: ssl.TLSVersion, tls: ssl.SSLContext, papers: Papers
) -> None:
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(papers.authority)
    tls.minimum_version = tls.maximum_version = version
    with FaultServer(Play(SCRIPT), tls) as server:
        talk = Talk(server.url, policy=PATIENCE, endpoint={"verify": papers.authority})
        outcome = talk.hold(driver, server_status)
    gc.collect()

    assert outcome.error is ConnectionLostError
    assert outcome.sent == ("POST /login",) * 4
    assert server.requests == []


@both
def test_tls_to_a_server_that_speaks_none(driver: DriverName) -> None:
    with FaultServer(Play(SCRIPT), patience=0.1) as server:
        talk = Talk(server.url.replace("http:", "https:"), policy=PATIENCE)
        outcome = talk.hold(driver, server_status)

    assert outcome.error is ConnectionLostError
    assert outcome.text.startswith("POST /login at URL: ")


@both
@pytest.mark.parametrize(
    "settings",
    [
        {"verify": "/no/such/bundle.pem"},
        {"client_cert": "/no/such/certificate.pem"},
    ],
)
def test_files_that_are_not_there(driver: DriverName, settings: dict[str, str]) -> None:
    talk = Talk("https://127.0.0.1:9", endpoint=dict(settings))
    outcome = talk.hold(driver, server_status)

    assert outcome.error is ConnectionConfigError
    assert outcome.text.startswith("verify, client_cert or client_key: cannot read the certificate")
    assert outcome.text.endswith(f"({next(iter(settings.values()))!r})")


def test_a_locked_key_is_an_error_and_no_question(papers: Papers) -> None:
    """OpenSSL would ask for the password on the terminal, and a task would wait for ever."""
    endpoint = Endpoint("https://x", client_cert=papers.client[0], client_key=papers.locked_key)
    with pytest.raises(ConnectionConfigError, match="cannot read the certificate"):
        endpoint.ssl_context()


def test_the_machine_and_the_bundle_of_requests_are_trusted() -> None:
    assert len(Endpoint("https://x").ssl_context().get_ca_certs()) > 50
