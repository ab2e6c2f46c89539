"""Services that score many records in one call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server import service
from tests.server.api import Api
from tests.server.conftest import SERVICES
from tests.server_process import RunningServer, running_server

MANY = 3_000
GOOD = {"mood": "good"}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker, which has little patience for a call."""
    folder = tmp_path_factory.mktemp("vectorized")
    with running_server(
        *("--services", SERVICES, "--workers", "1", "--record-timeout", "3"),
        env={"NOTE_FILE": str(folder / "notes.txt")},
        data_dir=folder / "data",
    ) as running:
        yield running


def score(server: RunningServer, moods: list[str]) -> list[dict[str, Any]]:
    """What became of records with these moods."""
    return Api(server.url).score("moody columns", [{"mood": mood} for mood in moods])


def test_every_record_has_its_own_result(api: Api) -> None:
    results = api.score("columns", [{"x": number} for number in range(MANY)])
    found = [item["outputParameters"] for item in results]
    assert [item["y"] for item in found] == [2.0 * number for number in range(MANY)]
    assert max(item["calls"] for item in found) > 50


def test_a_result_looks_as_one_of_a_plain_service(api: Api) -> None:
    (plain,) = api.score("double", [{"x": 4}])
    (item,) = api.score("columns", [{"x": 4}])
    assert list(item) == ["outputParameters", *[key for key in plain if key != "outputParameters"]]
    assert {**item, "outputParameters": {"y": 8.0}} == plain
    called = api.consume("columns", x=4)
    assert {**called, "outputParameters": {"y": 8.0}} == api.consume("double", x=4)


def test_a_missing_value_comes_back_missing(api: Api) -> None:
    first, second = api.score("columns", [{"x": None}, {"x": 1}])
    assert first["outputParameters"]["y"] is None
    assert second["outputParameters"]["y"] == 2.0


def test_a_call_is_a_chunk_of_one(api: Api) -> None:
    assert api.consume("columns", x=3)["outputParameters"] == {"y": 6.0, "calls": 1}
    assert api.consume("moody columns", mood="raise")["errorMessage"] == "ValueError: no such car"
    assert "exit code 3" in api.consume("moody columns", mood="exit")["errorMessage"]
    assert api.consume("no columns")["success"] is True


def test_every_type_comes_and_goes(api: Api) -> None:
    record = {
        "a": True,
        "b": 2**53 - 1,
        "c": 0.5,
        "d": "zwölf",
        "e": [1, "x", None],
        "f": [[1, 2], [3, 4]],
        "g": {"v": [1], "w": ["x"]},
    }
    # What pandas itself makes of text: str, or object before pandas 3.
    text = pd.Series(["x"]).dtype
    kinds = f"bool int64 float64 {text} object object object"
    nothing = dict.fromkeys(record)
    assert api.consume("column types", **record)["outputParameters"] == {**record, "kinds": kinds}
    full, empty = api.score("column types", [record, nothing])[:2]
    assert full["outputParameters"] == {**record, "kinds": full["outputParameters"]["kinds"]}
    assert empty["outputParameters"] == {**nothing, "kinds": empty["outputParameters"]["kinds"]}


def test_an_integer_keeps_its_digits_beside_a_missing_one(api: Api) -> None:
    record = {"a": True, "b": 2**53 - 1, "c": 1, "d": "", "e": [], "f": [], "g": {}}
    results = api.score("column types", [record] * 6 + [{**record, "b": None}] + [record] * 6)
    assert [item["outputParameters"]["b"] for item in results] == [2**53 - 1] * 6 + [None] + [
        2**53 - 1
    ] * 6


def test_those_that_fail_stand_alone(impatient: RunningServer) -> None:
    moods = ["good"] * MANY
    bad = {1_000: "raise", 1_001: "misfit", 2_500: "raise", 2_900: "exit"}
    for place, mood in bad.items():
        moods[place] = mood
    results = score(impatient, moods)
    failed = {
        place: item["errorMessage"] for place, item in enumerate(results) if not item["success"]
    }
    assert failed == {
        1_000: "ValueError: no such car",
        1_001: "OutputError: output 'answer': found 7 (int), expected text (character)",
        2_500: "ValueError: no such car",
        2_900: "the worker process ended with exit code 3",
    }
    assert all(
        item["outputParameters"] == {"answer": "good"} for item in results if item["success"]
    )
    assert "a call for" in impatient.log.read_text()


