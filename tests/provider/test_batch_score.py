"""BatchScoreOperator against a live server: what it sends, waits for, adopts and cancels."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS
from airflow.sdk import DAG
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from airflow_mlbatch.errors import ConnectionLostError, ExecutionNotFoundError, MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from airflow_mlbatch.operators import BatchDeleteOperator, BatchScoreOperator
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.protocol.submission import read_note
from tests.provider.test_sensor import fire


def score(**kwargs: Any) -> BatchScoreOperator:
    named = {"service_name": "double", "service_version": "1", **kwargs}
    return BatchScoreOperator(task_id="score", poll_interval=0.05, **named)


@pytest.fixture
def hook() -> MLBatchHook:
    return MLBatchHook()


def results_of(hook: MLBatchHook, execution_id: str, service: str = "double") -> list[Any]:
    hook.watch_batch(service, "1", execution_id, poll_interval=0.05)
    return [record.outputs["y"] for record in hook.get_batch_results(service, "1", execution_id)]


@pytest.mark.parametrize(
    "records",
    [
        [{"x": 1}, {"x": 2}],
        {"x": [1, 2]},
        [{"x": 1, "unused": "u"}, {"x": 2}],
        # What a template leaves, without and with `| tojson`.
        "[{'x': 1, 'unused': None}, {'x': 2.0}]",
        '{"x": [1, 2], "unused": [null, true]}',
    ],
)
def test_records(hook: MLBatchHook, context: Any, records: Any) -> None:
    execution_id = score(records=records).execute(context)
    assert execution_id is not None
    assert results_of(hook, execution_id) == [2.0, 4.0]
    pushed = context["ti"].pushed
    assert pushed["mlbatch_batch"]["execution_id"] == execution_id
    assert pushed["mlbatch_execution_id"] == execution_id
    # What the page about the batch goes by, and its address.
    note = pushed["mlbatch_started_batch"]
    assert note.pop("submitted_at") == pytest.approx(time.time(), abs=3600)
    assert note == {
        "conn_id": "mlbatch_default",
        "service_name": "double",
        "service_version": "1",
        "execution_id": execution_id,
        "count": 2,
    }
    page = "mlbatch/dags/dag/runs/run/tasks/task/-1"
    assert pushed["_link_BatchExecutionLink"] == (page if AIRFLOW_V_3_1_PLUS else "")


def test_no_link_where_the_pages_are_switched_off(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__MLBATCH__UI_ENABLED", "False")
    operator = score(records=[{"x": 1}])
    operator.execute(context)
    assert context["ti"].pushed["_link_BatchExecutionLink"] == ""
    (link,) = operator.operator_extra_links
    assert link.get_link(operator, ti_key=context["ti"]) == ""


@pytest.mark.skipif(not AIRFLOW_V_3_1_PLUS, reason="the pages are off on Airflow 3.0")
def test_the_link_escapes_what_an_address_cannot_hold(context: Any) -> None:
    ti = context["ti"]
    ti.dag_id, ti.run_id, ti.map_index = "a dag", "manual__2026-01-01T00:00:00+00:00", 7
    operator = score(records=[{"x": 1}])
    operator.execute(context)
    (link,) = operator.operator_extra_links
    assert link.get_link(operator, ti_key=ti) == (
        "mlbatch/dags/a%20dag/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00/tasks/task/7"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "id,x\na,1\nb,2\n"),
        ("t.tsv", "id\tx\na\t1\nb\t2\n"),
        ("t.jsonl", '{"x":1}\n{"x":2}\n'),
    ],
)
def test_tables(hook: MLBatchHook, context: Any, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    execution_id = score(input_path=str(tmp_path / name)).execute(context)
    assert execution_id is not None
    assert results_of(hook, execution_id) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("columns", "row_range"),
    [
        ({"x": "power"}, (3, 6)),
        ("{'x': 'power'}", "[3, 6]"),
        ('{"x": "power"}', ["3", "6"]),
    ],
)
def test_columns_and_row_range(
    hook: MLBatchHook, context: Any, tmp_path: Path, columns: Any, row_range: Any
) -> None:
    (tmp_path / "t.csv").write_text("power\n" + "\n".join(map(str, range(10))) + "\n")
    execution_id = score(
        input_path=f"file://{tmp_path}/t.csv", columns=columns, row_range=row_range
    ).execute(context)
    assert execution_id is not None
    assert results_of(hook, execution_id) == [6.0, 8.0, 10.0]


def test_quotes_as_ordinary_text(hook: MLBatchHook, context: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('size,x\n5",1\n"7,2\n')
    with pytest.raises(
        AirflowFailException, match=r"row 0 \(line 2\): found a quote inside a cell"
    ):
        score(input_path=str(path)).execute(context)
    execution_id = score(input_path=str(path), input_quoting="none").execute(context)
    assert execution_id is not None
    assert results_of(hook, execution_id) == [2.0, 4.0]
    with pytest.raises(AirflowFailException, match="input_quoting: found 'all', expected one of"):
        score(input_path=str(path), input_quoting="all").execute(context)


def test_templates_are_rendered(hook: MLBatchHook, context: Any) -> None:
    operator = score(
        service_name="{{ name }}", records=[{"x": "{{ value }}"}], parallel_count="{{ count }}"
    )
    values: Any = {"name": "double", "value": 7, "count": 3}
    operator.render_template_fields(values)
    rendered: list[Any] = [operator.service_name, operator.records, operator.parallel_count]
    assert rendered == ["double", [{"x": "7"}], "3"]
    with pytest.raises(AirflowFailException, match="record 0, field 'x': found '7'"):
        operator.execute(context)


def test_a_version_that_native_rendering_made_a_number_of(hook: MLBatchHook, context: Any) -> None:
    with DAG("native", schedule=None, render_template_as_native_obj=True):
        operator = slowly(0.3, service_version="1", deferrable=True)
    operator.render_template_fields({})
    rendered: Any = operator.service_version
    assert rendered == 1
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    event = json.loads(json.dumps(fire(deferred.value.trigger).payload))
    operator.execute_complete(context, event)
    assert operator.linked_execution_id == event["execution_id"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "records, input_path: found neither"),
        ({"records": [], "input_path": "x.csv"}, "records, input_path: found both"),
        ({"records": "no table"}, "records: found str, expected a list of dicts"),
        ({"records": "7"}, "records: found str, expected a list of dicts"),
        ({"records": [{"x": 1}], "on_empty": "panic"}, "on_empty: found 'panic'"),
        ({"records": [{"y": 1}]}, "field 'x'"),
        (
            {"records": [{"x": 1}], "parallel_count": 0},
            "parallel_count: found 0, expected a whole number from 1 on",
        ),
        ({"records": [{"x": 1}], "service_name": "unknown"}, "unknown"),
        ({"input_path": "/nowhere/at/all.csv"}, "/nowhere/at/all.csv"),
        ({"input_path": "/nowhere/table.xlsx"}, "expected a name that ends in"),
        (
            {"input_path": "nowhere://bucket/table.csv"},
            r"nowhere://bucket/table\.csv: its file system cannot be opened \(.*airflow-mlbatch\[s3\]",
        ),
        (
            {"input_path": "abfs://lake@account/t.csv", "input_conn_id": "azure_lake"},
            "found 'lake' before the @, .* beside the connection 'azure_lake'",
        ),
        ({"records": [{"x": 1}], "columns": {"x": "y"}}, "columns needs input_path"),
        ({"records": [{"x": 1}], "row_range": (0, 1)}, "row_range needs input_path"),
        ({"records": [{"x": 1}], "service_name": None}, "service_name: found None"),
        ({"records": [{"x": 1}], "service_version": ""}, "service_version: found ''"),
    ],
)
def test_wrong_input_fails_for_good(
    hook: MLBatchHook, context: Any, kwargs: dict[str, Any], message: str
) -> None:
    before = hook.list_batch_executions("double", "1")
    with pytest.raises(AirflowFailException, match=message):
        score(**kwargs).execute(context)
    assert hook.list_batch_executions("double", "1") == before
    assert context["task_state_store"].texts == {}


@pytest.mark.parametrize("columns", [["x"], "x=power"])
def test_columns_that_are_no_dict(context: Any, tmp_path: Path, columns: Any) -> None:
    (tmp_path / "t.csv").write_text("x\n1\n")
    operator = score(input_path=str(tmp_path / "t.csv"), columns=columns)
    with pytest.raises(AirflowFailException, match="^columns: found .*, expected a dict of"):
        operator.execute(context)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("poll_interval", 0),
        ("poll_interval", -1),
        ("poll_interval", "soon"),
        ("timeout", "1h"),
        ("timeout", timedelta(0)),
        ("timeout", True),
    ],
)
def test_times_are_looked_at_before_anything_is_sent(
    hook: MLBatchHook, context: Any, name: str, found: Any
) -> None:
    before = hook.list_batch_executions("double", "1")
    operator = BatchScoreOperator(
        task_id="score",
        service_name="double",
        service_version="1",
        records=[{"x": 1}],
        wait_for_completion=True,
        **{name: found},
    )
    with pytest.raises(AirflowFailException, match=f"^{name}: found .*, expected a number of sec"):
        operator.execute(context)
    assert hook.list_batch_executions("double", "1") == before


@pytest.mark.parametrize("deferrable", [False, True])
def test_times_may_be_timedeltas(context: Any, deferrable: bool) -> None:
    operator = BatchScoreOperator(
        task_id="score",
        service_name="slow",
        service_version="1",
        records=[{"x": 1, "seconds": 5 if deferrable else 0.3}],
        wait_for_completion=True,
        deferrable=deferrable,
        poll_interval=timedelta(seconds=0.05),
        timeout=timedelta(minutes=1),
    )
    if not deferrable:
        assert operator.execute(context) is not None
        return
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert deferred.value.trigger.poll_interval == 0.05
    json.dumps(deferred.value.trigger.serialize())


def test_the_log_of_a_mistake_does_not_show_our_code(context: Any) -> None:
    with pytest.raises(AirflowFailException) as caught:
        score().execute(context)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None


def test_an_empty_table_is_a_decision(context: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n")
    path = str(tmp_path / "t.csv")
    with pytest.raises(AirflowSkipException, match="no records to score"):
        score(input_path=path).execute(context)
    with pytest.raises(AirflowFailException, match="no records to score"):
        score(input_path=path, on_empty="fail").execute(context)
    assert score(input_path=path, on_empty="succeed").execute(context) is None


# --- waiting -------------------------------------------------------------------------------------


def slowly(seconds: float, *, count: int = 1, **kwargs: Any) -> BatchScoreOperator:
    records = {"x": list(range(count)), "seconds": [seconds] * count}
    return score(service_name="slow", records=records, wait_for_completion=True, **kwargs)


@pytest.mark.parametrize("deferrable", [False, True])
def test_waits(hook: MLBatchHook, context: Any, deferrable: bool, markers: Path) -> None:
    def make() -> BatchScoreOperator:
        records = [{"gate": f"deferred {deferrable}", "x": x} for x in range(3)]
        waiting = {"wait_for_completion": True, "deferrable": deferrable}
        return score(service_name="gated", records=records, **waiting)

    operator, gate = make(), markers / f"deferred {deferrable}"
    if deferrable:
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context)
        gate.touch()
        event = json.loads(json.dumps(fire(deferred.value.trigger).payload))
        resumed = make()
        execution_id = resumed.execute_complete(context, event, **(deferred.value.kwargs or {}))
        assert resumed.linked_execution_id == execution_id
    else:
        opened = threading.Timer(0.3, gate.touch)
        opened.start()
        execution_id = operator.execute(context)
        opened.join()
    assert execution_id is not None
    status = hook.get_batch_status("gated", "1", execution_id)
    assert status.state is BatchState.COMPLETE
    assert (read_note(context["task_state_store"]) or {})["state"] == "done"


def test_without_waiting_there_is_nothing_to_defer(context: Any) -> None:
    assert score(records=[{"x": 1}], deferrable=True).execute(context) is not None


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("field", ["timeout", "execution_timeout"])
def test_at_the_deadline_the_batch_is_cancelled(
    hook: MLBatchHook, context: Any, deferrable: bool, field: str
) -> None:
    if field == "execution_timeout" and not deferrable:
        pytest.skip("Airflow itself enforces it on a worker")
    limits: dict[str, Any] = {field: timedelta(seconds=0.3)}
    with pytest.raises(AirflowException, match="not complete at the deadline: 0 of 1") as raised:
        try:
            slowly(60, deferrable=deferrable, **limits).execute(context)
        except TaskDeferred as deferred:
            event = fire(deferred.trigger).payload
            slowly(60, deferrable=True, **limits).execute_complete(
                context, event, **(deferred.kwargs or {})
            )
    # A retry can help where only this attempt's time was up, not where the batch's was.
    assert isinstance(raised.value, AirflowFailException) == (field == "timeout")
    execution_id = context["ti"].pushed["mlbatch_execution_id"]
    assert execution_id not in hook.list_batch_executions("slow", "1")


@pytest.mark.parametrize("deferrable", [False, True])
def test_at_the_deadline_the_batch_goes_on_where_cancelling_was_opted_out_of(
    hook: MLBatchHook,
    context: Any,
    deferrable: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limits: dict[str, Any] = {"timeout": 0.3, "cancel_on_timeout": False, "deferrable": deferrable}
    with pytest.raises(AirflowFailException, match="not complete at the deadline: 0 of 1"):
        try:
            slowly(60, **limits).execute(context)
        except TaskDeferred as deferred:
            event = fire(deferred.trigger).payload
            slowly(60, **limits).execute_complete(context, event, **(deferred.kwargs or {}))
    execution_id = context["ti"].pushed["mlbatch_execution_id"]
    assert f"execution {execution_id}: the batch goes on" in capfd.readouterr().out
    assert hook.cancel_batch("slow", "1", execution_id)


def test_execution_timeout_leaves_the_batch_to_a_retry_where_cancelling_was_opted_out_of(
    hook: MLBatchHook, context: Any
) -> None:
    """As on a worker, where Airflow calls ``on_kill``."""
    waiting: dict[str, Any] = {"deferrable": True, "cancel_on_kill": False}
    limit: dict[str, Any] = {"execution_timeout": timedelta(seconds=0.3)}
    with pytest.raises(TaskDeferred) as deferred:
        slowly(60, **waiting, **limit).execute(context)
    event = fire(deferred.value.trigger).payload
    with pytest.raises(AirflowException, match="execution_timeout: .*; the batch goes on"):
        slowly(60, **waiting, **limit).execute_complete(
            context, event, **(deferred.value.kwargs or {})
        )
    with pytest.raises(TaskDeferred) as again:
        slowly(60, **waiting).execute(context)
    execution_id = again.value.trigger.execution_id
    assert execution_id == deferred.value.trigger.execution_id
    hook.cancel_batch("slow", "1", execution_id)


@pytest.mark.parametrize("error", [ConnectionLostError("reset"), ExecutionNotFoundError("gone")])
def test_the_link_stays_where_a_deferred_wait_fails(context: Any, error: MLBatchError) -> None:
    """Airflow stores it again at the end of each segment, with the operator that ran last."""
    operator = score(records=[{"x": 1}], wait_for_completion=True, deferrable=True)
    with pytest.raises((MLBatchError, AirflowException)):
        operator.execute_complete(context, event_of("some-id", error))
    assert operator.linked_execution_id == "some-id"


OUT_OF_TIME = (TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT.value})


@pytest.mark.parametrize("field", ["timeout", "execution_timeout"])
def test_a_deadline_that_no_triggerer_kept_is_made_up_for(
    hook: MLBatchHook, context: Any, field: str
) -> None:
    limits: dict[str, Any] = {field: timedelta(milliseconds=1)}
    with pytest.raises(TaskDeferred) as deferred:
        slowly(60, deferrable=True, **limits).execute(context)
    with pytest.raises(AirflowException, match="not complete at the deadline: 0 of 1") as raised:
        slowly(60, deferrable=True, **limits).resume_execution(*OUT_OF_TIME, context)
    assert isinstance(raised.value, AirflowFailException) == (field == "timeout")
    execution_id = deferred.value.trigger.execution_id
    assert execution_id not in hook.list_batch_executions("slow", "1")


def test_a_batch_that_has_ended_meanwhile_is_a_success_without_a_triggerer(
    hook: MLBatchHook, context: Any, markers: Path
) -> None:
    def make() -> BatchScoreOperator:
        records = [{"gate": "after the deadline", "x": 1}]
        waiting = {"wait_for_completion": True, "deferrable": True, "timeout": 0.1}
        return score(service_name="gated", records=records, **waiting)

    with pytest.raises(TaskDeferred) as deferred:
        make().execute(context)
    execution_id = deferred.value.trigger.execution_id
    (markers / "after the deadline").touch()
    hook.watch_batch("gated", "1", execution_id, poll_interval=0.05)
    operator = make()
    assert operator.resume_execution(*OUT_OF_TIME, context) == execution_id
    assert (read_note(context["task_state_store"]) or {})["state"] == "done"


@pytest.mark.parametrize("reason", ["Trigger failure", "Trigger timeout"])
def test_without_a_submission_airflow_s_own_failure_stands(context: Any, reason: str) -> None:
    with pytest.raises(AirflowException, match=reason):
        slowly(0, deferrable=True).resume_execution("__fail__", {"error": reason}, context)


def test_timeout_counts_from_the_submission(hook: MLBatchHook, context: Any) -> None:
    operator = slowly(60, deferrable=True, timeout=100)
    with pytest.raises(TaskDeferred) as first:
        operator.execute(context)
    time.sleep(0.2)
    with pytest.raises(TaskDeferred) as second:
        slowly(60, deferrable=True, timeout=100).execute(context)
    assert first.value.trigger.deadline == second.value.trigger.deadline
    hook.cancel_batch("slow", "1", first.value.trigger.execution_id)


# --- deleting --------------------------------------------------------------------------------------


def test_delete(hook: MLBatchHook, context: Any) -> None:
    ids = [hook.start_batch("double", "1", [{"x": 1}]) for _ in range(2)]

    def delete(found: Any) -> list[str]:
        return BatchDeleteOperator(
            task_id="delete", service_name="double", service_version="1", execution_ids=found
        ).execute(context)

    assert delete([*ids, None, "gone-already"]) == ids
    assert delete(ids[0]) == []
    with pytest.raises(AirflowFailException, match="execution_ids: found 7"):
        delete(7)


@pytest.mark.parametrize("task_ids", ["score", ["score"], ("score",)])
def test_delete_what_tasks_have_started(hook: MLBatchHook, context: Any, task_ids: Any) -> None:
    execution_id = score(records=[{"x": 1}]).execute(context)
    asked: list[str] = []
    ti = context["ti"]
    real = ti.xcom_pull
    ti.xcom_pull = lambda task_ids, key: asked.append(task_ids) or real(task_ids, key)
    operator = BatchDeleteOperator(
        task_id="delete", service_name="double", service_version="1", score_task_ids=task_ids
    )
    assert operator.execute(context) == [execution_id]
    assert asked == ["score"]
