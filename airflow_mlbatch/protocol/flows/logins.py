"""The ways to get an access token, one class each.

To add one: write a class here, read it from a connection in :mod:`airflow_mlbatch.hooks.settings`, and
give its fields a place in the form in :mod:`airflow_mlbatch.provider_info`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from airflow_mlbatch.errors import AnswerError, AuthenticationError, ContractError, LineError
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import Tokens, read_tokens
from airflow_mlbatch.protocol.flows.answers import answerer
from airflow_mlbatch.protocol.messages import EntraSource, FetchToken, Flow, Now, Reply
from airflow_mlbatch.protocol.routes import Route

__all__ = ["EntraLogin", "Login", "PasswordLogin", "Post", "ReadyToken"]

# Sends a body to a route that works without a token.
Post: TypeAlias = Callable[[Route, bytes], Flow[Reply]]


class Login(ABC):
    """A way to get tokens. Equal logins may share a session."""

    @property
    def ready(self) -> Tokens | None:
        """A token that is there from the start."""
        return None

    @property
    @abstractmethod
    def secrets(self) -> tuple[str, ...]:
        """What no error may show."""

    @abstractmethod
    def new_tokens(self, held: Tokens | None, post: Post) -> Flow[Tokens]:
        """Get tokens.

        :param held: the tokens that have expired or were refused
        :raises AuthenticationError: there are none to get
        """


@dataclass(frozen=True)
class PasswordLogin(Login):
    """Logs in at the server with a user name and a password."""

    username: str
    password: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The password."""
        return (self.password,)

    def new_tokens(self, held: Tokens | None, post: Post) -> Flow[Tokens]:
        """Renew the tokens in hand, or log in."""
        if held is not None and held.refresh_token is not None:
            tokens = yield from _renewed(held.refresh_token, post)
            if tokens is not None:
                return tokens
        body = msgspec.json.encode({"username": self.username, "password": self.password})
        try:
            reply = yield from post(routes.LOGIN, body)
        except AuthenticationError as error:
            raise AuthenticationError(
                f"the server refused the login of user {self.username!r}: {error}", error.status
            ) from None
        try:
            return read_tokens(reply.body, (yield Now()))
        except ContractError as error:
            raise ContractError(f"{error}; {answerer(reply)}: check host, port and path") from None


def _renewed(refresh_token: str, post: Post) -> Flow[Tokens | None]:
    body = msgspec.json.encode({"refreshToken": refresh_token})
    try:
        reply = yield from post(routes.RENEW, body)
        return read_tokens(reply.body, (yield Now()))
    except (AnswerError, LineError, ContractError):
        # The token is revoked or too old, or a renewal whose reply was lost has ended it: log in.
        return None


@dataclass(frozen=True)
class ReadyToken(Login):
    """A bearer token that somebody else got; it is used as it is."""

    token: str = field(repr=False)

    @property
    def ready(self) -> Tokens | None:
        """The token."""
        return Tokens(self.token)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The token."""
        return (self.token,)

    def new_tokens(self, held: Tokens | None, post: Post) -> Flow[Tokens]:
        """There is only the one."""
        raise AuthenticationError(
            "the server does not accept the token in the connection's password field", 401
        )


@dataclass(frozen=True)
class EntraLogin(Login):
    """Asks Microsoft Entra ID for a token."""

    source: EntraSource

    @property
    def secrets(self) -> tuple[str, ...]:
        """The application's secret, where it has one."""
        return (self.source.client_secret,)

    def new_tokens(self, held: Tokens | None, post: Post) -> Flow[Tokens]:
        """Ask for a token."""
        tokens: Tokens = yield FetchToken(self.source)
        return tokens
