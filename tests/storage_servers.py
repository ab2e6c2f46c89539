"""Object storage to test against: S3 by moto, Azure Blob by Azurite.

Law: real servers on a port of their own, or a skip that says why there is none.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["azure_connection_string", "running_azurite", "running_moto"]

# The account that every Azurite has; its key is printed in the emulator's manual.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_AZURITE = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "airflow-mlbatch", "azurite"
)
_FETCH_SECONDS = 240
_STOP_SECONDS = 30


@contextlib.contextmanager
def running_moto() -> Iterator[str]:
    """Run a moto server; yields its address."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def running_azurite() -> Iterator[str]:
    """Run an Azurite blob service, in memory; yields its address."""
    process = subprocess.Popen(
        [
            *_azurite(),
            # Silent: nobody reads its log of requests, and a full pipe would stop it.
            *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"),
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
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def azure_connection_string(url: str) -> str:
    """What opens the account of an Azurite."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
        f"BlobEndpoint={url}/{_ACCOUNT};"
    )


def _azurite() -> list[str]:
    """How to start Azurite, which is fetched once for all test runs."""
    if shutil.which("azurite-blob"):
        return ["azurite-blob"]
    main = _AZURITE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if shutil.which("node") is None:
        pytest.skip("Azurite needs node, which is not installed")
    if not main.exists():
        _fetch_azurite()
    if not main.exists():
        pytest.skip(f"{_AZURITE} holds no Azurite: remove it, and it is fetched anew")
    return ["node", str(main)]


def _fetch_azurite() -> None:
    """Install it beside its place and move it there as a whole: others may want it now, too."""
    if shutil.which("npm") is None:
        pytest.skip("Azurite needs npm, which is not installed")
    try:
        _AZURITE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="azurite-", dir=_AZURITE.parent) as folder:
            fresh = Path(folder, "fresh")
            fresh.mkdir()
            subprocess.run(
                [
                    *("npm", "install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"),
                    # Without a network it would go on for minutes before it says so.
                    "--fetch-retries=1",
                    *("--prefix", str(fresh), "azurite@3"),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_FETCH_SECONDS,
            )
            # Another one may have been quicker: then its Azurite is as good.
            if not _AZURITE.exists():
                fresh.rename(_AZURITE)
    except (subprocess.SubprocessError, OSError) as error:
        if not _AZURITE.exists():
            told = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"Azurite cannot be fetched with npm: {told[-400:]}")
