"""What the tasks about one batch have in common: a hook, a link, and an end that comes too soon.

Law: :meth:`BatchTask._cancel_once` is the only place in a worker that sends the DELETE of an unwanted
batch, and it sends it once. A DELETE without an answer does not count as done. A task that was told to stop
starts nothing and writes nothing. What becomes of the batch depends on the task's fate (see
:mod:`airflow_mlbatch.hooks.task_fate`), never on the signal alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout

from airflow_mlbatch.errors import BatchError, MLBatchError, SubmissionStoppedError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import airflow_errors
from airflow_mlbatch.hooks.task_fate import Fate, ask_for_fate, can_be_retried
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.links.batch_execution import checked_id
from airflow_mlbatch.protocol.submission import Owner

__all__ = ["KILL_SECONDS", "BatchTask", "owner_of"]

# Airflow kills a process five seconds after its SIGTERM. Half of that is for the question, the rest
# for a look at the batch and the DELETE.
_QUESTION_SECONDS = 2.5
# The signal handler returns after this, because an answer can only come once the main thread goes on.
_HANDLER_SECONDS = 1.0
_CANCEL_SECONDS = 2.0
# How long a kill takes at most.
KILL_SECONDS = _QUESTION_SECONDS + _CANCEL_SECONDS
# By then Airflow has killed a process that it does not want any more.
_KILLED_WITHIN_SECONDS = 10.0


def owner_of(ti: Any) -> Owner:
    """The running task instance as the owner of the batches that it starts."""
    return Owner(
        ti.dag_id,
        ti.run_id,
        ti.task_id,
        getattr(ti, "map_index", -1),
        getattr(ti, "max_tries", None),
    )


class BatchTask:
    """Mixed into operators and sensors; without an ``__init__``, which is Airflow's business.

    ``linked_execution_id`` is the execution once it is known, for the link. ``timing`` is how the hook
    keeps time; ``None`` for the usual way.
    """

    service_name: str
    service_version: str
    mlbatch_conn_id: str
    linked_execution_id: str = ""
    timing: Timing | None = None
    log: Any
    _hook: MLBatchHook | None = None
    # The running task instance, which can be asked what became of the task.
    _ti: Any = None
    # The execution that ends with this task, once there is one.
    _own_execution_id: str | None = None
    # Airflow has told this process to stop; what that means for the batch is found out in a thread.
    _is_told_to_stop: bool = False
    _deciding: threading.Thread | None = None
    # The kill came before there was an execution: whoever learns its id cancels it.
    _is_unwanted: bool = False
    # Airflow stopped this attempt for its execution_timeout; it calls on_kill() then as well.
    _is_out_of_time: bool = False
    # The attempt has ended with a deferral, which Airflow may refuse.
    _has_deferred: bool = False
    # The batch is being cancelled, or was.
    _has_cancelled: bool = False
    # The server has answered the DELETE.
    _is_answered: bool = False
    # Whether a kill leaves a batch alone that is complete: later tasks may read its results.
    _keeps_results: bool = True
    _cancelling: threading.Lock | None = None

    @property
    def hook(self) -> MLBatchHook:
        """The hook of the connection; made on first use, in the process that runs the task."""
        if self._hook is None:
            self._hook = MLBatchHook(self.mlbatch_conn_id, timing=self.timing)
        return self._hook

    def _link_to(self, execution_id: str) -> None:
        self.linked_execution_id = checked_id(execution_id)
        # The connection is read now: on_kill is a signal handler and cannot ask Airflow for it. Not in
        # an assert, which `python -O` leaves out.
        _ = self.hook.url

    def _begin(self, ti: Any) -> None:
        """Start a segment of the task: nothing has been killed or cancelled yet."""
        self._ti = ti
        if self._cancelling is None:
            self._cancelling = threading.Lock()
        if self._is_told_to_stop:
            return  # It was before this segment, and that holds.
        self._is_unwanted = self._is_out_of_time = False
        self._has_deferred = self._has_cancelled = self._is_answered = False

    # --- an end that comes too soon --------------------------------------------------------------

    def _end_early(
        self, before_cancel: Callable[[], None] | None = None, *, cancels: bool = True
    ) -> None:
        """What ``on_kill`` does: find out what became of the task, and cancel its batch if it ended.

        The work is done in a thread. It needs an answer from the supervisor, and the main thread may
        have been interrupted while it held the line there. So the handler waits for a moment only,
        and then lets the main thread go on.

        :param before_cancel: called once it is known that the batch is not wanted any more
        :param cancels: whether a batch that runs already ends with the task
        """
        self._is_told_to_stop = True
        if not cancels or self._ti is None or self._hook is None:
            return  # This process has not talked to the server, so there is nothing to cancel.
        decided = threading.Event()
        worker = threading.Thread(
            target=self._decide, args=(decided, before_cancel), name="mlbatch-kill", daemon=True
        )
        self._deciding = worker
        worker.start()
        if self._is_out_of_time:
            # Nobody is about to kill this process: it ends by itself, and the thread with it. So the
            # request, which limits its own time, is waited for.
            worker.join()
        elif decided.wait(_HANDLER_SECONDS):
            worker.join(_CANCEL_SECONDS)

    def _decide(self, decided: threading.Event, before_cancel: Callable[[], None] | None) -> None:
        try:
            fate, why = self._judge_end()
            decided.set()
            if not fate.is_end_of_batch:
                self.log.warning("the batch is not cancelled: %s", why)
                return
            self.log.warning("the batch is not wanted any more: %s", why)
            if before_cancel is not None:
                before_cancel()
            self._is_unwanted = True
            if self._own_execution_id is not None:
                self._cancel_once(self._own_execution_id)
        except Exception:
            self.log.exception("the batch could not be cancelled")
        finally:
            decided.set()

    def _judge_end(self) -> tuple[Fate, str]:
        """What became of the task, and how that is known."""
        if self._is_out_of_time:
            return Fate.ENDED, "execution_timeout has passed"
        fate = ask_for_fate(self._ti, _QUESTION_SECONDS)
        if fate is Fate.GOES_ON:
            return fate, "Airflow has not ended this task, so its next attempt takes the batch over"
        if fate is not None:
            return fate, f"Airflow says that this task {fate.value}"
        if can_be_retried(self._ti):
            return (
                Fate.GOES_ON,
                "Airflow did not say what became of this task, and another attempt can come",
            )
        return (
            Fate.ENDED,
            "Airflow did not say what became of this task, and no other attempt can come",
        )

    def _stop_if_told(self, then: str = "starts no batch") -> None:
        """Refuse to go on if this task was told to stop.

        To be called right before a batch is started or a table is touched.

        Airflow lets a task run on after ``on_kill``. Where a user has ended it, an error is what is
        left to do. Otherwise another worker may run the task at this moment, and an error of this one
        would end that attempt, too; so this one waits to be killed. Nobody kills it when its node is
        drained: then the error asks for a retry in time.

        :param then: what it does in place of that, for the log
        :raises SubmissionStoppedError: the task was told to stop
        """
        if not self._is_told_to_stop:
            return
        if self._deciding is not None:
            self._deciding.join(KILL_SECONDS)
        if not self._is_unwanted:
            self.log.warning("the task was told to stop, so it %s", then)
            (self.timing or Timing()).sleep(_KILLED_WITHIN_SECONDS)
        raise SubmissionStoppedError(f"the task was told to stop, so it {then}")

    def segment_ended(self) -> None:
        """Cancel the batch if Airflow has refused the deferral that this attempt ended with.

        A task that a user marks or clears at the moment of its deferral gets neither a signal nor a
        trigger. Airflow stores the links of a task at the end of each segment, also then.
        """
        if self._has_deferred and self._own_execution_id is not None:
            self._has_deferred = False
            fate = ask_for_fate(self._ti, _QUESTION_SECONDS)
            if fate is not None and fate.is_end_of_batch:
                self.log.warning("the task %s while it was deferred", fate.value)
                self._cancel_once(self._own_execution_id)

    def _cancel_if_unwanted(self, execution_id: str) -> None:
        """Called when the id of a batch becomes known: the kill may have come before.

        :raises BatchError: it has, and the batch is cancelled
        """
        if self._is_unwanted:
            self._cancel_once(execution_id)
            raise BatchError(f"execution {execution_id} had just been started")

    def _cancel_once(self, execution_id: str) -> None:
        """Send the DELETE of an unwanted batch that still runs, unless it was sent already."""
        assert self._cancelling is not None
        with self._cancelling:
            if self._has_cancelled:
                return
            # Before the request: what is gone from now on is gone because of it.
            self._has_cancelled = True
            self.log.warning("cancelling execution %s, if it still runs", execution_id)
            self._has_cancelled = self.hook.cancel_batch_at_once(
                self.service_name,
                self.service_version,
                execution_id,
                keeps_results=self._keeps_results,
            )
            self._is_answered = True
        if not self._has_cancelled:
            self.log.info("execution %s was over or gone already", execution_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """:func:`airflow_errors`, but what follows from our own cancellation is left to a retry.

        After ``on_kill`` Airflow lets the task run on, and it finds its batch gone.
        """
        with airflow_errors():
            try:
                yield
            except MLBatchError as error:
                if self._has_cancelled:
                    raise AirflowException(
                        f"the task was killed and its batch cancelled: {error}"
                    ) from error
                raise
            except AirflowTaskTimeout:
                self._is_out_of_time = True
                raise
