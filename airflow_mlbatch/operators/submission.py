"""One submission for one task, whatever dies on the way.

Law: before a batch is started, the intent is written down; afterwards, its id. Who comes later (a
retry, a cleared task) looks there first and takes over what is alive or complete.

An intent without an id means that a worker died around the request. The server then knows more than
we do: an execution that was not there before the intent, with the right number of records, is ours,
unless it is, or may be, that of another task of the run.

The store is Airflow's task state store (3.3): a mapping kept across the attempts of one task. On
earlier versions it is ``None``, and only a line lost within one attempt can be settled.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_mlbatch.errors import (
    AmbiguousSubmissionError,
    ExecutionNotFoundError,
    MLBatchError,
    SubmissionUnknownError,
)
from airflow_mlbatch.protocol.states import BatchState

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook
    from airflow_mlbatch.operators.siblings import Siblings

__all__ = [
    "STORE_KEY",
    "OnAmbiguousSubmission",
    "Payload",
    "StateStore",
    "Submission",
    "Submitted",
    "left_behind",
]

STORE_KEY = "mlbatch_submission"
OnAmbiguousSubmission = Literal["fail", "resubmit"]

# How long after an intent the server may still be busy taking the request in, so that an execution
# that is not in its list yet can still appear. Retries usually come later than that anyway. As long
# does a task that is starting a batch of the same size have to say which one is its own.
_SETTLING_SECONDS = 30.0
_SETTLING_PAUSE = 2.0
# How long the trigger of a cleared task may take to cancel the batch: the next attempt is often
# quicker, and would take over what is about to be deleted.
_CANCELLING_SECONDS = 15.0
_CANCELLING_PAUSE = 1.0
# Ids known before the intent are kept as short digests, so many for one key: it takes 64 KiB.
_DIGEST = 8
_DIGESTS_OF_A_KEY = 7000
# How many ids an error lists.
_MOST_LISTED = 50


class StateStore(Protocol):
    """The part of Airflow's task state store that is used."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


def left_behind(store: StateStore | None) -> dict[str, Any] | None:
    """The submission that an earlier attempt wrote down and nobody has forgotten since."""
    left = store.get(STORE_KEY) if store is not None else None
    return left if isinstance(left, dict) else None


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
            # A Dag that renders native objects makes a number of a version such as "1".
            digest.update(str(part).encode() + b"\0")
        digest.update(self.body)
        return digest.hexdigest()


