"""R services on a Dask cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.certificates import Papers
from tests.patience import wait_until
from tests.server.processes import assert_gone
from tests.server.publishing import NUMBER
from tests.server.test_r_services import GUIDE, GUIDE_SERVICE, needs_r, r

pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")

from tests.server.dask_cluster import Place, running_place

pytestmark = needs_r


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[Place]:
    with running_place(tmp_path_factory.mktemp("dask-r"), papers) as place:
        place.cluster.add_worker()
        place.wait_for_workers(1)
        yield place


def publish(place: Place, name: str, code: str, **more: Any) -> None:
    reply = place.api.publish(name, "1", code, runtime="R", **{**NUMBER, **more})
    assert reply.status_code == 201, reply.text


def without_r(folder: Path) -> str:
    """A search path with everything but R."""
    folder.mkdir()
    for one in os.environ["PATH"].split(os.pathsep):
        for path in Path(one).glob("*"):
            link = folder / path.name
            if path.name not in ("R", "Rscript") and not link.is_symlink():
                link.symlink_to(path)
    assert shutil.which("Rscript", path=str(folder)) is None
    return str(folder)


def test_the_guides_model_with_its_pictures(place: Place, tmp_path: Path) -> None:
    fit = "carsModel <- glm(formula = am ~ hp + wt, data = mtcars, family = binomial); "
    tell = "; cat(sprintf('%.17g', predict(carsModel, mtcars, type = 'response')))"
    expected = [float(word) for word in r(fit + "saveRDS(carsModel, 'm')" + tell, tmp_path).split()]
    cars = r("write.csv(mtcars[, c('hp', 'wt')], row.names = FALSE)", tmp_path).split()[1:]
    model = {"carsModel": (tmp_path / "m").read_bytes()}
    publish(place, "guide", GUIDE, objects=model, **GUIDE_SERVICE)
    path = place.api.start(
        "guide", [dict(zip(("hp", "wt"), map(float, car.split(",")), strict=True)) for car in cars]
    )
    answers = [one["outputParameters"]["answer"] for one in place.api.wait(path)]
    assert answers == pytest.approx(expected, abs=1e-12)
    for n in (0, 31):
        picture = place.api.get(f"{path}/{n}/files/Histogram.png").content
        assert picture.startswith(b"\x89PNG") and len(picture) > 1000


def test_a_record_that_ends_r_fails_alone(place: Place) -> None:
    publish(place, "quits", "if (x == 3) quit(status = 5)\ncat(x)\ny <- 2 * x")
    results = place.api.score("quits", [{"x": x} for x in range(12)])
    assert [n for n, one in enumerate(results) if not one["success"]] == [3]
    assert results[3]["errorMessage"] == "R ended with exit code 5"
    scored = [one for n, one in enumerate(results) if n != 3]
    assert [one["outputParameters"]["y"] for one in scored] == [2 * n for n in range(12) if n != 3]
    assert scored[-1]["consoleOutput"] == "11"


def test_a_cancellation_ends_r(place: Place) -> None:
    code = "file.create(file.path(Sys.getenv('TRACES'), Sys.getpid()))\nSys.sleep(600)\ny <- x"
    publish(place, "sleeps", code)
    path = place.api.start("sleeps", [{"x": 1}])
    wait_until(lambda: any(place.traces.iterdir()))
    process = psutil.Process(int(next(place.traces.iterdir()).name))
    assert place.api.delete(path).status_code == 200
    assert_gone([process])
    place.forget()


def test_workers_without_r(place: Place, tmp_path: Path) -> None:
    """Others score its records; when there are no others, the batch fails."""
    publish(place, "doubles", "y <- 2 * x")
    place.cluster.add_worker(PATH=without_r(tmp_path / "bin"))
    place.wait_for_workers(2)
    results = place.api.score("doubles", [{"x": x} for x in range(40)])
    assert [one["outputParameters"]["y"] for one in results] == [2 * x for x in range(40)]
    problem = (
        "runtimeType: R services need Rscript, which this machine does not have "
        "(Debian: r-base-core and r-cran-jsonlite)"
    )
    workers = place.dask["details"]["workers"]
    assert [one["name"] for one in workers if problem in one["problem"]] == ["w2"]
    place.cluster.kill_worker(place.cluster.workers[0])
    path = place.api.start("doubles", [{"x": 1}])
    wait_until(lambda: place.api.batch(path)["state"] == "failed")
    (result,) = place.api.batch(path)["batchExecutionResults"]
    assert result["errorMessage"].startswith("the service cannot be loaded: ")
    assert problem in result["errorMessage"]
