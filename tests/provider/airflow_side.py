"""What Airflow hands to a task, for tests that call ``execute`` directly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from airflow import __version__ as airflow_version
from packaging.version import Version

__all__ = ["FakeStateStore", "FakeTaskInstance", "tell_of_assets"]


def tell_of_assets(environment: Mapping[str, str], log: IO[str]) -> None:
    """Let Airflow's database know the assets of the Dags, before ``dag.test()`` wants them.

    Before 3.2 ``dag.test()`` leaves that to the scheduler, and then fails tasks that have outlets.
    """
    if Version(airflow_version) < Version("3.2"):
        subprocess.run(
            [sys.executable, "-m", "airflow", "dags", "reserialize"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )


class FakeStateStore:
    """Keeps JSON under a key, refuses what Airflow's task state store refuses."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.texts[key]) if key in self.texts else default

    def set(self, key: str, value: Any) -> None:
        if value is None:
            raise ValueError("Cannot set value as None")
        text = json.dumps(value)
        if len(text) > 65535:
            raise ValueError("value too large")
        self.texts[key] = text

    def delete(self, key: str) -> None:
        self.texts.pop(key, None)


class FakeTaskInstance:
    """Remembers what was pushed, and answers what Airflow would say about the task.

    :param state: the state that Airflow has for the task; ``None`` while it waits for its next attempt
    """

    dag_id, run_id, task_id = "dag", "run", "task"
    map_index = -1

    def __init__(self, state: str | None = "running") -> None:
        self.pushed: dict[str, Any] = {}
        self.state = state
        self.try_number, self.max_tries = 1, 1

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value", **of_another: Any) -> Any:
        return self.pushed.get(key)

    def get_task_states(self, **asked: Any) -> dict[str, dict[str, str | None]]:
        return {self.run_id: {self.task_id: self.state}}
