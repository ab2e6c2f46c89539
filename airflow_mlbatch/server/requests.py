"""What is read out of a request: its body within a limit, its token, its query.

Law: nothing of a request is trusted. A body is counted while it arrives, whatever its header says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from airflow_mlbatch.protocol.documents import without_mark
from airflow_mlbatch.protocol.routes import (
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY_PREFIX_QUERY,
    IDEMPOTENCY_KEY_QUERY,
)
from airflow_mlbatch.server.replies import Refusal, bad_request

__all__ = [
    "bearer_token",
    "body_pieces",
    "count_parameter",
    "flag_parameter",
    "has_parameter",
    "idempotency_key",
    "key_parameter",
    "raw_path",
    "read_body",
]

_LONGEST_KEY = 255
_SILENCE_SECONDS = 60
# Slower than any client that means it: a byte now and then would hold the line for days.
_SLOWEST_BYTES_PER_SECOND = 1024
_DISCARD_SECONDS = 10


def raw_path(request: Request) -> str:
    """The path as it was sent, still percent-encoded: a name may hold a quoted slash."""
    raw = request.scope.get("raw_path")
    if not isinstance(raw, bytes):
        return str(request.scope["path"])
    path = raw.decode("utf-8", "replace")
    if path.startswith("/"):
        return path
    # The whole address, as a client sends it that takes this server for its proxy.
    return "/" + path.partition("://")[2].partition("/")[2]


def bearer_token(request: Request) -> str | None:
    """The token of the ``Authorization`` header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.casefold() == "bearer" else None


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body, a JSON text.

    :raises Refusal: 413 above the limit, 415 for a packed one, 408 when it stops arriving, or as good
        as stops
    """
    # .NET begins JSON with a byte order mark.
    return without_mark(b"".join([piece async for piece in body_pieces(request, max_bytes)]))


async def body_pieces(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Read the body piece by piece, for what is better not held whole.

    :raises Refusal: as :func:`read_body`
    """
    encoding = request.headers.get("content-encoding", "identity").strip().casefold()
    if encoding not in ("", "identity"):
        raise Refusal(415, f"content-encoding: found {encoding!r:.80}, expected none")
    size = 0
    stream = request.stream()
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        while True:
            in_debt = loop.time() - began - size / _SLOWEST_BYTES_PER_SECOND
            patience = _SILENCE_SECONDS - max(0.0, in_debt)
            piece = await asyncio.wait_for(anext(stream, None), max(0.0, patience))
            if piece is None:
                return
            size += len(piece)
            if size > max_bytes:
                await _discard(stream, max_bytes)
                raise Refusal(
                    413,
                    f"body: found more than {max_bytes:,} bytes, the limit of this server",
                    {"connection": "close"},
                )
            yield piece
    except asyncio.TimeoutError:
        raise Refusal(408, "body: it stopped arriving", {"connection": "close"}) from None
    except ClientDisconnect:
        raise Refusal(400, "body: the line was lost", {"connection": "close"}) from None


async def _discard(stream: AsyncIterator[bytes], max_bytes: int) -> None:
    """Let the rest of a body that is too large run by, for a while.

    A client reads the reply only after it has sent its body: were the line cut, it would report a
    lost line, and try again.
    """

    async def drain() -> None:
        left = max_bytes
        async for piece in stream:
            left -= len(piece)
            if left < 0:
                return

    try:
        await asyncio.wait_for(drain(), _DISCARD_SECONDS)
    except (asyncio.TimeoutError, ClientDisconnect):
        return


def count_parameter(request: Request, name: str, default: int) -> int:
    """A positive whole number from the query; the name is read in any case.

    :raises Refusal: 400 for anything else
    """
    text = _query(request, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise bad_request(f"{name}: found {text!r:.80}, expected a whole number from 1")
    return int(text)


def flag_parameter(request: Request, names: tuple[str, ...], default: bool) -> bool:
    """``true`` or ``false`` from the query; names and words are read in any case.

    :raises Refusal: 400 for anything else
    """
    for name in names:
        text = _query(request, name)
        if text is None:
            continue
        word = text.casefold()
        if word not in ("true", "false"):
            raise bad_request(f"{name}: found {text!r:.80}, expected true or false")
        return word == "true"
    return default


def idempotency_key(request: Request) -> str | None:
    """The key of a start; ``None`` when the request carries none.

    :raises Refusal: 400 for a key that is empty, too long or not visible ASCII, and for several keys
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(keys) > 1:
        raise bad_request(f"header {IDEMPOTENCY_KEY}: found {len(keys)} of them, expected one")
    return _key(f"header {IDEMPOTENCY_KEY}", keys[0]) if keys else None


def key_parameter(request: Request) -> tuple[str, bool] | None:
    """What the keys of the listed batches are compared with, and whether it is only their beginning.

    :raises Refusal: 400 for a text that no key can be or begin with, and for both parameters at once
    """
    asked = [
        (name, text)
        for name in (IDEMPOTENCY_KEY_QUERY, IDEMPOTENCY_KEY_PREFIX_QUERY)
        if (text := _query(request, name)) is not None
    ]
    if len(asked) > 1:
        raise bad_request(
            f"{IDEMPOTENCY_KEY_QUERY}, {IDEMPOTENCY_KEY_PREFIX_QUERY}: found both, expected one"
        )
    for name, text in asked:
        return _key(name, text), name == IDEMPOTENCY_KEY_PREFIX_QUERY
    return None


def _key(where: str, text: str) -> str:
    is_visible = text.isascii() and text.isprintable() and " " not in text
    if not is_visible or not 1 <= len(text) <= _LONGEST_KEY:
        raise bad_request(
            f"{where}: found {text!r:.80} ({len(text)} characters), "
            f"expected 1 to {_LONGEST_KEY} characters of visible ASCII"
        )
    return text


def has_parameter(request: Request, name: str) -> bool:
    """Whether the query holds a name, in any case."""
    return _query(request, name) is not None


def _query(request: Request, name: str) -> str | None:
    for key, value in request.query_params.multi_items():
        if key.casefold() == name.casefold():
            return str(value)
    return None
