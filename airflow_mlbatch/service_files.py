"""The services of a Python file as ``mlbatch publish`` sends them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from airflow_mlbatch.deployments import Deployment, call_of, without_decorators
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.publications import Publication
from airflow_mlbatch.protocol.services import Service

__all__ = ["deployments_of_file"]


def deployments_of_file(source: Path) -> Iterator[tuple[str, str, Deployment]]:
    """Read the services of a file.

    :return: name, version and deployment of each
    :raises InputError: the file cannot be used
    """
    from airflow_mlbatch.server.registry import load_services

    published = load_services([str(source.absolute())])
    init_code = _without_service(source.read_text("utf-8"))
    for one in published.values():
        service = one.description
        publication = _publication(service, one.function.__name__, init_code)
        yield service.name, service.version, Deployment(publication)


def _publication(service: Service, function: str, init_code: str) -> Publication:
    inputs = [one.name for one in service.inputs]
    outputs = [one.name for one in service.outputs]
    code = call_of(function, [f"{name}={name}" for name in inputs], outputs)
    if len(outputs) == 1:
        # With one output a function of @service may also return a dict that holds just that.
        code += (
            f"\nif isinstance({outputs[0]}, dict) and set({outputs[0]}) == {{{outputs[0]!r}}}:"
            f"\n    {outputs[0]} = {outputs[0]}[{outputs[0]!r}]"
        )
    return Publication(
        code=code,
        init_code=init_code,
        description=service.description,
        operation_id=service.operation_id,
        inputs=tuple((one.name, one.type) for one in service.inputs),
        outputs=tuple((one.name, one.type) for one in service.outputs),
        artifacts=service.artifacts,
        runtime_type="Python",
    )


def _without_service(source: str) -> str:
    """The module as it can run elsewhere: without ``@service``, and without its import."""
    try:
        text = without_decorators(source)
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"services: SyntaxError: {error}") from None
    lines = text.splitlines()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "airflow_mlbatch.server":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (
                (node.end_lineno or node.lineno) - node.lineno + 1
            )
    return "\n".join(lines)
