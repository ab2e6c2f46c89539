"""The conversations with a server, written once for synchronous and asynchronous code.

Each public method is a generator: it yields the messages of
:mod:`airflow_mlbatch.protocol.messages` and returns its result. Law: every decision about tokens,
repeats, back-off, deadlines, redirects and states stands here; a driver decides nothing.
"""

from __future__ import annotations

import copy
import functools
import html
import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import msgspec

from airflow_mlbatch.errors import (
    AnswerError,
    ArtifactNotFoundError,
    AuthenticationError,
    BatchTimeoutError,
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    ForbiddenError,
    InputError,
    LineError,
    MLBatchError,
    NotFoundError,
    RejectedError,
    ServiceNotFoundError,
    SubmissionUnknownError,
    UnavailableError,
)
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import (
    ServerStatus,
    Tokens,
    document,
    read_error,
    read_execution_id,
    read_names,
    read_server_status,
    read_tokens,
    shown,
)
from airflow_mlbatch.protocol.messages import (
    MIB,
    Conceal,
    EntraSource,
    Exclusive,
    FetchToken,
    Flow,
    Lost,
    Now,
    Reply,
    Report,
    Send,
    Sink,
    Wait,
)
from airflow_mlbatch.protocol.records import encode_record
from airflow_mlbatch.protocol.results import (
    BatchStatus,
    FailureSink,
    RecordBlock,
    RecordResult,
    ResultsSink,
    StatusSink,
    read_record_result,
)
from airflow_mlbatch.protocol.routes import Missing, Route
from airflow_mlbatch.protocol.services import Parameter, Service, read_services
from airflow_mlbatch.protocol.states import BatchState

__all__ = ["Credentials", "Flows", "Policy"]

PARALLEL_COUNT = 10
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 502, 503, 504)
# From a proxy that has passed the request on, perhaps, and saw no good reply.
_FROM_BETWEEN = (502, 504)
_MAYBE_STARTED = "the batch may have been started, or not"
# A token is renewed this long before it expires, so that it does not die on the way.
_RENEW_AHEAD = 60.0
_SHOWN_SECRET = "***"
# A quoted body is cut, and with it a secret in it: so much of a secret's beginning betrays it.
_TELLING = 8
# Secrets that an error may still mention: old tokens too, while requests with them are under way.
_SECRETS_KEPT = 16

P = ParamSpec("P")
T = TypeVar("T")


def _is_terminal(status: BatchStatus) -> bool:
    return status.is_terminal


def _discreet(
    flow: Callable[Concatenate[Flows, P], Flow[T]],
) -> Callable[Concatenate[Flows, P], Flow[T]]:
    """Keep the session's secrets out of what a conversation raises: servers quote requests."""

    @functools.wraps(flow)
    def discreet(self: Flows, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        try:
            return (yield from flow(self, *args, **kwargs))
        except MLBatchError as error:
            self._redact(error)
            raise

    return discreet


@dataclass(frozen=True)
class Credentials:
    """How to get a token.

    :param username: for the login
    :param password: for the login
    :param token: a ready bearer token, used as it is instead of a login
    :param entra: where to get a token instead of a login
    """

    username: str = ""
    password: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)
    entra: EntraSource | None = None


@dataclass(frozen=True)
class Policy:
    """How patient a conversation is.

    :param repeat_seconds: most time that the repeats of one request may take, waits included
    :param first_wait: seconds before the first repeat; doubles with each, and is jittered
    :param longest_wait: most seconds between two repeats
    :param small_seconds: most time for an exchange whose reply is small
    :param poll_problems: how many polls in a row may fail before a watch gives up
    :param chance: a number in [0, 1), for the jitter
    """

    repeat_seconds: float = 120.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    small_seconds: float = 120.0
    poll_problems: int = 10
    chance: Callable[[], float] = random.random


