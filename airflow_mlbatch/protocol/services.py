"""What a server says about a published service, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from airflow_mlbatch.errors import ContractError
from airflow_mlbatch.protocol.documents import document, lower_keys
from airflow_mlbatch.protocol.types import TypeName, type_name
from airflow_mlbatch.protocol.values import Misfit

__all__ = [
    "Parameter",
    "Service",
    "newest",
    "read_services",
    "write_creation_time",
    "write_service",
]

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?")


@dataclass(frozen=True)
class Parameter:
    """A declared input or output: its name and one of the seven types."""

    name: str
    type: TypeName


@dataclass(frozen=True)
class Service:
    """A web service as ``GET /services/{name}/{version}`` describes it.

    :param inputs: declared inputs, in order
    :param outputs: declared outputs, in order
    :param artifacts: names of the files that each record leaves
    :param operation_id: the name of the function behind the service
    :param runtime_type: ``R``, ``Python`` or ``Realtime``
    :param created_at: ``creationTime`` as the server spells it
    :param code: what runs for each record, where the server shows it
    :param init_code: what runs before that
    :param is_vectorized: whether it takes many records at once; no description says so, the embedded
        server knows it of its own services
    """

    name: str
    version: str
    inputs: tuple[Parameter, ...] = ()
    outputs: tuple[Parameter, ...] = ()
    artifacts: tuple[str, ...] = ()
    operation_id: str = ""
    runtime_type: str = ""
    description: str = ""
    published_by: str = ""
    created_at: str = ""
    snapshot_id: str = ""
    my_permission: str = ""
    code: str = ""
    init_code: str = ""
    is_vectorized: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def read_services(body: bytes) -> list[Service]:
    """Read a list of services; some servers answer a bare object for one version.

    :raises ContractError: the body is no such list
    """
    found = document(body, "list of services")
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise ContractError(f"list of services: found {found!r:.80}, expected a list of objects")
    return [_read_service(item) for item in found]


def newest(services: Sequence[Service]) -> Service:
    """The version that was published last.

    Where the server does not say when, and of versions of the same moment, it is the one with the
    highest numbers in its name: 1.10 is higher than 1.9.

    :param services: versions of one service, at least one
    """
    return max(services, key=lambda one: (_moment(one.created_at), _numbers(one.version)))


def _moment(text: str) -> Decimal:
    """Epoch seconds of a creation time; servers write it with and without a zone, which is UTC."""
    found = _TIME.fullmatch(text)
    if found is None:
        return Decimal(-1)
    second, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(second + (zone or "Z").replace("Z", "+00:00"))
    except ValueError:
        return Decimal(-1)
    return Decimal(int(moment.astimezone(timezone.utc).timestamp())) + Decimal(fraction or 0)


def _numbers(version: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", version)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def write_service(service: Service) -> dict[str, Any]:
    """A service as the JSON object that a server sends."""
    return {
        "name": service.name,
        "version": service.version,
        "versionPublishedBy": service.published_by,
        "creationTime": service.created_at,
        "snapshotId": service.snapshot_id or None,
        "runtimeType": service.runtime_type,
        "code": service.code or None,
        "initCode": service.init_code or None,
        "description": service.description,
        # A client calls its method "consume" where this is null.
        "operationId": service.operation_id or None,
        "inputParameterDefinitions": _write_parameters(service.inputs),
        "outputParameterDefinitions": _write_parameters(service.outputs),
        "outputFileNames": list(service.artifacts),
        "myPermissionOnService": service.my_permission,
    }


def write_creation_time(moment: datetime) -> str:
    """A time as the real server writes it: in UTC, without a zone, in tenths of a microsecond."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f0")


def _read_service(raw: Mapping[str, Any]) -> Service:
    item = lower_keys(raw)
    name, version = item.get("name"), item.get("version")
    if not isinstance(name, str) or not isinstance(version, str):
        raise ContractError(
            f"service description: found {raw!r:.80}, expected a name and a version"
        )

    def text(key: str) -> str:
        value = item.get(key)
        return "" if value is None else str(value)

    return Service(
        name=name,
        version=version,
        inputs=_read_parameters(item, "inputParameterDefinitions", name),
        outputs=_read_parameters(item, "outputParameterDefinitions", name),
        artifacts=tuple(str(file) for file in item.get("outputFileNames") or ()),
        operation_id=text("operationId"),
        runtime_type=text("runtimeType"),
        description=text("description"),
        published_by=text("versionPublishedBy"),
        created_at=text("creationTime"),
        snapshot_id=text("snapshotId"),
        my_permission=text("myPermissionOnService"),
        code=text("code"),
        init_code=text("initCode"),
        raw=raw,
    )


def _read_parameters(item: Mapping[str, Any], key: str, service: str) -> tuple[Parameter, ...]:
    parameters = []
    for raw in item.get(key) or ():
        fields = lower_keys(raw) if isinstance(raw, Mapping) else {}
        try:
            parameters.append(Parameter(str(fields["name"]), type_name(fields["type"])))
        except KeyError:
            raise ContractError(
                f"service {service!r}, {key}: found {raw!r:.80}, expected a name and a type"
            ) from None
        except Misfit as misfit:
            raise ContractError(f"service {service!r}, {key}: {misfit}") from None
    return tuple(parameters)


def _write_parameters(parameters: Sequence[Parameter]) -> list[dict[str, str]]:
    return [{"name": parameter.name, "type": parameter.type} for parameter in parameters]
