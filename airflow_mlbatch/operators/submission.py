"""One submission for one task, whatever dies on the way.

Law: before a batch is started, the intent is written down; afterwards, its id. Who comes later (a
retry, a cleared task) looks there first and takes over what is alive or complete.

An intent without an id means that a worker died around the request. The server then knows more than
we do: an execution that was not there before the intent, with the right number of records, is ours.

The store is Airflow's task state store (3.3): a mapping kept across the attempts of one task. On
earlier versions it is ``None``, and only a line lost within one attempt can be settled.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_mlbatch.errors import (
    AmbiguousSubmissionError,
    ExecutionNotFoundError,
    SubmissionUnknownError,
)
from airflow_mlbatch.protocol.states import BatchState

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook

__all__ = ["STORE_KEY", "OnAmbiguousSubmission", "StateStore", "Submission", "Submitted"]

STORE_KEY = "mlbatch_submission"
OnAmbiguousSubmission = Literal["fail", "resubmit"]

# How long after an intent the server may still be busy taking the request in, so that an execution
# that is not in its list yet can still appear. Retries usually come later than that anyway.
_SETTLING_SECONDS = 30.0
_SETTLING_PAUSE = 2.0
# How long the trigger of a cleared task may take to cancel the batch: the next attempt is often
# quicker, and would take over what is about to be deleted.
_CANCELLING_SECONDS = 15.0
_CANCELLING_PAUSE = 1.0
# Ids known before the intent are kept as short digests: the store takes 64 KiB for one key.
_DIGEST = 8
_MOST_DIGESTS = 7000


class StateStore(Protocol):
    """The part of Airflow's task state store that is used."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True)
class Submitted:
    """A batch that runs for this task.

    :param execution_id: its id on the server
    :param submitted_at: epoch seconds of the request that started it
    :param is_adopted: whether an earlier attempt started it
    """

    execution_id: str
    submitted_at: float
    is_adopted: bool


@dataclass(frozen=True)
class Payload:
    """What is to be scored.

    :param body: the body of the request
    :param count: number of records in it
    """

    service_name: str
    service_version: str
    body: bytes
    count: int
    parallel_count: int

    def fingerprint(self, server_url: str) -> str:
        """The same for the same records to the same service; another one for anything else."""
        digest = hashlib.sha256()
        for part in (server_url, self.service_name, self.service_version):
            digest.update(part.encode() + b"\0")
        digest.update(self.body)
        return digest.hexdigest()


