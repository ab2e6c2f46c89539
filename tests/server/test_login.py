"""Passwords and tokens, over HTTP."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.patience import wait_until
from tests.server.api import Api, log_in
from tests.server_process import PASSWORD, RunningServer, running_server


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose logins no other test uses."""
    with running_server(
        "--demo", "--workers", "1", data_dir=tmp_path_factory.mktemp("login") / "data"
    ) as running:
        yield running


def status_with(url: str, token: str) -> int:
    reply = requests.get(f"{url}/status", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    return reply.status_code


def renew(url: str, refresh_token: str) -> requests.Response:
    body = {"refreshToken": refresh_token}
    return requests.post(f"{url}/login/refreshToken", json=body, timeout=60)


def test_a_login_gives_a_pair_of_tokens(server: RunningServer) -> None:
    found = log_in(server.url)
    assert set(found) == {
        "token_type",
        "access_token",
        "expires_in",
        "expires_on",
        "refresh_token",
    }
    assert found["token_type"] == "Bearer"
    assert found["expires_in"] == 3600
    assert abs(int(found["expires_on"]) - time.time() - 3600) < 600
    assert status_with(server.url, found["access_token"]) == 200


def test_a_renewal_ends_the_old_pair(server: RunningServer) -> None:
    old = log_in(server.url)
    new = renew(server.url, old["refresh_token"]).json()
    assert status_with(server.url, new["access_token"]) == 200
    assert status_with(server.url, old["access_token"]) == 401
    assert renew(server.url, old["refresh_token"]).status_code == 401
    assert renew(server.url, new["refresh_token"]).status_code == 200


def test_a_revoked_pair_is_dead(server: RunningServer) -> None:
    pair = log_in(server.url)
    path = f"{server.url}/login/refreshToken"
    asked = {"refreshToken": pair["refresh_token"]}
    assert requests.delete(path, params=asked, timeout=60).status_code == 200
    assert status_with(server.url, pair["access_token"]) == 401
    assert renew(server.url, pair["refresh_token"]).status_code == 401
    assert requests.delete(path, params=asked, timeout=60).status_code == 401
    assert requests.delete(path, timeout=60).status_code == 400


def test_every_row_but_the_login_wants_a_token(server: RunningServer) -> None:
    for method, path in (
        ("GET", "/status"),
        ("GET", "/services"),
        ("GET", "/services/double"),
        ("GET", "/services/double/1"),
        ("GET", "/api/double/1/swagger.json"),
        ("POST", "/api/double/1"),
        ("POST", "/api/double/1/batch"),
        ("GET", "/api/double/1/batch"),
        ("GET", "/api/double/1/batch/x"),
        ("DELETE", "/api/double/1/batch/x"),
        ("GET", "/api/double/1/batch/x/0/files"),
        ("GET", "/api/double/1/batch/x/0/files/y"),
    ):
        reply = requests.request(method, server.url + path, timeout=60)
        assert reply.status_code == 401, path
        assert reply.json()["message"] == "Missing access token"
        assert reply.headers["www-authenticate"] == "Bearer"


def test_a_large_body_with_a_bad_token_gets_its_401(server: RunningServer) -> None:
    # The client of a batch renews its token on this answer: it must not meet a cut line instead.
    api = Api(server.url, token="old")
    for _ in range(3):
        reply = api.post("/api/double/1/batch", data=b" " * 900_000)
        assert reply.status_code == 401


def forged(pair: dict[str, Any]) -> list[str]:
    """Tokens that a careless check would take."""
    token = pair["access_token"]
    return [
        token[:-1],
        f"{token}A",
        token.swapcase(),
        hashlib.sha256(token.encode()).hexdigest(),  # as it is stored
        pair["refresh_token"],
        "",
        "x",
        "a.b.c",
        "%",
    ]


def test_a_forged_token_is_refused(server: RunningServer) -> None:
    pair = log_in(server.url)
    token = pair["access_token"]
    for one in forged(pair):
        assert status_with(server.url, one) == 401, one
    assert status_with(server.url, token) == 200
    reply = requests.get(
        f"{server.url}/status", headers={"Authorization": f"Basic {token}"}, timeout=60
    )
    assert reply.status_code == 401


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "login request: expected JSON"),
        (b"[]", "login request: found list"),
        (b"{}", "field 'username'"),
        (b'{"username": "admin"}', "field 'password'"),
        (b'{"username": "admin", "password": 1}', "field 'password'"),
        (b'{"username": {"a": 1}, "password": "hunter2"}', "field 'username'"),
    ],
)
def test_a_login_that_is_none(server: RunningServer, body: bytes, words: str) -> None:
    reply = requests.post(f"{server.url}/login", data=body, timeout=60)
    assert reply.status_code == 400
    assert words in reply.json()["message"]
    assert "hunter2" not in reply.text


