"""Parts of URLs, for redirects and for error messages."""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow_mlbatch.protocol.messages import Send

__all__ = ["named", "origin", "without_query"]


def named(request: Send) -> str:
    """A request as an error names it, for example ``GET /status``."""
    return f"{request.route.method} {without_query(request.target)}"


def without_query(target: str) -> str:
    """An address without its query, its fragment and its user: these may hold secrets."""
    parts = urlsplit(target)
    return parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()


def origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; ``None`` for anything but a plain http(s) address.

    A user or a password in an address would be sent as credentials: no redirect may bring one.

    :raises ValueError: the port is not a number
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
