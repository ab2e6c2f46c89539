"""Places to keep tables in: this machine, S3 by moto, Azure Blob by Azurite.

Law: real servers on a port of their own, or a skip that says why there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AZURITE_HOME = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "airflow-mlbatch", "azurite"
)
# The account that every Azurite has; its key is printed in the emulator's manual.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """What s3fs needs to reach a moto server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra: s3)")
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"},
        "skip_instance_cache": True,
    }
    server.stop()


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
    program = _azurite()
    process = subprocess.Popen(
        [
            *program,
            *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"),
            *("--blobHost", "127.0.0.1", "--blobPort", "0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = []
    try:
        for line in process.stdout:
            printed.append(line)
            found = re.search(r"successfully listens on (http://\S+)", line)
            if found:
                yield found[1]
                break
        else:
            pytest.skip(f"Azurite did not start: {''.join(printed)[-400:]}")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def _azurite() -> list[str]:
    """How to start Azurite, which is fetched once for all test runs."""
    if shutil.which("azurite-blob"):
        return ["azurite-blob"]
    main = AZURITE_HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Azurite needs node and npm, which are not installed")
    if not main.exists():
        AZURITE_HOME.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                [
                    *("npm", "install", "--no-save", "--no-audit", "--no-fund"),
                    *("--loglevel=error", "--prefix", str(AZURITE_HOME), "azurite@3"),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=240,
            )
        except (subprocess.SubprocessError, OSError) as error:
            told = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"Azurite cannot be fetched with npm: {told[-400:]}")
    return ["node", str(main)]


@pytest.fixture
def azure_folder(azurite_url: str) -> Any:
    """An empty container on the Azurite server."""
    pytest.importorskip("adlfs", reason="adlfs is not installed (extra: azure)")
    from upath import UPath

    text = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
        f"BlobEndpoint={azurite_url}/{AZURITE_ACCOUNT};"
    )
    container = UPath(
        f"abfs://container-{uuid.uuid4().hex}", connection_string=text, skip_instance_cache=True
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
