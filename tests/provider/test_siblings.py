"""Score tasks of one run with batches of one size: none takes another's for its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_mlbatch.errors import SubmissionUnknownError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchScoreOperator
from tests.provider.airflow_side import FakeStateStore

Told = dict[int, dict[str, Any]]


class MappedInstance:
    """One mapped instance of a score task, over its attempts."""

    def __init__(self, map_index: int, told: Told) -> None:
        self.map_index, self._told = map_index, told
        self._store = FakeStateStore()

    dag_id, run_id, task_id = "dag", "run", "score"

    def attempt(self, *, count: int = 3, **arguments: Any) -> str | None:
        """Run the task once more; the values of its records tell whose they are."""
        # As Airflow does before each attempt.
        self._told[self.map_index] = {}
        operator = BatchScoreOperator(
            task_id="score",
            service_name="double",
            service_version="1",
            records=[{"x": self.map_index}] * count,
            **arguments,
        )
        return operator.execute({"ti": self, "task_state_store": self._store})

    def xcom_push(self, key: str, value: Any) -> None:
        self._told[self.map_index][key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value") -> Any:
        assert task_ids == ["score"], "a list, so that one result alone does not come bare"
        return [keys[key] for keys in self._told.values() if key in keys]


@pytest.fixture
def told() -> Told:
    """What the instances of the run have pushed."""
    return {}


@pytest.fixture
def first(told: Told) -> MappedInstance:
    return MappedInstance(0, told)


@pytest.fixture
def second(told: Told) -> MappedInstance:
    return MappedInstance(1, told)


@pytest.fixture(autouse=True)
def nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_mlbatch.operators.submission._SETTLING_SECONDS", 0.0)


@pytest.fixture
def hook() -> Iterator[MLBatchHook]:
    hook = MLBatchHook()
    yield hook
    hook.close()


def dies(instance: MappedInstance, *, posted: bool, **arguments: Any) -> None:
    """An attempt whose worker dies around the request."""
    real = MLBatchHook.start_encoded_batch

    def die(self: MLBatchHook, *args: Any) -> str:
        if posted:
            real(self, *args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MLBatchHook, "start_encoded_batch", die)
        instance.attempt(**arguments)


def scores(hook: MLBatchHook, execution_id: str | None) -> list[Any]:
    assert execution_id is not None
    hook.watch_batch("double", "1", execution_id, poll_interval=0.05)
    return [each.outputs["y"] for each in hook.get_batch_results("double", "1", execution_id)]


def test_a_batch_that_another_has_started_is_not_taken_over(
    hook: MLBatchHook, first: MappedInstance, second: MappedInstance
) -> None:
    dies(second, posted=False)
    theirs = first.attempt()
    ours = second.attempt()
    assert ours != theirs
    assert scores(hook, ours) == [2.0] * 3


def test_among_those_of_others_the_own_is_found(
    hook: MLBatchHook, first: MappedInstance, second: MappedInstance
) -> None:
    before = set(hook.list_batch_executions("double", "1"))
    dies(second, posted=True)
    (ours,) = set(hook.list_batch_executions("double", "1")) - before
    first.attempt()
    assert second.attempt() == ours


def test_a_batch_that_may_be_anothers_is_not_taken_over(
    hook: MLBatchHook, first: MappedInstance, second: MappedInstance
) -> None:
    """Both workers died, and one of the two requests has arrived."""
    dies(second, posted=False)
    dies(first, posted=True)
    for instance in (second, first):
        with pytest.raises(
            AirflowFailException, match="1 execution of double .* or that of 1 other"
        ):
            instance.attempt()
    ours = second.attempt(on_ambiguous_submission="resubmit")
    assert scores(hook, ours) == [2.0] * 3
    # Now the other one knows that there is no rival any more.
    assert scores(hook, first.attempt()) == [0.0] * 3


def test_an_attempt_tells_at_once_what_the_last_one_had_told(
    hook: MLBatchHook,
    first: MappedInstance,
    second: MappedInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it still reads its table, another one looks for the batch of a dead worker."""
    dies(second, posted=False)
    dies(first, posted=True)
    met: list[str] = []

    def while_reading(real: Callable[..., Any]) -> Callable[..., Any]:
        def encode(operator: BatchScoreOperator) -> Any:
            if operator.records == [{"x": 0}] * 3:
                with pytest.raises(AirflowFailException) as raised:
                    second.attempt()
                met.append(str(raised.value))
            return real(operator)

        return encode

    monkeypatch.setattr(BatchScoreOperator, "_encode", while_reading(BatchScoreOperator._encode))
    with pytest.raises(AirflowFailException):
        first.attempt()
    assert "or that of 1 other" in met[0]


def test_a_batch_of_another_size_or_service_is_no_rival(
    hook: MLBatchHook, first: MappedInstance, second: MappedInstance, told: Told
) -> None:
    dies(first, posted=False, count=2)
    dies(second, posted=True)
    other = {"task_id": "other", "map_index": -1, "service": ["slow", "1"], "count": 3}
    told[7] = {"mlbatch_submission": {**other, "execution_id": None}}
    assert scores(hook, second.attempt()) == [2.0] * 3


def test_a_line_that_was_lost_is_settled_in_the_same_way(
    hook: MLBatchHook,
    first: MappedInstance,
    second: MappedInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server went away while it took both in, and has one of them."""
    dies(first, posted=True)

    def lose(self: MLBatchHook, *args: Any) -> str:
        raise SubmissionUnknownError("the line was lost; the batch may have been started, or not")

    monkeypatch.setattr(MLBatchHook, "start_encoded_batch", lose)
    before = set(hook.list_batch_executions("double", "1"))
    with pytest.raises(SubmissionUnknownError):
        second.attempt()
    assert set(hook.list_batch_executions("double", "1")) == before


def test_resubmit_holds_within_an_attempt(
    hook: MLBatchHook, first: MappedInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = MLBatchHook.start_encoded_batch, 0

    def lose_the_first(self: MLBatchHook, *args: Any, **kwargs: Any) -> str:
        nonlocal times
        times += 1
        if times > 1:
            return real(self, *args, **kwargs)
        # Two of the size have come meanwhile: nobody can say whether one of them is ours.
        for _ in range(2):
            hook.start_batch("double", "1", [{"x": 9}] * 3)
        raise SubmissionUnknownError("the line was lost; the batch may have been started, or not")

    monkeypatch.setattr(MLBatchHook, "start_encoded_batch", lose_the_first)
    assert scores(hook, first.attempt(on_ambiguous_submission="resubmit")) == [0.0] * 3


@pytest.mark.parametrize("posted", [False, True])
def test_any_number_of_executions_is_known(
    hook: MLBatchHook, first: MappedInstance, posted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a key of the store cannot hold has its own keys."""
    monkeypatch.setattr("airflow_mlbatch.operators.submission._DIGESTS_OF_A_KEY", 2)
    for _ in range(7):
        hook.start_batch("double", "1", [{"x": 9}] * 3)
    before = set(hook.list_batch_executions("double", "1"))
    dies(first, posted=posted)
    assert len(first._store.texts) > 3
    posted_ids = set(hook.list_batch_executions("double", "1")) - before
    seen: list[str] = []
    real = FakeStateStore.delete

    def note(self: FakeStateStore, key: str) -> None:
        seen.append(key)
        real(self, key)

    monkeypatch.setattr(FakeStateStore, "delete", note)
    ours = first.attempt()
    assert ours not in before
    assert not posted or {ours} == posted_ids
    assert first._store.texts == {} and len(seen) == len(set(seen)) > 3
