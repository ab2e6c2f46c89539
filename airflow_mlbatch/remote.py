"""What the command line does on a running server, without Airflow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_mlbatch.deployments import call_of, without_decorators
from airflow_mlbatch.errors import ConnectionConfigError, InputError
from airflow_mlbatch.protocol.flows import Flows, PasswordLogin
from airflow_mlbatch.protocol.publications import Publication
from airflow_mlbatch.protocol.services import Service

if TYPE_CHECKING:
    from airflow_mlbatch.transport.blocking import BlockingDriver

__all__ = ["publish_file", "unpublish"]


def publish_file(
    source: Path, url: str, username: str, password: str, overwrite: bool
) -> Iterator[tuple[str, str, bool]]:
    """Publish the services of a file one after another.

    :return: name and version of each once it is published, and whether it replaced one
    :raises InputError: the file cannot be used
    """
    from airflow_mlbatch.server.registry import load_services

    published = load_services([str(source.absolute())])
    init_code = _without_service(source.read_text("utf-8"))
    with _conversation(url, username, password) as (driver, flows):
        for one in published.values():
            publication = _publication(one.description, one.function.__name__, init_code)
            flow = flows.publish_service(*_named(one.description), publication, {}, overwrite)
            yield (*_named(one.description), driver.run(flow))


def unpublish(name: str, version: str, url: str, username: str, password: str) -> bool:
    """Take a version of a service away; false when it was gone already."""
    with _conversation(url, username, password) as (driver, flows):
        return bool(driver.run(flows.delete_service(name, version)))


@contextmanager
def _conversation(url: str, username: str, password: str) -> Iterator[tuple[BlockingDriver, Flows]]:
    from airflow_mlbatch.transport.blocking import BlockingDriver
    from airflow_mlbatch.transport.endpoint import Endpoint

    if not url.startswith(("http://", "https://")):
        raise ConnectionConfigError(f"--url: found {url!r:.80}, expected http:// or https://")
    endpoint = Endpoint(url.rstrip("/"))
    driver = BlockingDriver(endpoint)
    try:
        yield driver, Flows(PasswordLogin(username, password), endpoint.url)
    finally:
        driver.close()


def _named(service: Service) -> tuple[str, str]:
    return service.name, service.version


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
