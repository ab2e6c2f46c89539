"""The states of a batch execution.

Law: a state is parsed here or it raises; an unknown word is never taken for "still running".
"""

from __future__ import annotations

from enum import Enum

from airflow_mlbatch.errors import UnknownStateError

__all__ = ["BatchState"]


class BatchState(str, Enum):
    """State of a batch execution, spelled as the server's Swagger document spells it.

    ``failed`` is not in the Swagger's enumeration, but both of the vendor's clients test for it.
    """

    PENDING = "pending"
    IN_PROGRESS = "inProgress"
    READY = "ready"
    COMPLETE = "complete"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the execution will never change again."""
        return self.is_success or self.is_failure

    @property
    def is_failure(self) -> bool:
        """Whether the execution has ended without results."""
        return self is BatchState.FAILED

    @property
    def is_success(self) -> bool:
        """Whether all results are there."""
        return self is BatchState.COMPLETE

    @property
    def is_documented(self) -> bool:
        """Whether the vendor's Swagger document lists it among the states."""
        return not self.is_failure

    @property
    def capitalized(self) -> str:
        """The word as a real server printed it: ``Complete``, ``InProgress``."""
        return self.value[:1].upper() + self.value[1:]

    @classmethod
    def parse(cls, word: object) -> BatchState:
        """Read a state as a server spelled it, without regard to case (a real one said ``Complete``).

        :raises UnknownStateError: names the word, so that it can be reported
        """
        known = _BY_FOLDED_NAME.get(word.casefold()) if isinstance(word, str) else None
        if known is None:
            wanted = ", ".join(state.value for state in cls)
            raise UnknownStateError(f"field 'state': found {word!r:.80}, expected one of {wanted}")
        return known

    def __str__(self) -> str:
        return self.value


_BY_FOLDED_NAME = {state.value.casefold(): state for state in BatchState}
