"""What a command's exit code says.

Law: one table. A script can tell a batch that failed from a server that did not answer.
"""

from __future__ import annotations

from enum import IntEnum

from airflow_mlbatch.errors import (
    AuthenticationError,
    BatchFailedError,
    BatchTimeoutError,
    ForbiddenError,
    InputError,
    MLBatchError,
    NotFoundError,
    RecordsFailedError,
    ServiceExistsError,
)

__all__ = ["Exit", "exit_of"]


class Exit(IntEnum):
    """The exit codes of the commands about batches."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    BATCH_FAILED = 3
    NOT_FOUND = 4
    REFUSED = 5
    STILL_RUNS = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_EXITS: tuple[tuple[type[MLBatchError], Exit], ...] = (
    (InputError, Exit.USAGE),
    # What was asked for cannot be without --overwrite.
    (ServiceExistsError, Exit.USAGE),
    (BatchFailedError, Exit.BATCH_FAILED),
    (RecordsFailedError, Exit.BATCH_FAILED),
    (NotFoundError, Exit.NOT_FOUND),
    (AuthenticationError, Exit.REFUSED),
    (ForbiddenError, Exit.REFUSED),
    (BatchTimeoutError, Exit.STILL_RUNS),
)


def exit_of(error: MLBatchError) -> Exit:
    """The exit code for an error; 1 for every error that has none of its own."""
    return next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.ERROR)
