"""A mail server on this machine that keeps what it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from tests.patience import PATIENCE
from tests.ports import ReservedPort

__all__ = ["MailServer", "running_mail_server", "text_of"]


class MailServer:
    """What the server has got, and where it listens."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.port = 0

    @property
    def connection(self) -> str:
        """An Airflow connection to it, as its environment variable holds it."""
        extra = {"disable_ssl": True, "disable_tls": True}
        host = {"host": "127.0.0.1", "port": self.port}
        return json.dumps({"conn_type": "smtp", **host, "extra": extra})

    def about(self, dag_id: str) -> list[EmailMessage]:
        """The messages with a Dag in their subject."""
        return [message for message in self.messages if dag_id in str(message["Subject"])]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Called by aiosmtpd with each message."""
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        return "250 OK"


@contextmanager
def running_mail_server() -> Iterator[MailServer]:
    """A server on a free port of 127.0.0.1."""
    from aiosmtpd.controller import Controller

    server, place = MailServer(), ReservedPort()
    server.port = place.number
    controller = Controller(server, hostname="127.0.0.1", port=server.port, ready_timeout=PATIENCE)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()
        place.close()


def text_of(message: EmailMessage) -> str:
    """The text of a message, HTML as it was sent."""
    body = message.get_body(("html", "plain"))
    assert body is not None
    return str(body.get_content())
