"""What every test starts from: an Airflow of its own, in a folder that is gone afterwards.

Law: nothing here imports Airflow. The environment has to stand before its first import, and tests
of the protocol or the server should not pay for it.
"""

from __future__ import annotations

import atexit
import base64
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

AIRFLOW_HOME = tempfile.mkdtemp(prefix="airflow-mlbatch-tests-")
atexit.register(shutil.rmtree, AIRFLOW_HOME, ignore_errors=True)

# A developer's own Airflow, its connections and its database stay out of the tests.
for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "MLBATCH_"))]:
    del os.environ[name]

os.environ.update(
    AIRFLOW_HOME=AIRFLOW_HOME,
    AIRFLOW__CORE__UNIT_TEST_MODE="True",
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    # `dag.test()` runs only Dags that Airflow finds in this folder: here, the examples.
    AIRFLOW__CORE__DAGS_FOLDER=str(Path(__file__).resolve().parent.parent / "dags_examples"),
    AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS="False",
    # Under test each process of Airflow would make a key of its own, and not read what another wrote.
    AIRFLOW__CORE__FERNET_KEY=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    # The tests' servers listen on this machine: no proxy of the environment comes between.
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
)


@pytest.fixture(scope="session")
def airflow_database() -> str:
    """Airflow's metadata database, made once for all tests that run whole Dags.

    :return: AIRFLOW_HOME, whose database it is
    """
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return AIRFLOW_HOME
