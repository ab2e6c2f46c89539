"""TLS with certificates made for the occasion: whom both drivers trust, and how they say no."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_mlbatch.errors import ConnectionConfigError, ConnectionLostError
from airflow_mlbatch.protocol.flows import Flows, Policy, ReadyToken
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.transport.endpoint import Endpoint
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


@dataclass(frozen=True)
class Papers:
    """Files: an authority's certificate, and a certificate and key that it signed for each role."""

    authority: str
    server: tuple[str, str]
    client: tuple[str, str]
    locked_key: str


def write(path: Path, *contents: bytes) -> str:
    path.write_bytes(b"".join(contents))
    return str(path)


def signed(name: str, issuer: Any = None, signer: Any = None) -> tuple[x509.Certificate, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    return builder.sign(signer or key, hashes.SHA256()), key


def pem(key: Any, password: bytes | None = None) -> bytes:
    lock: Any = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock
    )
    return encoded


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    authority, authority_key = signed("Test Authority")

    def pair(role: str) -> tuple[str, str, Any]:
        certificate, key = signed(role, authority, authority_key)
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        return write(folder / f"{role}.pem", encoded), write(folder / f"{role}.key", pem(key)), key

    server, client = pair("server"), pair("client")
    return Papers(
        authority=write(
            folder / "authority.pem", authority.public_bytes(serialization.Encoding.PEM)
        ),
        server=server[:2],
        client=client[:2],
        locked_key=write(folder / "locked.key", pem(client[2], b"a password")),
    )


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
