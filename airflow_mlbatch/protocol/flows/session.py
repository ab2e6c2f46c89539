"""What all conversations of a session share: requests with a token, and errors without secrets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.flows.exchange import Exchange, request_to
from airflow_mlbatch.protocol.flows.logins import Login
from airflow_mlbatch.protocol.flows.policy import Policy
from airflow_mlbatch.protocol.flows.redaction import Secrets
from airflow_mlbatch.protocol.flows.tokens import TokenKeeper
from airflow_mlbatch.protocol.messages import MIB, Flow, Reply, Send, Sink
from airflow_mlbatch.protocol.routes import Route

__all__ = ["NO_LIMIT", "Session", "discreet", "of_execution", "of_service", "partial_results"]

# For replies that a sink takes: they grow with the batch, and a sink never holds one whole.
NO_LIMIT = 2**63 - 1

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Session")


def discreet(
    flow: Callable[Concatenate[S, P], Flow[T]],
) -> Callable[Concatenate[S, P], Flow[T]]:
    """Keep the session's secrets out of the errors of a conversation."""

    @functools.wraps(flow)
    def discreet(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        try:
            return (yield from flow(self, *args, **kwargs))
        except MLBatchError as error:
            self._secrets.redact(error)
            raise

    return discreet


class Session:
    """One server, one user, one pair of tokens.

    :param login: how to get a token
    :param endpoint: the server's address; it decides whether a redirect stays on the server, and
        errors show it
    :param policy: how patient the conversations are
    """

    def __init__(self, login: Login, endpoint: str, policy: Policy | None = None) -> None:
        self._login = login
        self._endpoint = endpoint.rstrip("/") + "/"
        self._policy = policy or Policy()
        self._secrets = Secrets(login.secrets)
        self._exchange = Exchange(self._endpoint, self._policy, self._secrets)
        self._tokens = TokenKeeper(login, self._post, self._secrets)

    @property
    def held_token(self) -> str | None:
        """The access token in hand, if any; the caller keeps it secret."""
        return self._tokens.held

    def _call(
        self,
        route: Route,
        placeholders: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        open_sink: Callable[[], Sink] | None = None,
        max_body: int = 256 * MIB,
        is_small: bool = True,
        is_repeatable: bool = False,
        before_send: Callable[[], None] | None = None,
    ) -> Flow[Reply]:
        """One request with a token. After a 401 the token is renewed and the request sent once more.

        :param placeholders: a value for each placeholder of the path
        :param max_body: most bytes of a reply to accept
        :param is_small: whether the exchange has to be over soon
        :param is_repeatable: whether it may be repeated although its route says that it may not
        :param before_send: called right before the request goes out, each time
        """
        request = request_to(route, placeholders or {}, query, body=body)
        request = replace(
            request,
            headers={**request.headers, **(headers or {})},
            open_sink=open_sink,
            max_body=max_body,
            seconds=self._policy.small_seconds if is_small else None,
            is_repeatable=request.is_repeatable or is_repeatable,
            is_alone=route is routes.START_BATCH,
            before_send=before_send,
        )
        token = yield from self._tokens.valid()

        def renew() -> Flow[Send]:
            return _with_token(request, (yield from self._tokens.valid(refused=token)))

        return (yield from self._exchange.answered(_with_token(request, token), renew))

    def _post(self, route: Route, body: bytes) -> Flow[Reply]:
        """One request without a token."""
        request = request_to(route, {}, body=body)
        return self._exchange.answered(replace(request, seconds=self._policy.small_seconds))


def _with_token(request: Send, token: str) -> Send:
    return replace(request, headers={**request.headers, "authorization": f"Bearer {token}"})


def of_service(service_name: str, service_version: str) -> dict[str, str]:
    """The placeholders that name a service."""
    return {"name": service_name, "version": service_version}


def of_execution(service_name: str, service_version: str, execution_id: str) -> dict[str, str]:
    """The placeholders that name a batch."""
    return {**of_service(service_name, service_version), "executionId": execution_id}


def partial_results(is_wanted: bool) -> dict[str, str]:
    """The query that asks for the results of a running batch, or leaves them out."""
    # The Swagger document and the vendor's two clients spell it differently.
    word = "true" if is_wanted else "false"
    return {"showPartialResults": word, "showPartialResult": word}
