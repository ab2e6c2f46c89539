"""Tokens from Microsoft Entra ID, against a token endpoint on this machine that speaks TLS."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_mlbatch.errors import (
    AuthenticationError,
    ConnectionConfigError,
    ConnectionLostError,
    MLBatchError,
)
from airflow_mlbatch.protocol.flows import EntraLogin, Flows, Policy
from airflow_mlbatch.protocol.messages import EntraSource
from airflow_mlbatch.transport.blocking import BlockingDriver
from airflow_mlbatch.transport.endpoint import Endpoint
from airflow_mlbatch.transport.entra import fetch_token, fetch_token_async
from airflow_mlbatch.transport.nonblocking import NonblockingDriver
from tests.faults.server import Answer, FaultServer, Play, as_json

pytest.importorskip("azure.identity", reason="the extra `entra` is not installed")

SECRET = "the client's own secret"


class Authority(http.server.BaseHTTPRequestHandler):
    """As much of an identity provider as a client with a secret talks to."""

    forms: ClassVar[list[dict[str, str]]] = []
    takes_assertion: ClassVar[str] = ""

    def do_GET(self) -> None:
        base = f"https://127.0.0.1:{self.server.server_port}/tenant"  # type: ignore[attr-defined]
        self._answer(
            200,
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.forms.append(form)
        is_known = form.get("client_secret") == SECRET or (
            self.takes_assertion and self.takes_assertion == form.get("client_assertion")
        )
        if not is_known:
            told = f"AADSTS7000215: Invalid client secret provided: {form.get('client_secret')}"
            self._answer(401, {"error": "invalid_client", "error_description": told})
            return
        token = f"entra-token-{len(self.forms)}"
        self._answer(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in the same file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def authority(certificate: Path) -> Iterator[str]:
    """The address of the identity provider."""
    Authority.forms.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def source_at(authority: str, secret: str = SECRET, tenant: str = "tenant") -> EntraSource:
    return EntraSource("api://mlserver", tenant, "client", secret, authority)


def run(driver: str, flows: Flows, endpoint: Endpoint) -> Any:
    if driver == "blocking":
        blocking = BlockingDriver(endpoint)
        try:
            return blocking.run(flows.get_server_status())
        finally:
            blocking.close()

    async def talk() -> Any:
        nonblocking = NonblockingDriver(endpoint)
        try:
            return await nonblocking.run(flows.get_server_status())
        finally:
            await nonblocking.close()

    return asyncio.run(talk())


@pytest.mark.parametrize("driver", ["blocking", "nonblocking"])
def test_the_token_is_used_and_fetched_anew_after_a_401(
    driver: str, authority: str, certificate: Path
) -> None:
    healthy = as_json({"statusCode": "pass"})
    with FaultServer(Play({"GET": [Answer(status=401), healthy]})) as server:
        flows = Flows(EntraLogin(source_at(authority)), server.url, Policy())
        endpoint = Endpoint(server.url, verify=str(certificate))
        assert run(driver, flows, endpoint).is_healthy
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer entra-token-1", "Bearer entra-token-2"]
    assert all(request.target == "/status" for request in server.requests), "there is no login"
    assert Authority.forms[0] | {"client_secret": ""} == Authority.forms[0] | {
        "grant_type": "client_credentials",
        "client_id": "client",
        "client_secret": "",
    }
    assert "api://mlserver/.default" in Authority.forms[0]["scope"]


def of_this_machine(authority: str | None = None) -> EntraSource:
    return EntraSource("api://mlserver", authority=authority)


@pytest.mark.parametrize("driver", ["blocking", "nonblocking"])
@pytest.mark.parametrize("place", ["connection", "environment"])
def test_a_workload_identity(
    driver: str,
    place: str,
    authority: str,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Kubernetes gives one; what the connection says goes before what the pod says."""
    assertion = tmp_path / "federated"
    assertion.write_text("who-this-pod-is")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(assertion))
    if place == "connection":
        source = EntraSource("api://mlserver", "tenant", "client", "", authority)
    else:
        monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
        monkeypatch.setenv("AZURE_CLIENT_ID", "client")
        source = of_this_machine(authority)
    monkeypatch.setattr(Authority, "takes_assertion", "who-this-pod-is")

    assert fetched(driver, source, str(certificate)).access_token == "entra-token-1"
    assert Authority.forms[0]["client_id"] == "client"


