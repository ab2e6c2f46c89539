"""The small JSON documents of the API, read and written: tokens, errors, ids, lists, health.

Law: read either dialect. Keys are read without regard to the case of their first letter, because
servers of one family spell ``batchExecutionId`` and ``BatchExecutionId``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from airflow_mlbatch.errors import ContractError

__all__ = [
    "BYTE_ORDER_MARK",
    "NOT_JSON",
    "ServerStatus",
    "Tokens",
    "decoded",
    "document",
    "is_bearer",
    "lower_keys",
    "read_error",
    "read_execution_id",
    "read_names",
    "read_server_status",
    "read_tokens",
    "shown",
    "without_mark",
    "write_error",
    "write_execution_id",
    "write_tokens",
]

# What the decoder raises for a text that is no JSON, for bytes that are no text, and for brackets
# that are nested so deeply that nobody means it.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_SHOWN_CHARACTERS = 300
# Some libraries of .NET begin UTF-8 with it, and so does Excel. It means nothing, and the vendor's
# clients skip it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decoded(body: bytes) -> Any:
    """Decode JSON.

    :raises NOT_JSON: it is none
    """
    return msgspec.json.decode(without_mark(body))


def without_mark(body: bytes) -> bytes:
    """The text without a byte order mark."""
    return body.removeprefix(BYTE_ORDER_MARK)


def document(body: bytes, what: str, decode: Callable[[bytes], Any] = msgspec.json.decode) -> Any:
    """Decode a JSON body.

    :param decode: decodes JSON in another way than the usual
    :raises ContractError: names what was expected and shows how the body begins, so that a login
        page of a proxy is recognised for what it is
    """
    try:
        return decode(without_mark(body))
    except NOT_JSON as error:
        raise ContractError(f"{what}: expected JSON ({error}), found {shown(body)}") from None


def shown(body: bytes) -> str:
    """The beginning of a body on one line, safe to print."""
    text = " ".join(without_mark(body)[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace").split())
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    cut = text[:_SHOWN_CHARACTERS]
    return (cut + "…" if len(cut) < len(text) else cut) or "nothing"


def _not_shown(body: bytes) -> str:
    return f"{len(body):,} bytes that are not shown here"


def lower_keys(item: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the first letter of each key in lower case."""
    return {key[:1].lower() + key[1:]: value for key, value in item.items()}


def _object(body: bytes, what: str) -> dict[str, Any]:
    found = document(body, what)
    if not isinstance(found, Mapping):
        raise ContractError(f"{what}: found {found!r:.80}, expected an object")
    return lower_keys(found)


# --- login ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """What a login or a renewal brings.

    :param expires_at: epoch seconds on this machine's clock, or ``None`` when the server did not say
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None


def read_tokens(body: bytes, now: float) -> Tokens:
    """Read the reply to a login or a renewal.

    ``expires_in`` counts from the reply and needs no agreement between two clocks, so it is
    preferred to ``expires_on``.

    :param now: epoch seconds at which the reply arrived
    :raises ContractError: there is no token in it
    """
    item = _login_reply(body)
    token, refresh = item.get("access_token"), item.get("refresh_token")
    if not isinstance(token, str) or not token:
        raise ContractError("reply to the login: found no access_token")
    if not is_bearer(token):
        raise ContractError("reply to the login: found an access_token that no header can carry")
    lifetime, moment = _number(item.get("expires_in")), _number(item.get("expires_on"))
    expires_at = now + lifetime if lifetime is not None else moment
    return Tokens(token, refresh if isinstance(refresh, str) and refresh else None, expires_at)


def is_bearer(token: str) -> bool:
    """Whether a token can stand in a header: visible ASCII, so that each library sends the same."""
    return token.isascii() and token.isprintable() and " " not in token


def _login_reply(body: bytes) -> dict[str, Any]:
    what = "reply to the login"
    try:
        found = decoded(body)
    except NOT_JSON as error:
        # A page is shown, so that a proxy is recognised; anything else may be half a token.
        is_page = without_mark(body).lstrip()[:1] == b"<"
        page = shown(body) if is_page else _not_shown(body)
        raise ContractError(f"{what}: expected JSON ({error}), found {page}") from None
    if not isinstance(found, Mapping):
        raise ContractError(f"{what}: found {type(found).__name__}, expected an object")
    return lower_keys(found)


def write_tokens(
    access_token: str, refresh_token: str, now: float, lifetime: int
) -> dict[str, Any]:
    """The reply to a login or a renewal; ``lifetime`` in seconds."""
    return {
        "token_type": "Bearer",
        "access_token": access_token,
        "expires_in": lifetime,
        # The Swagger document declares a string; the vendor's own reply was seen with both.
        "expires_on": str(int(now) + lifetime),
        "refresh_token": refresh_token,
    }


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# --- errors --------------------------------------------------------------------------------------


def read_error(body: bytes, *, may_hold_tokens: bool = False) -> str:
    """The server's own words about an error, from either JSON shape, from text, or from HTML.

    :param may_hold_tokens: whether an object without such words, or half of it, is better not shown
    """
    try:
        found = decoded(body)
    except NOT_JSON:
        found = None
    if isinstance(found, Mapping):
        item = lower_keys(found)
        words = [str(item[key]) for key in ("message", "fields") if item.get(key)]
        if words:
            return shown(": ".join(words).encode("utf-8", "replace"))
    if may_hold_tokens and without_mark(body).lstrip()[:1] == b"{":
        return _not_shown(body)
    return shown(body)


def write_error(message: str, code: int) -> dict[str, Any]:
    """An error in both shapes that clients read: a service's Swagger document, and the real server."""
    of_document = {"code": code, "message": message, "fields": ""}
    return {**of_document, "link": "", "exceptionType": ""}


# --- batches -------------------------------------------------------------------------------------


def read_execution_id(body: bytes) -> str:
    """Read the id of a batch that was just started, in either spelling."""
    found = document(body, "reply to the start of a batch")
    if isinstance(found, Mapping):
        found = lower_keys(found).get("batchExecutionId")
    if not isinstance(found, str) or not found:
        raise ContractError("reply to the start of a batch: found no batchExecutionId")
    return found


def write_execution_id(execution_id: str, name: str, version: str) -> dict[str, str]:
    """The reply to the start of a batch, the id in both spellings: each client reads its own.

    :param name: of the service
    :param version: of the service
    """
    ids = {"batchExecutionId": execution_id, "BatchExecutionId": execution_id}
    return {"name": name, "version": version, **ids}


def read_names(body: bytes, what: str) -> list[str]:
    """Read a list of ids or of file names; ``null`` stands for an empty one."""
    found = document(body, what)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ContractError(f"{what}: found {found!r:.80}, expected a list of names")
    return found


# --- health --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerStatus:
    """``GET /status``: ``status_code`` is ``pass``, ``warn`` or ``fail``."""

    status_code: str
    components: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether the server can work (``pass`` or ``warn``)."""
        return self.status_code.casefold() in ("pass", "warn")


def read_server_status(body: bytes) -> ServerStatus:
    """Read the health of a server."""
    item = _object(body, "server status")
    code = item.get("statusCode")
    if not isinstance(code, str):
        raise ContractError(f"server status: found statusCode {code!r:.80}, expected a word")
    return ServerStatus(code, item.get("components") or {}, item.get("details") or {})
