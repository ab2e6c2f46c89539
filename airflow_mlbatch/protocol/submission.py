"""One batch for one task, whatever dies on the way.

A worker can die at any moment around the request that starts a batch, and the reply to it can be
lost. Whoever comes next has to know whether the batch runs, and which of the server's executions it
is. There are two ways to know it.

*By key.* Every start carries an ``Idempotency-Key``: a hash of the task instance, of its maximum
number of tries, and of the payload. A server that knows keys answers a repeated key with the execution
that it has started already. Then nothing has to be settled, and no note is needed.

*By proof.* The vendor's server ignores the header. There the intent is written down before the
request, together with the executions that exist already. An execution that is new since, and whose
results are those of our records, is ours (see :mod:`airflow_mlbatch.protocol.recognition`). What
cannot be proved is ambiguous, and the author of the Dag decides about it.

Law: the note is written before the request whose outcome it describes. The id of an execution is only
taken from a reply to our own request, from our own key, from our own note, or from a proof.

A note belongs to one maximum number of tries. Airflow raises it when a user clears an ended or
deferred task, and keeps it when a task is retried. So a note with another maximum means that the
records are to be scored again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_mlbatch.errors import (
    AmbiguousSubmissionError,
    ExecutionNotFoundError,
    MLBatchError,
    SubmissionStoppedError,
    SubmissionUndecidedError,
    SubmissionUnknownError,
)
from airflow_mlbatch.protocol.messages import Flow, Notice, Now, Wait
from airflow_mlbatch.protocol.recognition import Finding, Recognition, Verdict

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.flows import Flows

__all__ = [
    "NOTE_KEY",
    "Claims",
    "NoteState",
    "OnAmbiguousSubmission",
    "Owner",
    "Payload",
    "StateStore",
    "Submission",
    "Submitted",
    "is_being_cancelled",
    "mark_cancelling",
    "mark_done",
    "read_note",
]

NOTE_KEY = "mlbatch_started_batch"
# Names the batch that an attempt is cancelling because its task has ended. It has a key of its own: the
# next attempt may write its note about the same batch at the same moment.
_CANCELLING_KEY = "mlbatch_batch_being_cancelled"
OnAmbiguousSubmission = Literal["fail", "resubmit"]

# How long after an intent the server may still be busy taking the request in, so that an execution
# that is not in its list yet can still appear. As long does a sibling have to say which one is its own.
_SETTLING_SECONDS = 30.0
_SETTLING_PAUSE = 2.0
# Ids known before the intent are kept as short digests, so many for one key of the store: 64 KiB.
_DIGEST = 8
_DIGESTS_OF_A_KEY = 7000
# How many ids an error lists.
_MOST_LISTED = 50


class StateStore(Protocol):
    """The part of Airflow's task state store that is used."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


class Claims(Protocol):
    """What the score tasks of a run tell each other."""

    def tell(self, count: int, execution_id: str | None = None) -> None:
        """Tell the others that a batch of so many records is being started, or its id."""

    def claimed(self) -> set[str]:
        """Ids that other tasks have told."""

    def starting(self, count: int) -> int:
        """How many others are starting a batch of so many records and have no id yet."""


class NoteState(str, Enum):
    """How far a submission has come."""

    STARTING = "starting"
    STARTED = "started"
    # The attempt succeeded. Airflow may not know it yet.
    DONE = "done"


