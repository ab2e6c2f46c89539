"""The vendor's guide from `publishService` to its last line: publish the service that the Dag then uses.

`mlbatch_guide_workflow` begins with a service that somebody has published. This Dag publishes it: the R
function of the guide as it is written there, or its Python counterpart where the server has no R. The
model is fitted on the server when a worker loads the service (`initCode`). At the end the service is
deleted, also when something failed.

| the guide, in R                                              | here                               |
| ------------------------------------------------------------ | ---------------------------------- |
| `publishService(serviceName, code = manualTransmission, …)`  | `publish_service`                  |
| `api$manualTransmission(120, 2.8)`                           | `consume`                          |
| `api$swagger()`                                              | `get_swagger`                      |
| `txService$batch(records, parallelCount = 5)$start()`        | `BatchScoreOperator`               |
| `txBatch$results(showPartialResult = TRUE)`                  | `BatchStateSensor`, then `BatchResultsOperator` |
| `txBatch$download(1, dest = "…")`                            | `ArtifactDownloadOperator`         |
| `txBatch$cancel()`                                           | `BatchDeleteOperator`              |
| `deleteService(serviceName, "v1.0.0")`                       | `DeleteServiceOperator`            |
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_mlbatch.errors import RejectedError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
    DeleteServiceOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor

log = logging.getLogger(__name__)

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108
VERSION = "v1.0.0"
PARAMETERS: dict[str, Any] = {
    "inputs": {"hp": "numeric", "wt": "numeric"},
    "outputs": {"answer": "numeric"},
    "artifacts": ["Histogram.png"],
}

# [START howto_hook_publish_r]
R_INIT_CODE = "carsModel <- glm(formula = am ~ hp + wt, data = mtcars, family = binomial)"
R_CODE = """\
manualTransmission <- function(hp, wt) {
  png(file = "Histogram.png", bg = "transparent")
  hist(mtcars$hp, breaks = 10, col = "red", xlab = "Horsepower",
       main = "Histogram of Horsepower")
  dev.off()

  newdata <- data.frame(hp = hp, wt = wt)
  predict(carsModel, newdata, type = "response")
}
answer <- manualTransmission(hp, wt)
"""


def publish_r(service_name: str) -> None:
    """The guide's function, as it is written there."""
    MLBatchHook().publish_service(
        service_name,
        VERSION,
        runtime_type="R",
        code=R_CODE,
        init_code=R_INIT_CODE,
        overwrite=True,
        **PARAMETERS,
    )


# [END howto_hook_publish_r]


# [START howto_hook_publish_python]
def fit(cars: list[dict[str, str]]) -> dict[str, list[float]]:
    """Logistic regression of `am` on `hp` and `wt`; and all `hp`, for the histogram."""
    import numpy as np

    columns = {name: np.array([float(car[name]) for car in cars]) for name in ("am", "hp", "wt")}
    given = np.column_stack([np.ones(len(cars)), columns["hp"], columns["wt"]])
    fitted = np.zeros(3)
    for _ in range(25):
        chance = 1 / (1 + np.exp(-given @ fitted))
        weights = chance * (1 - chance)
        step = given.T @ (columns["am"] - chance)
        fitted += np.linalg.solve(given.T @ (weights[:, None] * given), step)
    return {"coefficients": fitted.tolist(), "horsepower": columns["hp"].tolist()}


# On the server these are what the service was published with.
coefficients: list[float] = []
horsepower: list[float] = []


def manual_transmission(hp: float, wt: float) -> float:
    """Runs on the server: its source is sent."""
    import math

    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().hist(horsepower, bins=10, color="red")
    figure.savefig("Histogram.png")
    first, of_hp, of_wt = coefficients
    return 1 / (1 + math.exp(-(first + of_hp * hp + of_wt * wt)))


def publish_python(service_name: str) -> None:
    """The counterpart of the guide's function."""
    import csv

    with (EXAMPLE_DATA / "mtcars.csv").open(newline="") as file:
        models = fit(list(csv.DictReader(file)))
    MLBatchHook().publish_service(
        service_name,
        VERSION,
        code=manual_transmission,
        models=models,
        overwrite=True,
        **PARAMETERS,
    )


# [END howto_hook_publish_python]


@task
def publish(**context: Any) -> str:
    """Publish under a name of this run, which a retry overwrites; returns the name."""
    service_name = f"mtService{context['dag_run'].run_after.timestamp():.0f}"
    try:
        publish_r(service_name)
    except RejectedError as error:
        # What a server without R says names what to install.
        if "jsonlite" not in str(error):
            raise
        log.warning("%s; publishing the Python counterpart", error)
        publish_python(service_name)
    return service_name


@task
def look_at_it(service_name: str) -> float:
    """Who has published what, and the guide's example: 0.6418125."""
    hook = MLBatchHook()
    service = hook.get_service(service_name, VERSION)
    log.info("published %s as %s, runtime %s", service_name, VERSION, service.runtime_type)
    log.info("its Swagger document: %s", hook.get_swagger(service_name, VERSION)["info"]["title"])
    answer = hook.consume(service_name, VERSION, {"hp": 120, "wt": 2.8}).outputs["answer"]
    log.info("published manualTransmission(120, 2.8) = %.7f", answer)
    return float(answer)


with DAG(
    dag_id="mlbatch_publish_guide",
    description="The vendor's guide, beginning with publishService: in R, or in Python without R.",
    schedule=None,
    default_args={
        "service_version": VERSION,
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    published = publish()
    score = BatchScoreOperator(
        task_id="score",
        service_name=published,
        input_path=str(EXAMPLE_DATA / "mtcars.csv"),
        parallel_count=5,
    )
    batch = {"service_name": published, "execution_id": score.output}
    wait = BatchStateSensor(task_id="wait", deferrable=True, poke_interval=1, **batch)
    results = BatchResultsOperator(
        task_id="results",
        input_path=str(EXAMPLE_DATA / "mtcars.csv"),
        output_path=str(EXAMPLE_DATA / "scored" / "publish_guide" / "scores.csv"),
        **batch,
    )
    pictures = ArtifactDownloadOperator(
        task_id="pictures",
        dest=str(EXAMPLE_DATA / "scored" / "publish_guide" / "pictures"),
        **batch,
    )
    delete = BatchDeleteOperator(
        task_id="delete", service_name=published, execution_ids=score.output
    )
    # [START howto_operator_delete_service]
    unpublish = DeleteServiceOperator(task_id="unpublish", service_name=published)
    # [END howto_operator_delete_service]
    look_at_it(published) >> score >> wait >> [results, pictures] >> delete
    delete >> unpublish.as_teardown(setups=published.operator)

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
