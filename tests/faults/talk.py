"""One conversation through either driver, with a clock of the test's own.

``Now`` and ``Wait`` are answered here, so that minutes of back-off pass in no time and the number
of repeats depends on nothing but the policy; all that touches the network is the driver's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.flows import Flows, Login, PasswordLogin, Policy
from airflow_mlbatch.protocol.messages import Exclusive, Flow, Now, Report, Send, Wait
from airflow_mlbatch.transport.blocking import BlockingDriver
from airflow_mlbatch.transport.endpoint import Endpoint
from airflow_mlbatch.transport.nonblocking import NonblockingDriver

DriverName: TypeAlias = Literal["blocking", "nonblocking"]
DRIVERS: tuple[DriverName, ...] = ("blocking", "nonblocking")

USER = PasswordLogin("ada", "s3cret-passw0rd")
START = 1_700_000_000.0


@dataclass
class Clock:
    """A clock that only ``Wait`` moves, and a list of all that was sent."""

    now: float = START
    waits: list[float] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    def over(self, flow: Flow[Any]) -> Flow[Any]:
        """The same flow, on this clock."""
        step = next_step(flow)
        while not isinstance(step, End):
            try:
                if isinstance(step, Exclusive):
                    answer = yield Exclusive(self.over(step.flow))
                elif isinstance(step, Now):
                    answer = self.now
                elif isinstance(step, Wait):
                    self.waits.append(step.seconds)
                    self.now += step.seconds
                    answer = None
                else:
                    if isinstance(step, Send):
                        self.sent.append(f"{step.route.method} {step.target}")
                    answer = yield step
            except MLBatchError as error:
                step = next_step(flow, error=error)
            else:
                step = next_step(flow, answer)
        return step.value


@dataclass(frozen=True)
class End:
    """A flow has returned."""

    value: Any


def next_step(flow: Flow[Any], answer: Any = None, error: MLBatchError | None = None) -> Any:
    """Send an answer into a flow, or throw an error; what it wants next, or :class:`End`."""
    try:
        return flow.send(answer) if error is None else flow.throw(error)
    except StopIteration as end:
        return End(end.value)


@dataclass(frozen=True)
class Outcome:
    """How a conversation ended, in terms that must not depend on the driver."""

    value: Any = None
    error: type[BaseException] | None = None
    text: str = ""
    waits: tuple[float, ...] = ()
    sent: tuple[str, ...] = ()
    reports: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Talk:
    """How to hold conversations: with whom, as whom, and how patiently."""

    url: str
    login: Login = USER
    policy: Policy = field(default_factory=lambda: Policy(chance=lambda: 1.0))
    endpoint: dict[str, Any] = field(default_factory=dict)

    def without_port(self, text: str) -> str:
        """A sentence as it is the same for every server: ``GET /status at URL: …``."""
        return text.replace(f" at {self.url.rstrip('/')}:", " at URL:")

    def hold(self, driver: DriverName, *says: Callable[[Flows], Flow[Any]]) -> Outcome:
        """Run flows of one session one after another; the outcome is that of the last one."""
        flows = Flows(self.login, self.url, self.policy)
        endpoint = Endpoint(self.url, **{"read_timeout": 10.0, **self.endpoint})
        clock = Clock()
        reports: list[tuple[str | None, str | None]] = []
        warnings: list[str] = []
        secrets: list[str] = []

        def note(report: Report) -> None:
            problem = self.without_port(report.problem) if report.problem else None
            if report.warning is not None:
                warnings.append(self.without_port(report.warning))
            reports.append((str(report.status) if report.status else None, problem))

        def run_blocking() -> Any:
            talker = BlockingDriver(endpoint, secrets.append)
            try:
                return [talker.run(clock.over(say(flows)), note) for say in says][-1]
            finally:
                talker.close()

        async def run_nonblocking() -> Any:
            async def conceal(secret: str) -> None:
                secrets.append(secret)

            talker = NonblockingDriver(endpoint, conceal)
            try:
                return [await talker.run(clock.over(say(flows)), note) for say in says][-1]
            finally:
                await talker.close()

        value, error = None, None
        try:
            value = run_blocking() if driver == "blocking" else asyncio.run(run_nonblocking())
        except MLBatchError as raised:
            error = raised
        return Outcome(
            value=value,
            error=type(error) if error else None,
            text=self.without_port(str(error)) if error else "",
            waits=tuple(clock.waits),
            sent=tuple(clock.sent),
            reports=tuple(reports),
            warnings=tuple(warnings),
            secrets=tuple(secrets),
        )
