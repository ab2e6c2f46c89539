"""One request, with its repeats and its redirects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import quote, urlencode, urljoin

from airflow_mlbatch.errors import ContractError, SubmissionUnknownError
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.flows.addresses import named, origin, without_query
from airflow_mlbatch.protocol.flows.answers import (
    MAYBE_STARTED,
    error_of,
    is_repeatable,
    may_have_started,
    retry_after,
)
from airflow_mlbatch.protocol.flows.policy import Policy
from airflow_mlbatch.protocol.flows.redaction import Secrets
from airflow_mlbatch.protocol.messages import Flow, Lost, Now, Reply, Report, Send, Wait
from airflow_mlbatch.protocol.routes import Route

__all__ = ["Exchange", "request_to"]

_MAX_REDIRECTS = 5
# A request that comes too late fails soon, and in the words of one that is not answered in time.
_LEAST_SECONDS = 0.05
_REDIRECTS = (301, 302, 303, 307, 308)


def request_to(
    route: Route,
    placeholders: Mapping[str, str],
    query: Mapping[str, str] | None = None,
    *,
    body: bytes | None = None,
) -> Send:
    """A request to a row of the table of routes, without a token.

    :param placeholders: a value for each placeholder of the path
    """
    target = route.path(**placeholders)
    if query:
        target += "?" + urlencode(query)
    headers = {"accept": "*/*" if route is routes.FILE else "application/json"}
    if body is not None:
        headers["content-type"] = "application/json"
    return Send(route, target, headers, body, is_repeatable=route.is_repeatable)


class Exchange:
    """Sends requests to one server.

    :param endpoint: the server's address, with a closing slash
    :param secrets: what no report may show
    """

    def __init__(self, endpoint: str, policy: Policy, secrets: Secrets) -> None:
        self._endpoint, self._policy, self._secrets = endpoint, policy, secrets
        self._until: float | None = None

    def answered(self, request: Send, renew: Callable[[], Flow[Send]] | None = None) -> Flow[Reply]:
        """Send a request until it is answered well, or until a repeat makes no sense.

        :param renew: makes the same request with a fresh token; used once, after a 401
        :raises MLBatchError: what the last answer means
        """
        started = yield Now()
        request = self._in_time(request, started)
        wait, attempt, is_in_doubt = self._policy.first_wait, 0, False
        while True:
            answer = yield from self._followed(request)
            if isinstance(answer, Reply) and 200 <= answer.status < 300:
                return answer
            if renew is not None and isinstance(answer, Reply) and answer.status == 401:
                request, renew = (yield from renew()), None
                started, wait, attempt = (yield Now()), self._policy.first_wait, 0
                continue
            # Not undone by a later answer: a refused connection says nothing about the request before.
            is_in_doubt = is_in_doubt or may_have_started(request, answer)
            now = yield Now()
            pause = wait * (0.5 + 0.5 * self._policy.chance())
            if isinstance(answer, Reply):
                pause = max(pause, retry_after(answer, now))
            budget = self._policy.repeat_seconds - (now - started)
            error = error_of(request, answer, self._endpoint, is_in_doubt)
            if not is_repeatable(request, answer) or pause > budget:
                raise error
            attempt += 1
            yield Report(None, self._secrets.redacted(str(error)), attempt, pause)
            yield Wait(pause)
            wait = min(2 * wait, self._policy.longest_wait)

    def _in_time(self, request: Send, now: float) -> Send:
        """The request with what is left of the time that all requests of the session have."""
        if self._policy.whole_seconds is None:
            return request
        if self._until is None:
            self._until = now + self._policy.whole_seconds
        left = max(self._until - now, _LEAST_SECONDS)
        return replace(request, seconds=min(left, request.seconds or left))

    def _followed(self, request: Send) -> Flow[Reply | Lost]:
        """Send a request and follow its redirects; the token stays with the server it is for."""
        asked = named(request)
        # One request and one for each redirect; the last answer may not be a redirect any more.
        for _ in range(_MAX_REDIRECTS + 1):
            answer = yield from self._sent(request)
            if not isinstance(answer, Reply) or answer.status not in _REDIRECTS:
                return answer
            target = self._redirected(request, answer)
            is_ours = origin(target) == origin(self._endpoint)
            if request.route.method != "GET" and not (is_ours and answer.status in (307, 308)):
                raise ContractError(
                    f"{asked}: the server redirects to {without_query(target)}, "
                    "and only reading requests are sent on; set the connection to the final address"
                )
            headers = dict(request.headers)
            if not is_ours:
                headers.pop("authorization", None)
            request = replace(request, target=target, headers=headers)
        raise ContractError(f"{asked}: more than {_MAX_REDIRECTS} redirects")

    def _sent(self, request: Send) -> Flow[Reply | Lost]:
        if request.before_send is not None:
            request.before_send()
        try:
            answer: Reply | Lost = yield request
        except ContractError as error:
            # Only the body of a success is checked on the way: the server has taken the request.
            if request.route is not routes.START_BATCH:
                raise
            if request.is_repeatable:
                return Lost(str(error))
            raise SubmissionUnknownError(f"{MAYBE_STARTED}: {error}") from error
        return answer

    def _redirected(self, request: Send, answer: Reply) -> str:
        """The absolute address that a redirect names; what its server forgot to quote is quoted."""
        here = urljoin(self._endpoint, request.target.lstrip("/"))
        location = answer.headers.get("location", "")
        try:
            target = urljoin(here, location)
            is_address = bool(location) and origin(target) is not None
        except ValueError:
            is_address = False
        if not is_address:
            raise ContractError(
                f"{named(request)}: found status {answer.status} with the location "
                f"{location!a:.80}, expected an http(s) address"
            )
        return quote(target, safe="!#$%&'()*+,/:;=?@[]~", errors="surrogateescape")
