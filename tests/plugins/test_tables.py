"""Inputs, written tables and shards in the pages, of a Dag that really ran."""

from __future__ import annotations

import json

import pytest

from tests.plugins.conftest import RAN_DAG_ID, RAN_ROWS, MakeTask, Pages, Ran, note_of

# --- inputs --------------------------------------------------------------------------------------


def test_inputs_of_records(pages: Pages, ran: Ran) -> None:
    for task_id in ("score", "results"):
        found = pages.get(f"{ran.task(task_id)}/inputs?index=9&index=0&index=119").json()
        # The batch begins with row 10 of the table.
        assert found == {"columns": ["x"], "rows": [[10.0], [-1.0], [-1.0]]}


def test_inputs_of_a_shard(pages: Pages, ran: Ran) -> None:
    found = pages.get(f"{ran.task('large.shards.score', 1)}/inputs?index=1").json()
    assert found["rows"] == [[61.0]]


def test_a_record_that_the_table_has_not(pages: Pages, ran: Ran) -> None:
    reply = pages.get(f"{ran.task('score')}/inputs?index=120")
    assert reply.status_code == 502
    assert "its rows end before" in reply.json()["detail"]


def test_a_table_that_is_gone_is_a_sentence(pages: Pages, ran: Ran) -> None:
    there = ran.folder / "cars.csv"
    there.rename(ran.folder / "moved.csv")
    try:
        reply = pages.get(f"{ran.task('score')}/inputs?index=0")
    finally:
        (ran.folder / "moved.csv").rename(there)
    assert reply.status_code == 502
    assert "found no such file" in reply.json()["detail"]


def test_a_batch_of_records_has_no_inputs_to_show(pages: Pages, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    assert pages.get(f"{task.path}/inputs?index=0").json() is None


@pytest.mark.parametrize("query", ["", "index=-1", "index=x", "&".join(["index=1"] * 51)])
def test_indexes_are_checked(pages: Pages, ran: Ran, query: str) -> None:
    assert pages.get(f"{ran.task('score')}/inputs?{query}").status_code == 422


# --- written tables ------------------------------------------------------------------------------


def test_the_table_and_its_rejects(pages: Pages, ran: Ran) -> None:
    for task_id in ("score", "results"):
        found = pages.get(f"{ran.task(task_id)}/tables").json()["tables"]
        assert [(table["name"], table["rows"]) for table in found] == [
            ("table", 120),
            ("rejects", 12),
        ]
        assert found[0]["path"].endswith("scored.parquet")


def test_rows_of_the_table_in_pages(pages: Pages, ran: Ran) -> None:
    path = f"{ran.task('results')}/tables/table"
    first = pages.get(path).json()
    assert first["columns"][:2] == ["model", "speed"]
    assert first["total"] == 120
    assert first["rows"][0][:2] == ["car 10", 10.0]
    last = pages.get(f"{path}?offset=100").json()
    assert len(last["rows"]) == 20
    assert last["rows"][-1][0] == "car 129"
    assert pages.get(f"{path}?offset=1000").json()["rows"] == []
    rejects = pages.get(f"{ran.task('score')}/tables/rejects").json()
    assert rejects["rows"][0][0] == "car 19"
    assert "x is negative" in str(rejects["rows"][0])


def test_parts_of_a_dataset(pages: Pages, ran: Ran) -> None:
    path = ran.task("large.shards.score", 2)
    (table,) = pages.get(f"{path}/tables").json()["tables"]
    assert (table["name"], table["rows"]) == ("table", 30)
    rows = pages.get(f"{path}/tables/table").json()["rows"]
    assert (rows[0][0], rows[-1][0]) == ("car 120", "car 149")


def test_a_table_of_another_run_is_not_shown(pages: Pages, ran: Ran) -> None:
    manifest = ran.folder / "scored.parquet.manifest.json"
    ours = manifest.read_text(encoding="utf-8")
    manifest.write_text(json.dumps({**json.loads(ours), "execution_ids": ["another"]}), "utf-8")
    try:
        found = pages.get(f"{ran.task('results')}/tables").json()
        reply = pages.get(f"{ran.task('results')}/tables/table")
    finally:
        manifest.write_text(ours, "utf-8")
    assert found == {"tables": []}
    assert reply.status_code == 404


# --- a table in shards ---------------------------------------------------------------------------


def test_a_table_in_shards_is_one_table(pages: Pages, ran: Ran) -> None:
    found = pages.get(f"{ran.table}/status").json()
    table = found["table"]
    assert (table["service_name"], table["commit"]) == ("cars", "success")
    assert table["planned"] == {"rows": RAN_ROWS, "shards": 3}
    assert table["shards"] == {"done": 3, "failed": 0, "active": 0, "waiting": 0}
    assert table["written"] == {"rows": RAN_ROWS, "failed": 15, "parts": 3}
    assert [(each["start"], each["stop"], each["rows"]) for each in found["shards"]] == [
        (0, 60, 60),
        (60, 120, 60),
        (120, 150, 30),
    ]
    assert {each["state"] for each in found["shards"]} == {"done"}
    shards = pages.get(f"{ran.table}/status?offset=2").json()["shards"]
    assert [each["map_index"] for each in shards] == [2]


def test_a_shard_names_its_table(pages: Pages, ran: Ran) -> None:
    for task_id in ("large.shards.score", "large.shards.write"):
        assert pages.get(f"{ran.task(task_id, 0)}/status").json()["table"] == "large.plan"
    assert pages.get(f"{ran.task('score')}/status").json()["table"] is None


@pytest.mark.parametrize("state", ["", "success", "running"])
def test_the_list_has_the_table_in_place_of_its_shards(pages: Pages, ran: Ran, state: str) -> None:
    found = pages.get(f"mlbatch/list?dag_id={RAN_DAG_ID}&state={state}").json()
    tasks = {each["task"]["task_id"] for each in found["batches"]}
    assert tasks == (set() if state == "running" else {"score", "large.plan"})
    assert found["total"] == len(tasks)
    assert "cars" in found["services"]


def test_a_table_that_nobody_planned(pages: Pages, ran: Ran) -> None:
    reply = pages.get(f"{ran.table}x/status")
    assert reply.status_code == 404
    assert "has not planned a table" in reply.json()["detail"]
