"""Train a model, publish it as a new version, and promote it only if it is better than the old one.

A server has versions of a service and nothing that says which one is in use. Here an Airflow Variable
says it: `mlbatch_promoted_version` holds the version that other Dags score with, as
`service_version="{{ var.value.mlbatch_promoted_version }}"`. To promote is to set it, to go back is to
set it again. Every manifest then names the version that was really used.

The new version is published first, because only the server can tell how it scores. Both versions score
the same table, whose outcomes are known and which the training has not seen. The better one has the
smaller mean squared error. The first run finds no version in use and publishes a baseline.

Dags that use `service_version="latest"` take the new version as soon as it is published, better or not.
"""

from __future__ import annotations

import csv
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Variable, task

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    BatchResultsOperator,
    BatchScoreOperator,
    PublishServiceOperator,
)

log = logging.getLogger(__name__)

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108
FOLDER = EXAMPLE_DATA / "scored" / "promotion"
SERVICE = "mtPromoted"
PROMOTED = "mlbatch_promoted_version"
PARAMETERS: dict[str, Any] = {
    "inputs": {"hp": "numeric", "wt": "numeric"},
    "outputs": {"answer": "numeric"},
}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@task
def version_in_use() -> str:
    """The version that other Dags score with; a baseline, which answers 0.5, where there is none."""
    version = Variable.get(PROMOTED, default=None)
    known = [each.version for each in MLBatchHook().list_services() if each.name == SERVICE]
    if version not in known:
        version = "baseline"
        MLBatchHook().publish_service(
            SERVICE, version, code="answer = 0.5", overwrite=True, **PARAMETERS
        )
        Variable.set(PROMOTED, version)
    return str(version)


@task
def train() -> str:
    """Fit `am` on `hp` and `wt` with every car but each third one; returns the path of the model."""
    import pickle

    import numpy as np

    cars = read_table(EXAMPLE_DATA / "mtcars.csv")
    FOLDER.mkdir(parents=True, exist_ok=True)
    validation, rest = cars[::3], [car for place, car in enumerate(cars) if place % 3]
    with (FOLDER / "validation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cars[0]))
        writer.writeheader()
        writer.writerows(validation)
    given = np.array([[1.0, float(car["hp"]), float(car["wt"])] for car in rest])
    wanted = np.array([float(car["am"]) for car in rest])
    coefficients, *_ = np.linalg.lstsq(given, wanted, rcond=None)
    path = FOLDER / "model.pkl"
    path.write_bytes(pickle.dumps(coefficients.tolist()))
    return str(path)


# On the server this is what the service was published with.
coefficients: list[float] = []


def predict(hp: float, wt: float) -> float:
    """Runs on the server: its source is sent."""
    first, of_hp, of_wt = coefficients
    return min(1.0, max(0.0, first + of_hp * hp + of_wt * wt))


def mean_squared_error(path: str) -> float:
    errors = [float(row["answer"]) - float(row["am"]) for row in read_table(Path(path))]
    return sum(error * error for error in errors) / len(errors)


@task
def promote_if_better(
    old: str, new: str, old_scores: dict[str, Any], new_scores: dict[str, Any]
) -> str:
    """Decide; returns the version in use from now on."""
    was, now = (mean_squared_error(each["output_path"]) for each in (old_scores, new_scores))
    if now < was:
        log.info("promoted version %s: error %.4f, and %.4f with %s", new, now, was, old)
        Variable.set(PROMOTED, new)
        return new
    log.info("version %s stays in use: error %.4f, and %.4f with %s", old, was, now, new)
    return old


with DAG(
    dag_id="mlbatch_promotion",
    description="Publish a new model, compare it with the old one, promote it only if it is better.",
    schedule=None,
    # One candidate at a time: "latest" is the one that this run has published.
    max_active_runs=1,
    default_args={
        "service_name": SERVICE,
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    old = version_in_use()
    # [START howto_operator_publish_service]
    publish = PublishServiceOperator(
        task_id="publish",
        service_version="{{ dag_run.run_after | ts_nodash }}",
        code=predict,
        models={"coefficients": train()},
        **PARAMETERS,
    )
    # [END howto_operator_publish_service]
    scores = {}
    for name, version in (("old", old), ("new", "latest")):
        # [START howto_operator_latest]
        score = BatchScoreOperator(
            task_id=f"score_{name}",
            service_version=version,  # the new one: "latest"
            input_path=str(FOLDER / "validation.csv"),
            wait_for_completion=True,
            poll_interval=1,
        )
        # [END howto_operator_latest]
        results = BatchResultsOperator(
            task_id=f"results_{name}",
            service_version=version,
            execution_id=score.output,
            input_path=str(FOLDER / "validation.csv"),
            output_path=str(FOLDER / f"{name}.csv"),
        )
        scores[name] = results.output
        old >> publish >> score
    promote_if_better(old, publish.output, scores["old"], scores["new"])

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
