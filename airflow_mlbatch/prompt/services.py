"""``mlbatch services`` and ``mlbatch test``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.prompt.connecting import open_hook
from airflow_mlbatch.prompt.exits import Exit
from airflow_mlbatch.protocol.flows import Policy

if TYPE_CHECKING:
    from airflow_mlbatch.prompt.screen import Screen
    from airflow_mlbatch.protocol.services import Parameter, Service

__all__ = ["show_services", "test_connection", "unpublish"]


def show_services(options: argparse.Namespace, screen: Screen) -> int:
    """List services."""
    with closing(open_hook(options)) as hook:
        services = hook.list_services(options.name)
    if screen.is_json:
        screen.show_json([_as_json(service) for service in services])
        return Exit.DONE
    titles = ("name", "version", "inputs", "outputs", "files", "description")
    screen.show([_as_row(service) for service in services], {title: title for title in titles})
    return Exit.DONE


def test_connection(options: argparse.Namespace, screen: Screen) -> int:
    """Log in and ask for the server's health, without much patience."""
    policy = Policy()
    # One attempt: who tests a connection wants to know at once.
    once = replace(policy, repeat_seconds=0.0, whole_seconds=policy.test_seconds)
    with closing(open_hook(options, timing=Timing(policy=once))) as hook:
        status, url = hook.get_server_status(), hook.url
    if screen.is_json:
        described = {"url": url, "status": status.status_code, "is_healthy": status.is_healthy}
        screen.show_json({**described, "components": dict(status.components)})
    else:
        row = {"url": url, "status": status.status_code}
        screen.show([row], {"url": "server", "status": "status"})
    return Exit.DONE if status.is_healthy else Exit.ERROR


def _as_row(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "version": service.version,
        "inputs": _listed(service.inputs),
        "outputs": _listed(service.outputs),
        "files": ", ".join(service.artifacts),
        "description": service.description,
    }


def _listed(parameters: Sequence[Parameter]) -> str:
    return ", ".join(f"{each.name} {each.type}" for each in parameters)


def unpublish(options: argparse.Namespace, screen: Screen) -> int:
    """Take a version of a service away."""
    with closing(open_hook(options)) as hook:
        is_deleted = hook.delete_service(options.name, options.version)
    screen.write(f"{'deleted' if is_deleted else 'gone already:'} {options.name} {options.version}")
    return Exit.DONE


def _as_json(service: Service) -> dict[str, Any]:
    described = {
        each.name: getattr(service, each.name) for each in fields(service) if each.name != "raw"
    }
    for name in ("inputs", "outputs"):
        described[name] = [{"name": each.name, "type": each.type} for each in described[name]]
    return described
