"""R services: published as R's users write them, and run by R itself."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.patience import wait_until
from tests.server.publishing import NUMBER, Publisher, definitions
from tests.server_process import RunningServer, running_server


def has_r() -> bool:
    """Whether R and its JSON package are installed."""
    if shutil.which("Rscript") is None:
        return False
    command = ["Rscript", "--vanilla", "-e", "quit(status = !requireNamespace('jsonlite'))"]
    return subprocess.run(command, capture_output=True).returncode == 0


needs_r = pytest.mark.skipif(
    not has_r(), reason="R is not installed (Debian: r-base-core and r-cran-jsonlite)"
)

# The function of the vendor's guide, as it is written there.
GUIDE = """\
manualTransmission <- function(hp, wt) {
  # --- Build a plot to demonstrate files in results ---
  png(file = "Histogram.png", bg = "transparent")
  hist(mtcars$hp, breaks = 10, col = "red", xlab = "Horsepower",
       main="Histogram of Horsepower")
  dev.off()

  # --- Perdict and return answer ---
  newdata <- data.frame(hp = hp, wt = wt)
  predict(carsModel, newdata, type = "response")
}
answer <- manualTransmission(hp, wt)"""
GUIDE_SERVICE: dict[str, Any] = {
    "inputParameterDefinitions": definitions(hp="numeric", wt="numeric"),
    "outputParameterDefinitions": definitions(answer="numeric"),
    "outputFileNames": ["Histogram.png"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        *("--allow-publish", "--workers", "2", "--record-timeout", "10"),
        *("--max-service-memory", "2048"),
        data_dir=tmp_path_factory.mktemp("r") / "data",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Publisher:
    return Publisher(server.url)


def r(code: str, folder: Path) -> str:
    """Run R by itself; returns what it prints."""
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def published(client: Publisher, name: str, code: str, **more: Any) -> None:
    reply = client.publish(name, "1", code, runtime="R", **more)
    assert reply.status_code == 201, reply.text


@needs_r
@pytest.mark.parametrize("form", ["rds", "RData"])
def test_the_guides_function_as_it_is_written(client: Publisher, tmp_path: Path, form: str) -> None:
    fit = "carsModel <- glm(formula = am ~ hp + wt, data = mtcars, family = binomial); "
    save = {"rds": "saveRDS(carsModel, 'm')", "RData": "save(carsModel, file = 'm')"}[form]
    tell = "; cat(sprintf('%.17g', predict(carsModel, mtcars, type = 'response')))"
    expected = [float(word) for word in r(fit + save + tell, tmp_path).split()]
    cars = r("write.csv(mtcars[, c('hp', 'wt')], row.names = FALSE)", tmp_path).split()[1:]
    name = f"mtService{form}"
    model = {"carsModel": (tmp_path / "m").read_bytes()}
    published(client, name, GUIDE, objects=model, **GUIDE_SERVICE)
    answer = client.consume(name, hp=120, wt=2.8)
    assert answer["outputParameters"]["answer"] == pytest.approx(0.6418125, abs=5e-8)
    assert answer["changedFiles"] == ["Histogram.png"]
    records = [dict(zip(("hp", "wt"), map(float, car.split(",")), strict=True)) for car in cars]
    batch = client.start(name, records)
    results = client.wait(batch)
    assert len(results) == 32
    answers = [item["outputParameters"]["answer"] for item in results]
    assert answers == pytest.approx(expected, abs=1e-12)
    picture = client.get(f"{batch}/31/files/Histogram.png").content
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000


TYPES = {
    "a": "logical",
    "b": "integer",
    "c": "numeric",
    "d": "character",
    "e": "vector",
    "f": "matrix",
    "g": "data.frame",
}
VALUES: dict[str, Any] = {
    "a": True,
    "b": 7,
    "c": 0.1,
    "d": 'zwölf "€"\n',
    "e": [1.5, None, 3],
    "f": [[1, 2, 3], [4, 5, 6]],
    "g": {"n": [1.25, None], "t": ["x", None], "l": [True, None]},
}


@needs_r
def test_all_types_in_both_directions(client: Publisher) -> None:
    code = "kinds <- paste(class(a), class(b), class(c), class(d), class(e), class(f)[1], class(g))"
    outputs = definitions(**TYPES, kinds="character")
    inputs = definitions(**TYPES)
    more = {"inputParameterDefinitions": inputs, "outputParameterDefinitions": outputs}
    published(client, "types", code, **more)
    found = client.consume("types", **VALUES)
    assert found["errorMessage"] == ""
    kinds = found["outputParameters"].pop("kinds")
    assert kinds == "logical integer numeric character numeric matrix data.frame"
    assert found["outputParameters"] == VALUES
    nothing = dict.fromkeys(VALUES)
    missing = client.consume("types", **nothing)["outputParameters"]
    assert {name: missing[name] for name in TYPES} == nothing


@needs_r
@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("character", "factor('b', levels = c('a', 'b'))", "b"),
        ("character", "as.Date('2017-10-05')", "2017-10-05"),
        ("vector", "factor(c('b', NA))", ["b", None]),
        ("vector", "as.Date(c('2017-10-05', NA))", ["2017-10-05", None]),
        ("vector", "c(one = 1L, two = NA)", [1, None]),
        ("vector", "c(1/3, NaN)", [1 / 3, None]),
        ("vector", "list(1, 'b', NULL, TRUE)", [1, "b", None, True]),
        ("vector", "numeric(0)", []),
        ("matrix", "matrix(1:4, 2)", [[1, 3], [2, 4]]),
        ("matrix", "data.frame(a = 1:2, b = 3:4)", [[1, 3], [2, 4]]),
        ("data.frame", "head(mtcars[, c('hp', 'wt')], 2)", {"hp": [110, 110], "wt": [2.62, 2.875]}),
        (
            "data.frame",
            "list(d = as.Date('2020-01-01'), f = factor('x'))",
            {"d": ["2020-01-01"], "f": ["x"]},
        ),
        ("numeric", "NA", None),
        ("integer", "2^40", 2**40),
        ("numeric", "c(only = 1e-300)", 1e-300),
        ("logical", "NA", None),
    ],
)
def test_what_r_returns(client: Publisher, kind: str, code: str, expected: Any) -> None:
    name = f"returns {kind} {code}"
    published(client, name, f"y <- {code}", outputParameterDefinitions=definitions(y=kind))
    found = client.consume(name)
    assert (found["errorMessage"], found["outputParameters"]) == ("", {"y": expected})
    client.delete(f"/services/{quote(name, safe='')}/1")


CODES: dict[float, str] = {
    1: 'cat("to the console\\n"); print(1:3); message("a message"); y <- 1',
    2: "y <- log(-1, 'x')",
    3: 'stop("no such car")',
    4: "y <- c(1, 2)",
    5: "y <- 1 / 0",
    6: "x",
    7: "quit(status = 5)",
    8: "tools::pskill(Sys.getpid(), 9); Sys.sleep(600)",
    9: "repeat {}",
    10: "y <- length(ls(globalenv())) - length(list.files())",
    11: 'left <- 1; writeLines("litter", "litter.txt"); y <- 0',
}


@pytest.fixture(scope="module")
def moody(client: Publisher) -> str:
    branches = "".join(f"if (x == {number}) {{ {code} }}\n" for number, code in CODES.items())
    published(client, "moody", branches, **NUMBER)
    return "moody"


@needs_r
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, 'Error in log(-1, "x") : non-numeric argument to mathematical function'),
        (3, "Error in eval(expression, globalenv()) : no such car"),
        (4, "output 'y': found 2 values, expected one"),
        (5, "output 'y': found an infinite number: JSON has none"),
        (6, "OutputError: output 'y' is missing"),
        (7, "R ended with exit code 5"),
        (8, "R was killed by signal SIGKILL"),
        (9, "the record took longer than 10 seconds"),
    ],
)
def test_records_that_fail(client: Publisher, moody: str, number: int, message: str) -> None:
    before, found, after = client.score(moody, [{"x": 1}, {"x": number}, {"x": 1}])
    assert message in found["errorMessage"]
    assert found["success"] is False
    # Their neighbours do not notice, and the next record finds another R.
    assert (before["success"], after["success"]) == (True, True)


@needs_r
def test_what_r_prints(client: Publisher, moody: str) -> None:
    found = client.consume(moody, x=1)
    assert found["consoleOutput"] == "to the console\n[1] 1 2 3\na message\n"
    assert client.consume(moody, x=11)["consoleOutput"] == ""


@needs_r
def test_a_record_does_not_find_what_another_has_left(client: Publisher, moody: str) -> None:
    results = client.score(moody, [{"x": 11}, {"x": 10}] * 4)
    assert [item["errorMessage"] for item in results] == [""] * 8
    assert [item["outputParameters"] for item in results] == [{"y": 0}, {"y": 1}] * 4


@needs_r
def test_the_init_code(client: Publisher) -> None:
    init = "library(stats)\noffset <- 100\nscaled <- function(v) v * 2 + offset"
    published(client, "init", "y <- scaled(x)", initCode=init, **NUMBER)
    assert client.consume("init", x=1)["outputParameters"] == {"y": 102}
    published(client, "eager", "y <- z", initCode="z <- x * 10", **NUMBER)
    results = client.score("eager", [{"x": 1}, {"x": 2}])
    assert [item["outputParameters"]["y"] for item in results] == [10, 20]


@needs_r
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "y <- ("}, "code: Error in parse(text = program$code"),
        ({"code": "1", "initCode": "stop('not today')"}, "initCode: Error in"),
        ({"code": "1", "initCode": "quit(status = 6)"}, "R ended with exit code 6"),
        (
            {"code": "1", "initCode": "library(noSuchPackage)"},
            "there is no package called",
        ),
        ({"code": "1", "objects": {"model": b"no R object"}}, "object 'model': Error in"),
        ({"code": "1", "objects": {"model": b""}}, "object 'model': Error in"),
    ],
)
def test_what_cannot_be_published(client: Publisher, change: Any, message: str) -> None:
    reply = client.publish("bad", "1", runtime="R", **change)
    assert reply.status_code == 400
    assert message in reply.json()["message"]
    assert client.get("/services/bad").status_code == 404


@needs_r
def test_a_compression_bomb(client: Publisher) -> None:
    # As saveRDS() writes 500 million numbers; the zeros of some of them.
    head = b"X\n" + struct.pack("!iiiii", 2, 0x00040202, 0x00020300, 14, 500_000_000)
    bomb = gzip.compress(head + bytes(50_000_000))
    assert len(bomb) < 2**20
    reply = client.publish("bomb", "1", "y <- 1", {"model": bomb}, runtime="R", **NUMBER)
    assert reply.status_code == 400
    assert "object 'model': Error : cannot allocate vector" in reply.json()["message"]
    assert client.get("/status").json()["statusCode"] == "pass"


@needs_r
def test_r_is_not_started_for_each_record_and_ends_with_its_service(
    client: Publisher, server: RunningServer
) -> None:
    published(client, "pids", "y <- Sys.getpid()", **NUMBER)
    results = client.score("pids", [{"x": n} for n in range(200)])
    pids = {int(item["outputParameters"]["y"]) for item in results}
    assert 1 <= len(pids) <= 2
    assert client.delete("/services/pids/1").status_code == 200
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_without_r(tmp_path: Path) -> None:
    for name in ("python3", "env", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name) or "/bin/sh")
    with running_server("--allow-publish", "--workers", "1", env={"PATH": str(tmp_path)}) as server:
        wait_until(lambda: any("R services need Rscript" in line for line in server.lines))
        client = Publisher(server.url)
        # As the vendor's document says, R is meant where nothing is said.
        reply = client.post("/services/any/1", {"code": "y <- 1"})
        assert reply.status_code == 400
        assert "R services need Rscript" in reply.json()["message"]
        assert "r-base-core" in reply.json()["message"]
        assert client.publish("other", "1", "y = x", **NUMBER).status_code == 201


@needs_r
def test_the_log_says_which_r_was_found(server: RunningServer) -> None:
    said = "mlbatch serve: R services by "
    wait_until(lambda: any(line.startswith(said) for line in server.lines))
    (line,) = [line for line in server.lines if line.startswith(said)]
    assert re.fullmatch(rf"{said}\S+/Rscript, R \d\S+ with jsonlite \d\S+", line)


def test_the_log_says_which_package_is_missing(tmp_path: Path) -> None:
    # An R that answers, and has no package.
    rscript = tmp_path / "Rscript"
    rscript.write_text("#!/bin/sh\nprintf 4.2.2\n")
    rscript.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    with running_server("--allow-publish", "--workers", "1", env={"PATH": path}) as server:
        said = "mlbatch serve: R services need the R package jsonlite, which is missing"
        wait_until(lambda: any(line.startswith(said) for line in server.lines))
