"""What was published over HTTP: a program is a service's code with everything that it needs.

Law: a program never changes. What an update makes is another program; a batch runs to its end with
the one that it began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.declarations import (
    check_service_name,
    declared_artifacts,
    declared_parameters,
)
from airflow_mlbatch.protocol.publications import Publication
from airflow_mlbatch.protocol.services import Service, read_services, write_service

__all__ = ["Program", "StoredObject", "described", "read_program", "write_program"]

_LONGEST_NAME = 255


class StoredObject(msgspec.Struct, frozen=True):
    """A serialized object on the disk.

    :param name: the global that it becomes
    :param file: its file, in the folder of its session, snapshot or program; the server's own word
    :param size: its bytes
    :param sha256: of its bytes, hexadecimal
    """

    name: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Program:
    """One published form of a service.

    :param id: the server's own word for it, never a client's
    :param service: its description, code included
    :param folder: where the files of its objects lie
    :param objects: what the code finds as globals
    """

    id: str
    service: Service
    folder: Path
    objects: tuple[StoredObject, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.service.name, self.service.version


def described(
    name: str, version: str, publication: Publication, before: Service | None = None
) -> Service:
    """Check what is to be published.

    :param before: what is there already, for an update: what the request leaves out stays
    :raises InputError: names the part that cannot be used
    """
    where = f"service {name!r:.80} version {version!r:.80}"
    check_service_name(where, name, version)
    if len(name) > _LONGEST_NAME or len(version) > _LONGEST_NAME:
        raise InputError(
            f"{where}: expected a name and a version of at most {_LONGEST_NAME} letters"
        )
    old = before or Service(name, version, runtime_type="R")
    runtime = _said(publication.runtime_type, old.runtime_type)
    if before is not None and runtime != before.runtime_type:
        raise InputError(
            f"{where}, runtimeType: found {runtime!r}, expected {before.runtime_type!r} as before: "
            "publish another version, or delete this one first"
        )
    service = Service(
        name=name,
        version=version,
        inputs=_parameters(where, "inputs", publication.inputs, old.inputs, runtime),
        outputs=_parameters(where, "outputs", publication.outputs, old.outputs, runtime),
        artifacts=declared_artifacts(where, _said(publication.artifacts, old.artifacts)),
        operation_id=_said(publication.operation_id, old.operation_id),
        runtime_type=runtime,
        description=_said(publication.description, old.description),
        published_by=old.published_by,
        created_at=old.created_at,
        snapshot_id=_said(publication.snapshot_id, old.snapshot_id),
        my_permission=old.my_permission,
        code=_said(publication.code, old.code),
        init_code=_said(publication.init_code, old.init_code),
    )
    if not service.code.strip():
        raise InputError(f"{where}, code: found nothing, expected source text")
    for what, text in (("code", service.code), ("initCode", service.init_code)):
        if "\0" in text or not _is_text(text):
            raise InputError(f"{where}, {what}: expected text without null characters")
    return service


def write_program(program: Program) -> bytes:
    """A program as the database keeps it."""
    return msgspec.json.encode(
        {"service": write_service(program.service), "objects": program.objects}
    )


def read_program(program_id: str, document: bytes, folder: Path) -> Program:
    """Read what :func:`write_program` wrote."""
    stored = msgspec.json.decode(document, type=_Stored)
    (service,) = read_services(bytes(stored.service))
    return Program(program_id, service, folder, tuple(stored.objects))


class _Stored(msgspec.Struct):
    service: msgspec.Raw
    objects: list[StoredObject]


def _said(word: Any, before: Any) -> Any:
    return before if word is None else word


def _parameters(where: str, what: str, pairs: Any, before: Any, runtime: str) -> Any:
    if pairs is None:
        return before
    parameters = declared_parameters(where, what, dict(pairs))
    for parameter in parameters:
        # A global of another name could not be spoken of.
        if runtime == "Python" and not parameter.name.isidentifier():
            raise InputError(
                f"{where}, {what}: found the name {parameter.name!r:.80}, expected a Python name"
            )
    return parameters


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
