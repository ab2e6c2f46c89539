"""Keeps secrets out of error messages: servers and proxies quote the requests that they refuse."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Iterable
from urllib.parse import quote

import msgspec

from airflow_mlbatch.errors import MLBatchError

__all__ = ["Secrets"]

_SHOWN_SECRET = "***"
# A quoted body is cut, and the cut can go through a secret. This much of its beginning is enough to
# recognise it.
_TELLING = 8
# Old tokens stay secret too: requests that carry them may still be under way.
_KEPT = 16


class Secrets:
    """What no error of a session may show.

    :param given: secrets that are known from the start: a password, a client secret
    """

    def __init__(self, given: Iterable[str]) -> None:
        self._given = [secret for secret in given if secret]
        self._arrived: deque[str] = deque(maxlen=_KEPT)

    def keep(self, secret: str) -> None:
        """Remember a secret that has just arrived; the oldest of them is forgotten."""
        self._arrived.append(secret)

    def take_over(self, other: Secrets) -> None:
        """Keep what the other session keeps."""
        self._given += other._given
        self._arrived.extend(other._arrived)

    def redact(self, error: BaseException | None) -> None:
        """Take the secrets out of an error and out of the errors that led to it."""
        while isinstance(error, MLBatchError):
            if error.args and isinstance(error.args[0], str):
                error.args = (self.redacted(error.args[0]), *error.args[1:])
            error = error.__context__ if error.__cause__ is None else error.__cause__

    def redacted(self, text: str) -> str:
        """The text without the secrets."""
        for secret in (*self._given, *self._arrived):
            for spelling in _spellings(secret):
                text = _without(spelling, text)
        return text


def _spellings(secret: str) -> set[str]:
    """A secret as a text may hold it: plain, in JSON, in a page, in an address."""
    in_json = msgspec.json.encode(secret).decode()[1:-1]
    on_one_line = " ".join(secret.split())
    return {secret, in_json, on_one_line, html.escape(secret), quote(secret, safe="")} - {""}


def _without(secret: str, text: str) -> str:
    """The text without the secret, also where only the beginning of the secret is left."""
    head = secret[:_TELLING]
    start = text.find(head)
    while start >= 0:
        size = len(head)
        while size < len(secret) and text[start + size : start + size + 1] == secret[size]:
            size += 1
        text = text[:start] + _SHOWN_SECRET + text[start + size :]
        start = text.find(head, start + len(_SHOWN_SECRET))
    return text
