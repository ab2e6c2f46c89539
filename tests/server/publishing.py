"""A client that publishes, sending what the vendor's Python client sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import dill
import requests

from tests.server.api import Api

__all__ = ["NUMBER", "Publisher", "definitions"]


def definitions(**types: str) -> list[dict[str, str]]:
    """Declared inputs or outputs, in order."""
    return [{"name": name, "type": kind} for name, kind in types.items()]


# What a service declares that makes a number of a number.
NUMBER: dict[str, Any] = {
    "inputParameterDefinitions": definitions(x="numeric"),
    "outputParameterDefinitions": definitions(y="numeric"),
}


class Publisher(Api):
    """A logged-in client of a server that accepts services."""

    def patch(self, path: str, json: Any) -> requests.Response:
        return self.session.patch(self.url + path, json=json, timeout=60)

    def open_session(self, runtime: str = "Python") -> str:
        reply = self.post("/sessions", {"runtimeType": runtime})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["sessionId"])

    def send_object(self, session: str, name: str, content: Any) -> requests.Response:
        return self.post(
            f"/sessions/{session}/workspace/{quote(name, safe='')}",
            data=content,
            headers={"content-type": "application/octet-stream"},
        )

    def take_snapshot(self, session: str) -> str:
        reply = self.post(f"/sessions/{session}/snapshot", {"name": None})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["snapshotId"])

    def snapshot(self, objects: Mapping[str, Any], runtime: str = "Python") -> tuple[str, str]:
        """Ids of a session and of a snapshot of it; bytes go out as they are, the rest pickled."""
        session = self.open_session(runtime)
        for name, value in objects.items():
            content = value if isinstance(value, bytes) else dill.dumps(value, protocol=3)
            reply = self.send_object(session, name, content)
            assert reply.status_code == 200, reply.text
        return session, self.take_snapshot(session)

    def publish(
        self,
        name: str,
        version: str,
        code: str,
        objects: Mapping[str, Any] | None = None,
        *,
        is_update: bool = False,
        runtime: str = "Python",
        **more: Any,
    ) -> requests.Response:
        """The requests of a deployment, or of a redeployment; the reply is that to the main one."""
        body = {"code": code, "runtimeType": runtime, **more}
        session = snapshot = None
        if objects is not None:
            session, snapshot = self.snapshot(objects, runtime)
            body["snapshotId"] = snapshot
        path = f"/services/{quote(name, safe='')}/{quote(version, safe='')}"
        reply = self.patch(path, body) if is_update else self.post(path, body)
        if session is not None:
            assert self.delete(f"/sessions/{session}").status_code == 200
            assert self.delete(f"/snapshots/{snapshot}").status_code == 200
        return reply
