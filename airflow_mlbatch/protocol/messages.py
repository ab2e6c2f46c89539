"""What a flow asks its driver for, and what it is sent back.

A flow is a generator: it yields one of these frozen messages, the driver does what it says and
sends the answer in. Law: a message says everything the driver needs; the driver decides nothing.

=============== ==================================================== ============================
message         what the driver does                                 what it sends back
=============== ==================================================== ============================
``Send``        sends one request, feeds the body to a receiver      ``Reply`` or ``Lost``
``Wait``        sleeps                                               ``None``
``Now``         reads the wall clock                                 epoch seconds, float
``Exclusive``   runs another flow while it holds the session's lock  that flow's value
``Report``      hands a status to whoever watches                    ``None``
``Notice``      hands a decision to whoever watches                  ``None``
``Conceal``     tells the log masker about a secret                  ``None``
``FetchToken``  asks an identity provider for a token                ``Tokens``
=============== ==================================================== ============================

What ``Exclusive``'s flow raises is thrown into the flow that asked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from airflow_mlbatch.protocol.routes import Route

__all__ = [
    "Conceal",
    "EntraSource",
    "Exclusive",
    "FetchToken",
    "Flow",
    "Lost",
    "Message",
    "Notice",
    "Now",
    "Reply",
    "Report",
    "Send",
    "Sink",
    "Wait",
]

KIB = 1024
MIB = 1024 * KIB

T = TypeVar("T")


class Sink(Protocol):
    """Takes the body of a successful reply piece by piece, so that nobody holds it whole."""

    def feed(self, data: bytes) -> bool:
        """Take the next piece; true means that the rest is not wanted and the line may be dropped."""

    def close(self) -> None:
        """The body is complete: the last piece was fed. Not called when reading stopped early."""


@dataclass(frozen=True)
class Send:
    """One request.

    :param route: the row of the table of routes
    :param target: path and query below the endpoint, quoted, or an absolute URL after a redirect
    :param headers: names in lower case
    :param body: what to send, or ``None``
    :param open_sink: called when a successful reply begins; without it the body is collected
    :param max_body: most bytes of body to accept, counted after unpacking
    :param seconds: most time for the whole exchange, body included; ``None`` for no limit
    :param is_repeatable: whether it may be sent again although the server may have it already
    :param is_alone: whether to open a line for it and to close that afterwards. A line that was
        kept can be dying on the other side, and then nobody knows whether a request arrived.
    :param before_send: called right before the request goes out, each time; what it raises ends the
        conversation. The flow calls it, not the driver.
    """

    route: Route
    target: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    open_sink: Callable[[], Sink] | None = None
    max_body: int = 64 * MIB
    seconds: float | None = None
    is_repeatable: bool = False
    is_alone: bool = False
    before_send: Callable[[], None] | None = None


@dataclass(frozen=True)
class Reply:
    """A reply that arrived whole, or whose rest was not wanted.

    :param status: HTTP status
    :param headers: names in lower case
    :param body: the collected body; empty where a sink took it
    :param sink: the sink that took it
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    sink: Any = None


@dataclass(frozen=True)
class Lost:
    """No whole reply arrived.

    :param reason: why, in the words of the network library
    :param was_sent: whether the server may have seen the request; false where no connection came up
    :param is_lasting: whether the next try would meet the same, such as a certificate that is not
        trusted
    """

    reason: str
    was_sent: bool = True
    is_lasting: bool = False


@dataclass(frozen=True)
class Wait:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Now:
    """Read the wall clock: seconds since the epoch, comparable between machines."""


@dataclass(frozen=True)
class Exclusive:
    """Run a flow while no other flow of this session runs one: a login, a renewal."""

    flow: Flow[Any]


@dataclass(frozen=True)
class Report:
    """Tell whoever watches how far a batch is, or what went wrong and when the next try comes.

    :param status: of the batch, as far as it is known
    :param problem: what went wrong
    :param attempt: how many tries have failed by now; 0 where nothing is tried again
    :param pause: seconds until the next try; ``None`` where there is none
    :param progress: of a poll: how far the batch is, how fast, and how long it will take
    """

    status: Any = None
    problem: str | None = None
    attempt: int = 0
    pause: float | None = None
    progress: str = ""

    @property
    def warning(self) -> str | None:
        """The problem as a line for a log, or ``None`` where there is none."""
        if self.problem is None or not self.attempt:
            return self.problem
        comes = "no other follows" if self.pause is None else f"the next in {self.pause:.3g} s"
        return f"{self.problem} (try {self.attempt} failed, {comes})"


@dataclass(frozen=True)
class Notice(Report):
    """Tell whoever watches what was decided, and why.

    :param text: a sentence for the log
    :param is_warning: whether somebody should look at it
    """

    text: str = ""
    is_warning: bool = False

    def __init__(self, text: str, *, is_warning: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "is_warning", is_warning)


@dataclass(frozen=True)
class Conceal:
    """A token has arrived that no log may show."""

    secret: str = field(repr=False)


@dataclass(frozen=True)
class EntraSource:
    """How to get a token from Microsoft Entra ID.

    :param resource: whom the token is for: the server's application id or its URI (the vendor's
        client calls it audience)
    :param tenant_id: the directory
    :param client_id: the application, or the identity that a machine has
    :param client_secret: the application's secret; without one it is a workload or managed identity
    :param authority: the address of the identity provider; ``None`` for the public cloud's
    """

    resource: str
    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    authority: str | None = None

    @property
    def scope(self) -> str:
        """The resource as the protocol of today spells it."""
        return self.resource.rstrip("/") + "/.default"


@dataclass(frozen=True)
class FetchToken:
    """Ask an identity provider for a token."""

    source: EntraSource


Message: TypeAlias = Send | Wait | Now | Exclusive | Report | Conceal | FetchToken
Flow: TypeAlias = Generator[Message, Any, T]
