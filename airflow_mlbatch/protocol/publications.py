"""The documents that bring a service onto a server: what is published, sessions, snapshots.

Law: read what the vendor's clients send, write what the vendor's servers read. A key that is left
out, or null, says nothing: a publication takes the default, an update leaves what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from airflow_mlbatch.errors import ContractError, InputError
from airflow_mlbatch.protocol.documents import NOT_JSON, decoded, document, lower_keys

__all__ = [
    "RUNTIMES",
    "Publication",
    "Published",
    "read_id",
    "read_publication",
    "read_session_request",
    "write_publication",
]

RUNTIMES = ("R", "Python")
# The vendor's core document says so.
DEFAULT_RUNTIME = "R"


@dataclass(frozen=True)
class Publication:
    """What a request says about a service; ``None`` for what it does not mention.

    :param snapshot_id: the snapshot whose objects the code finds as globals
    :param code: source text that runs for each record
    :param init_code: source text that runs before that
    :param operation_id: what generated clients call the service
    :param inputs: names and types, in order
    :param outputs: names and types, in order
    :param artifacts: names of the files that each record leaves
    :param runtime_type: ``R`` or ``Python``
    """

    snapshot_id: str | None = None
    code: str | None = None
    init_code: str | None = None
    description: str | None = None
    operation_id: str | None = None
    inputs: tuple[tuple[str, str], ...] | None = None
    outputs: tuple[tuple[str, str], ...] | None = None
    artifacts: tuple[str, ...] | None = None
    runtime_type: str | None = None


class Published(Enum):
    """What became of a publication."""

    NEW = "published"
    OVERWRITTEN = "overwrote"
    # The server had exactly this already, so nothing was sent.
    FOUND = "found already"


_TEXTS = {
    "snapshotId": "snapshot_id",
    "code": "code",
    "initCode": "init_code",
    "description": "description",
    "operationId": "operation_id",
}


def read_publication(body: bytes) -> Publication:
    """Read the body of a publication or of an update.

    :raises InputError: names the key, what was found and what was expected
    """
    item = _object(body)
    said: dict[str, Any] = {
        field: _text(item[key], key) for key, field in _TEXTS.items() if item.get(key) is not None
    }
    for key, field in (
        ("inputParameterDefinitions", "inputs"),
        ("outputParameterDefinitions", "outputs"),
    ):
        if item.get(key) is not None:
            said[field] = _definitions(item[key], key)
    if item.get("outputFileNames") is not None:
        files = item["outputFileNames"]
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise InputError(f"outputFileNames: found {files!r:.80}, expected a list of file names")
        said["artifacts"] = tuple(files)
    if item.get("runtimeType") is not None:
        said["runtime_type"] = _runtime(item["runtimeType"])
    return Publication(**said)


def write_publication(publication: Publication) -> bytes:
    """The body of a publication or of an update, as the vendor's client sends it."""
    item: dict[str, Any] = {}
    for key, field in _TEXTS.items():
        item[key] = getattr(publication, field)
    item["inputParameterDefinitions"] = _written(publication.inputs)
    item["outputParameterDefinitions"] = _written(publication.outputs)
    item["outputFileNames"] = publication.artifacts
    item["runtimeType"] = publication.runtime_type
    return msgspec.json.encode({key: value for key, value in item.items() if value is not None})


def read_session_request(body: bytes) -> str:
    """The runtime of a session that somebody asks for.

    :raises InputError: the body is no object, or the runtime is unknown
    """
    item = _object(body) if body.strip() else {}
    return _runtime(item.get("runtimeType") or DEFAULT_RUNTIME)


def read_id(body: bytes, key: str) -> str:
    """The id in the reply to a new session (``sessionId``) or snapshot (``snapshotId``).

    :raises ContractError: there is none
    """
    found = document(body, f"reply with a {key}")
    if isinstance(found, Mapping):
        found = lower_keys(found).get(key)
    if not isinstance(found, str) or not found:
        raise ContractError(f"reply with a {key}: found {found!r:.80}, expected its text")
    return found


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = decoded(body)
    except NOT_JSON as error:
        raise InputError(f"body: expected a JSON object ({error})") from None
    if not isinstance(found, Mapping):
        raise InputError(f"body: found {found!r:.80}, expected an object")
    return lower_keys(found)


def _text(found: Any, key: str) -> str:
    # Some R serialisers box every value.
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, str):
        raise InputError(f"{key}: found {found!r:.80}, expected text")
    return found


def _runtime(found: Any) -> str:
    word = _text(found, "runtimeType")
    for runtime in RUNTIMES:
        if word.casefold() == runtime.casefold():
            return runtime
    raise InputError(f"runtimeType: found {word!r:.80}, expected one of {', '.join(RUNTIMES)}")


def _definitions(found: Any, key: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(found, list):
        raise InputError(f"{key}: found {found!r:.80}, expected a list of names and types")
    pairs = []
    for item in found:
        fields = lower_keys(item) if isinstance(item, Mapping) else {}
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("type"), str):
            raise InputError(f"{key}: found {item!r:.80}, expected an object with name and type")
        pairs.append((fields["name"], fields["type"]))
    if len(dict(pairs)) < len(pairs):
        raise InputError(f"{key}: found a name twice, expected different names")
    return tuple(pairs)


def _written(definitions: Sequence[tuple[str, str]] | None) -> Any:
    if definitions is None:
        return None
    return [{"name": name, "type": kind} for name, kind in definitions]
