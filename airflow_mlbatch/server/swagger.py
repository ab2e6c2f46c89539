"""The Swagger 2.0 documents, for clients that are generated from them.

``service_swagger.json`` and ``core_swagger.json`` are the documents as data; here only what differs
from one service to another is filled in.

Law: paths, operation ids and definitions are those that the vendor's server writes; the words are
our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from airflow_mlbatch import __version__
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.protocol.types import TYPES

__all__ = ["core_document", "service_document"]

Json = dict[str, Any]


def core_document() -> Json:
    """Describe what does not belong to a single service: login, services, sessions and status."""
    document = _template("core_swagger.json")
    document["info"]["version"] = __version__
    kinds: list[str] = document["definitions"]["ParameterDefinition"]["properties"]["type"]["enum"]
    kinds.extend(TYPES)
    return document


def service_document(service: Service) -> Json:
    """Describe one version of a service and its batches."""
    document = _template("service_swagger.json")
    document["info"] = {
        "title": service.name,
        "version": service.version,
        "description": service.description,
    }
    document["tags"] = [{"name": service.name, "description": service.description}]
    document["paths"] = {
        _path(service, path): {
            verb: _operation(service, operation) for verb, operation in verbs.items()
        }
        for path, verbs in document["paths"].items()
    }
    definitions = document["definitions"]
    definitions["InputParameters"]["properties"] = _properties(service.inputs)
    definitions["OutputParameters"]["properties"] = _properties(service.outputs)
    words: list[str] = definitions["BatchWebServiceResult"]["properties"]["state"]["enum"]
    words.extend(state.value for state in BatchState if state.is_documented)
    return document


def _template(name: str) -> Json:
    document: Json = msgspec.json.decode(Path(__file__).with_name(name).read_bytes())
    return document


def _path(service: Service, path: str) -> str:
    # The name and the version are filled in, quoted; the other placeholders stay.
    root = routes.CONSUME
    if not path.startswith(root.template):
        return path
    return root.path(name=service.name, version=service.version) + path.removeprefix(root.template)


def _operation(service: Service, operation: Json) -> Json:
    filled = {
        **operation,
        "tags": [service.name if tag == "{name}" else tag for tag in operation["tags"]],
    }
    if operation["operationId"] == routes.CONSUME.name and service.operation_id:
        filled["operationId"] = service.operation_id
    return filled


def _properties(parameters: Sequence[Parameter]) -> Json:
    # The description is where the vendor's clients look for the type of the service's own language.
    return {
        parameter.name: {**TYPES[parameter.type].swagger, "description": parameter.type}
        for parameter in parameters
    }
