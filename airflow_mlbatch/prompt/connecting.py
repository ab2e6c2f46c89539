"""Which server a command talks to: by options, or by the environment.

Law: a password is never an option, because other users of a machine can read those.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import ConnectionConfigError, InputError
from airflow_mlbatch.prompt.values import word

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook

__all__ = ["add_connection", "open_hook"]

DEFAULT_USERNAME = "admin"


def add_connection(command: argparse.ArgumentParser) -> None:
    """Add the options that name a server."""
    group = command.add_argument_group(
        "connection",
        "Without these options: the server of the variable MLBATCH_URL, otherwise the Airflow "
        "connection mlbatch_default. With an address, the password comes from MLBATCH_PASSWORD, or a "
        "ready token from MLBATCH_TOKEN; otherwise you are asked for the password.",
    )
    server = group.add_mutually_exclusive_group()
    server.add_argument(
        "--conn-id",
        type=word,
        metavar="ID",
        help="an Airflow connection, which the environment or a secrets backend has",
    )
    server.add_argument(
        "--url", type=word, help="the address of the server, for example http://localhost:12800"
    )
    group.add_argument(
        "--username",
        type=word,
        metavar="NAME",
        help="who logs in at that address; without it MLBATCH_USERNAME, otherwise admin",
    )
    group.add_argument(
        "--ca-file",
        type=word,
        metavar="FILE",
        help="the certificates to trust at that address, in PEM form",
    )


def open_hook(options: argparse.Namespace, **kwargs: Any) -> MLBatchHook:
    """The hook for the server that is named.

    :param options: those of :func:`add_connection`
    :param kwargs: those of the hook
    :raises InputError: an option is missing, or of no use beside another
    """
    from airflow_mlbatch.hooks import MLBatchHook

    url = options.url
    if url is None and options.conn_id is None:
        url = os.environ.get("MLBATCH_URL") or None
    if url is None:
        for name in ("username", "ca_file"):
            if getattr(options, name, None) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: found it without an address, expected --url or "
                    "MLBATCH_URL beside it; an Airflow connection has its own"
                )
        return MLBatchHook(options.conn_id or MLBatchHook.default_conn_name, **kwargs)
    if not url.startswith(("http://", "https://")):
        raise ConnectionConfigError(
            f"--url: found {url!r:.80}, expected http:// or https:// at its start"
        )
    extra: dict[str, Any] = {}
    ca_file = getattr(options, "ca_file", None)
    if ca_file is not None:
        extra["verify"] = ca_file
    username = (
        getattr(options, "username", None) or os.environ.get("MLBATCH_USERNAME") or DEFAULT_USERNAME
    )
    token = os.environ.get("MLBATCH_TOKEN")
    if token:
        return MLBatchHook.at(url, username, token, extra={**extra, "auth": "token"}, **kwargs)
    return MLBatchHook.at(url, username, _password(username, url), extra=extra, **kwargs)


def _password(username: str, url: str) -> str:
    password = os.environ.get("MLBATCH_PASSWORD")
    if password:
        return password
    if not sys.stdin.isatty():
        raise InputError(
            "MLBATCH_PASSWORD: found nothing in the environment, and nobody to ask; expected the "
            f"password of {username}"
        )
    return getpass.getpass(f"Password of {username} at {url}: ", stream=sys.stderr)