class Flows:
    """The conversations of one session: one server, one user, one pair of tokens.

    :param credentials: how to get a token
    :param endpoint: the server's address, to judge whether a redirect stays there, and for errors
    """

    def __init__(
        self, credentials: Credentials, endpoint: str, policy: Policy | None = None
    ) -> None:
        self._credentials = credentials
        self._endpoint = endpoint.rstrip("/") + "/"
        self._policy = policy or Policy()
        self._tokens: Tokens | None = None
        self._failure: MLBatchError | None = None
        self._secrets: deque[str] = deque(maxlen=_SECRETS_KEPT)
        if credentials.token:
            self._tokens = Tokens(credentials.token)

    @property
    def held_token(self) -> str | None:
        """The access token in hand, if any; the caller keeps it secret."""
        return self._tokens.access_token if self._tokens else None

    def beside(self, policy: Policy) -> Flows:
        """Another session with the token in hand, for who cannot wait for this one.

        It keeps the same secrets out of its errors.
        """
        token = self.held_token
        credentials = Credentials(token=token) if token else self._credentials
        flows = Flows(credentials, self._endpoint, policy)
        flows._secrets.extend(self._secrets)
        if self._credentials.password:
            flows._secrets.append(self._credentials.password)
        return flows

    # --- services --------------------------------------------------------------------------------

    @_discreet
    def get_server_status(self) -> Flow[ServerStatus]:
        """``GET /status``."""
        reply = yield from self._call(routes.STATUS)
        return read_server_status(reply.body)

    @_discreet
    def list_services(self, service_name: str | None = None) -> Flow[list[Service]]:
        """All services, or all versions of one."""
        if service_name is None:
            reply = yield from self._call(routes.SERVICES)
        else:
            reply = yield from self._call(routes.SERVICE_VERSIONS, {"name": service_name})
        return read_services(reply.body)

    @_discreet
    def get_service(self, service_name: str, service_version: str) -> Flow[Service]:
        """One version of a service.

        :raises ServiceNotFoundError: it is not published
        """
        named = _service(service_name, service_version)
        reply = yield from self._call(routes.SERVICE, named)
        found = read_services(reply.body)
        for service in found:
            if service.version == str(service_version):
                return service
        raise ServiceNotFoundError(
            f"service {service_name!r} version {service_version!r}: not in the server's answer", 404
        )

    @_discreet
    def get_swagger(self, service_name: str, service_version: str) -> Flow[dict[str, Any]]:
        """The Swagger 2.0 document of a service."""
        reply = yield from self._call(routes.SWAGGER, _service(service_name, service_version))
        found = document(reply.body, "Swagger document")
        if not isinstance(found, dict):
            raise ContractError(f"Swagger document: found {found!r:.80}, expected an object")
        return found

    @_discreet
    def consume(self, service: Service, inputs: Mapping[str, Any]) -> Flow[RecordResult]:
        """Score one record and wait for its result (request/response).

        :raises RecordError: an input does not fit
        """
        body = encode_record(service.inputs, inputs)
        named = _service(service.name, service.version)
        reply = yield from self._call(routes.CONSUME, named, body=body, is_small=False)
        return read_record_result(reply.body, service.outputs)

    # --- batches ---------------------------------------------------------------------------------

    @_discreet
    def start_batch(
        self,
        service_name: str,
        service_version: str,
        body: bytes,
        parallel_count: int = PARALLEL_COUNT,
    ) -> Flow[str]:
        """Start a batch; returns the execution id. Never sent twice once the server may have it.

        :param body: from :func:`airflow_mlbatch.protocol.records.encode_records`
        :raises SubmissionUnknownError: the line was lost while the server may have it already
        """
        if isinstance(parallel_count, bool) or not isinstance(parallel_count, int):
            raise InputError(f"parallel_count: found {parallel_count!r}, expected a whole number")
        if parallel_count < 1:
            raise InputError(f"parallel_count: found {parallel_count}, expected at least 1")
        reply = yield from self._call(
            routes.START_BATCH,
            _service(service_name, service_version),
            query={"parallelCount": str(parallel_count)},
            body=body,
            is_small=False,
        )
        try:
            return read_execution_id(reply.body)
        except ContractError as error:
            raise SubmissionUnknownError(f"{_MAYBE_STARTED}: {error}") from error

    @_discreet
    def list_batch_executions(self, service_name: str, service_version: str) -> Flow[list[str]]:
        """Ids of the executions that the server knows, running and finished."""
        reply = yield from self._call(routes.BATCHES, _service(service_name, service_version))
        return read_names(reply.body, "list of executions")

    @_discreet
    def get_batch_status(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[BatchStatus]:
        """State and counts, without reading on once they are known; of a failed batch also why."""
        named = _execution(service_name, service_version, execution_id)
        reply = yield from self._call(
            routes.BATCH,
            named,
            query=_partial(False),
            open_sink=StatusSink,
            max_body=_NO_LIMIT,
        )
        status: BatchStatus = reply.sink.status
        if status.state is BatchState.FAILED:
            status = replace(status, message=(yield from self._why_failed(named)))
        return status

    def _why_failed(self, named: Mapping[str, str]) -> Flow[str]:
        """The server's words about a failed batch; its failure does not depend on them."""
        try:
            reply = yield from self._call(
                routes.BATCH,
                named,
                query=_partial(True),
                open_sink=FailureSink,
                max_body=_NO_LIMIT,
            )
        except (AnswerError, LineError, ContractError):
            return ""
        words = reply.sink.message
        return self._redacted(shown(words.encode("utf-8", "replace"))) if words else ""

    @_discreet
    def read_batch_results(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        outputs: Sequence[Parameter] | None,
        take: Callable[[RecordBlock], None],
        *,
        partial: bool = True,
        restart: Callable[[], None] | None = None,
    ) -> Flow[BatchStatus]:
        """Read the records of an execution, handed on in blocks while they arrive.

        :param take: called with each block
        :param restart: called when reading starts over after a lost line, to forget what was taken;
            without it a line that is lost once blocks were taken is an error
        :return: the status that came with the records
        :raises ContractError: a complete batch holds another number of results than it promises
        """
        has_taken = False

        def take_checked(sink: ResultsSink, block: RecordBlock) -> None:
            nonlocal has_taken
            # Not at the end only: a list that never ends would fill the disk before.
            if sink.promised is not None and sink.count > sink.promised:
                raise _wrong_number(execution_id, sink.count, sink.promised)
            has_taken = True
            take(block)

        def open_sink() -> Sink:
            nonlocal has_taken
            if has_taken and restart is None:
                raise ConnectionLostError(
                    f"execution {execution_id}: the line was lost in the middle of the results"
                )
            if has_taken and restart is not None:
                restart()
            has_taken = False
            sink = ResultsSink(outputs, lambda block: take_checked(sink, block))
            return sink

        reply = yield from self._call(
            routes.BATCH,
            _execution(service_name, service_version, execution_id),
            query=_partial(partial),
            open_sink=open_sink,
            max_body=_NO_LIMIT,
            is_small=False,
        )
        status: BatchStatus = reply.sink.status
        if status.state is BatchState.COMPLETE and reply.sink.count != status.total_item_count:
            raise _wrong_number(execution_id, reply.sink.count, status.total_item_count)
        return status

    @_discreet
    def cancel_batch(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[bool]:
        """Cancel an execution and delete its results and artifacts.

        :return: false when it was gone already, which is what a repeat after a lost line finds
        """
        named = _execution(service_name, service_version, execution_id)
        try:
            yield from self._call(routes.CANCEL_BATCH, named)
        except ExecutionNotFoundError:
            return False
        return True

    @_discreet
    def list_artifacts(
        self, service_name: str, service_version: str, execution_id: str, index: int
    ) -> Flow[list[str]]:
        """Names of the files that one record left.

        :param index: zero-based place of the record
        """
        named = {**_execution(service_name, service_version, execution_id), "index": _index(index)}
        reply = yield from self._call(routes.FILES, named)
        return read_names(reply.body, f"files of record {index}")

    @_discreet
    def get_artifact(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        index: int,
        file_name: str,
        *,
        open_sink: Callable[[], Sink] | None = None,
        max_body: int | None = None,
    ) -> Flow[bytes]:
        """The content of one file, or nothing where a sink took it.

        :param open_sink: called when the content begins, once more when a lost line starts it over
        :param max_body: most bytes to accept; ``None`` for no limit
        :raises ArtifactNotFoundError: the record left no such file
        """
        named = {
            **_execution(service_name, service_version, execution_id),
            "index": _index(index),
            "fileName": file_name,
        }
        reply = yield from self._call(
            routes.FILE,
            named,
            open_sink=open_sink,
            max_body=_NO_LIMIT if max_body is None else max_body,
            is_small=False,
        )
        return reply.body

    @_discreet
    def watch_batch(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        poll_interval: float,
        deadline: float | None = None,
        is_over: Callable[[BatchStatus], bool] = _is_terminal,
    ) -> Flow[BatchStatus]:
        """Poll until the execution is complete or failed.

        A poll that fails for a passing reason is reported and forgiven, several in a row are not.
        At the deadline there is one last poll, so that a batch that has just finished is not lost.

        :param poll_interval: seconds between polls
        :param deadline: epoch seconds; ``None`` waits for ever
        :param is_over: another end of the watch than that of the batch
        :raises BatchTimeoutError: the deadline passed; says how far the batch came
        :raises ExecutionNotFoundError: the execution is gone
        """
        problems, last = 0, None
        while True:
            now = yield Now()
            is_last = deadline is not None and now >= deadline
            try:
                status = yield from self.get_batch_status(
                    service_name, service_version, execution_id
                )
                problem = _step_back(execution_id, last, status)
            except (LineError, UnavailableError, ContractError) as error:
                problems += 1
                if error.is_permanent or (problems >= self._policy.poll_problems and not is_last):
                    raise
                yield Report(last, str(error))
            else:
                problems, last = 0, status
                yield Report(status, problem)
                if is_over(status):
                    return status
            if is_last:
                how_far = str(last) if last else "no poll was answered"
                raise BatchTimeoutError(
                    f"execution {execution_id} is not complete at the deadline: {how_far}"
                )
            now = yield Now()
            rest = poll_interval if deadline is None else min(poll_interval, deadline - now)
            yield Wait(max(rest, 0.0))

    # --- tokens ----------------------------------------------------------------------------------

    @_discreet
    def log_in(self) -> Flow[None]:
        """Make sure that there is a token that will live for a while."""
        yield from self._valid_token()

    @_discreet
    def log_out(self) -> Flow[None]:
        """Revoke the refresh token, if there is one; the session can log in again.

        A ready bearer token is not this session's to revoke.
        """
        if self._credentials.token:
            return
        tokens, self._tokens = self._tokens, None
        if tokens is not None and tokens.refresh_token is not None:
            yield from self._without_token(routes.REVOKE, {"refreshToken": tokens.refresh_token})

    def _valid_token(self, refused: str | None = None) -> Flow[str]:
        """A token that is not the refused one and does not expire at once."""
        token = self._usable(refused, (yield Now()))
        if token is None:
            token = yield Exclusive(self._renewed(refused, self._failure))
        return token

    def _usable(self, refused: str | None, now: float) -> str | None:
        tokens = self._tokens
        if tokens is None or tokens.access_token == refused:
            return None
        is_alive = tokens.expires_at is None or now < tokens.expires_at
        return tokens.access_token if is_alive else None

    def _renewed(self, refused: str | None, failure_before: MLBatchError | None) -> Flow[str]:
        # Another flow may have renewed while this one waited for the lock, or failed to: thousands
        # that try in turn would lock the account, or wait for a dead server one after another.
        token = self._usable(refused, (yield Now()))
        if token is not None:
            return token
        if self._failure is not None and self._failure is not failure_before:
            raise copy.copy(self._failure)
        try:
            token = yield from self._new_token()
        except MLBatchError as error:
            # A copy has no traceback, which would keep alive all that the frames hold.
            self._failure = copy.copy(error)
            raise
        self._failure = None
        return token

    def _new_token(self) -> Flow[str]:
        if self._credentials.token:
            raise AuthenticationError(
                "the server does not accept the token in the connection's password field", 401
            )
        if self._credentials.entra is not None:
            return (yield from self._kept((yield FetchToken(self._credentials.entra))))
        if self._tokens is not None and self._tokens.refresh_token is not None:
            token = yield from self._by_refresh_token(self._tokens.refresh_token)
            if token is not None:
                return token
        self._tokens = None
        body = msgspec.json.encode(
            {"username": self._credentials.username, "password": self._credentials.password}
        )
        try:
            reply = yield from self._without_token(routes.LOGIN, body=body)
        except AuthenticationError as error:
            raise AuthenticationError(
                f"the server refused the login of user {self._credentials.username!r}: {error}",
                error.status,
            ) from None
        return (yield from self._kept(read_tokens(reply.body, (yield Now()))))

    def _by_refresh_token(self, refresh_token: str) -> Flow[str | None]:
        body = msgspec.json.encode({"refreshToken": refresh_token})
        try:
            reply = yield from self._without_token(routes.RENEW, body=body)
            return (yield from self._kept(read_tokens(reply.body, (yield Now()))))
        except (AnswerError, LineError, ContractError):
            # Dead, revoked, too old, or killed by a renewal whose reply was lost: log in instead.
            return None

    def _kept(self, tokens: Tokens) -> Flow[str]:
        now = yield Now()
        if tokens.expires_at is not None:
            ahead = min(_RENEW_AHEAD, max(tokens.expires_at - now, 0.0) / 10)
            tokens = replace(tokens, expires_at=tokens.expires_at - ahead)
            if tokens.expires_at <= now:
                # The clocks disagree about an absolute time: trust the server's 401 instead.
                tokens = replace(tokens, expires_at=None)
        for secret in (tokens.access_token, tokens.refresh_token):
            if secret is not None:
                self._secrets.append(secret)
                yield Conceal(secret)
        self._tokens = tokens
        return tokens.access_token

    # --- one request -----------------------------------------------------------------------------

    def _call(
        self,
        route: Route,
        named: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        open_sink: Callable[[], Sink] | None = None,
        max_body: int = 256 * MIB,
        is_small: bool = True,
    ) -> Flow[Reply]:
        """One request with a token: renewed when the server says 401, replayed once, then given up.

        :param is_small: whether the exchange is one that has to be over soon
        """
        request = replace(
            _request(route, named or {}, query, body=body),
            open_sink=open_sink,
            max_body=max_body,
            seconds=self._policy.small_seconds if is_small else None,
            is_alone=route is routes.START_BATCH,
        )
        token = yield from self._valid_token()
        try:
            return (yield from self._answered(_with_token(request, token)))
        except AuthenticationError:
            token = yield from self._valid_token(refused=token)
        return (yield from self._answered(_with_token(request, token)))

    def _without_token(
        self, route: Route, query: Mapping[str, str] | None = None, *, body: bytes | None = None
    ) -> Flow[Reply]:
        request = _request(route, {}, query, body=body)
        return (yield from self._answered(replace(request, seconds=self._policy.small_seconds)))

    def _answered(self, request: Send) -> Flow[Reply]:
        """One request until it is answered well, or until it makes no sense to repeat it."""
        started = yield Now()
        wait = self._policy.first_wait
        while True:
            answer = yield from self._followed(request)
            if isinstance(answer, Reply) and 200 <= answer.status < 300:
                return answer
            now = yield Now()
            pause = wait * (0.5 + 0.5 * self._policy.chance())
            if isinstance(answer, Reply):
                pause = max(pause, _retry_after(answer, now))
            budget = self._policy.repeat_seconds - (now - started)
            if not _is_repeatable(request.route, answer) or pause > budget:
                raise self._error(request, answer)
            yield Wait(pause)
            wait = min(2 * wait, self._policy.longest_wait)

    def _followed(self, request: Send) -> Flow[Reply | Lost]:
        """One request and the redirects it meets; the token stays with the host it was made for."""
        asked = _named(request)
        # One request and one for each redirect: the last answer may be a redirect no more.
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                answer: Reply | Lost = yield request
            except ContractError as error:
                # Only the body of a success is ever found wanting.
                if request.route is routes.START_BATCH:
                    raise SubmissionUnknownError(f"{_MAYBE_STARTED}: {error}") from error
                raise
            if not isinstance(answer, Reply) or answer.status not in _REDIRECTS:
                return answer
            target = self._redirected(request, answer)
            is_ours = _origin(target) == _origin(self._endpoint)
            if request.route.method != "GET" and not (is_ours and answer.status in (307, 308)):
                raise ContractError(
                    f"{asked}: the server redirects to {_without_query(target)}, "
                    "and only reading requests are sent on; set the connection to the final address"
                )
            headers = dict(request.headers)
            if not is_ours:
                headers.pop("authorization", None)
            request = replace(request, target=target, headers=headers)
        raise ContractError(f"{asked}: more than {_MAX_REDIRECTS} redirects")

    def _redirected(self, request: Send, answer: Reply) -> str:
        """The absolute address that a redirect names, quoted as far as its server forgot to."""
        here = urljoin(self._endpoint, request.target.lstrip("/"))
        location = answer.headers.get("location", "")
        try:
            target = urljoin(here, location)
            is_address = bool(location) and _origin(target) is not None
        except ValueError:
            is_address = False
        if not is_address:
            raise ContractError(
                f"{_named(request)}: found status {answer.status} with the location "
                f"{location!a:.80}, expected an http(s) address"
            )
        return quote(target, safe="!#$%&'()*+,/:;=?@[]~", errors="surrogateescape")

    def _error(self, request: Send, answer: Reply | Lost) -> MLBatchError:
        """The error that an answer means, in one sentence with the server's own words."""
        route, where = request.route, _named(request)
        if isinstance(answer, Lost):
            # Nobody answered, so that the address is what has to be looked at.
            at = "" if "://" in request.target else f" at {self._endpoint.rstrip('/')}"
            text = f"{where}{at}: {answer.reason}"
            if route is routes.START_BATCH and answer.was_sent:
                return SubmissionUnknownError(f"{text}; {_MAYBE_STARTED}")
            return ConnectionLostError(text)
        words = read_error(answer.body, may_hold_tokens=route.is_open)
        text = f"{where}: {answer.status} {words}"
        if route is routes.START_BATCH and answer.status in _FROM_BETWEEN:
            return SubmissionUnknownError(f"{text}; {_MAYBE_STARTED}")
        if answer.status == 401:
            return AuthenticationError(text, 401)
        if answer.status == 403:
            return ForbiddenError(text, 403)
        if answer.status == 404:
            return _NOT_FOUND[_missing(route, words)](text, 404)
        if answer.status == 429 or answer.status >= 500:
            return UnavailableError(text, answer.status)
        return RejectedError(text, answer.status)

    def _redact(self, error: BaseException | None) -> None:
        """Take the session's secrets out of an error and out of those that led to it."""
        while isinstance(error, MLBatchError):
            if error.args and isinstance(error.args[0], str):
                error.args = (self._redacted(error.args[0]), *error.args[1:])
            error = error.__context__ if error.__cause__ is None else error.__cause__

    def _redacted(self, text: str) -> str:
        given = [self._credentials.password, self._credentials.token]
        if self._credentials.entra is not None:
            given.append(self._credentials.entra.client_secret)
        for secret in (*given, *self._secrets):
            for spelling in _spellings(secret or ""):
                text = _without(spelling, text)
        return text


def _spellings(secret: str) -> set[str]:
    """A secret as it may stand in a text: plain, in JSON, in a page, in an address."""
    if not secret:
        return set()
    in_json = msgspec.json.encode(secret).decode()[1:-1]
    on_one_line = " ".join(secret.split())
    return {secret, in_json, on_one_line, html.escape(secret), quote(secret, safe="")} - {""}


def _without(secret: str, text: str) -> str:
    """The text without the secret, also where only its beginning is left of it."""
    head = secret[:_TELLING]
    start = text.find(head)
    while start >= 0:
        size = len(head)
        while size < len(secret) and text[start + size : start + size + 1] == secret[size]:
            size += 1
        text = text[:start] + _SHOWN_SECRET + text[start + size :]
        start = text.find(head, start + len(_SHOWN_SECRET))
    return text


def _step_back(execution_id: str, last: BatchStatus | None, now: BatchStatus) -> str | None:
    """What is odd about a status after the one before; fewer completed records can be caught up on.

    :raises ContractError: the number of records of a batch never changes: this is not the same batch
    """
    if last is None:
        return None
    if now.total_item_count != last.total_item_count:
        raise ContractError(
            f"execution {execution_id}: found {now.total_item_count:,} records in the batch, "
            f"expected {last.total_item_count:,} as before"
        )
    if now.completed_item_count < last.completed_item_count:
        return (
            f"the server went back from {last.completed_item_count:,} completed records to "
            f"{now.completed_item_count:,}"
        )
    return None


def _wrong_number(execution_id: str, count: int, promised: int) -> ContractError:
    return ContractError(
        f"execution {execution_id}: complete with {count:,} results, expected {promised:,}"
    )


# Results grow with the batch, and a sink never holds them whole.
_NO_LIMIT = 2**63 - 1

_NOT_FOUND: dict[Missing, type[NotFoundError]] = {
    Missing.NOTHING: NotFoundError,
    Missing.SERVICE: ServiceNotFoundError,
    Missing.EXECUTION: ExecutionNotFoundError,
    Missing.ARTIFACT: ArtifactNotFoundError,
}


def _missing(route: Route, words: str) -> Missing:
    """What a 404 is about: the server tells only in words."""
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


_POSSIBLE = {
    Missing.SERVICE: ("SERVICE",),
    Missing.EXECUTION: ("SERVICE", "EXECUTION"),
    Missing.ARTIFACT: ("SERVICE", "EXECUTION", "ARTIFACT"),
}


def _is_repeatable(route: Route, answer: Reply | Lost) -> bool:
    if isinstance(answer, Lost):
        return not answer.is_lasting and (route.is_repeatable or not answer.was_sent)
    if answer.status == 429:
        # The server says itself that it did nothing.
        return True
    # Behind a proxy, 502 to 504 may come after the request was passed on.
    return route.is_repeatable and answer.status in _BUSY


def _retry_after(reply: Reply, now: float) -> float:
    """Seconds that the server asks to wait, given as a number or as a date."""
    word = reply.headers.get("retry-after", "").strip()
    if not word:
        return 0.0
    if word.isdecimal():
        return float(word[:9])
    try:
        moment = parsedate_to_datetime(word)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    # "-0000" says that the zone is not known: HTTP knows only one.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - now)


def _request(
    route: Route,
    named: Mapping[str, str],
    query: Mapping[str, str] | None = None,
    *,
    body: bytes | None = None,
) -> Send:
    target = route.path(**named)
    if query:
        target += "?" + urlencode(query)
    headers = {"accept": "*/*" if route is routes.FILE else "application/json"}
    if body is not None:
        headers["content-type"] = "application/json"
    return Send(route, target, headers, body)


def _with_token(request: Send, token: str) -> Send:
    return replace(request, headers={**request.headers, "authorization": f"Bearer {token}"})


def _named(request: Send) -> str:
    return f"{request.route.method} {_without_query(request.target)}"


def _without_query(target: str) -> str:
    parts = urlsplit(target)
    return parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; ``None`` for what is no plain address.

    A name or a password in an address would be sent as credentials: no redirect may bring one.

    :raises ValueError: for a port that is no number
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _service(service_name: str, service_version: str) -> dict[str, str]:
    return {"name": service_name, "version": service_version}


def _execution(service_name: str, service_version: str, execution_id: str) -> dict[str, str]:
    return {**_service(service_name, service_version), "executionId": execution_id}


def _index(index: object) -> str:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise InputError(f"index: found {index!r}, expected a zero-based whole number")
    return str(index)


def _partial(partial: bool) -> dict[str, str]:
    # The Swagger document and the vendor's two clients spell it differently.
    word = "true" if partial else "false"
    return {"showPartialResults": word, "showPartialResult": word}
