"""The batch API as somebody with nothing but `requests` would use it."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import requests

from tests.patience import PATIENCE
from tests.server_process import PASSWORD

__all__ = ["Api", "log_in"]


def log_in(url: str, password: str = PASSWORD, username: str = "admin") -> dict[str, Any]:
    """The reply to a good login."""
    reply = requests.post(
        f"{url}/login", json={"username": username, "password": password}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


class Api:
    """One logged-in client of a server."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {token or log_in(url)['access_token']}"

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=60, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> requests.Response:
        return self.session.post(self.url + path, json=json, timeout=60, **more)

    def delete(self, path: str) -> requests.Response:
        return self.session.delete(self.url + path, timeout=60)

    def consume(self, service: str, version: str = "1", /, **inputs: Any) -> dict[str, Any]:
        reply = self.post(service_path(service, version), inputs)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def start(
        self, service: str, records: list[Any], version: str = "1", parallel: int = 10
    ) -> str:
        """Start a batch; returns the path of its execution."""
        batches = f"{service_path(service, version)}/batch"
        reply = self.post(batches, records, params={"parallelCount": parallel})
        assert reply.status_code == 202, reply.text
        return f"{batches}/{reply.json()['batchExecutionId']}"

    def batch(self, path: str, partial: bool = True) -> dict[str, Any]:
        reply = self.get(path, params={"showPartialResults": str(partial).lower()})
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def wait(self, path: str) -> list[dict[str, Any]]:
        """The results of a batch, once it is complete."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self.batch(path, partial=False)
            if found["state"] == "complete":
                assert found["completedItemCount"] == found["totalItemCount"]
                assert len(found["batchExecutionResults"]) == found["totalItemCount"]
                return list(found["batchExecutionResults"])
            time.sleep(0.02)
        raise AssertionError(f"not complete: {found}")

    def score(
        self, service: str, records: list[Any], version: str = "1", parallel: int = 10
    ) -> list[dict[str, Any]]:
        return self.wait(self.start(service, records, version, parallel))


def service_path(service: str, version: str = "1") -> str:
    return f"/api/{quote(service, safe='')}/{quote(version, safe='')}"
