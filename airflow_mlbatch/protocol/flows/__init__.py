"""The conversations with a server, written once for synchronous and asynchronous code.

A conversation is a generator: it yields the messages of :mod:`airflow_mlbatch.protocol.messages` and
returns its result. Law: every decision about tokens, repeats, back-off, deadlines, redirects and
states stands in this package; a driver decides nothing.

============ ====================================================================================
module       subject
============ ====================================================================================
services     conversations about services and about the server
publishing   conversations that bring services in and take them away
batches      conversations about batches and what they leave
failures     conversations about records that failed, and an end when they are too many
endings      conversations about executions that have ended, whoever started them
session      what all conversations share: a request with a token, errors without secrets
tokens       the token of a session: when it is renewed, and by whom
logins       the ways to get a token, one class each
exchange     one request: its repeats and its redirects
answers      what an answer means: an error, a repeat, a pause
addresses    parts of URLs
redaction    keeps secrets out of error messages
policy       how patient all of this is
============ ====================================================================================
"""

from __future__ import annotations

from airflow_mlbatch.protocol.flows.batches import PARALLEL_COUNT
from airflow_mlbatch.protocol.flows.endings import EndingFlows
from airflow_mlbatch.protocol.flows.failures import FailureFlows
from airflow_mlbatch.protocol.flows.logins import EntraLogin, Login, PasswordLogin, ReadyToken
from airflow_mlbatch.protocol.flows.policy import Policy
from airflow_mlbatch.protocol.flows.publishing import PublishingFlows

__all__ = [
    "PARALLEL_COUNT",
    "EntraLogin",
    "Flows",
    "Login",
    "PasswordLogin",
    "Policy",
    "ReadyToken",
]


class Flows(PublishingFlows, FailureFlows, EndingFlows):
    """The conversations of one session: one server, one user, one pair of tokens.

    :param login: how to get a token
    :param endpoint: the server's address; it decides whether a redirect stays on the server, and
        errors show it
    :param policy: how patient the conversations are
    """

    def beside(self, policy: Policy) -> Flows:
        """A second session with the token in hand, for a caller that cannot wait for this one.

        It keeps the same secrets out of its errors.
        """
        token = self.held_token
        flows = Flows(ReadyToken(token) if token else self._login, self._endpoint, policy)
        flows._secrets.take_over(self._secrets)
        return flows
