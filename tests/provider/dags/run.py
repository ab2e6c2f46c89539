"""Runs Dags of this folder one after another, as ``dag.test()`` does, and tells what became of them.

Law: a process of its own, because ``dag.test()`` wants Airflow's database and changes the process.
Usage: ``run.py OUTCOME.json DAG_ID[:PARAM=VALUE] …``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main(outcome: str, runs: list[str]) -> None:
    from tables import DAGS  # type: ignore[import-not-found]

    told = [run(DAGS[name.partition(":")[0]], name.partition(":")[2]) for name in runs]
    Path(outcome).write_text(json.dumps(told))


def run(dag: Any, param: str) -> dict[str, Any]:
    name, _, value = param.partition("=")
    ended = dag.test(run_conf={name: value} if param else None)
    tasks = {
        f"{ti.task_id}[{ti.map_index}]" if ti.map_index >= 0 else ti.task_id: {
            "state": str(ti.state),
            "try_number": ti.try_number,
        }
        for ti in ended.get_task_instances()
    }
    return {
        "dag_id": dag.dag_id,
        "state": str(ended.state.value),
        "tasks": tasks,
        "events": events(ended.run_id, dag.dag_id),
    }


def events(run_id: str, dag_id: str) -> list[dict[str, Any]]:
    """The asset events that the run made."""
    from airflow.models.asset import AssetEvent  # noqa: TID251
    from airflow.utils.session import create_session  # noqa: TID251
    from sqlalchemy import select

    with create_session() as session:
        found = session.scalars(
            select(AssetEvent).where(
                AssetEvent.source_run_id == run_id, AssetEvent.source_dag_id == dag_id
            )
        )
        return [
            {"uri": each.uri, "extra": each.extra, "task": each.source_task_id} for each in found
        ]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
