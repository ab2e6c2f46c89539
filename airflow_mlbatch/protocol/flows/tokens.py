"""The access token of a session: when it is renewed, and that only one flow renews it."""

from __future__ import annotations

import copy
from dataclasses import replace

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.documents import Tokens
from airflow_mlbatch.protocol.flows.logins import Login, Post
from airflow_mlbatch.protocol.flows.redaction import Secrets
from airflow_mlbatch.protocol.messages import Conceal, Exclusive, Flow, Now

__all__ = ["TokenKeeper"]

# A token is renewed this many seconds before it expires, so that it does not expire on its way.
_RENEW_AHEAD = 60.0


class TokenKeeper:
    """Holds the tokens of a session; any number of flows may ask for one at once.

    :param login: how to get tokens
    :param post: sends a request without a token
    :param secrets: remembers each token, to keep it out of errors
    """

    def __init__(self, login: Login, post: Post, secrets: Secrets) -> None:
        self._login, self._post, self._secrets = login, post, secrets
        self._tokens = login.ready
        self._failure: MLBatchError | None = None

    @property
    def held(self) -> str | None:
        """The access token in hand, if any."""
        return self._tokens.access_token if self._tokens else None

    def valid(self, refused: str | None = None) -> Flow[str]:
        """A token that is about to be accepted: neither the refused one, nor one about to expire."""
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
        """Get a token, while no other flow of the session does.

        :param failure_before: what the last renewal had failed with when this flow asked for the lock
        """
        # Another flow may have renewed, or failed to, while this one waited for the lock. Thousands
        # that try in turn would lock the account, or wait for a dead server one after another.
        token = self._usable(refused, (yield Now()))
        if token is not None:
            return token
        if self._failure is not None and self._failure is not failure_before:
            raise copy.copy(self._failure)
        try:
            tokens = yield from self._login.new_tokens(self._tokens, self._post)
        except MLBatchError as error:
            self._tokens = self._login.ready
            # The copy has no traceback, which would keep alive all that the frames hold.
            self._failure = copy.copy(error)
            raise
        self._failure = None
        return (yield from self._kept(tokens))

    def _kept(self, tokens: Tokens) -> Flow[str]:
        for secret in (tokens.access_token, tokens.refresh_token):
            if secret is not None:
                self._secrets.keep(secret)
                yield Conceal(secret)
        self._tokens = _ahead(tokens, (yield Now()))
        return tokens.access_token


def _ahead(tokens: Tokens, now: float) -> Tokens:
    """The tokens with an end that leaves time to renew them: a tenth of their life, or a minute."""
    if tokens.expires_at is None:
        return tokens
    expires_at = tokens.expires_at - min(_RENEW_AHEAD, max(tokens.expires_at - now, 0.0) / 10)
    # If it has expired already, the two clocks disagree: then only the server's 401 is trusted.
    return replace(tokens, expires_at=expires_at if expires_at > now else None)
