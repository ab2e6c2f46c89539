"""``@task.mlbatch``: a function gives the records, the task scores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import iscoroutinefunction
from os import fspath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.hooks.batch import is_path
from airflow_mlbatch.operators.batch_score import BatchScoreOperator
from airflow_mlbatch.operators.console_output import ConsoleLog
from airflow_mlbatch.operators.failed_records import judge_count
from airflow_mlbatch.operators.rendered import as_row_range, as_whole_number, check_choice

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator

__all__ = ["MLBatchDecoratedOperator", "mlbatch_task"]

_GIVEN = ("records", "input_path")
# Stands for what depends on another argument; ``None`` judges nothing.
_BY_RETURNS: Any = object()


class MLBatchDecoratedOperator(DecoratedOperator, BatchScoreOperator):
    """Scores what a function returns: records, or the path of a table.

    Each attempt calls the function once, before its batch is started. A task that is resumed after its
    deferral does not call it, unless it has to look for its batch or to start another one. A retry takes
    over the batch of an earlier attempt if the records are the same.

    :param python_callable: returns a list of dicts, a dict of equally long columns, a pandas DataFrame, or
        the path of a table
    :param op_args: positional arguments of the function
    :param op_kwargs: keyword arguments of the function
    :param returns: ``results``, a dict for each record as ``BatchResultsOperator`` gives them; or
        ``execution_id``
    :param console_column: with ``returns="results"``, the key for what each record has printed
    :param max_xcom_records: most records whose results may go through XCom
    :param wait_for_completion: wait for the batch; results need it
    :param max_failed_records: fail the task when more records failed: a count, or a fraction of the
        records. Unless given it is 0 with ``returns="results"``, and nothing is judged otherwise
    :param kwargs: the other arguments of :class:`BatchScoreOperator`
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        # What the function returns is data and no template.
        *(name for name in BatchScoreOperator.template_fields if name not in _GIVEN),
        "max_xcom_records",
        "console_column",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        "columns": "json",
    }
    custom_operator_name = "@task.mlbatch"
    _keeps_records = False

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        returns: Literal["results", "execution_id"] = "results",
        max_xcom_records: int = 10_000,
        console_column: str | None = None,
        wait_for_completion: bool = True,
        max_failed_records: Any = _BY_RETURNS,
        **kwargs: Any,
    ) -> None:
        if max_failed_records is _BY_RETURNS:
            # As for BatchResultsOperator; where another task reads the results, that one judges them.
            max_failed_records = 0 if returns == "results" else None
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            wait_for_completion=wait_for_completion,
            max_failed_records=max_failed_records,
            **kwargs,
        )
        self.returns = returns
        self.max_xcom_records = max_xcom_records
        self.console_column = console_column
        self._results: list[dict[str, Any]] = []
        _check_function(self)

    def execute(self, context: Context) -> Any:
        """Call the function, and score what it returns."""
        self.records = self.input_path = None
        # Not DecoratedOperator's: on Airflow 3.0 it calls a method that its operators do not have. What it
        # does besides is about assets that a function takes or returns, and ours returns records.
        found = BatchScoreOperator.execute(self, context)
        # A table without rows has no id, and no results.
        return [] if found is None and self.returns == "results" else found

    def _check(self) -> None:
        check_choice("returns", self.returns, ("results", "execution_id"))
        as_whole_number("max_xcom_records", self.max_xcom_records)
        if self.returns == "results" and not self.wait_for_completion:
            raise InputError(
                "returns: found 'results' with wait_for_completion=False, expected 'execution_id'"
            )
        if self.returns != "results" and self.console_column is not None:
            raise InputError(
                f"console_column: found {self.console_column!r:.80} with returns='execution_id', "
                "expected it on the task that reads the results"
            )
        super()._check()

    def _take_records(self, context: Context) -> None:
        # A copy: arguments of the function must not replace what the task itself takes from its context.
        known = {**context, **self.op_kwargs}
        kwargs = determine_kwargs(self.python_callable, self.op_args, known)
        found = self.python_callable(*self.op_args, **kwargs)
        if found is None:
            raise InputError(
                "@task.mlbatch: found None, expected the function to return records or the path of a table"
            )
        self.records, self.input_path = (None, fspath(found)) if is_path(found) else (found, None)

    def _encode(self) -> tuple[bytes, int]:
        body, count = super()._encode()
        if self.returns == "results":
            self._check_xcom(count)
        return body, count

    def _check_xcom(self, count: int) -> None:
        """Whether the results may go through XCom, before there is a batch."""
        from airflow_mlbatch.datasets.result_dicts import check_output_names

        remedy = (
            'return the id (returns="execution_id"), and write a table with BatchResultsOperator'
        )
        most = as_whole_number("max_xcom_records", self.max_xcom_records)
        if count > most:
            raise InputError(
                f"max_xcom_records: found {count:,} records, expected at most {most:,}; {remedy}"
            )
        outputs = self.hook.get_service(self.service_name, self.service_version).outputs
        check_output_names(outputs, remedy, self.console_column)

    def _judge(self) -> None:
        if self.returns != "results":
            super()._judge()
            return
        from airflow_mlbatch.datasets.result_dicts import ResultDicts

        assert self.execution_id is not None
        found = ResultDicts(self.console_column)
        rows = as_row_range(self.row_range)
        console = ConsoleLog(self.log, 0 if rows is None else rows.start)
        self.hook.read_batch_results(
            self.service_name,
            self.service_version,
            self.execution_id,
            console.beside(found.take),
            restart=found.forget,
        )
        self._results = found.rows
        judge_count(self, self._summary, found.counted())

    def _succeeded(self, context: Context) -> Any:
        execution_id = super()._succeeded(context)
        return self._results if self.returns == "results" else execution_id


def _check_function(task: MLBatchDecoratedOperator) -> None:
    """Whether the records come from the function, and from nowhere else.

    :raises InputError: they cannot, or an argument gives some, too
    """
    for name in _GIVEN:
        if getattr(task, name) is not None:
            raise InputError(
                f"@task.mlbatch: found {name}, which the function returns; expected none"
            )
    if iscoroutinefunction(task.python_callable):
        raise InputError("@task.mlbatch: found an async function, expected one without async")


def mlbatch_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> TaskDecorator:
    """Turn a function that gives records into a task that scores them.

    :param python_callable: the function
    :param multiple_outputs: not possible: the task returns one value
    :param kwargs: those of :class:`MLBatchDecoratedOperator`
    :raises InputError: ``multiple_outputs`` is true
    """
    if multiple_outputs:
        raise InputError("@task.mlbatch: found multiple_outputs=True, but it returns one value")
    decorator: TaskDecorator = task_decorator_factory(
        python_callable=python_callable,
        # Said, because Airflow would conclude it from a function that is annotated to return a dict.
        multiple_outputs=False,
        decorated_operator_class=MLBatchDecoratedOperator,
        **kwargs,
    )
    return decorator
