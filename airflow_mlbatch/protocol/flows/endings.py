"""Conversations about executions that have ended, whoever started them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from airflow_mlbatch.errors import ExecutionNotFoundError
from airflow_mlbatch.protocol.flows.batches import BatchFlows
from airflow_mlbatch.protocol.flows.session import discreet
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["EndingFlows", "Endings"]


@dataclass(frozen=True)
class Endings:
    """What one look at the executions of a service has found.

    :param listed: ids of all executions that the server knows
    :param ended: those that have ended and were not known to have, with their status
    """

    listed: frozenset[str] = frozenset()
    ended: dict[str, BatchStatus] = field(default_factory=dict)


class EndingFlows(BatchFlows):
    """What a session can do to notice executions that somebody else has started."""

    @discreet
    def find_endings(
        self, service_name: str, service_version: str, known: Container[str]
    ) -> Flow[Endings]:
        """Look once at each execution that is not known to have ended.

        The list of executions does not tell their states, so each one is asked for.

        :param known: ids of executions that have ended; they are not asked for again
        """
        listed = yield from self.list_batch_executions(service_name, service_version)
        ended: dict[str, BatchStatus] = {}
        for execution_id in listed:
            if execution_id in known:
                continue
            try:
                status = yield from self.get_batch_status(
                    service_name, service_version, execution_id
                )
            except ExecutionNotFoundError:
                continue  # Somebody has deleted it since the list was made.
            if status.is_terminal:
                ended[execution_id] = status
        return Endings(frozenset(listed), ended)