@dataclass(frozen=True)
class Owner:
    """The task instance that a batch belongs to.

    :param max_tries: Airflow's maximum number of tries; ``None`` where it is not known
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    max_tries: int | None = None

    @property
    def key_prefix(self) -> str:
        """What the keys of all batches of this task instance begin with."""
        parts = (self.run_id, self.task_id, str(self.map_index))
        return f"{self.dag_key_prefix(self.dag_id)}{_hashed(parts, 24)}-"

    @staticmethod
    def dag_key_prefix(dag_id: str) -> str:
        """What the keys of all batches of a Dag begin with."""
        return f"mlbatch-{_hashed((dag_id,), 12)}-"

    def key(self, fingerprint: str) -> str:
        """The idempotency key of a payload: the same for each retry, another one after a clear."""
        return self.key_prefix + _hashed((str(self.max_tries), fingerprint), 32)


def _hashed(parts: Iterable[str], digits: int) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:digits]


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


def mark_cancelling(store: StateStore) -> None:
    """Note that the batch of this task is being cancelled, for an attempt that comes before it is."""
    note = read_note(store)
    if note is not None:
        store.set(_CANCELLING_KEY, _mark(note))


def is_being_cancelled(store: StateStore | None) -> bool:
    """Whether an attempt of this task has begun to cancel the batch that the note is about."""
    note = read_note(store)
    if store is None or note is None:
        return False
    mark = store.get(_CANCELLING_KEY)
    # A batch that was being started had no id yet when it was marked.
    return mark is not None and mark in (_mark(note), _mark({**note, "execution_id": None}))


def _mark(note: Mapping[str, Any]) -> list[Any]:
    return [note.get("key"), note.get("execution_id")]


def mark_done(store: StateStore) -> None:
    """Note that the attempt succeeded, under the maximum number of tries that the note holds.

    The note is not deleted: Airflow may not learn of this success, and the retry that follows takes
    the result over. A cleared task has a larger maximum, so it scores again.
    """
    note = read_note(store)
    if note is not None:
        for key in _keys_of_known(note):
            store.delete(key)
        store.set(NOTE_KEY, {**note, "state": NoteState.DONE.value, "known": "", "known_keys": 0})


@dataclass(frozen=True)
class Submitted:
    """A batch that runs for this task.

    :param execution_id: its id on the server
    :param submitted_at: epoch seconds of the request that started it
    :param is_adopted: whether an earlier attempt started it
    :param is_proven: whether it is known to be ours. An execution that was recognised by its first
        results is compared once more before its results are used.
    """

    execution_id: str
    submitted_at: float
    is_adopted: bool
    is_proven: bool = True


def read_note(store: StateStore | None) -> dict[str, Any] | None:
    """The note that an attempt of this task has left, if any."""
    note = store.get(NOTE_KEY) if store is not None else None
    return note if isinstance(note, dict) else None


class Submission:
    """Starts the batch of a task once.

    :param flows: the conversations with the server
    :param server_url: its address, part of a payload's identity
    :param store: Airflow's task state store, or ``None`` where there is none
    :param owner: the task instance
    :param cancels: whether a batch that is no longer wanted is cancelled: that of a task that a user
        cleared, or of other records
    :param claims: what the other tasks of the run tell
    :param recognition: how executions are recognised on a server that knows no keys
    :param stop_if_told: raises :class:`SubmissionStoppedError` once the task was told to stop
    """

    def __init__(
        self,
        flows: Flows,
        server_url: str,
        store: StateStore | None,
        payload: Payload,
        *,
        owner: Owner,
        cancels: bool,
        on_ambiguous_submission: OnAmbiguousSubmission,
        claims: Claims,
        recognition: Recognition,
        stop_if_told: Callable[[], None] = lambda: None,
    ) -> None:
        self._flows, self._store, self._payload = flows, store, payload
        self._owner, self._cancels, self._claims = owner, cancels, claims
        self._on_ambiguous, self._recognition = on_ambiguous_submission, recognition
        self._stop_if_told = stop_if_told
        self._named = (payload.service_name, payload.service_version)
        self._fingerprint = payload.fingerprint(server_url)
        self._key = owner.key(self._fingerprint)

    def run(self) -> Flow[Submitted]:
        """Take over the batch of an earlier attempt, or start one.

        :raises AmbiguousSubmissionError: an execution could be ours, and nothing can prove it
        :raises SubmissionUndecidedError: an execution could be ours, and waiting may prove it
        :raises SubmissionUnknownError: the reply was lost, and the server shows no new execution
        :raises SubmissionStoppedError: the task was told to stop, so no batch is started any more
        """
        note, since = read_note(self._store), None
        if note is not None and self._is_ours(note):
            submitted = yield from self._resume(note)
            if submitted is not None:
                return submitted
            if note.get("execution_id") is None:
                # The same submission goes on, and with it the time since when it is waited for.
                since = float(note["submitted_at"])
        elif note is not None:
            yield from self._let_go(note)
        return (yield from self._start(since))

    def abandon(self) -> Flow[None]:
        """There are no records any more: let go of the batch of an earlier attempt, which had some."""
        note = read_note(self._store)
        if note is not None:
            yield from self._let_go(note)

    def confirm(self, execution_id: str) -> Flow[None]:
        """Compare a complete batch that was recognised by its first results once more.

        :raises SubmissionUndecidedError: it is not ours; the next attempt will not take it
        """
        finding = yield from self._recognition.examine(execution_id)
        if finding.verdict is Verdict.OURS:
            return
        note = read_note(self._store)
        if self._store is not None and note is not None:
            known = self._known(note) + _digests([execution_id])
            self._store.set(
                NOTE_KEY,
                {
                    **note,
                    **self._keep_known(known),
                    "state": NoteState.STARTING.value,
                    "execution_id": None,
                },
            )
        raise SubmissionUndecidedError(
            f"execution {execution_id} was recognised by its first results, but {finding.reason}; "
            "its results are not used"
        )

    # --- what an earlier attempt left ------------------------------------------------------------

    def _is_ours(self, note: Mapping[str, Any]) -> bool:
        """Whether a note is about this very scoring."""
        return (
            note.get("fingerprint") == self._fingerprint
            and note.get("max_tries") == self._owner.max_tries
            and not is_being_cancelled(self._store)
        )

    def _resume(self, note: dict[str, Any]) -> Flow[Submitted | None]:
        execution_id = note.get("execution_id")
        if execution_id is not None:
            return (yield from self._adopt(note, execution_id))
        if note.get("has_keys"):
            return None  # The key finds it.
        try:
            return (yield from self._settle(note, self._known(note)))
        except AmbiguousSubmissionError as error:
            if self._on_ambiguous == "fail":
                raise
            yield Notice(f"{error}; starting another one", is_warning=True)
            return None

    def _adopt(self, note: dict[str, Any], execution_id: str) -> Flow[Submitted | None]:
        """Take over an execution that is known to be ours, unless it is gone or has failed."""
        try:
            status = yield from self._flows.get_batch_status(*self._named, execution_id)
        except ExecutionNotFoundError:
            yield Notice(
                f"execution {execution_id} of an earlier attempt was deleted; starting another one",
                is_warning=True,
            )
            return None
        if status.state.is_failure:
            yield Notice(
                f"execution {execution_id} of an earlier attempt failed; starting another one",
                is_warning=True,
            )
            if note.get("has_keys"):
                # As long as it exists, the server would answer our key with it.
                yield from self._flows.cancel_batch(*self._named, execution_id)
            return None
        yield Notice(f"taking over execution {execution_id}: {status}")
        return self._keep(note, execution_id, is_adopted=True)

    def _let_go(self, note: dict[str, Any]) -> Flow[None]:
        """Forget the batch of a note that is not about this scoring; cancel it where it is unwanted."""
        if note.get("state") == NoteState.DONE and note.get("fingerprint") == self._fingerprint:
            yield Notice(
                f"the task was cleared: scoring again; the results of execution "
                f"{note.get('execution_id')} stay on the server"
            )
        else:
            yield from self._cancel_noted(note)
        if self._store is not None:
            for key in (*_keys_of_known(note), _CANCELLING_KEY, NOTE_KEY):
                self._store.delete(key)

    def _cancel_noted(self, note: dict[str, Any]) -> Flow[None]:
        why = (
            "the task was cleared"
            if note.get("fingerprint") == self._fingerprint
            else "the records are not those of an earlier attempt"
        )
        service = (note["service_name"], note["service_version"])
        execution_id = note.get("execution_id")
        try:
            if execution_id is None:
                execution_id = yield from self._noted_id(note)
            if execution_id is None:
                yield Notice(
                    f"{why}, and that attempt died while it started a batch: if the batch runs, "
                    "it is left alone",
                    is_warning=not note.get("has_keys"),
                )
            elif not self._cancels:
                yield Notice(
                    f"{why}: execution {execution_id} is left alone (cancel_on_kill=False)"
                )
            elif (yield from self._exists(service, execution_id)):
                yield Notice(f"{why}: cancelling execution {execution_id}", is_warning=True)
                yield from self._flows.cancel_batch(*service, execution_id)
            else:
                yield Notice(f"{why}: execution {execution_id} is gone already")
        except MLBatchError as error:
            if not error.is_permanent:
                raise
            # Its service may be gone: that is no reason never to score the new records.
            yield Notice(f"{why}: its batch could not be cancelled: {error}", is_warning=True)

    def _exists(self, service: tuple[str, str], execution_id: str) -> Flow[bool]:
        try:
            yield from self._flows.get_batch_status(*service, execution_id)
        except ExecutionNotFoundError:
            return False
        return True

    def _noted_id(self, note: dict[str, Any]) -> Flow[str | None]:
        """The id of the batch that was being started when a note was left."""
        if note.get("has_keys"):
            service = (note["service_name"], note["service_version"])
            ids, _ = yield from self._flows.find_batch_executions(*service, note["key"])
            return ids[0] if ids else None
        if note.get("fingerprint") != self._fingerprint:
            return None  # Those records are gone, and with them the proof.
        try:
            settled = yield from self._settle(note, self._known(note))
        except (AmbiguousSubmissionError, SubmissionUndecidedError):
            return None
        return settled.execution_id if settled else None

    # --- the request -----------------------------------------------------------------------------

    def _start(self, since: float | None = None, *, is_last: bool = False) -> Flow[Submitted]:
        listed, has_keys = yield from self._flows.find_batch_executions(*self._named, self._key)
        # Now already: an intent that leads to no request would only puzzle the next attempt.
        self._stop_if_told()
        note = yield from self._write_intent(listed, since if has_keys else None, has_keys=has_keys)
        if has_keys:
            for execution_id in listed:
                submitted = yield from self._adopt(note, execution_id)
                if submitted is not None:
                    return submitted
        self._claims.tell(self._payload.count)
        try:
            execution_id = yield from self._flows.start_batch(
                *self._named,
                self._payload.body,
                self._payload.parallel_count,
                idempotency_key=self._key,
                server_knows_keys=has_keys,
                before_send=self._stop_if_told,
            )
        except SubmissionStoppedError as error:
            return (yield from self._find_sent(note, error))
        except SubmissionUnknownError as error:
            if has_keys:
                raise  # The next attempt sends the same key.
            return (yield from self._settle_at_once(note, listed, error, is_last=is_last))
        return self._keep(note, execution_id, is_adopted=False)

    def _find_sent(self, note: dict[str, Any], error: MLBatchError) -> Flow[Submitted]:
        """The task was told to stop between two tries of its request; the first may have arrived."""
        if note["has_keys"]:
            listed, _ = yield from self._flows.find_batch_executions(*self._named, self._key)
            if listed:
                return self._keep(note, listed[0], is_adopted=True)
        raise error

    def _write_intent(
        self, listed: Sequence[str], since: float | None, *, has_keys: bool
    ) -> Flow[dict[str, Any]]:
        now = yield Now()
        note = {
            "state": NoteState.STARTING.value,
            "fingerprint": self._fingerprint,
            "key": self._key,
            "has_keys": has_keys,
            "service_name": self._payload.service_name,
            "service_version": self._payload.service_version,
            "count": self._payload.count,
            "submitted_at": now if since is None else since,
            "max_tries": self._owner.max_tries,
            "execution_id": None,
            **self._keep_known("" if has_keys else _digests(listed)),
        }
        if self._store is not None:
            self._store.set(NOTE_KEY, note)
        elif not has_keys:
            yield Notice(
                "the server knows no idempotency keys, and no task state is kept (Airflow 3.3 keeps "
                "it, with durable=True): a retry of this task starts the batch again"
            )
        return note

    def _settle_at_once(
        self, note: dict[str, Any], listed: Sequence[str], error: MLBatchError, *, is_last: bool
    ) -> Flow[Submitted]:
        """The reply was lost, and this attempt is still alive to ask what became of the request."""
        yield Notice(f"{error}; asking the server which execution it is", is_warning=True)
        try:
            settled = yield from self._settle(note, _digests(listed))
        except AmbiguousSubmissionError as ambiguous:
            if self._on_ambiguous == "fail":
                raise
            if is_last:
                raise error from ambiguous
            yield Notice(f"{ambiguous}; starting another one", is_warning=True)
            return (yield from self._start(is_last=True))
        if settled is None:
            raise error
        return settled

    def _keep(
        self,
        note: dict[str, Any],
        execution_id: str,
        *,
        is_adopted: bool,
        is_proven: bool | None = None,
    ) -> Submitted:
        is_proven = note.get("is_proven", True) if is_proven is None else is_proven
        self._claims.tell(self._payload.count, execution_id)
        if self._store is not None:
            kept = {**note, "state": NoteState.STARTED.value, "execution_id": execution_id}
            if is_proven:
                # What was known before is not needed any more: the id says it all.
                for key in _keys_of_known(note):
                    self._store.delete(key)
                kept.update(known="", known_keys=0)
            self._store.set(NOTE_KEY, {**kept, "is_proven": is_proven})
        return Submitted(execution_id, float(note["submitted_at"]), is_adopted, is_proven)

    def _keep_known(self, known: str) -> dict[str, Any]:
        """The part of a note that says what was there before; the rest of it has its own keys."""
        size = _DIGEST * _DIGESTS_OF_A_KEY
        pieces = [known[start : start + size] for start in range(0, len(known), size)] or [""]
        part = {"known": pieces[0], "known_keys": len(pieces) - 1}
        if self._store is not None:
            for key, piece in zip(_keys_of_known(part), pieces[1:], strict=True):
                self._store.set(key, piece)
        return part

    def _known(self, note: Mapping[str, Any]) -> str:
        pieces = [str(note["known"])]
        if self._store is not None:
            pieces += [self._store.get(key) or "" for key in _keys_of_known(note)]
        return "".join(pieces)

    # --- a server without keys, and an intent without an id -----------------------------------------

    def _settle(self, note: dict[str, Any], known: str) -> Flow[Submitted | None]:
        """Find the execution that an intent led to, or ``None`` where it led to none.

        The server gets time to show one that it is taking in, candidates get time to complete some
        records, and the other tasks of the run get time to say which executions are theirs.
        """
        began = yield Now()
        has_told = False
        while True:
            open_cases: dict[str, Finding] = {}
            for execution_id in (yield from self._candidates(note, known)):
                try:
                    finding = yield from self._recognition.examine(execution_id)
                except ExecutionNotFoundError:
                    continue
                if finding.verdict is Verdict.OURS:
                    yield Notice(f"execution {execution_id} is ours: {finding.reason}")
                    return self._keep(
                        note, execution_id, is_adopted=True, is_proven=finding.is_final
                    )
                if finding.verdict is not Verdict.NOT_OURS:
                    open_cases[execution_id] = finding
            now = yield Now()
            patient_since = began if open_cases else float(note["submitted_at"])
            if now >= patient_since + _SETTLING_SECONDS:
                break
            if not has_told:
                has_told = True
                yield Notice(
                    f"waiting up to {_SETTLING_SECONDS:.0f} seconds for the server to show whether "
                    "the batch was started"
                )
            yield Wait(_SETTLING_PAUSE)
        if open_cases:
            self._raise_open(note, open_cases)
        return None

    def _candidates(self, note: Mapping[str, Any], known: str) -> Flow[list[str]]:
        """New executions with the right number of records that no other task of the run claims."""
        digests = {known[start : start + _DIGEST] for start in range(0, len(known), _DIGEST)}
        listed = yield from self._flows.list_batch_executions(*self._named)
        unknown = [each for each in listed if _digests([each]) not in digests]
        claimed = self._claims.claimed() if unknown else set()
        candidates = []
        for execution_id in unknown:
            if execution_id in claimed:
                continue
            try:
                status = yield from self._flows.get_batch_status(*self._named, execution_id)
            except ExecutionNotFoundError:
                continue
            if status.total_item_count == note["count"] and not status.state.is_failure:
                candidates.append(execution_id)
        return candidates

    def _raise_open(self, note: Mapping[str, Any], open_cases: Mapping[str, Finding]) -> None:
        """Say what could not be settled; what time can still settle is left to a retry."""
        listed = _listed(open_cases)
        service = f"{self._payload.service_name} {self._payload.service_version}"
        undecided = [each for each in open_cases.values() if each.verdict is Verdict.UNDECIDED]
        rivals = self._claims.starting(int(note["count"]))
        if undecided:
            raise SubmissionUndecidedError(
                f"of the executions of {service}, {listed} could be the one that this task started: "
                f"{undecided[0].reason}. The next attempt looks again"
            )
        if rivals:
            raise SubmissionUndecidedError(
                f"of the executions of {service}, {listed} could be the one that this task started, or "
                f"that of {rivals:,} other tasks of this run that have not said yet which is theirs. "
                "The next attempt looks again"
            )
        reason = next(iter(open_cases.values())).reason
        raise AmbiguousSubmissionError(
            f"of the executions of {service}, {listed} could be the one that this task started, and "
            f"nothing can prove it: {reason}. Delete the executions that are not wanted, or set "
            "on_ambiguous_submission='resubmit' to start another one"
        )


def _listed(execution_ids: Iterable[str]) -> str:
    ids = list(execution_ids)
    listed = ", ".join(ids[:_MOST_LISTED])
    return f"{listed} and {len(ids) - _MOST_LISTED:,} more" if len(ids) > _MOST_LISTED else listed


def _keys_of_known(note: Mapping[str, Any]) -> list[str]:
    return [f"mlbatch_executions_before_{number}" for number in range(note.get("known_keys", 0))]


def _digests(execution_ids: Iterable[str]) -> str:
    return "".join(
        hashlib.sha256(execution_id.encode()).hexdigest()[:_DIGEST]
        for execution_id in execution_ids
    )
