"""An R service against the same loop inside one R process: what the way of a record to R costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.lines import Benchmark, Line, Say, at_most, reported, seconds
from tests.server.publishing import Publisher, definitions
from tests.server_process import running_server

_RECORDS = 10_000
_MOST_TIMES = 3.0
_TRIES = 2
# More polls would take the processor that R needs.
_POLL_SECONDS = 0.1

# The function of the vendor's guide, without its picture.
_INIT = """\
carsModel <- glm(am ~ hp + wt, data = mtcars, family = binomial)
manualTransmission <- function(hp, wt) {
  newdata <- data.frame(hp = hp, wt = wt)
  predict(carsModel, newdata, type = "response")
}
"""
_CODE = "answer <- manualTransmission(hp, wt)"
# Like the service, it looks at one record after the other. Prints the answers, and on stderr the seconds.
_LOOP = """
records <- jsonlite::fromJSON("records.json")
answers <- numeric(nrow(records))
began <- proc.time()[["elapsed"]]
for (row in seq_len(nrow(records))) {
  answers[row] <- manualTransmission(records$hp[row], records$wt[row])
}
cat(proc.time()[["elapsed"]] - began, file = stderr())
cat(jsonlite::toJSON(answers, digits = NA))
"""


def _in_one_process(folder: Path) -> tuple[float, list[float]]:
    """Seconds of the bare loop, and its answers."""
    script = folder / "loop.R"
    script.write_text(_INIT + _LOOP)
    done = subprocess.run(
        ["Rscript", "--vanilla", str(script)],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stderr), json.loads(done.stdout)


def _by_the_server(
    publisher: Publisher, records: list[dict[str, float]]
) -> tuple[float, list[float]]:
    """Seconds from the start of a batch to its end, and the answers."""
    began = time.perf_counter()
    path = publisher.start("cars", records, parallel=100)
    while publisher.batch(path, partial=False)["state"] != "complete":
        time.sleep(_POLL_SECONDS)
    taken = time.perf_counter() - began
    results = publisher.batch(path)["batchExecutionResults"]
    return taken, [one["outputParameters"]["answer"] for one in results]


def _run(say: Say) -> list[Line]:
    if shutil.which("Rscript") is None:
        return [reported("an R service", "not measured: R is not here")]
    records = [{"hp": 52.0 + n % 283, "wt": 1.5 + n % 39 / 10} for n in range(_RECORDS)]
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as home:
        folder = Path(home)
        (folder / "records.json").write_text(json.dumps(records))
        arguments = ("--allow-publish", "--workers", "1")
        with running_server(*arguments, data_dir=folder / "data") as server:
            publisher = Publisher(server.url)
            reply = publisher.publish(
                "cars",
                "1",
                _CODE,
                runtime="R",
                initCode=_INIT,
                inputParameterDefinitions=definitions(hp="numeric", wt="numeric"),
                outputParameterDefinitions=definitions(answer="numeric"),
            )
            assert reply.status_code == 201, reply.text
            # Starts R, and has it load the model.
            publisher.score("cars", records[:1])
            ours = [_by_the_server(publisher, records) for _ in range(_TRIES)]
        bare = [_in_one_process(folder) for _ in range(_TRIES)]
    for _, answers in ours:
        assert all(abs(a - b) <= 1e-12 for a, b in zip(answers, bare[0][1], strict=True))
    took, loop = min(ours)[0], min(bare)[0]
    say(f"{seconds(took)} against {seconds(loop)}")
    return [
        at_most(
            f"R service, one worker, {_RECORDS:,} small records: time over that of the same loop in one "
            "R process",
            took / loop,
            _MOST_TIMES,
            lambda times: f"{times:.2f} times",
            f"{seconds(took)} against {seconds(loop)}; from the start of the batch to its end, against a "
            "loop without input or output",
        )
    ]


BENCHMARK = Benchmark("r_service", 56, _run)
