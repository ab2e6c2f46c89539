"""Services that score the same models record by record and many records at once.

The models stand for those of scikit-learn, which is no dependency: ``predict`` takes a table, checks its
columns and values as scikit-learn does, and costs about as much for one row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from airflow_mlbatch.server import service

INPUTS = {"x": float, "z": float}
VERSION = "1"


class Model:
    """What fitted models have in common."""

    def predict(self, table: pd.DataFrame) -> Any:
        """A number for each row."""
        if list(table.columns) != list(INPUTS):
            raise ValueError("unknown columns")
        rows = table.to_numpy(dtype=np.float64)
        if not np.isfinite(rows).all():
            raise ValueError("input contains NaN or infinity")
        return self._predict(rows)

    def _predict(self, rows: Any) -> Any:
        raise NotImplementedError


class Linear(Model):
    """Two coefficients."""

    def _predict(self, rows: Any) -> Any:
        return rows @ np.array([2.0, 3.0]) + 1.0


class Forest(Model):
    """The mean of trees, each a full one."""

    def __init__(self, trees: int, depth: int) -> None:
        random = np.random.default_rng(1)
        self._depth = depth
        self._features = random.integers(0, 2, (trees, 2**depth))
        self._limits = random.random((trees, 2**depth))
        self._leaves = random.random((trees, 2 ** (depth + 1)))

    def _predict(self, rows: Any) -> Any:
        total = np.zeros(len(rows))
        each = np.arange(len(rows))
        trees = zip(self._features, self._limits, self._leaves, strict=True)
        for features, limits, leaves in trees:
            node = np.ones(len(rows), dtype=np.intp)
            for _ in range(self._depth):
                node = 2 * node + (rows[each, features[node]] > limits[node])
            total += leaves[node]
        return total / len(self._leaves)


MODELS = {"linear": Linear(), "forest": Forest(trees=100, depth=6)}


def publish(name: str, model: Model) -> None:
    """Publish a model twice."""

    @service(name, VERSION, inputs=INPUTS, outputs={"y": float})
    def one_by_one(x: float, z: float) -> float:
        """As a service has to call such a model for a record."""
        return float(model.predict(pd.DataFrame({"x": [x], "z": [z]}))[0])

    @service(f"{name} vectorized", VERSION, inputs=INPUTS, outputs={"y": float}, vectorized=True)
    def all_at_once(table: pd.DataFrame) -> Any:
        """The same for many."""
        return model.predict(table)


for _name, _model in MODELS.items():
    publish(_name, _model)