class Submission:
    """Starts a batch once.

    :param store: Airflow's task state store, or ``None`` where there is none
    :param cancels: whether an execution of another payload, left by an earlier attempt, is cancelled,
        and whether the batch of a task that a user clears is
    :param max_tries: Airflow's limit of attempts: it grows when a user clears the task, not when the
        task is retried; ``None`` where it is not known
    :param claimed: asked for ids that belong to other tasks, when several could be ours
    """

    def __init__(
        self,
        hook: MLBatchHook,
        store: StateStore | None,
        payload: Payload,
        *,
        cancels: bool,
        on_ambiguous_submission: OnAmbiguousSubmission,
        log: logging.Logger | Any,
        claimed: Callable[[], Iterable[str]] = tuple,
        max_tries: int | None = None,
    ) -> None:
        self._hook, self._store, self._payload = hook, store, payload
        self._cancels, self._on_ambiguous = cancels, on_ambiguous_submission
        self._log, self._claimed, self._max_tries = log, claimed, max_tries
        self._named = (payload.service_name, payload.service_version)

    def run(self) -> Submitted:
        """Take over the batch of an earlier attempt, or start one.

        :raises AmbiguousSubmissionError: several executions could be ours
        :raises SubmissionUnknownError: the line was lost, and the server shows no new execution
        """
        fingerprint = self._payload.fingerprint(self._hook.url)
        left = self._store.get(STORE_KEY) if self._store is not None else None
        if isinstance(left, dict):
            if left.get("fingerprint") == fingerprint:
                adopted = self._adopt(left)
                if adopted is not None:
                    return adopted
            else:
                self._drop(left)
        return self._start(fingerprint)

    # --- what an earlier attempt left ------------------------------------------------------------

    def _adopt(self, left: dict[str, Any]) -> Submitted | None:
        execution_id = left.get("execution_id")
        if execution_id is None:
            return self._settle(left, wait=True)
        was_cleared = self._cancels and left.get("max_tries") != self._max_tries
        until = time.time() + _CANCELLING_SECONDS
        while True:
            try:
                status = self._hook.get_batch_status(*self._named, execution_id)
            except ExecutionNotFoundError:
                self._log.warning("execution %s of an earlier attempt is gone", execution_id)
                return None
            if status.state is BatchState.FAILED:
                self._log.warning("execution %s of an earlier attempt failed", execution_id)
                return None
            if not was_cleared or time.time() >= until:
                break
            self._log.info("the task was cleared: is execution %s being cancelled?", execution_id)
            time.sleep(_CANCELLING_PAUSE)
        self._log.info("taking over execution %s: %s", execution_id, status)
        # Whoever comes next is to wait only if the task is cleared once more.
        return self._keep({**left, "max_tries": self._max_tries}, execution_id, is_adopted=True)

    def _drop(self, left: dict[str, Any]) -> None:
        execution_id = left.get("execution_id")
        if execution_id is None:
            self._log.warning(
                "the records differ from those of an earlier attempt that died while it started a "
                "batch; if that batch runs, it is left alone"
            )
        elif self._cancels:
            self._log.warning(
                "the records differ from those of execution %s, which is cancelled", execution_id
            )
            self._hook.cancel_batch(left["service_name"], left["service_version"], execution_id)

    # --- the request -----------------------------------------------------------------------------

    def _start(self, fingerprint: str) -> Submitted:
        payload = self._payload
        known = _digests(self._hook.list_batch_executions(*self._named))
        if len(known) > _DIGEST * _MOST_DIGESTS:
            self._log.warning(
                "the server keeps so many executions of %s that a worker's death while it starts a "
                "batch may go unnoticed; delete old ones",
                payload.service_name,
            )
            known = known[: _DIGEST * _MOST_DIGESTS]
        intent = {
            "fingerprint": fingerprint,
            "service_name": payload.service_name,
            "service_version": payload.service_version,
            "count": payload.count,
            "known": known,
            "at": time.time(),
            "max_tries": self._max_tries,
            "execution_id": None,
        }
        if self._store is not None:
            self._store.set(STORE_KEY, intent)
        try:
            execution_id = self._hook.start_encoded_batch(
                *self._named, payload.body, payload.parallel_count
            )
        except SubmissionUnknownError as error:
            self._log.warning("%s; asking the server", error)
            settled = self._settle(intent, wait=True)
            if settled is None:
                raise
            return settled
        return self._keep(intent, execution_id, is_adopted=False)

    def _keep(self, intent: dict[str, Any], execution_id: str, *, is_adopted: bool) -> Submitted:
        if self._store is not None:
            # What was known before is not needed any more: the id says it all.
            self._store.set(STORE_KEY, {**intent, "known": "", "execution_id": execution_id})
        return Submitted(execution_id, float(intent["at"]), is_adopted)

    # --- an intent without an id -----------------------------------------------------------------

    def _settle(self, intent: dict[str, Any], *, wait: bool) -> Submitted | None:
        """Find the execution that an intent led to.

        :param wait: whether to give the server time to show an execution that it is taking in
        """
        until = float(intent["at"]) + _SETTLING_SECONDS
        while True:
            ours = self._candidates(intent)
            if ours or not wait or time.time() >= until:
                break
            time.sleep(_SETTLING_PAUSE)
        if len(ours) > 1:
            claimed = set(self._claimed())
            ours = [execution_id for execution_id in ours if execution_id not in claimed]
        if len(ours) == 1:
            self._log.info("execution %s is the one that was being started", ours[0])
            return self._keep(intent, ours[0], is_adopted=True)
        if not ours:
            return None
        told = (
            f"{len(ours)} executions of {self._payload.service_name} could be the one that an "
            f"earlier attempt started: {', '.join(ours)}"
        )
        if self._on_ambiguous == "fail":
            raise AmbiguousSubmissionError(
                f"{told}; delete those that are not wanted, or set on_ambiguous_submission='resubmit'"
            )
        self._log.warning("%s; starting another one", told)
        return None

    def _candidates(self, intent: dict[str, Any]) -> list[str]:
        known = intent["known"]
        digests = {known[start : start + _DIGEST] for start in range(0, len(known), _DIGEST)}
        ours = []
        for execution_id in self._hook.list_batch_executions(*self._named):
            if _digests([execution_id]) in digests:
                continue
            try:
                status = self._hook.get_batch_status(*self._named, execution_id)
            except ExecutionNotFoundError:
                continue
            if status.total_item_count == intent["count"] and status.state is not BatchState.FAILED:
                ours.append(execution_id)
        return ours


def _digests(execution_ids: Iterable[str]) -> str:
    return "".join(
        hashlib.sha256(execution_id.encode()).hexdigest()[:_DIGEST]
        for execution_id in execution_ids
    )
