"""Every verb and path of the API in one table.

Law: no other module spells a path. The client fills the templates, the server matches against them.

Sources: the vendor's core Swagger document (login, services, status) and the Swagger document of a
published service (consumption and batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote, unquote

from airflow_mlbatch.errors import InputError

__all__ = [
    "ACCEPT_IDEMPOTENCY_KEY",
    "IDEMPOTENCY_KEY",
    "IDEMPOTENCY_KEY_PREFIX_QUERY",
    "IDEMPOTENCY_KEY_QUERY",
    "IDEMPOTENCY_REPLAYED",
    "NOT_OFFERED",
    "PARALLEL_COUNT",
    "ROUTES",
    "Missing",
    "Route",
    "match",
    "name_not_offered",
]

PARALLEL_COUNT = 10
"""How many records of a batch are scored at once where nobody says."""

# Our own addition to the API: a client sends a key with the start of a batch. A server that knows keys
# starts one batch for each key, answers a repeat with the same execution id, and finds it by its key.
# A real server ignores all of this.
IDEMPOTENCY_KEY = "idempotency-key"
# A reply with this header comes from a server that knows keys.
ACCEPT_IDEMPOTENCY_KEY = "accept-idempotency-key"
# A reply with this header repeats what an earlier request with the same key was told.
IDEMPOTENCY_REPLAYED = "idempotency-replayed"
# In the query of the list of executions: only those that were started with this key.
IDEMPOTENCY_KEY_QUERY = "idempotencyKey"
# Likewise: only those whose key begins with this text.
IDEMPOTENCY_KEY_PREFIX_QUERY = "idempotencyKeyPrefix"


class Missing(Enum):
    """What a 404 from a route most likely means; the message decides where it says more."""

    NOTHING = "resource"
    SERVICE = "web service"
    EXECUTION = "execution"
    ARTIFACT = "file"


@dataclass(frozen=True)
class Route:
    """One row of the API.

    :param name: the operation id of the Swagger documents
    :param method: HTTP verb
    :param template: path below the endpoint, with ``{placeholders}`` for whole segments
    :param success: the status that means success
    :param is_repeatable: whether a request may be sent again after a lost line. True for what
        changes nothing or leaves the same end (GET, DELETE, login); false where a second request
        could do the work twice.
    :param is_open: whether it works without a token
    :param missing: what is not there when it answers 404
    """

    name: str
    method: str
    template: str
    success: int = 200
    is_repeatable: bool = True
    is_open: bool = False
    missing: Missing = Missing.NOTHING

    def path(self, **values: str | int) -> str:
        """Fill the template, each value quoted as one segment.

        :raises InputError: for a value that cannot be a path segment (missing, empty, ``.`` or
            ``..``); names the argument
        """
        return self.template.format_map(
            {key: _segment(key, value) for key, value in values.items()}
        )

    def match(self, method: str, raw_path: str) -> dict[str, str] | None:
        """Read the placeholders out of a still quoted path; ``None`` when this is another route."""
        if method != self.method:
            return None
        return self.match_path(raw_path)

    def match_path(self, raw_path: str) -> dict[str, str] | None:
        """Read the placeholders whatever the verb."""
        # Some clients end a path with a slash, as in /login/.
        path = raw_path[:-1] if len(raw_path) > 1 and raw_path.endswith("/") else raw_path
        wanted, found = self.template.split("/"), path.split("/")
        if len(wanted) != len(found):
            return None
        values: dict[str, str] = {}
        for want, have in zip(wanted, found, strict=True):
            if want.startswith("{"):
                if not have:
                    return None
                values[want[1:-1]] = unquote(have)
            elif want != have:
                return None
        return values


def _segment(key: str, value: str | int | None) -> str:
    name, text = _ARGUMENTS.get(key, key), str(value)
    # HTTP clients fold "." and ".." into the path, quoted or not: such a name cannot be asked for.
    if value is None or text in ("", ".", ".."):
        raise InputError(f"{name}: found {value!r}, expected a name that can stand in a URL")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise InputError(f"{name}: found {text!r}, expected valid Unicode text") from None


# What callers know the placeholders as.
_ARGUMENTS = {
    "name": "service_name",
    "version": "service_version",
    "executionId": "execution_id",
    "fileName": "file_name",
    "id": "session or snapshot id",
    "objectName": "object name",
}


LOGIN = Route("login", "POST", "/login", is_open=True)
# Not repeatable: the first renewal, even if its reply was lost, has killed the refresh token.
RENEW = Route("renewToken", "POST", "/login/refreshToken", is_repeatable=False, is_open=True)
REVOKE = Route(
    "revokeRefreshToken", "DELETE", "/login/refreshToken", is_repeatable=False, is_open=True
)
# As version 9.1 has it.
REVOKE_BY_PATH = Route(
    "revokeRefreshTokenByPath",
    "DELETE",
    "/login/refreshToken/{refreshToken}",
    is_repeatable=False,
    is_open=True,
)
CORE_SWAGGER = Route("getCoreSwagger", "GET", "/swagger.json", is_open=True)
STATUS = Route("status", "GET", "/status")
SERVICES = Route("getAllWebServices", "GET", "/services")
SERVICE_VERSIONS = Route(
    "getAllWebServiceVersionsByName", "GET", "/services/{name}", missing=Missing.SERVICE
)
SERVICE = Route(
    "getWebServiceVersion", "GET", "/services/{name}/{version}", missing=Missing.SERVICE
)
SWAGGER = Route(
    "GetWebServiceSwagger",
    "GET",
    "/api/{name}/{version}/swagger.json",
    missing=Missing.SERVICE,
)
# Not repeatable: a service may have side effects, and a second run would score a record twice.
CONSUME = Route(
    "consume", "POST", "/api/{name}/{version}", is_repeatable=False, missing=Missing.SERVICE
)
START_BATCH = Route(
    "StartBatchExecution",
    "POST",
    "/api/{name}/{version}/batch",
    success=202,
    is_repeatable=False,
    missing=Missing.SERVICE,
)
BATCHES = Route("GetBatchExecutions", "GET", "/api/{name}/{version}/batch", missing=Missing.SERVICE)
BATCH = Route(
    "GetBatchExecutionStatus",
    "GET",
    "/api/{name}/{version}/batch/{executionId}",
    missing=Missing.EXECUTION,
)
CANCEL_BATCH = Route(
    "CancelAndDeleteBatchExecution",
    "DELETE",
    "/api/{name}/{version}/batch/{executionId}",
    missing=Missing.EXECUTION,
)
FILES = Route(
    "GetBatchExecutionFiles",
    "GET",
    "/api/{name}/{version}/batch/{executionId}/{index}/files",
    missing=Missing.EXECUTION,
)
FILE = Route(
    "GetBatchExecutionFile",
    "GET",
    "/api/{name}/{version}/batch/{executionId}/{index}/files/{fileName}",
    missing=Missing.ARTIFACT,
)

# --- publishing ---
# Not repeatable: the server makes up a version of its own for each request.
PUBLISH = Route("publishWebService", "POST", "/services/{name}", success=201, is_repeatable=False)
# Not repeatable: a second request would meet the version that the first one made.
PUBLISH_VERSION = Route(
    "publishWebServiceVersion",
    "POST",
    "/services/{name}/{version}",
    success=201,
    is_repeatable=False,
)
UPDATE_VERSION = Route(
    "patchWebServiceVersion", "PATCH", "/services/{name}/{version}", missing=Missing.SERVICE
)
DELETE_VERSION = Route(
    "deleteWebServiceVersion", "DELETE", "/services/{name}/{version}", missing=Missing.SERVICE
)
CREATE_SESSION = Route("createSession", "POST", "/sessions", success=201)
SET_OBJECT = Route("setWorkspaceObject", "POST", "/sessions/{id}/workspace/{objectName}")
CREATE_SNAPSHOT = Route("CreateSnapshot", "POST", "/sessions/{id}/snapshot", success=201)
CLOSE_SESSION = Route("closeSession", "DELETE", "/sessions/{id}")
DELETE_SNAPSHOT = Route("DeleteSnapshot", "DELETE", "/snapshots/{id}")

ROUTES: tuple[Route, ...] = (
    LOGIN,
    RENEW,
    REVOKE,
    REVOKE_BY_PATH,
    CORE_SWAGGER,
    STATUS,
    SERVICES,
    SERVICE_VERSIONS,
    SERVICE,
    SWAGGER,
    CONSUME,
    START_BATCH,
    BATCHES,
    BATCH,
    CANCEL_BATCH,
    FILES,
    FILE,
    PUBLISH,
    PUBLISH_VERSION,
    UPDATE_VERSION,
    DELETE_VERSION,
    CREATE_SESSION,
    SET_OBJECT,
    CREATE_SNAPSHOT,
    CLOSE_SESSION,
    DELETE_SNAPSHOT,
)

# Operations of the vendor's core document that neither this client uses nor this server has.
NOT_OFFERED: tuple[Route, ...] = tuple(
    Route(name, method, template)
    for name, method, template in (
        ("publishRealtimeWebServiceByName", "POST", "/realtime-services/{name}"),
        ("publishRealtimeWebServiceByNameVersion", "POST", "/realtime-services/{name}/{version}"),
        ("patchRealtimeWebServiceByNameVersion", "PATCH", "/realtime-services/{name}/{version}"),
        ("createOrUpdateServicePool", "POST", "/services/{name}/{version}/pool"),
        ("deleteServicePool", "DELETE", "/services/{name}/{version}/pool"),
        ("getServicePoolStatus", "GET", "/services/{name}/{version}/pool"),
        ("listSessions", "GET", "/sessions"),
        ("executeCode", "POST", "/sessions/{id}/execute"),
        ("closeSessionByForce", "DELETE", "/sessions/{id}/force"),
        ("getSessionConsoleOutput", "GET", "/sessions/{id}/console-output"),
        ("listSessionHistory", "GET", "/sessions/{id}/history"),
        ("uploadSessionFile", "POST", "/sessions/{id}/files"),
        ("listSessionFiles", "GET", "/sessions/{id}/files"),
        ("getSessionFile", "GET", "/sessions/{id}/files/{fileName}"),
        ("deleteSessionFile", "DELETE", "/sessions/{id}/files/{fileName}"),
        ("listWorkspaceObjects", "GET", "/sessions/{id}/workspace"),
        ("getWorkspaceObject", "GET", "/sessions/{id}/workspace/{objectName}"),
        ("deleteWorkspaceObject", "DELETE", "/sessions/{id}/workspace/{objectName}"),
        ("LoadSnapshot", "POST", "/sessions/{id}/loadsnapshot/{snapshotId}"),
        ("cancelSession", "POST", "/sessions/{id}/cancel"),
        ("ListSnapshots", "GET", "/snapshots"),
        ("GetSnapshotContent", "GET", "/snapshots/{id}"),
        ("getComputeNodes", "GET", "/computenodes"),
        ("setComputeNodes", "POST", "/computenodes"),
        ("addComputeNode", "PUT", "/computenodes"),
        ("removeComputeNode", "DELETE", "/computenodes"),
    )
)


def name_not_offered(method: str, raw_path: str) -> str | None:
    """The name of the vendor's operation that a request asks for in vain, if it is one."""
    for route in NOT_OFFERED:
        if route.match(method, raw_path) is not None:
            return route.name
    return None


def match(method: str, raw_path: str) -> tuple[Route, Mapping[str, str]] | None:
    """Find the route of a request line, as a server does.

    :param raw_path: the path below the endpoint, still percent-encoded, without the query
    :return: the route and its unquoted placeholders, or ``None``
    """
    for route in ROUTES:
        values = route.match(method, raw_path)
        if values is not None:
            return route, values
    return None
