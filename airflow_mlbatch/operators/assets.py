"""The asset that a written table is, with its counts as metadata.

An asset has to be known when the Dag is parsed. So a path without a template becomes an outlet by
itself; for a templated one the author gives ``outlets`` with an ``Asset`` or an ``AssetAlias``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_mlbatch.datasets.locations import asset_uri

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["emit", "with_outlet"]


def with_outlet(kwargs: dict[str, Any], path: Any) -> dict[str, Any]:
    """The operator's arguments, with the asset of a fixed path among its outlets."""
    uri = _uri(path)
    if uri is None:
        return kwargs
    # Airflow fills in what default_args say only where an operator passes nothing on.
    defaults = kwargs.get("default_args") or {}
    outlets = kwargs.get("outlets") or defaults.get("outlets") or []
    outlets = list(outlets) if isinstance(outlets, list | tuple) else [outlets]
    if any(isinstance(outlet, Asset) and outlet.uri.rstrip("/") == uri for outlet in outlets):
        return kwargs
    return {**kwargs, "outlets": [*outlets, Asset(uri=uri)]}


def emit(context: Context, outlets: Any, path: str, extra: Mapping[str, Any]) -> None:
    """Tell Airflow what is in the asset now.

    :param outlets: the task's outlets: assets get the metadata, aliases also the asset
    :param extra: counts and ids; numbers and texts only, because Airflow 3.0 puts what an alias tells
        into a set
    """
    events: Any = context["outlet_events"]
    for outlet in outlets or ():
        if isinstance(outlet, AssetAlias):
            uri = _uri(path)
            if uri is not None:
                events[outlet].add(Asset(uri=uri), extra=dict(extra))
        elif isinstance(outlet, Asset):
            events[outlet].extra.update(extra)


def _uri(path: Any) -> str | None:
    is_known = isinstance(path, str) and "{{" not in path and "{%" not in path
    return asset_uri(path) if is_known else None