@pytest.mark.parametrize("driver", ["blocking", "nonblocking"])
def test_a_workload_identity_whose_authority_cannot_be_reached(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That passes: the task is tried again."""
    assertion = tmp_path / "federated"
    assertion.write_text("who-this-pod-is")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(assertion))
    source = EntraSource("api://mlserver", "tenant", "client", "", "https://127.0.0.1:9")
    with pytest.raises(ConnectionLostError, match="Entra ID cannot be reached") as raised:
        fetched(driver, source, True)
    assert "who-this-pod-is" not in str(raised.value)


@pytest.mark.parametrize("driver", ["blocking", "nonblocking"])
@pytest.mark.parametrize("client_id", ["", "one-of-several"])
def test_a_managed_identity(driver: str, client_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine in Azure has one, from the endpoint that the machine offers."""
    token = as_json({"access_token": "of-the-machine", "expires_on": "2000000000", "resource": "x"})
    with FaultServer(Play({"GET": [token]})) as machine:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{machine.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "key")
        source = EntraSource("api://mlserver", client_id=client_id)
        found = fetched(driver, source, True)

    assert (found.access_token, found.expires_at) == ("of-the-machine", 2_000_000_000.0)
    assert [request.headers["x-identity-header"] for request in machine.requests] == ["key"]
    asked = parse_qs(urlsplit(machine.requests[0].target).query)
    assert asked["resource"] == ["api://mlserver"]
    assert asked.get("client_id", [""]) == [client_id]


@pytest.mark.parametrize(
    ("authority", "checked"),
    [
        (None, True),
        ("https://login.microsoftonline.com/", True),
        ("login.microsoftonline.us", True),
        ("https://login.example.com", False),
    ],
)
def test_the_authority_of_microsoft_is_always_checked(
    authority: str | None, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``verify`` is about one's own servers: a secret is not sent to whoever answers."""
    import azure.identity

    given: dict[str, Any] = {}

    class Noted(azure.identity.ClientSecretCredential):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            given.update(kwargs)
            raise ValueError("seen")

    monkeypatch.setattr(azure.identity, "ClientSecretCredential", Noted)
    with pytest.raises(ConnectionConfigError, match="seen"):
        fetch_token(EntraSource("api://x", "tenant", "client", SECRET, authority), False)
    assert given["connection_verify"] is checked


def fetched(driver: str, source: EntraSource, verify: bool | str) -> Any:
    if driver == "blocking":
        return fetch_token(source, verify)
    return asyncio.run(fetch_token_async(source, verify))


@pytest.mark.parametrize("driver", ["blocking", "nonblocking"])
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("secret", AuthenticationError, "Entra ID gave no token for api://mlserver/.default"),
        ("tls", ConnectionLostError, "Entra ID cannot be reached"),
        ("refused", ConnectionLostError, "Entra ID cannot be reached"),
        ("tenant", ConnectionConfigError, "tenant_id, authority: "),
    ],
)
def test_what_goes_wrong_is_told_without_the_secret(
    driver: str,
    kind: str,
    error: type[MLBatchError],
    words: str,
    authority: str,
    certificate: Path,
) -> None:
    wrong = "another secret, which is wrong"
    source = {
        "secret": source_at(authority, wrong),
        "tls": source_at(authority, wrong),
        "refused": source_at("https://127.0.0.1:9", wrong),
        "tenant": source_at(authority, wrong, tenant="no/such tenant"),
    }[kind]
    with pytest.raises(error, match=words) as raised:
        fetched(driver, source, True if kind == "tls" else str(certificate))
    assert wrong not in str(raised.value)
    assert wrong not in repr(source)


def test_fields_of_the_connection() -> None:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_mlbatch.hooks.settings import read_settings

    def source_of(**fields: Any) -> EntraSource:
        whole: dict[str, Any] = {"conn_type": "mlbatch", "host": "ml", **fields}
        login = read_settings(Connection.from_json(json.dumps(whole)), whole.get("extra", {})).login
        assert isinstance(login, EntraLogin)
        return login.source

    extra = {"auth": "entra", "resource": "api://x", "tenant_id": "t", "client_id": "c"}
    assert source_of(extra={**extra, "client_secret": "s"}) == EntraSource("api://x", "t", "c", "s")
    assert source_of(
        login="c", password="s", extra={"auth": "entra", "audience": "api://x", "tenant_id": "t"}
    ) == EntraSource("api://x", "t", "c", "s")
    assert source_of(extra={"auth": "entra", "resource": "api://x"}) == EntraSource("api://x")
    with pytest.raises(ConnectionConfigError, match="resource: found nothing"):
        source_of(extra={"auth": "entra"})
    with pytest.raises(ConnectionConfigError, match="tenant_id: found nothing"):
        source_of(password="s", extra={"auth": "entra", "resource": "api://x"})
