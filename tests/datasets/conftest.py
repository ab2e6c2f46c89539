"""Places to keep tables in: this machine, S3 by moto, Azure Blob by Azurite."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.storage_servers import azure_connection_string, running_azurite, running_moto


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """What s3fs needs to reach a moto server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra: s3)")
    with running_moto() as url:
        yield {
            "key": "test",
            "secret": "test",
            "client_kwargs": {"endpoint_url": url, "region_name": "eu-west-1"},
            "skip_instance_cache": True,
        }


@pytest.fixture
def s3_folder(s3_options: dict[str, Any]) -> Any:
    """An empty bucket on the moto server."""
    from upath import UPath

    bucket = UPath(f"s3://bucket-{uuid.uuid4().hex}", **s3_options)
    bucket.fs.mkdir(bucket.path)
    return bucket / "tables"


@pytest.fixture(scope="session")
def azurite_url() -> Iterator[str]:
    """The address of an Azurite blob service."""
    pytest.importorskip("adlfs", reason="adlfs is not installed (extra: azure)")
    with running_azurite() as url:
        yield url


@pytest.fixture
def azure_folder(azurite_url: str) -> Any:
    """An empty container on the Azurite server."""
    from upath import UPath

    container = UPath(
        f"abfs://container-{uuid.uuid4().hex}",
        connection_string=azure_connection_string(azurite_url),
        skip_instance_cache=True,
    )
    container.fs.mkdir(container.path)
    return container / "tables"


@pytest.fixture
def airflow_folder(tmp_path: Path) -> Any:
    """A folder of this machine as Airflow's own path object."""
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(f"file://{tmp_path}/tables")


@pytest.fixture(params=["local", "airflow", "s3", "azure"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder that does not exist yet, on each kind of storage in turn."""
    if request.param == "local":
        return tmp_path / "tables"
    return request.getfixturevalue(f"{request.param}_folder")
