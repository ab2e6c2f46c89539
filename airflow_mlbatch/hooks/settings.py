"""What an Airflow connection says, read once for synchronous and asynchronous code.

==================== ================================================================================
field                meaning
==================== ================================================================================
host                 a name, or a whole URL with an optional path prefix
schema               ``http`` (default) or ``https``; not needed where the host is a URL
port                 12800 unless given; a URL brings its own
login, password      for the login; with ``auth: token`` the password is a ready bearer token
extra ``auth``       ``password`` (default), ``token`` or ``entra`` (Microsoft Entra ID)
extra ``verify``     ``true`` (default), ``false``, or the path of a CA bundle: for the server, and for
                     an ``authority`` of one's own
extra ``client_cert``  path of a client certificate (PEM), ``client_key`` of its key
extra ``connect_timeout``, ``read_timeout``  seconds
extra ``resource``, ``tenant_id``, ``client_id``, ``client_secret``, ``authority``  for ``entra``;
                     id and secret may also stand in login and password; without a secret it is a
                     workload or managed identity. ``audience`` is another name for ``resource``
==================== ================================================================================

Any other key of the extra field is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_mlbatch.errors import ConnectionConfigError
from airflow_mlbatch.protocol.documents import is_bearer
from airflow_mlbatch.protocol.flows import EntraLogin, Login, PasswordLogin, ReadyToken
from airflow_mlbatch.protocol.messages import EntraSource
from airflow_mlbatch.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

__all__ = ["DEFAULT_PORT", "Settings", "read_settings"]

DEFAULT_PORT = 12800
_KEYS = (
    "auth",
    "verify",
    "client_cert",
    "client_key",
    "connect_timeout",
    "read_timeout",
    "resource",
    "audience",
    "tenant_id",
    "client_id",
    "client_secret",
    "authority",
)


@dataclass(frozen=True)
class Settings:
    """A server and how to get a token for it; equal settings may share a session."""

    endpoint: Endpoint
    login: Login


def read_settings(connection: Connection, extra: Mapping[str, Any]) -> Settings:
    """Read a connection.

    :param extra: its extra field, decoded (the caller knows whether to do that on an event loop)
    :raises ConnectionConfigError: names the field, what was found and what was expected
    """
    conn_id = connection.conn_id
    try:
        if not isinstance(extra, Mapping):
            raise ConnectionConfigError(f"extra: found {type(extra).__name__}, expected an object")
        _check_keys(extra)
        verify = _verify(extra.get("verify", True))
        endpoint = Endpoint(
            url=_url(connection),
            verify=verify,
            client_cert=_text(extra, "client_cert"),
            client_key=_text(extra, "client_key"),
            connect_timeout=_seconds(extra, "connect_timeout", Endpoint.connect_timeout),
            read_timeout=_seconds(extra, "read_timeout", Endpoint.read_timeout),
        )
        if endpoint.client_key and not endpoint.client_cert:
            raise ConnectionConfigError("client_cert: found nothing, expected one for client_key")
        return Settings(endpoint, _login(connection, extra))
    except ConnectionConfigError as error:
        raise ConnectionConfigError(f"connection {conn_id!r}, {error}") from None


def _check_keys(extra: Mapping[str, Any]) -> None:
    """Refuse what nobody reads: somebody would believe that it works."""
    unknown = [str(key) for key in extra if key not in _KEYS and not _is_of_airflow(str(key))]
    if unknown:
        listed = ", ".join(_suggested(key) for key in unknown)
        raise ConnectionConfigError(f"extra: found {listed}, expected some of {', '.join(_KEYS)}")


def _is_of_airflow(key: str) -> bool:
    """Whether Airflow makes such keys: for extras in a URI, and for the fields of its own forms."""
    return key == "__extra__" or key.startswith("extra__")


def _suggested(key: str) -> str:
    # The key is shown, its value is not: it may be a secret under a wrong name.
    close = difflib.get_close_matches(key.casefold(), _KEYS, n=1)
    return f"{key!a:.80} (did you mean {close[0]!r}?)" if close else f"{key!a:.80}"


def _url(connection: Connection) -> str:
    host = (connection.host or "").strip().rstrip("/")
    if not host:
        raise ConnectionConfigError("host: found nothing, expected a name or a URL")
    schema = (connection.schema or "http").strip().casefold()
    is_whole = "://" in host
    parts = urlsplit(host if is_whole else f"{schema}://{host}")
    try:
        port = parts.port or connection.port or (None if is_whole else DEFAULT_PORT)
    except ValueError:
        # The host itself is not shown: somebody may have written a password into it.
        raise ConnectionConfigError(
            "host: invalid port, expected a number from 1 to 65535"
        ) from None
    if parts.scheme not in ("http", "https"):
        field = "host" if is_whole else "schema"
        raise ConnectionConfigError(f"{field}: found {parts.scheme!r}, expected http or https")
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConnectionConfigError(
            "host: expected a name or a URL without user, query or fragment"
        )
    if port is not None and not 0 < port < 65536:
        raise ConnectionConfigError(f"port: found {port}, expected a number from 1 to 65535")
    # Quoted here, so that each library finds nothing to quote in its own way.
    path = quote(parts.path.rstrip("/"), safe="!$%&'()*+,/:;=@~", errors="surrogateescape")
    return f"{parts.scheme}://{_name(parts.hostname)}{f':{port}' if port else ''}{path}"


def _name(host: str) -> str:
    """A host as it stands in an address."""
    if ":" in host:
        return f"[{host}]"
    try:
        is_name = host.encode("idna") and not any(letter.isspace() for letter in host)
    except UnicodeError:
        is_name = False
    if not is_name:
        raise ConnectionConfigError(
            f"host: found {host!a:.80}, expected a name whose parts have 1 to 63 letters"
        )
    return host


def _login(connection: Connection, extra: Mapping[str, Any]) -> Login:
    auth = str(extra.get("auth") or "password").casefold()
    if auth not in _LOGINS:
        raise ConnectionConfigError(f"auth: found {auth!r}, expected one of {', '.join(_LOGINS)}")
    return _LOGINS[auth](connection, extra)


def _password_login(connection: Connection, extra: Mapping[str, Any]) -> PasswordLogin:
    if not connection.password:
        raise ConnectionConfigError("password: found nothing, expected the password of the login")
    if not connection.login:
        raise ConnectionConfigError("login: found nothing, expected the name of the user")
    return PasswordLogin(connection.login, connection.password)


def _ready_token(connection: Connection, extra: Mapping[str, Any]) -> ReadyToken:
    if not connection.password:
        raise ConnectionConfigError("password: found nothing, expected a bearer token")
    if not is_bearer(connection.password):
        raise ConnectionConfigError(
            "password: found a blank, a line end or a letter that no header can carry, "
            "expected a bearer token"
        )
    return ReadyToken(connection.password)


def _entra_login(connection: Connection, extra: Mapping[str, Any]) -> EntraLogin:
    resource = _text(extra, "resource") or _text(extra, "audience")
    if resource is None:
        raise ConnectionConfigError("resource: found nothing, expected the server's application id")
    source = EntraSource(
        resource=resource,
        tenant_id=_text(extra, "tenant_id") or "",
        client_id=_text(extra, "client_id") or connection.login or "",
        client_secret=_text(extra, "client_secret") or connection.password or "",
        authority=_text(extra, "authority"),
    )
    if source.client_secret:
        for field in ("tenant_id", "client_id"):
            if not getattr(source, field):
                raise ConnectionConfigError(f"{field}: found nothing, expected it beside a secret")
    return EntraLogin(source)


_LOGINS: dict[str, Callable[[Connection, Mapping[str, Any]], Login]] = {
    "password": _password_login,
    "token": _ready_token,
    "entra": _entra_login,
}


def _verify(value: Any) -> bool | str:
    if value is None or value == "":
        return True
    if isinstance(value, bool):
        return value
    word = str(value).strip()
    if word.casefold() in ("true", "false"):
        return word.casefold() == "true"
    return word


def _text(extra: Mapping[str, Any], key: str) -> str | None:
    value = extra.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        # Its value is not shown: this reads the client secret, too.
        raise ConnectionConfigError(f"{key}: found {type(value).__name__}, expected text")
    return value


def _seconds(extra: Mapping[str, Any], key: str, default: float) -> float:
    value = extra.get(key)
    if value is None or value == "":
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConnectionConfigError(f"{key}: found {value!r}, expected a number of seconds above 0")
    return seconds
