"""Numbers as servers print them come back as the doubles that they were."""

from __future__ import annotations

import pytest

from airflow_mlbatch.protocol.results import RecordBlock, ResultsSink
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import from_wire
from airflow_mlbatch.protocol.values import Misfit

PRINTED = ["0.1", "1e20", "100000000000000000000", "12345678901234567000", "-0.0", "5"]


@pytest.mark.parametrize("text", PRINTED)
@pytest.mark.parametrize("boxed", [False, True])
def test_a_double_is_the_same_on_both_roads(text: str, boxed: bool) -> None:
    blocks: list[RecordBlock] = []
    value = f"[{text}]" if boxed else text
    sink = ResultsSink((Parameter("y", "numeric"),), blocks.append)
    sink.feed(
        b'{"state": "complete", "completedItemCount": 1, "totalItemCount": 1, '
        b'"batchExecutionResults": [{"success": true, "outputParameters": {"y": %b}}]}'
        % value.encode()
    )
    sink.close()
    (found,) = blocks[0].outputs["y"]
    assert type(found) is float
    assert found == float(text)


def test_a_number_that_no_double_holds_is_refused() -> None:
    with pytest.raises(Misfit, match="expected a number"):
        from_wire("numeric", 10**400)
