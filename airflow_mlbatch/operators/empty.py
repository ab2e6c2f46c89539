"""What becomes of a table without rows, the same for one batch and for a large table."""

from __future__ import annotations

from typing import Any, Literal, get_args

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_mlbatch.operators.rendered import check_choice

__all__ = ["OnEmpty", "check_on_empty", "judge_empty"]

OnEmpty = Literal["skip", "fail", "succeed"]


def check_on_empty(found: Any) -> None:
    """Before there is a table to judge.

    :raises InputError: it is none of the three choices
    """
    check_choice("on_empty", found, get_args(OnEmpty))


def judge_empty(on_empty: OnEmpty, where: Any) -> str:
    """What to log where the task succeeds.

    :param where: the table, or what takes its place
    :raises AirflowSkipException: the author wants the task skipped
    :raises AirflowFailException: the author wants it to fail
    """
    message = f"there are no records to score in {where}"
    if on_empty == "skip":
        raise AirflowSkipException(message)
    if on_empty == "fail":
        raise AirflowFailException(message)
    return message
