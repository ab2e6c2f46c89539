"""What an answer means: which error it is, whether a repeat can help, how long to pause before it."""

from __future__ import annotations

import re
from datetime import timezone
from email.utils import parsedate_to_datetime

from airflow_mlbatch.errors import (
    ArtifactNotFoundError,
    AuthenticationError,
    ConnectionLostError,
    ExecutionNotFoundError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    MLBatchError,
    NotFoundError,
    RejectedError,
    ServiceNotFoundError,
    SubmissionUnknownError,
    UnavailableError,
)
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import read_error
from airflow_mlbatch.protocol.flows.addresses import named
from airflow_mlbatch.protocol.messages import Lost, Reply, Send
from airflow_mlbatch.protocol.routes import IDEMPOTENCY_KEY, Missing, Route

__all__ = [
    "MAYBE_STARTED",
    "answerer",
    "error_of",
    "is_repeatable",
    "may_have_started",
    "retry_after",
]

MAYBE_STARTED = "the batch may have been started, or not"

_BUSY = (429, 502, 503, 504)
# A proxy says these. It may have passed the request on and received no good reply.
_FROM_BETWEEN = (502, 504)
# Every server of this API knows the address of the login.
_NO_SUCH_ADDRESS = (404, 405, 501)


def error_of(
    request: Send, answer: Reply | Lost, endpoint: str, is_in_doubt: bool = False
) -> MLBatchError:
    """The error that an answer means, in one sentence with the server's own words.

    :param endpoint: the server's address; shown where nobody answered, because then it is the
        address that has to be checked
    :param is_in_doubt: whether this request, or an earlier one like it, may have started a batch
    """
    if isinstance(answer, Lost):
        error = _error_of_lost(request, answer, endpoint)
    else:
        error = _error_of_reply(request, answer)
    if is_in_doubt and isinstance(error, ConnectionLostError | UnavailableError):
        return SubmissionUnknownError(f"{error}; {MAYBE_STARTED}")
    return error


def answerer(reply: Reply) -> str:
    """Who answered, as far as the reply says it."""
    server = " ".join(reply.headers.get("server", "").split())
    return f"a server that calls itself {server!a:.80} answered" if server else "a server answered"


def _error_of_lost(request: Send, lost: Lost, endpoint: str) -> MLBatchError:
    at = "" if "://" in request.target else f" at {endpoint.rstrip('/')}"
    return ConnectionLostError(f"{named(request)}{at}: {lost.reason}")


def _error_of_reply(request: Send, reply: Reply) -> MLBatchError:
    route, status = request.route, reply.status
    is_foreign = route.is_open and status in _NO_SUCH_ADDRESS
    words = read_error(reply.body, may_hold_tokens=route.is_open and not is_foreign)
    text = f"{named(request)}: {status} {words}"
    if is_foreign:
        text += f"; {answerer(reply)} and does not know this address: check host, port and path"
    if status == 401:
        return AuthenticationError(text, status)
    if status == 403:
        return ForbiddenError(text, status)
    if status == 404:
        return _NOT_FOUND[_missing(route, words)](text, status)
    if status == 422 and IDEMPOTENCY_KEY in request.headers:
        return IdempotencyKeyReusedError(text, status)
    if status == 429 or status >= 500:
        return UnavailableError(text, status)
    return RejectedError(text, status)


_NOT_FOUND: dict[Missing, type[NotFoundError]] = {
    Missing.NOTHING: NotFoundError,
    Missing.SERVICE: ServiceNotFoundError,
    Missing.EXECUTION: ExecutionNotFoundError,
    Missing.ARTIFACT: ArtifactNotFoundError,
}
_POSSIBLE = {
    Missing.SERVICE: ("SERVICE",),
    Missing.EXECUTION: ("SERVICE", "EXECUTION"),
    Missing.ARTIFACT: ("SERVICE", "EXECUTION", "ARTIFACT"),
}


def _missing(route: Route, words: str) -> Missing:
    """What a 404 is about: the server says it only in words."""
    text = words.casefold()
    if route.missing is Missing.NOTHING:
        return Missing.NOTHING
    for missing, word in (
        (Missing.EXECUTION, "execution"),
        (Missing.ARTIFACT, "file"),
        (Missing.SERVICE, "service"),
    ):
        if re.search(rf"\b{word}", text) and missing.name in _POSSIBLE[route.missing]:
            return missing
    return route.missing


def is_repeatable(request: Send, answer: Reply | Lost) -> bool:
    """Whether the request may be sent again, and whether that can help."""
    if isinstance(answer, Lost):
        return not answer.is_lasting and (request.is_repeatable or not answer.was_sent)
    if answer.status == 429:
        # The server itself says that it did nothing.
        return True
    # Behind a proxy, 502 to 504 may come after the request was passed on.
    return request.is_repeatable and answer.status in _BUSY


def may_have_started(request: Send, answer: Reply | Lost) -> bool:
    """Whether the server may have started a batch although this answer does not say so."""
    if request.route is not routes.START_BATCH:
        return False
    return answer.was_sent if isinstance(answer, Lost) else answer.status in _FROM_BETWEEN


def retry_after(reply: Reply, now: float) -> float:
    """How many seconds the server asks to wait; it says so with a number or with a date."""
    word = reply.headers.get("retry-after", "").strip()
    if not word:
        return 0.0
    if word.isdecimal():
        return float(word[:9])
    try:
        moment = parsedate_to_datetime(word)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    # "-0000" says that the zone is not known, but HTTP knows only one zone.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - now)
