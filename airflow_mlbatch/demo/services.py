"""The two services of the vendor's guide, on the bundled table of 32 cars, and one that fails.

``mtService`` tells how probable it is that a car has a manual transmission, by a logistic
regression of ``am`` on ``hp`` and ``wt``; ``TxService`` does the same by least squares. Both models
are fitted when a worker loads this module. ``carefulService`` is ``mtService`` with an upper limit,
to show what becomes of records that fail.
"""

from __future__ import annotations

import csv
import functools
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server import service

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

HISTOGRAM = "Histogram.png"
ANSWER = "answer.csv"
# Three of the 32 cars are heavier.
MOST_WEIGHT = 5.0
_MOST_STEPS = 50

if find_spec("matplotlib") is None:
    # Said once, when the server starts, and not by each record that wants its picture.
    raise InputError("the demonstration needs matplotlib: pip install 'airflow-mlbatch[demo]'")


def _cars() -> dict[str, Array]:
    """The columns of mtcars that hold numbers."""
    text = (resources.files("airflow_mlbatch.demo") / "data" / "mtcars.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return {
        name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "model"
    }


def _with_intercept(*columns: Array) -> Array:
    return np.column_stack([np.ones(len(columns[0])), *columns])


def fit_logistic(predictors: Array, outcome: Array) -> Array:
    """Fit a binomial model with logit link, without penalty, by reweighted least squares.

    :param predictors: one row for each observation, the intercept's column of ones included
    :param outcome: 0 or 1 for each observation
    :return: the coefficients
    """
    coefficients: Any = np.zeros(predictors.shape[1])
    for _ in range(_MOST_STEPS):
        chance = _logistic(predictors @ coefficients)
        weights = chance * (1 - chance)
        step = np.linalg.solve(
            predictors.T @ (weights[:, None] * predictors), predictors.T @ (outcome - chance)
        )
        coefficients += step
        if np.abs(step).max() < 1e-10:
            return np.asarray(coefficients)
    raise ArithmeticError(f"the regression did not converge in {_MOST_STEPS} steps")


def _logistic(score: Any) -> Any:
    return 1 / (1 + np.exp(-score))


CARS = _cars()
_PREDICTORS = _with_intercept(CARS["hp"], CARS["wt"])
LOGISTIC_COEFFICIENTS = fit_logistic(_PREDICTORS, CARS["am"])
LINEAR_COEFFICIENTS: Array = np.asarray(
    np.linalg.lstsq(_PREDICTORS, CARS["am"], rcond=None)[0], dtype=np.float64
)


@functools.cache
def _histogram() -> Figure:
    # Imported and laid out once for each worker; pyplot, which keeps a window manager, is not used.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), dpi=80)
    # Margins by hand: working them out takes as long as drawing.
    axes = figure.subplots(gridspec_kw={"bottom": 0.14, "left": 0.11, "top": 0.9, "right": 0.96})
    axes.hist(CARS["hp"], bins=10, color="red", edgecolor="black")
    axes.set(title="Histogram of Horsepower", xlabel="Horsepower", ylabel="Cars")
    return figure


@service(
    "mtService",
    version="v1.0.0",
    inputs={"hp": float, "wt": float},
    outputs={"answer": float},
    artifacts=[HISTOGRAM],
    description="The probability that a car of this horsepower (hp) and weight (wt, in 1000 lb) "
    "has a manual transmission: a logistic regression on mtcars.",
)
def manualTransmission(hp: float | None, wt: float | None) -> float | None:  # noqa: N802
    """Draw the histogram of horsepower, and answer with the probability."""
    _histogram().savefig(HISTOGRAM)
    if hp is None or wt is None:
        return None
    return float(_logistic(LOGISTIC_COEFFICIENTS @ np.array([1.0, hp, wt])))


@service(
    "TxService",
    version="1.0",
    inputs={"hp": float, "wt": float},
    outputs={"answer": "data.frame"},
    artifacts=[ANSWER],
    description="The transmission (am: 0 automatic, 1 manual) of a car of this horsepower (hp) and "
    "weight (wt, in 1000 lb): least squares on mtcars.",
)
def predictTransmission(hp: float | None, wt: float | None) -> dict[str, list[float | None]]:  # noqa: N802
    """Answer with a table of one row, and leave it as a file too."""
    predicted = None
    if hp is not None and wt is not None:
        predicted = float(LINEAR_COEFFICIENTS @ np.array([1.0, hp, wt]))
    with open(ANSWER, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["am_Pred"], [predicted]])
    return {"am_Pred": [predicted]}


@service(
    "carefulService",
    version="1.0",
    inputs={"hp": float, "wt": float},
    outputs={"answer": float},
    description="As mtService, without the picture, for cars of at most 5,000 lb: heavier ones fail.",
)
def manualTransmissionCarefully(hp: float, wt: float) -> float:  # noqa: N802
    """Refuse what the model knows too little about."""
    if wt > MOST_WEIGHT:
        raise ValueError(f"wt is {wt}, the model is for cars of at most {MOST_WEIGHT} (1000 lb)")
    return float(_logistic(LOGISTIC_COEFFICIENTS @ np.array([1.0, hp, wt])))