class Submission:
    """Starts a batch once.

    :param store: Airflow's task state store, or ``None`` where there is none
    :param cancels: whether an execution of another payload, left by an earlier attempt, is cancelled,
        and whether the batch of a task that a user clears is
    :param max_tries: Airflow's limit of attempts: it grows when a user clears the task, not when the
        task is retried; ``None`` where it is not known
    :param siblings: the other tasks of the run, whose batches are not ours
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
        siblings: Siblings,
        max_tries: int | None,
    ) -> None:
        self._hook, self._store, self._payload = hook, store, payload
        self._cancels, self._on_ambiguous = cancels, on_ambiguous_submission
        self._log, self._siblings, self._max_tries = log, siblings, max_tries
        self._named = (payload.service_name, payload.service_version)

    def run(self) -> Submitted:
        """Take over the batch of an earlier attempt, or start one.

        :raises AmbiguousSubmissionError: several executions could be ours
        :raises SubmissionUnknownError: the line was lost, and the server shows no new execution
        """
        fingerprint = self._payload.fingerprint(self._hook.url)
        left = left_behind(self._store)
        if left is not None:
            if left.get("fingerprint") == fingerprint:
                adopted = self._adopt(left)
                if adopted is not None:
                    return adopted
            else:
                self._drop(left)
        return self._start(fingerprint)

    def abandon(self) -> None:
        """There are no records any more: drop the batch of an earlier attempt, which had some."""
        left = left_behind(self._store)
        if left is not None:
            self._drop(left)

    # --- what an earlier attempt left ------------------------------------------------------------

    def _adopt(self, left: dict[str, Any]) -> Submitted | None:
        execution_id = left.get("execution_id")
        if execution_id is None:
            try:
                return self._settle(left, self._known(left))
            except AmbiguousSubmissionError as error:
                if self._on_ambiguous == "fail":
                    raise
                self._log.warning("%s; starting another one", error)
                return None
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
            try:
                self._hook.cancel_batch(left["service_name"], left["service_version"], execution_id)
            except MLBatchError as error:
                if not error.is_permanent:
                    raise
                # Its service may be gone: that is no reason never to score the new records.
                self._log.warning("execution %s could not be cancelled: %s", execution_id, error)
        if self._store is not None:
            for key in (*_keys_of_known(left), STORE_KEY):
                self._store.delete(key)

    # --- the request -----------------------------------------------------------------------------

    def _start(self, fingerprint: str, *, is_last: bool = False) -> Submitted:
        payload = self._payload
        known = _digests(self._hook.list_batch_executions(*self._named))
        intent = {
            "fingerprint": fingerprint,
            "service_name": payload.service_name,
            "service_version": payload.service_version,
            "count": payload.count,
            **self._keep_known(known),
            "at": time.time(),
            "max_tries": self._max_tries,
            "execution_id": None,
        }
        if self._store is not None:
            self._store.set(STORE_KEY, intent)
        self._siblings.tell(payload.count)
        try:
            execution_id = self._hook.start_encoded_batch(
                *self._named, payload.body, payload.parallel_count
            )
        except SubmissionUnknownError as error:
            self._log.warning("%s; asking the server", error)
            try:
                settled = self._settle(intent, known)
            except AmbiguousSubmissionError as ambiguous:
                if self._on_ambiguous == "fail":
                    raise
                if is_last:
                    raise error from ambiguous
                self._log.warning("%s; starting another one", ambiguous)
                return self._start(fingerprint, is_last=True)
            if settled is None:
                raise
            return settled
        return self._keep(intent, execution_id, is_adopted=False)

    def _keep(self, intent: dict[str, Any], execution_id: str, *, is_adopted: bool) -> Submitted:
        self._siblings.tell(self._payload.count, execution_id)
        if self._store is not None:
            # What was known before is not needed any more: the id says it all.
            for key in _keys_of_known(intent):
                self._store.delete(key)
            kept = {**intent, "known": "", "known_keys": 0, "execution_id": execution_id}
            self._store.set(STORE_KEY, kept)
        return Submitted(execution_id, float(intent["at"]), is_adopted)

    def _keep_known(self, known: str) -> dict[str, Any]:
        """The part of an intent that says what was there before; what it cannot hold has its own keys."""
        size = _DIGEST * _DIGESTS_OF_A_KEY
        pieces = [known[start : start + size] for start in range(0, len(known), size)] or [""]
        part = {"known": pieces[0], "known_keys": len(pieces) - 1}
        if self._store is not None:
            for key, piece in zip(_keys_of_known(part), pieces[1:], strict=True):
                self._store.set(key, piece)
        return part

    def _known(self, intent: dict[str, Any]) -> str:
        assert self._store is not None
        pieces = [self._store.get(key) or "" for key in _keys_of_known(intent)]
        return str(intent["known"]) + "".join(pieces)

    # --- an intent without an id -----------------------------------------------------------------

    def _settle(self, intent: dict[str, Any], known: str) -> Submitted | None:
        """Find the execution that an intent led to.

        The server gets time to show one that it is taking in, and the other tasks to say which are
        theirs.

        :raises AmbiguousSubmissionError: several could be it, or one that may be another task's
        """
        is_late = float(intent["at"]) + _SETTLING_SECONDS
        is_too_late = time.time() + _SETTLING_SECONDS
        while True:
            ours = self._candidates(intent, known)
            rivals = self._siblings.starting(intent["count"]) if ours else 0
            if (ours and not rivals) or time.time() >= (is_too_late if ours else is_late):
                break
            time.sleep(_SETTLING_PAUSE)
        if not ours:
            return None
        if len(ours) == 1 and not rivals:
            self._log.info("execution %s is the one that was being started", ours[0])
            return self._keep(intent, ours[0], is_adopted=True)
        raise AmbiguousSubmissionError(self._told_of(ours, rivals))

    def _told_of(self, ours: list[str], rivals: int) -> str:
        found = "1 execution" if len(ours) == 1 else f"{len(ours):,} executions"
        listed = ", ".join(ours[:_MOST_LISTED])
        if len(ours) > _MOST_LISTED:
            listed += f" and {len(ours) - _MOST_LISTED:,} more"
        others = f", or that of {rivals:,} other tasks of this run" if rivals else ""
        return (
            f"{found} of {self._payload.service_name} could be the one that an earlier attempt "
            f"started{others}: {listed}; delete those that are not wanted, or set "
            "on_ambiguous_submission='resubmit'"
        )

    def _candidates(self, intent: dict[str, Any], known: str) -> list[str]:
        digests = {known[start : start + _DIGEST] for start in range(0, len(known), _DIGEST)}
        listed = self._hook.list_batch_executions(*self._named)
        unknown = [
            execution_id for execution_id in listed if _digests([execution_id]) not in digests
        ]
        claimed = self._siblings.claimed() if unknown else set()
        ours = []
        for execution_id in unknown:
            if execution_id in claimed:
                continue
            try:
                status = self._hook.get_batch_status(*self._named, execution_id)
            except ExecutionNotFoundError:
                continue
            if status.total_item_count == intent["count"] and status.state is not BatchState.FAILED:
                ours.append(execution_id)
        return ours


def _keys_of_known(intent: dict[str, Any]) -> list[str]:
    return [f"{STORE_KEY}_known_{number}" for number in range(intent.get("known_keys", 0))]


def _digests(execution_ids: Iterable[str]) -> str:
    return "".join(
        hashlib.sha256(execution_id.encode()).hexdigest()[:_DIGEST]
        for execution_id in execution_ids
    )