def test_a_record_that_hangs_is_found(impatient: RunningServer) -> None:
    results = score(impatient, ["good"] * 5 + ["hang"] + ["good"] * 5)
    assert [item["errorMessage"] for item in results] == [
        *[""] * 5,
        "the record took longer than 3 seconds",
        *[""] * 5,
    ]


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("undeclared", "output 'more' is not declared"),
        ("missing", "output 'answer' is missing"),
        ("short", "output 'answer': found 0 values, expected 1, one for each record"),
        ("scalar", "output 'answer': found 'yes' (str), expected a column of 1 values"),
        ("scalar in a dict", "output 'answer': found 'yes' (str), expected a column of 1 values"),
        ("twice", "output 'answer': found two columns of this name"),
    ],
)
def test_what_is_no_column_of_results(api: Api, mood: str, message: str) -> None:
    results = api.score("moody columns", [GOOD, {"mood": mood}, GOOD])
    assert [item["errorMessage"] for item in results] == ["", f"OutputError: {message}", ""]


def test_rows_in_another_order_go_to_no_wrong_record(api: Api) -> None:
    # Alone, no record can be in another's place.
    moods = ["good", "shuffled", "fine", "kind", "shuffled", "calm", "glad", "keen"]
    results = api.score("moody columns", [{"mood": mood} for mood in moods])
    assert [item["outputParameters"] for item in results] == [{"answer": mood} for mood in moods]


@pytest.mark.parametrize("mood", ["array", "frame"])
def test_what_a_column_may_be(api: Api, mood: str) -> None:
    results = api.score("moody columns", [{"mood": mood}] * 5)
    assert [item["outputParameters"] for item in results] == [{"answer": mood}] * 5


def test_what_is_printed_goes_with_the_first_record_of_the_call(impatient: RunningServer) -> None:
    results = score(impatient, ["print"] * 7)
    said = [item["consoleOutput"] for item in results]
    # The calls are for one record, and for more as it turns out how quick they are.
    places = [place for place, text in enumerate(said) if text]
    lengths = [end - place for place, end in zip(places, [*places[1:], 7], strict=True)]
    assert places[0] == 0
    assert [said[place] for place in places] == [f"{length} records" for length in lengths]


def test_what_was_scored_before_a_death_is_not_scored_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    with running_server(
        "--services", SERVICES, "--workers", "1", env={"NOTE_FILE": str(notes)}
    ) as server:
        results = score(server, ["note", "exit", "note"])
    assert [item["success"] for item in results] == [True, False, True]
    # The last two were one call, which came as far as the exit and not to the note.
    assert len(notes.read_text().split()) == 2


def test_a_worker_leaves_between_two_calls(tmp_path: Path) -> None:
    with running_server(
        *("--services", SERVICES, "--workers", "1", "--max-records-per-worker", "10"),
        data_dir=tmp_path / "data",
    ) as server:
        results = Api(server.url).score("columns", [{"x": number} for number in range(300)])
    assert [item["outputParameters"]["y"] for item in results] == [2.0 * n for n in range(300)]


def test_a_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    with running_server(
        "--services", SERVICES, "--workers", "1", data_dir=tmp_path / "data"
    ) as server:
        api = Api(server.url)
        path = api.start("columns", [{"x": number} for number in range(60_000)])
        while api.batch(path, partial=False)["completedItemCount"] == 0:
            pass
        server.kill()
        server.start()
        results = api.wait(path)
    assert [item["outputParameters"]["y"] for item in results] == [2.0 * n for n in range(60_000)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifacts": ["a.png"]}, "found artifacts and vectorized=True, expected one of them"),
        ({"vectorized": 1}, "found vectorized 1, expected True or False"),
        ({"function": lambda: None}, "the function cannot be called with (a DataFrame)"),
        ({"function": lambda x, y: None}, "the function cannot be called with (a DataFrame)"),
    ],
)
def test_a_declaration_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    declaration: dict[str, Any] = {
        "name": "vectorized",
        "version": "1",
        "inputs": {"x": float},
        "outputs": {"y": float},
        "vectorized": True,
        **changes,
    }
    function = declaration.pop("function", lambda table: table)
    with pytest.raises(InputError, match=r"^service 'vectorized' version '1': ") as caught:
        service(**declaration)(function)
    assert words in str(caught.value)
