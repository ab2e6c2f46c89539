"""The demo's models against the numbers of the vendor's guide."""

from __future__ import annotations

import csv
from importlib import resources

import pytest

from tests.server.api import Api


def test_the_logistic_regression_is_the_guides() -> None:
    from airflow_mlbatch.demo.services import LOGISTIC_COEFFICIENTS

    assert pytest.approx([18.86630, 0.03625560, -8.083475], rel=5e-7) == LOGISTIC_COEFFICIENTS


def test_least_squares_fits_as_well_as_it_can() -> None:
    from airflow_mlbatch.demo.services import CARS, LINEAR_COEFFICIENTS

    intercept, of_hp, of_wt = LINEAR_COEFFICIENTS
    residuals = CARS["am"] - (intercept + of_hp * CARS["hp"] + of_wt * CARS["wt"])
    for column in (1.0, CARS["hp"], CARS["wt"]):
        assert (residuals * column).sum() == pytest.approx(0, abs=1e-9)


def test_the_bundled_tables_hold_the_same_cars() -> None:
    folder = resources.files("airflow_mlbatch.demo") / "data"
    by_comma = list(csv.reader((folder / "mtcars.csv").read_text("utf-8").splitlines()))
    by_tab = list(
        csv.reader((folder / "mtcars.tsv").read_text("utf-8").splitlines(), delimiter="\t")
    )
    assert by_comma == by_tab
    assert len(by_comma) == 33
    assert by_comma[0][:3] == ["model", "mpg", "cyl"]


def test_all_cars_are_scored_with_a_picture_each(api: Api) -> None:
    text = (resources.files("airflow_mlbatch.demo") / "data" / "mtcars.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    records = [{"hp": float(row["hp"]), "wt": float(row["wt"])} for row in rows]
    path = api.start("mtService", records, "v1.0.0")
    results = api.wait(path)
    assert len(results) == 32
    assert all(item["changedFiles"] == ["Histogram.png"] for item in results)
    # The likelihood equations of a logistic regression with intercept: the sums agree.
    chances = [item["outputParameters"]["answer"] for item in results]
    assert sum(chances) == pytest.approx(sum(float(row["am"]) for row in rows))
    pictures = {api.get(f"{path}/{index}/files/Histogram.png").content for index in (0, 31)}
    assert all(len(picture) > 2_000 for picture in pictures)


def test_a_car_with_a_gap_has_no_answer(api: Api) -> None:
    found = api.consume("mtService", "v1.0.0", hp=None, wt=2.8)
    assert found["success"] is True
    assert found["outputParameters"] == {"answer": None}
