"""Every cell of the table of faults, through both drivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
from _pytest.mark import ParameterSet

from airflow_mlbatch.protocol.flows import ReadyToken
from tests.faults.server import FaultServer, Play, closed_port
from tests.faults.table import (
    FAULTS,
    POLICY,
    SCENES,
    SECRETS,
    Cell,
    Fault,
    Path,
    page,
    played_acts,
    script,
)
from tests.faults.talk import DRIVERS, DriverName, Outcome, Talk

PAGE = FilePath(__file__).parents[2] / "docs" / "faults.md"


def as_parameters(cells: Iterable[tuple[Fault, Path, Cell]]) -> list[ParameterSet]:
    return [
        pytest.param(fault, path, cell, id=f"{fault.name}-{path.value}")
        for fault, path, cell in cells
    ]


EACH = [(fault, path, cell) for fault in FAULTS for path, cell in fault.cells.items()]
CELLS = as_parameters(EACH)
# Faults that do no harm have nothing to pass, and a port comes to life only for real.
PASSING = as_parameters(each for each in EACH if each[0].act and each[2].error)


def play(fault: Fault, path: Path, driver: DriverName, *, passes: bool) -> Outcome:
    scene = SCENES[path]
    policy = replace(POLICY, small_seconds=fault.small_seconds)
    endpoint = {"read_timeout": fault.read_timeout}
    if fault.act is None:
        url = f"http://127.0.0.1:{closed_port()}"
        # A ready token, or the login would be what meets the fault.
        talk = Talk(url, login=ReadyToken("token-one"), policy=policy)
        return talk.hold(driver, scene.say)
    with FaultServer(Play(script(fault, path, passes=passes))) as server:
        return Talk(server.url, policy=policy, endpoint=endpoint).hold(driver, scene.say)


def requests_of(path: Path, outcome: Outcome) -> int:
    scene = SCENES[path]
    wanted = f"{scene.method} {scene.target}"
    return sum(sent.partition("?")[0] == wanted for sent in outcome.sent)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("fault", "path", "cell"), CELLS)
def test_a_fault_that_stays(fault: Fault, path: Path, cell: Cell, driver: DriverName) -> None:
    outcome = play(fault, path, driver, passes=False)

    assert outcome.error is cell.error, outcome.text
    assert cell.text in outcome.text
    assert requests_of(path, outcome) == cell.requests
    if cell.error is None:
        assert outcome.value == SCENES[path].value
    for secret in SECRETS:
        assert secret not in outcome.text
        assert secret not in str(outcome.reports)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("fault", "path", "cell"), PASSING)
def test_a_fault_that_passes(fault: Fault, path: Path, cell: Cell, driver: DriverName) -> None:
    outcome = play(fault, path, driver, passes=True)

    met = len(played_acts(fault, path))
    if cell.is_retried:
        assert (outcome.error, outcome.text) == (None, "")
        assert outcome.value == SCENES[path].value
        assert requests_of(path, outcome) == met + 1
    else:
        assert outcome.error is cell.error
        assert requests_of(path, outcome) == met


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python -m tests.faults.table > docs/faults.md"
