"""Flows driven by hand: no server, no socket, no clock, each answer written where it is given."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    ArtifactNotFoundError,
    AuthenticationError,
    BatchTimeoutError,
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    InputError,
    MLBatchError,
    NotFoundError,
    RecordError,
    ServiceNotFoundError,
    SubmissionUnknownError,
    UnavailableError,
    UnknownStateError,
)
from airflow_mlbatch.protocol.flows import Flows, PasswordLogin, Policy, ReadyToken
from airflow_mlbatch.protocol.messages import (
    Conceal,
    Exclusive,
    Flow,
    Lost,
    Now,
    Reply,
    Report,
    Send,
    Wait,
)
from airflow_mlbatch.protocol.receive import Receiver
from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.protocol.states import BatchState

START = 1_700_000_000.0
URL = "http://scoring:12800"
USER = PasswordLogin("ada", "correct horse")


def reply(value: Any = None, status: int = 200, **headers: str) -> Reply:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, named, body)


def tokens(number: int, lifetime: int | None = 3600) -> Reply:
    item: dict[str, Any] = {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
    }
    if lifetime is not None:
        item["expires_in"] = lifetime
    return reply(item)


HEALTHY = reply({"statusCode": "pass"})
REFUSED = reply({"message": "expired"}, 401)
NOT_SENT = Lost("connection refused", was_sent=False)
CUT = Lost("connection reset")


@dataclass
class World:
    """Answers the messages of a flow.

    :param answers: to each ``Send``, in order
    """

    answers: list[Reply | Lost | MLBatchError]
    now: float = START
    sent: list[Send] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    depth: int = 0

    def run(self, flow: Flow[Any], answer: Any = None) -> Any:
        error: MLBatchError | None = None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as end:
                return end.value
            answer, error = None, None
            try:
                answer = self._do(step)
            except MLBatchError as raised:
                error = raised

    def _do(self, step: Any) -> Any:
        if isinstance(step, Send):
            return self._answer(step)
        if isinstance(step, Now):
            return self.now
        if isinstance(step, Wait):
            assert self.depth == 0 or step.seconds < 100
            self.waits.append(step.seconds)
            self.now += step.seconds
        elif isinstance(step, Exclusive):
            assert self.depth == 0, "a lock within the lock would wait for itself"
            self.depth += 1
            try:
                return self.run(step.flow)
            finally:
                self.depth -= 1
        elif isinstance(step, Conceal):
            self.secrets.append(step.secret)
        elif isinstance(step, Report):
            self.reports.append(step)
        else:
            raise AssertionError(step)
        return None

    def _answer(self, send: Send) -> Reply | Lost:
        self.sent.append(send)
        answer = self.answers.pop(0) if self.answers else Lost("not in the script")
        if isinstance(answer, MLBatchError):
            raise answer
        if isinstance(answer, Reply):
            # Bodies go the way that a driver sends them: through a receiver, into the sink.
            receiver = Receiver(send, answer.status, answer.headers)
            if not receiver.feed(answer.body):
                finished = receiver.finish()
                assert isinstance(finished, Reply)
                return finished
            return receiver.reply()
        return answer

    @property
    def lines(self) -> list[str]:
        return [f"{send.route.method} {send.target}" for send in self.sent]

    @property
    def tokens_sent(self) -> list[str]:
        return [send.headers.get("authorization", "").removeprefix("Bearer ") for send in self.sent]


def always(policy: Policy | None = None, **changes: Any) -> Flows:
    defaults: dict[str, Any] = {"chance": lambda: 1.0}
    return Flows(USER, URL, policy or Policy(**{**defaults, **changes}))


def sized(value: Any, status: int = 200) -> Reply:
    found = reply(value, status)
    return Reply(found.status, {"content-length": str(len(found.body))}, found.body)


# --- tokens --------------------------------------------------------------------------------------


def test_the_first_request_logs_in() -> None:
    world = World([tokens(1), HEALTHY])
    assert world.run(always().get_server_status()).is_healthy
    assert world.lines == ["POST /login", "GET /status"]
    assert world.tokens_sent == ["", "access-1"]
    assert json.loads(world.sent[0].body or b"") == {"username": "ada", "password": "correct horse"}
    assert world.secrets == ["access-1", "refresh-1"]


def test_a_token_is_used_until_a_minute_before_its_end() -> None:
    flows = always()
    world = World([tokens(1), HEALTHY, HEALTHY, tokens(2), HEALTHY])
    world.run(flows.get_server_status())
    world.now = START + 3539
    world.run(flows.get_server_status())
    world.now = START + 3541
    world.run(flows.get_server_status())

    assert world.lines[2:] == ["GET /status", "POST /login/refreshToken", "GET /status"]
    assert world.tokens_sent[2:] == ["access-1", "", "access-2"]
    assert json.loads(world.sent[3].body or b"") == {"refreshToken": "refresh-1"}


@pytest.mark.parametrize("lifetime", [None, -5, 0])
def test_a_token_whose_end_is_not_known_is_used_until_it_is_refused(lifetime: int | None) -> None:
    flows = always()
    world = World([tokens(1, lifetime), HEALTHY, HEALTHY])
    world.run(flows.get_server_status())
    world.now += 10**6
    world.run(flows.get_server_status())
    assert world.tokens_sent == ["", "access-1", "access-1"]


def test_a_short_life_is_used_for_nine_tenths() -> None:
    flows = always()
    world = World([tokens(1, 10), HEALTHY, HEALTHY, tokens(2, 10), HEALTHY])
    for seconds in (0, 8.9, 0.2):
        world.now += seconds
        world.run(flows.get_server_status())
    assert world.lines[-2:] == ["POST /login/refreshToken", "GET /status"]


@pytest.mark.parametrize(
    "answer",
    [
        reply({"message": "too old"}, 400),
        reply({"message": "revoked"}, 401),
        reply({"message": "broken"}, 500),
        reply(b"<html>", 200),
        CUT,
        ContractError("the packed reply cannot be unpacked"),
    ],
)
def test_a_renewal_that_fails_is_a_login(answer: Any) -> None:
    flows = always()
    world = World([tokens(1), HEALTHY, answer, tokens(2), HEALTHY])
    world.run(flows.get_server_status())
    world.now += 3600
    world.run(flows.get_server_status())
    assert world.lines[2:] == ["POST /login/refreshToken", "POST /login", "GET /status"]
    assert world.waits == []


def test_401_is_answered_by_one_renewal_and_one_replay() -> None:
    world = World([tokens(1), REFUSED, tokens(2), HEALTHY])
    world.run(always().get_server_status())
    assert world.tokens_sent == ["", "access-1", "", "access-2"]


def test_401_for_a_fresh_token_is_the_end() -> None:
    world = World([tokens(1), REFUSED, tokens(2), REFUSED])
    with pytest.raises(AuthenticationError, match="GET /status: 401 expired") as caught:
        world.run(always().get_server_status())
    assert caught.value.is_permanent
    assert len(world.sent) == 4


def test_a_login_that_is_refused_is_the_end() -> None:
    world = World([REFUSED])
    with pytest.raises(AuthenticationError, match="the server refused the login of user 'ada'"):
        world.run(always().get_server_status())
    assert world.lines == ["POST /login"]


def test_a_ready_token_is_used_as_it_is() -> None:
    flows = Flows(ReadyToken("ready"), URL)
    world = World([HEALTHY, REFUSED])
    world.run(flows.get_server_status())
    with pytest.raises(AuthenticationError, match="does not accept the token in the connection"):
        world.run(flows.get_server_status())
    assert world.lines == ["GET /status"] * 2
    assert world.tokens_sent == ["ready"] * 2


def test_who_waited_for_the_lock_takes_the_token_of_who_had_it() -> None:
    flows = always()
    world = World([tokens(1), HEALTHY, HEALTHY])
    first, second = flows.get_server_status(), flows.get_server_status()
    waiting = [next(first), next(second)]
    locked = [first.send(START), second.send(START)]
    assert [type(step) for step in [*waiting, *locked]] == [Now, Now, Exclusive, Exclusive]

    for flow, step in ((first, locked[0]), (second, locked[1])):
        assert isinstance(step, Exclusive)
        token = world.run(step.flow)
        request = flow.send(token)
        while not isinstance(request, Send):
            request = flow.send(START)
        assert request.headers["authorization"] == "Bearer access-1"
    assert world.lines == ["POST /login"]


def test_a_renewal_refused_for_one_is_not_done_again_for_the_other() -> None:
    """Both were told 401 for the same token; the second finds the new one in place."""
    flows = always()
    world = World([tokens(1), HEALTHY, REFUSED, REFUSED, tokens(2), HEALTHY, HEALTHY])
    world.run(flows.get_server_status())
    both = [flows.get_server_status(), flows.get_server_status()]
    locked = [until_locked(flow, world) for flow in both]
    for flow, step in zip(both, locked, strict=True):
        world.run(flow, world.run(step.flow))
    assert world.tokens_sent[2:] == ["access-1", "access-1", "", "access-2", "access-2"]
    assert world.lines.count("POST /login/refreshToken") == 1


def until_locked(flow: Flow[Any], world: World) -> Exclusive:
    """Run a flow until it wants to be alone."""
    step = next(flow)
    while not isinstance(step, Exclusive):
        step = flow.send(world._do(step))
    return step


# --- repeats -------------------------------------------------------------------------------------


def waits_of(answers: Sequence[Any], chance: Callable[[], float] = lambda: 1.0) -> list[float]:
    world = World([tokens(1), *answers, HEALTHY])
    world.run(always(chance=chance).get_server_status())
    return world.waits


def test_waits_double_up_to_the_longest() -> None:
    assert waits_of([CUT] * 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.999])
def test_waits_are_jittered_between_half_and_whole(chance: float) -> None:
    share = 0.5 + 0.5 * chance
    assert waits_of([CUT] * 3, lambda: chance) == [0.5 * share, 1 * share, 2 * share]


@pytest.mark.parametrize(
    ("word", "wait"),
    [
        ("7", 7.0),
        ("0", 0.5),
        (" 7 ", 7.0),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        ("Tue, 14 Nov 2023 22:13:30 -0000", 10.0),
        ("Tue, 14 Nov 2023 23:13:30 +0100", 10.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.5),
        ("soon", 0.5),
        ("-3", 0.5),
        ("Tue, 99 Nov 2023 22:13:30 GMT", 0.5),
        ("", 0.5),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_how_long(word: str, wait: float, status: int) -> None:
    assert waits_of([reply({}, status, retry_after=word)]) == [wait]


def test_what_is_asked_for_too_late_is_not_waited_for() -> None:
    world = World([tokens(1), reply(b"busy", 503, retry_after="121")])
    with pytest.raises(UnavailableError, match="503 busy"):
        world.run(always().get_server_status())
    assert world.waits == []


def test_the_time_for_repeats_is_bounded() -> None:
    world = World([tokens(1), *[CUT] * 50])
    with pytest.raises(ConnectionLostError, match=f"GET /status at {URL}: connection reset"):
        world.run(always().get_server_status())
    assert sum(world.waits) <= 120
    assert len(world.waits) == 8


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 500, 501, 505])
def test_other_refusals_are_not_repeated(status: int) -> None:
    world = World([tokens(1), reply({"message": "no"}, status)])
    with pytest.raises(MLBatchError, match=f"{status} no"):
        world.run(always().get_server_status())
    assert len(world.sent) == 2


def test_what_would_be_met_again_is_not_repeated() -> None:
    world = World([Lost("TLS failed (self-signed)", was_sent=False, is_lasting=True)])
    with pytest.raises(ConnectionLostError, match="TLS failed"):
        world.run(always().get_server_status())
    assert len(world.sent) == 1


# --- submissions ---------------------------------------------------------------------------------

STARTED = sized({"batchExecutionId": "id-1"}, 202)


def submit(*answers: Any) -> tuple[World, Any]:
    world = World([tokens(1), *answers])
    return world, world.run(always().start_batch("s", "1", b"[{}]", 3))


@pytest.mark.parametrize(
    ("answers", "posts"),
    [
        ([STARTED], 1),
        ([NOT_SENT, NOT_SENT, STARTED], 3),
        ([reply({}, 429), STARTED], 2),
        ([REFUSED, tokens(2), STARTED], 2),
    ],
)
def test_a_submission_that_comes_through(answers: list[Any], posts: int) -> None:
    world, execution_id = submit(*answers)
    assert execution_id == "id-1"
    assert world.lines.count("POST /api/s/1/batch?parallelCount=3") == posts


@pytest.mark.parametrize(
    "answer",
    [
        CUT,
        Lost("no answer in time"),
        reply({"message": "bad gateway"}, 502),
        reply({"message": "slow gateway"}, 504),
        sized({}, 202),
        sized(b"<html>", 202),
        ContractError("the packed reply cannot be unpacked"),
    ],
)
def test_a_submission_that_may_have_come_through_is_not_repeated(answer: Any) -> None:
    with pytest.raises(SubmissionUnknownError, match="the batch may have been started, or not"):
        submit(answer)


def test_a_submission_that_is_unknown_after_a_connection_at_last() -> None:
    with pytest.raises(SubmissionUnknownError):
        submit(NOT_SENT, CUT)


@pytest.mark.parametrize("status", [500, 503])
def test_a_submission_to_a_broken_server_is_not_repeated(status: int) -> None:
    with pytest.raises(UnavailableError):
        submit(reply({"message": "down"}, status))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3", None])
def test_parallel_count_is_checked_before_anything_is_sent(count: Any) -> None:
    world = World([])
    with pytest.raises(InputError, match="^parallel_count: found"):
        world.run(always().start_batch("s", "1", b"[]", count))
    assert world.sent == []


@pytest.mark.parametrize("index", [-1, True, "0", None, 1.0])
def test_an_index_is_checked_before_anything_is_sent(index: Any) -> None:
    world = World([])
    with pytest.raises(InputError, match="^index: found"):
        world.run(always().list_artifacts("s", "1", "id", index))
    assert world.sent == []


def test_inputs_are_checked_before_anything_is_sent() -> None:
    service = Service("s", "1", inputs=(Parameter("hp", "numeric"),))
    world = World([])
    with pytest.raises(RecordError, match="inputs, field 'hp'"):
        world.run(always().consume(service, {"hp": "fast"}))
    assert world.sent == []


def test_consume_is_never_sent_twice() -> None:
    service = Service("s", "1", inputs=(Parameter("hp", "numeric"),))
    world = World([tokens(1), CUT])
    with pytest.raises(ConnectionLostError):
        world.run(always().consume(service, {"hp": 1}))
    assert world.lines == ["POST /login", "POST /api/s/1"]


# --- what is not there ---------------------------------------------------------------------------

FLOWS: dict[str, Callable[[Flows], Flow[Any]]] = {
    "status": lambda flows: flows.get_server_status(),
    "service": lambda flows: flows.get_service("s", "1"),
    "start": lambda flows: flows.start_batch("s", "1", b"[]"),
    "poll": lambda flows: flows.get_batch_status("s", "1", "id"),
    "files": lambda flows: flows.list_artifacts("s", "1", "id", 0),
    "file": lambda flows: flows.get_artifact("s", "1", "id", 0, "f"),
}


@pytest.mark.parametrize(
    ("name", "message", "error"),
    [
        ("status", "execution not found", NotFoundError),
        ("service", "web service not found", ServiceNotFoundError),
        ("service", "what?", ServiceNotFoundError),
        ("service", "File or directory not found.", ServiceNotFoundError),
        ("start", "execution not found", ServiceNotFoundError),
        ("poll", "Web service 's' not found", ServiceNotFoundError),
        ("poll", "Execution not found", ExecutionNotFoundError),
        ("poll", "what?", ExecutionNotFoundError),
        ("files", "execution id not found", ExecutionNotFoundError),
        ("file", "File not found", ArtifactNotFoundError),
        ("file", "what?", ArtifactNotFoundError),
        ("file", "execution not found", ExecutionNotFoundError),
        ("file", "web service 'profiles' not found", ServiceNotFoundError),
    ],
)
def test_404_is_told_apart_by_its_words(name: str, message: str, error: type[Exception]) -> None:
    world = World([tokens(1), reply({"message": message}, 404)])
    with pytest.raises(NotFoundError) as caught:
        world.run(FLOWS[name](always()))
    assert type(caught.value) is error
    assert caught.value.status == 404
    assert type(pickle.loads(pickle.dumps(caught.value))) is error


def test_another_version_than_asked_for_is_not_there() -> None:
    world = World([tokens(1), reply([{"name": "s", "version": "2"}])])
    with pytest.raises(ServiceNotFoundError, match="not in the server's answer"):
        world.run(always().get_service("s", "1"))


def test_a_second_delete_finds_nothing() -> None:
    world = World([tokens(1), CUT, reply({"message": "execution not found"}, 404)])
    assert world.run(always().cancel_batch("s", "1", "id")) is False


# --- secrets -------------------------------------------------------------------------------------

SECRET = 'pass"word / <one>  &\\'


@pytest.mark.parametrize(
    "body",
    [
        SECRET.encode(),
        json.dumps({"message": f"no user with {SECRET}"}).encode(),
        json.dumps([SECRET]).encode(),
        b"<p>pass&quot;word / &lt;one&gt;  &amp;\\</p>",
        b"?p=pass%22word%20%2F%20%3Cone%3E%20%20%26%5C",
        ("x" * 285 + SECRET).encode(),
    ],
)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_password_that_a_server_sends_back_is_not_shown(body: bytes, status: int) -> None:
    world = World([reply(body, status)])
    flows = Flows(PasswordLogin("ada", SECRET), URL)
    with pytest.raises(MLBatchError) as caught:
        world.run(flows.get_server_status())
    assert "***" in str(caught.value)
    assert "pass" not in str(caught.value)
    assert SECRET not in repr(flows._login)


@pytest.mark.parametrize("status", [200, 400])
def test_a_long_token_is_not_shown_where_a_body_is_cut(status: int) -> None:
    token = "eyJhbGciOiJIUzI1NiJ9." + "abcdefghij" * 100
    page = b"<html>you sent: authorization: Bearer " + token.encode()
    world = World([reply({"access_token": token}), sized(page, status)])
    with pytest.raises(MLBatchError) as caught:
        world.run(always().get_server_status())
    assert "eyJ" not in str(caught.value)
    assert "abcdefghij" not in str(caught.value)
    assert "Bearer ***" in str(caught.value)


def test_a_token_of_before_is_not_shown_either() -> None:
    world = World([tokens(1), REFUSED, tokens(2), reply({"message": "access-1, access-2"}, 500)])
    with pytest.raises(UnavailableError, match=r"500 \*\*\*, \*\*\*$"):
        world.run(always().get_server_status())


def test_what_led_to_an_error_is_not_shown_either() -> None:
    world = World([tokens(1), sized(b"<p>access-1</p>", 202)])
    with pytest.raises(SubmissionUnknownError) as caught:
        world.run(always().start_batch("s", "1", b"[]"))
    assert caught.value.__cause__ is not None
    assert "access-1" not in f"{caught.value} {caught.value.__cause__}"


def test_messages_show_no_secrets() -> None:
    world = World([tokens(1), HEALTHY])
    world.run(always().get_server_status())
    shown = repr(world.sent) + repr(Conceal("access-1")) + repr(USER)
    for secret in ("access-1", "refresh-1", "correct horse"):
        assert secret not in shown


# --- watching ------------------------------------------------------------------------------------


def batch(state: str, done: int = 0, total: int = 4) -> Reply:
    return sized({"state": state, "completedItemCount": done, "totalItemCount": total})


def watch(
    *answers: Any, deadline: float | None = None, interval: float = 10, problems: int = 3
) -> tuple[World, Any]:
    world = World([tokens(1), *answers])
    flows = always(poll_problems=problems, repeat_seconds=0)
    try:
        found = world.run(
            flows.watch_batch("s", "1", "id", poll_interval=interval, deadline=deadline)
        )
    except MLBatchError as error:
        found = error
    return world, found


def test_a_watch_ends_with_the_batch() -> None:
    world, found = watch(batch("pending"), batch("inProgress", 1), batch("Complete", 4))
    assert (found.state, str(found)) == (BatchState.COMPLETE, "4 of 4 records, 100 %")
    assert world.waits == [10, 10]
    assert [str(report.status) for report in world.reports] == [
        "0 of 4 records, 0 %",
        "1 of 4 records, 25 %",
        "4 of 4 records, 100 %",
    ]


FAILED: dict[str, Any] = {"state": "failed", "completedItemCount": 2, "totalItemCount": 4}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"message": "out of memory"}, "out of memory"),
        ({"ErrorMessage": "out of memory", "batchExecutionResults": None}, "out of memory"),
        (
            {
                "batchExecutionResults": [
                    {"success": True, "errorMessage": ""},
                    {"success": False, "errorMessage": "no such model"},
                    {"success": False, "errorMessage": "nor this one"},
                ]
            },
            "no such model",
        ),
        ({"message": "the token was access-1"}, "the token was ***"),
        ({"message": 7, "batchExecutionResults": []}, ""),
        ({"batchExecutionResults": ["nonsense"]}, ""),
    ],
)
def test_failed_is_an_end_too_and_brings_the_reason(answer: dict[str, Any], words: str) -> None:
    world, found = watch(batch("failed", 2), sized({**FAILED, **answer}))
    assert (found.state, found.message) == (BatchState.FAILED, words)
    assert len(world.sent) == 3
    assert "showPartialResults=true" in world.lines[2]


@pytest.mark.parametrize("answer", [CUT, sized(b"<html>"), reply({"message": "gone"}, 404)])
def test_a_batch_has_failed_also_if_nobody_says_why(answer: Any) -> None:
    found = watch(batch("failed", 2), answer)[1]
    assert (found.state, found.message) == (BatchState.FAILED, "")


def test_a_few_problems_in_a_row_are_forgiven() -> None:
    world, found = watch(
        CUT, reply({}, 503), batch("inProgress", 2), CUT, CUT, batch("complete", 4)
    )
    assert found.state is BatchState.COMPLETE
    assert [bool(report.problem) for report in world.reports] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert str(world.reports[3].status) == "2 of 4 records, 50 %"


def test_many_problems_in_a_row_are_not() -> None:
    world, found = watch(CUT, sized(b"<html>"), reply({}, 500), batch("complete", 4))
    assert type(found) is UnavailableError
    assert len(world.sent) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (batch("paused"), UnknownStateError),
        (reply({"message": "execution not found"}, 404), ExecutionNotFoundError),
        (reply({"message": "not yours"}, 403), MLBatchError),
    ],
)
def test_what_will_not_pass_ends_a_watch(answer: Any, error: type[Exception]) -> None:
    world, found = watch(batch("pending"), answer)
    assert isinstance(found, error)
    assert len(world.sent) == 3


def test_a_deadline_has_one_last_poll() -> None:
    world, found = watch(*[batch("inProgress", 1)] * 9, deadline=START + 25)
    assert isinstance(found, BatchTimeoutError)
    assert str(found) == "execution id is not complete at the deadline: 1 of 4 records, 25 %"
    assert world.waits == [10, 10, 5]
    assert world.now == START + 25


def test_a_batch_that_is_done_at_the_deadline_is_done() -> None:
    _, found = watch(batch("inProgress", 1), batch("complete", 4), deadline=START + 5)
    assert found.state is BatchState.COMPLETE


def test_a_deadline_that_is_past_has_one_poll_too() -> None:
    world, found = watch(batch("complete", 4), deadline=START - 5)
    assert found.state is BatchState.COMPLETE
    assert world.waits == []


def test_a_deadline_without_any_answer_says_so() -> None:
    _, found = watch(CUT, CUT, CUT, CUT, deadline=START + 5, problems=1)
    assert isinstance(found, ConnectionLostError)
    _, found = watch(CUT, CUT, deadline=START + 5)
    assert str(found).endswith("at the deadline: no poll was answered")


def test_counts_that_shrink_are_told_as_they_are() -> None:
    world, _ = watch(batch("inProgress", 3), batch("inProgress", 1), batch("complete", 4))
    assert [report.status.completed_item_count for report in world.reports] == [3, 1, 4]


# --- results -------------------------------------------------------------------------------------


def results(count: int, total: int | None = None, state: str = "complete") -> Reply:
    item = {"success": True, "outputParameters": {"answer": 1.0}}
    return sized(
        {
            "state": state,
            "totalItemCount": count if total is None else total,
            "batchExecutionResults": [item] * count,
        }
    )


def read(*answers: Any, partial: bool = True) -> tuple[int, Any]:
    taken = 0

    def take(block: Any) -> None:
        nonlocal taken
        taken += len(block)

    world = World([tokens(1), *answers])
    flow = always().read_batch_results("s", "1", "id", None, take, partial=partial)
    return taken, (world.run(flow), taken, world)


def test_results_are_counted() -> None:
    _, (status, taken, world) = read(results(3))
    assert (status.completed_item_count, taken) == (3, 3)
    assert world.lines[1].endswith("?showPartialResults=true&showPartialResult=true")


def test_partial_results_need_not_be_all() -> None:
    _, (status, taken, _) = read(results(2, 5, "inProgress"))
    assert (str(status), taken) == ("2 of 5 records, 40 %", 2)


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_than_promised_is_an_error(count: int) -> None:
    with pytest.raises(ContractError, match=f"complete with {count} results, expected 3"):
        read(results(count, 3))


def test_results_without_a_way_back_are_not_started_over() -> None:
    """Blocks that were handed on cannot be taken back."""
    taken: list[Any] = []
    flow = always().read_batch_results("s", "1", "id", None, taken.append)
    world = World([tokens(1), results(3)])
    step = next(flow)
    while not (isinstance(step, Send) and step.open_sink):
        answer = world.run(step.flow) if isinstance(step, Exclusive) else START
        step = flow.send(answer)
    sink = step.open_sink()
    sink.feed(results(3).body)
    sink.close()
    assert taken

    with pytest.raises(ConnectionLostError, match="in the middle of the results"):
        step.open_sink()
    flow.close()
