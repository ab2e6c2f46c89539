"""Recognises an execution by its results, where the server knows no idempotency keys.

The batch API gives an execution no mark: only its service, its id and its number of records are
known. The results are a mark. A few of our records are scored by request/response, and the answers
are compared with what the execution holds at the same positions. If they agree, the execution is ours
or as good as ours.

Law: a verdict is only given where the evidence allows no other. The rules, and why they are so:

- Results that all look alike prove nothing, so two different ones are needed, unless every record of
  the batch was compared.
- A running batch may list its results in an order of its own. There agreement proves something,
  disagreement does not.
- A record that fails on one side only may have failed for a passing reason. It is not counted.
- A service that answers the same record in two ways cannot be used for a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_mlbatch.errors import AnswerError, ContractError, UnavailableError
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.results import RecordBlock, RecordResult

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.flows import Flows

__all__ = ["Finding", "Recognition", "Verdict"]

# The first records of a batch are completed first, so a running batch can be compared early.
_FIRST_RECORDS = 8
_RANDOM_RECORDS = 16
# Two services that compute the same may differ in the last digits of a double.
_RELATIVE_DIFFERENCE = 1e-9
# What a server answers whose service raises an error at every call.
_BROKEN = 500


class Verdict(Enum):
    """Whose an execution is."""

    OURS = "ours"
    NOT_OURS = "not ours"
    # More completed records may decide it.
    UNDECIDED = "undecided"
    # No further record can decide it.
    UNPROVABLE = "unprovable"


@dataclass(frozen=True)
class Finding:
    """A verdict and the reason for it, as part of a sentence.

    :param is_final: whether the execution was complete, so that all positions could be compared
    """

    verdict: Verdict
    reason: str
    is_final: bool = False


@dataclass
class Recognition:
    """Compares executions with what our own records give.

    :param flows: the conversations with the server
    :param service_name: the service that scores the records
    :param service_version: its version
    :param body: the body of the request that starts the batch: a JSON list of records
    :param chance: a number in [0, 1), for the random positions
    :param is_allowed: whether the service may be called by request/response
    """

    flows: Flows
    service_name: str
    service_version: str
    body: bytes
    chance: Callable[[], float]
    is_allowed: bool = True
    _records: list[msgspec.Raw] | None = None
    # Our own results, so that several candidates cost no more calls than one.
    _ours: dict[int, RecordResult] = field(default_factory=dict)
    _is_repeatable: bool | None = None

    def examine(self, execution_id: str) -> Flow[Finding]:
        """Say whose an execution is.

        :raises ExecutionNotFoundError: it is gone
        :raises LineError: the server cannot be reached
        :raises UnavailableError: the server is busy or broken
        """
        if not self.is_allowed:
            return Finding(Verdict.UNPROVABLE, "the service must not be called for a comparison")
        positions = self._positions()
        theirs, is_complete = yield from self._read(execution_id, positions)
        usable = [position for position in positions if position in theirs]
        if not usable:
            return Finding(Verdict.UNDECIDED, "none of its records is completed yet")
        try:
            yield from self._score(usable)
        except UnavailableError as error:
            if error.status != _BROKEN:
                raise
            return Finding(Verdict.UNPROVABLE, f"the service cannot be called: {error}")
        except (AnswerError, ContractError) as error:
            return Finding(Verdict.UNPROVABLE, f"the service cannot be called: {error}")
        if not self._is_repeatable:
            return Finding(
                Verdict.UNPROVABLE, "the service gives the same record two different results"
            )
        return self._judge(theirs, usable, is_complete=is_complete)

    def _judge(
        self, theirs: Mapping[int, RecordResult], positions: Sequence[int], *, is_complete: bool
    ) -> Finding:
        compared = [
            position
            for position in positions
            if theirs[position].success == self._ours[position].success
        ]
        if not all(_agree(theirs[each].outputs, self._ours[each].outputs) for each in compared):
            if is_complete:
                return Finding(Verdict.NOT_OURS, "its results are not those of our records")
            return Finding(Verdict.UNDECIDED, "its results so far are not those of our records")
        different = {
            _canonical(self._ours[each].outputs) for each in compared if self._ours[each].success
        }
        is_whole = len(compared) == len(self._all_records())
        if len(different) > 1 or is_whole:
            return Finding(
                Verdict.OURS,
                f"{len(compared):,} of its results are those of our records",
                is_final=is_complete,
            )
        if is_complete:
            return Finding(Verdict.UNPROVABLE, "the results of our records do not differ")
        return Finding(Verdict.UNDECIDED, "its results so far do not differ from each other")

    # --- our side --------------------------------------------------------------------------------

    def _all_records(self) -> list[msgspec.Raw]:
        if self._records is None:
            self._records = msgspec.json.decode(self.body, type=list[msgspec.Raw])
        return self._records

    def _positions(self) -> list[int]:
        count = len(self._all_records())
        drawn = {math.floor(self.chance() * count) for _ in range(_RANDOM_RECORDS)}
        return sorted({*range(min(count, _FIRST_RECORDS)), *drawn})

    def _score(self, positions: Iterable[int]) -> Flow[None]:
        for position in positions:
            if position not in self._ours:
                self._ours[position] = yield from self._consume(position)
            if self._is_repeatable is None and self._ours[position].success:
                again = yield from self._consume(position)
                self._is_repeatable = _agree(again.outputs, self._ours[position].outputs)
        if self._is_repeatable is None:
            # All of them failed; failures are alike whatever the service does.
            self._is_repeatable = True

    def _consume(self, position: int) -> Flow[RecordResult]:
        record = bytes(self._all_records()[position])
        return (
            yield from self.flows.consume_encoded(self.service_name, self.service_version, record)
        )

    # --- the other side --------------------------------------------------------------------------

    def _read(
        self, execution_id: str, positions: Sequence[int]
    ) -> Flow[tuple[dict[int, RecordResult], bool]]:
        """The results that an execution has at some positions, and whether it has all of its results."""
        wanted = set(positions)
        found: dict[int, RecordResult] = {}

        def take(block: RecordBlock) -> None:
            if wanted.isdisjoint(range(block.first_index, block.first_index + len(block))):
                return
            found.update({each.index: each for each in block if each.index in wanted})

        status = yield from self.flows.read_batch_results(
            self.service_name,
            self.service_version,
            execution_id,
            None,
            take,
            partial=True,
            restart=found.clear,
        )
        return found, status.state.is_terminal


def _agree(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same, but for the last digits of doubles."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right or math.isclose(left, right, rel_tol=_RELATIVE_DIFFERENCE)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_agree(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_agree, left, right))
    return bool(left == right)


def _canonical(outputs: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(dict(outputs), order="deterministic")
