"""Every error this package raises, sorted by whose fault it is.

::

    MLBatchError
    ├── InputError                    the Dag author: what was given cannot be used
    │   ├── ConnectionConfigError       a field of the Airflow connection
    │   ├── RecordError                 a record, a field of it, or a column of a table
    │   └── DatasetError                a table or folder that cannot be read or written as asked
    ├── AnswerError                   the server: it answered, and refused or failed
    │   ├── RejectedError               400, 409, 413, 422 and every other refusal
    │   │   └── IdempotencyKeyReusedError  the key of another payload
    │   ├── AuthenticationError         401, also after a fresh login
    │   ├── ForbiddenError              403
    │   ├── NotFoundError               404
    │   │   ├── ServiceNotFoundError
    │   │   ├── ExecutionNotFoundError
    │   │   └── ArtifactNotFoundError
    │   └── UnavailableError            429 and 5xx, still so after every repeat
    ├── LineError                     the network between
    │   ├── ConnectionLostError         refused, reset, cut, or silent for too long
    │   └── SubmissionUnknownError      lost while a batch was being started: it may run, or not
    ├── ContractError                 the server again: what it said is not the contract
    │   ├── UnknownStateError           a state nobody knows
    │   ├── ReplyTooLargeError          more bytes than the caller agreed to read
    │   └── UnsafeNameError             a file name that would leave its folder
    └── BatchError                    the batch: everybody spoke clearly, and it did not work out
        ├── BatchFailedError            the server says ``failed``
        ├── BatchTimeoutError           the deadline passed
        ├── RecordsFailedError          more failed records than the policy allows
        ├── AmbiguousSubmissionError    an execution could be ours, and nothing can prove it
        ├── SubmissionUndecidedError    an execution could be ours, and waiting may prove it
        ├── SubmissionStoppedError      the task was told to stop before it started or wrote
        └── NoBatchError                another task has started no batch, or its batch is gone

``is_permanent`` tells a scheduler whether trying again later can help: it is true where the same
request would meet the same answer. This module imports nothing, so that every room can use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AmbiguousSubmissionError",
    "AnswerError",
    "ArtifactNotFoundError",
    "AuthenticationError",
    "BatchError",
    "BatchFailedError",
    "BatchTimeoutError",
    "ConnectionConfigError",
    "ConnectionLostError",
    "ContractError",
    "DatasetError",
    "ExecutionNotFoundError",
    "ForbiddenError",
    "IdempotencyKeyReusedError",
    "InputError",
    "LineError",
    "MLBatchError",
    "NoBatchError",
    "NotFoundError",
    "RecordError",
    "RecordsFailedError",
    "RejectedError",
    "ReplyTooLargeError",
    "ServiceExistsError",
    "ServiceNotFoundError",
    "SubmissionStoppedError",
    "SubmissionUndecidedError",
    "SubmissionUnknownError",
    "UnavailableError",
    "UnknownStateError",
    "UnsafeNameError",
]


class MLBatchError(Exception):
    """Base of every error of this package."""

    is_permanent = False


class InputError(MLBatchError):
    """What the caller gave cannot be used; nothing was sent."""

    is_permanent = True


class ConnectionConfigError(InputError):
    """A field of the Airflow connection is missing or makes no sense."""


class RecordError(InputError):
    """A value does not fit the input it is meant for.

    :param where: what was looked at, for example ``"record 3"`` or ``"column 'hp'"``
    :param field: the name of the service's input
    :param found: the offending value, or a description of what was found instead
    :param expected: what would have fitted, in words
    """

    def __init__(self, where: str, field: str, found: str, expected: str) -> None:
        super().__init__(f"{where}, field {field!r}: found {found}, expected {expected}")
        self.where, self.field, self.found, self.expected = where, field, found, expected

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.where, self.field, self.found, self.expected))


class DatasetError(InputError):
    """A table cannot be read, or a result cannot be written, as asked."""


class AnswerError(MLBatchError):
    """The server answered with an error.

    :param message: the sentence to show, with the server's own words in it
    :param status: the HTTP status
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.status))


class RejectedError(AnswerError):
    """The server refused the request; the same request would be refused again."""

    is_permanent = True


class ServiceExistsError(RejectedError):
    """The version of the service is published already, and was not to be overwritten."""


class IdempotencyKeyReusedError(RejectedError):
    """The server has started a batch of other records with this idempotency key; it starts no second."""


class AuthenticationError(AnswerError):
    """The server does not accept the credentials, also not after a fresh login."""

    is_permanent = True


class ForbiddenError(AnswerError):
    """The role of this user forbids the request."""

    is_permanent = True


class NotFoundError(AnswerError):
    """The server has nothing at this address."""

    is_permanent = True


class ServiceNotFoundError(NotFoundError):
    """The web service, or this version of it, is not published."""


class ExecutionNotFoundError(NotFoundError):
    """The batch execution is gone: cancelled, deleted, or never there."""


class ArtifactNotFoundError(NotFoundError):
    """The record left no file of this name."""


class UnavailableError(AnswerError):
    """The server is busy or broken, still so after every repeat."""


class LineError(MLBatchError):
    """The network between here and the server failed."""


class ConnectionLostError(LineError):
    """Refused, reset, cut or silent for too long, also after every repeat that was allowed."""


class SubmissionUnknownError(LineError):
    """The line was lost while a batch was being started: the server may have it, or not."""


class ContractError(MLBatchError):
    """The server's words are not those of the batch API."""


class UnknownStateError(ContractError):
    """A batch state that neither the Swagger document nor the vendor's clients know."""

    is_permanent = True


class ReplyTooLargeError(ContractError):
    """A reply holds more bytes than the caller agreed to read."""

    is_permanent = True


class UnsafeNameError(ContractError):
    """A file name from the server would leave its folder or overwrite another file."""

    is_permanent = True


class BatchError(MLBatchError):
    """The batch did not end as wanted."""


class BatchFailedError(BatchError):
    """The server says that the whole batch failed."""


class BatchTimeoutError(BatchError):
    """The deadline passed before the batch was complete."""

    is_permanent = True


class RecordsFailedError(BatchError):
    """More records failed than the policy allows.

    :param message: counts, policy and the first failures, ready to show
    :param failures: the first failures, each ``{"index", "inputs", "error"}``; ``index`` is ``None``
        where the batch was stopped early, because partial results do not tell it
    :param counts: ``failed``, ``completed`` and ``total`` records, as far as they are known
    """

    def __init__(
        self, message: str, failures: Sequence[Mapping[str, Any]] = (), **counts: int
    ) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        self.counts = counts

    def __reduce__(self) -> tuple[Any, ...]:
        return (_records_failed, (self.args[0], self.failures, self.counts))


class AmbiguousSubmissionError(BatchError):
    """An execution could be the one that this task started, and nothing can prove or disprove it."""

    is_permanent = True


class SubmissionUndecidedError(BatchError):
    """An execution could be the one that this task started. Time may tell: the next attempt looks again."""


class SubmissionStoppedError(BatchError):
    """The task was told to stop before it had started its batch or written its table, so it does neither."""


class NoBatchError(BatchError):
    """There is no batch to read: the task that starts it has not done so, or was cleared since."""


def _records_failed(
    message: str, failures: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
) -> RecordsFailedError:
    return RecordsFailedError(message, failures, **counts)