def test_guessers_wait_and_others_do_not(lonely: RunningServer) -> None:
    def attempt(username: str, password: str) -> requests.Response:
        body = {"username": username, "password": password}
        return requests.post(f"{lonely.url}/login", json=body, timeout=60)

    guesses = [attempt("mallory", f"guess {number}") for number in range(5)]
    assert [reply.status_code for reply in guesses] == [401] * 5
    assert {reply.json()["message"] for reply in guesses} == {"Invalid username or password"}
    # The first wait is a second, which may be over already; each further guess doubles it.
    more = (attempt("mallory", f"guess {number}") for number in range(6, 12))
    refused = next(reply for reply in more if reply.status_code != 401)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert attempt("admin", PASSWORD).status_code == 200


def test_tokens_and_their_ends_survive_a_restart(lonely: RunningServer) -> None:
    good, renewed, revoked = (log_in(lonely.url) for _ in range(3))
    fresh = renew(lonely.url, renewed["refresh_token"]).json()
    requests.delete(
        f"{lonely.url}/login/refreshToken",
        params={"refreshToken": revoked["refresh_token"]},
        timeout=60,
    )
    lonely.restart()
    assert status_with(lonely.url, good["access_token"]) == 200
    assert status_with(lonely.url, fresh["access_token"]) == 200
    assert status_with(lonely.url, renewed["access_token"]) == 401
    assert status_with(lonely.url, revoked["access_token"]) == 401
    assert renew(lonely.url, good["refresh_token"]).status_code == 200


def test_secrets_are_not_on_the_disk_in_clear(lonely: RunningServer) -> None:
    pair = log_in(lonely.url)
    lonely.stop()
    for path in lonely.data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (PASSWORD, pair["refresh_token"], pair["access_token"]):
                assert secret.encode() not in content, path
    assert stat.S_IMODE((lonely.data_dir / "account.json").stat().st_mode) == 0o600
    assert PASSWORD not in lonely.log.read_text()
    lonely.start()


def test_a_short_lifetime_is_kept(tmp_path: Path) -> None:
    with running_server("--demo", "--token-lifetime", "1", data_dir=tmp_path / "data") as short:
        pair = log_in(short.url)
        assert pair["expires_in"] == 1
        wait_until(lambda: status_with(short.url, pair["access_token"]) == 401)
        new = renew(short.url, pair["refresh_token"])
        assert new.status_code == 200


def test_a_password_is_made_up_once(tmp_path: Path) -> None:
    with running_server(
        "--demo", "--workers", "1", data_dir=tmp_path / "data", env={"MLBATCH_PASSWORD": None}
    ) as server:
        first, ready = server.lines
        assert first.startswith("mlbatch serve: password of admin: ")
        assert ready.startswith("mlbatch serve: ready on http://127.0.0.1:")
        password = first.split()[5]
        pair = log_in(server.url, password)
        server.restart()
        assert len(server.lines) == 3  # the ready line, and no password
        log_in(server.url, password)
        assert status_with(server.url, pair["access_token"]) == 200


def test_a_password_is_made_up_only_once_the_services_have_loaded(tmp_path: Path) -> None:
    source = tmp_path / "broken.py"
    source.write_text("raise RuntimeError\n")
    with pytest.raises(AssertionError, match="did not start"):
        RunningServer(
            ("--services", str(source)), tmp_path / "data", env={"MLBATCH_PASSWORD": None}
        )
    with running_server(
        "--demo", "--workers", "1", data_dir=tmp_path / "data", env={"MLBATCH_PASSWORD": None}
    ) as server:
        shown, _ = server.lines
        log_in(server.url, shown.split()[5])


def test_another_password_ends_the_old_one_and_its_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running_server("--demo", "--workers", "1", data_dir=folder) as server:
        old = log_in(server.url)
    with running_server(
        "--demo", "--workers", "1", data_dir=folder, env={"MLBATCH_PASSWORD": "new"}
    ) as server:
        log_in(server.url, "new")
        assert status_with(server.url, old["access_token"]) == 401
        reply = requests.post(
            f"{server.url}/login", json={"username": "admin", "password": PASSWORD}, timeout=60
        )
        assert reply.status_code == 401
