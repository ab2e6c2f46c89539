"""The faults of servers and networks, and what becomes of them: one table, as data.

Each fault is played on each path of the product. A cell says two things: what happens when the
fault passes (it is met once and the next answer is good) and what happens when it stays. The tests
play every cell through both drivers; ``docs/faults.md`` is generated from here.

The numbers of requests hold for :data:`POLICY` on the clock of :mod:`tests.faults.talk`.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from airflow_mlbatch.errors import (
    ArtifactNotFoundError,
    AuthenticationError,
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    ForbiddenError,
    MLBatchError,
    NoBatchError,
    RejectedError,
    ReplyTooLargeError,
    ServiceExistsError,
    ServiceNotFoundError,
    SubmissionUnknownError,
    UnavailableError,
    UnknownStateError,
)
from airflow_mlbatch.protocol.flows import Flows, Policy
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.publications import Publication, Published
from airflow_mlbatch.protocol.services import Parameter
from tests.faults.server import Act, Answer, HangUp, Reset, Silence, as_json
from tests.faults.talk import START

# Five seconds of repeats are four requests: at once, and after 0.5, 1 and 2 seconds.
POLICY = Policy(repeat_seconds=5.0, poll_problems=2, chance=lambda: 1.0)
TRIES = 4

SERVICE, VERSION, EXECUTION = "mtService", "v1.0.0", "id-1"
TOKENS = {
    "access_token": "token-one",
    "expires_in": 3600,
    "refresh_token": "refresh-one",
}
FRESH = {"access_token": "token-two", "expires_in": 3600, "refresh_token": "refresh-two"}
SECRETS = ("token-one", "token-two", "refresh-one", "refresh-two", "s3cret-passw0rd")


class Path(Enum):
    """Where a fault is met."""

    CALL = "hook call"
    SUBMISSION = "submission"
    POLL = "poll"
    RESULTS = "results"
    ARTIFACT = "artifact"
    PUBLICATION = "publication"


@dataclass(frozen=True)
class Scene:
    """One path: what is said, on which verb, and the good answer."""

    method: str
    target: str
    say: Callable[[Flows], Flow[Any]]
    good: Answer
    value: Any


def _batch(state: str, done: int, total: int) -> dict[str, Any]:
    result = {"success": True, "outputParameters": {"answer": 0.5}}
    return {
        "state": state,
        "completedItemCount": done,
        "totalItemCount": total,
        "batchExecutionResults": [result] * done,
    }


def _results(flows: Flows) -> Flow[Any]:
    taken: list[Any] = []

    def read() -> Flow[Any]:
        yield from flows.read_batch_results(
            SERVICE,
            VERSION,
            EXECUTION,
            (Parameter("answer", "numeric"),),
            lambda block: taken.extend(block.outputs["answer"]),
            restart=taken.clear,
        )
        return taken

    return read()


def _poll(flows: Flows) -> Flow[Any]:
    def watch() -> Flow[Any]:
        status = yield from flows.watch_batch(SERVICE, VERSION, EXECUTION, poll_interval=5)
        return str(status)

    return watch()


def _call(flows: Flows) -> Flow[Any]:
    def call() -> Flow[Any]:
        service = yield from flows.get_service(SERVICE, VERSION)
        return service.name

    return call()


PUBLICATION = Publication(code="answer = hp", runtime_type="Python")
COMPLETE = as_json(_batch("Complete", 3, 3))
_BATCH = f"/api/{SERVICE}/{VERSION}/batch"
SCENES: Mapping[Path, Scene] = {
    Path.CALL: Scene(
        "GET",
        f"/services/{SERVICE}/{VERSION}",
        _call,
        as_json(
            [
                {
                    "name": SERVICE,
                    "version": VERSION,
                    "inputParameterDefinitions": [
                        {"name": "hp", "type": "numeric"},
                        {"name": "wt", "type": "numeric"},
                    ],
                    "outputParameterDefinitions": [{"name": "answer", "type": "numeric"}],
                }
            ]
        ),
        SERVICE,
    ),
    Path.SUBMISSION: Scene(
        "POST",
        _BATCH,
        lambda flows: flows.start_batch(SERVICE, VERSION, b'[{"hp":120,"wt":2.8}]'),
        as_json({"batchExecutionId": EXECUTION}, 202),
        EXECUTION,
    ),
    Path.POLL: Scene("GET", f"{_BATCH}/{EXECUTION}", _poll, COMPLETE, "3 of 3 records, 100 %"),
    Path.RESULTS: Scene("GET", f"{_BATCH}/{EXECUTION}", _results, COMPLETE, [0.5] * 3),
    Path.ARTIFACT: Scene(
        "GET",
        f"{_BATCH}/{EXECUTION}/0/files/Histogram.png",
        lambda flows: flows.get_artifact(
            SERVICE, VERSION, EXECUTION, 0, "Histogram.png", max_body=100_000
        ),
        Answer(200, b"a picture"),
        b"a picture",
    ),
    Path.PUBLICATION: Scene(
        "POST",
        f"/services/{SERVICE}/{VERSION}",
        lambda flows: flows.publish_service(SERVICE, VERSION, PUBLICATION, {}),
        as_json(VERSION, 201),
        Published.NEW,
    ),
}
READING = (Path.CALL, Path.POLL, Path.RESULTS, Path.ARTIFACT)


@dataclass(frozen=True)
class Cell:
    """What becomes of a fault on one path.

    :param error: what is raised when the fault stays; ``None`` where it does no harm
    :param text: part of the error's text
    :param requests: how many requests of this path are sent when the fault stays
    :param is_retried: whether all is well when the fault passes
    :param deferred_requests: how many a sensor sends, or a deferred task, where that is not one poll
        more than a watch sends
    :param reader_error: what a task raises instead whose batch another task has started
    """

    error: type[MLBatchError] | None
    text: str = ""
    requests: int = 1
    is_retried: bool = False
    deferred_requests: int | None = None
    reader_error: type[MLBatchError] | None = None

    @property
    def requests_after_a_poll(self) -> int:
        """How many are sent by what polls once before it watches, as sensors do in every mode."""
        if self.deferred_requests is not None:
            return self.deferred_requests
        is_forgiven = self.error is not None and not self.error.is_permanent
        # The first failing poll, and then the two of POLICY.
        return self.requests * 3 // 2 if is_forgiven else self.requests


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    :param name: in words
    :param act: what the server does on a path, given its good answer; ``None``: nobody listens
    :param cells: what becomes of it, by path; a path that cannot meet it is left out
    :param renewal: what the server does at a renewal
    :param note: what a reader should know besides
    :param read_timeout: seconds to wait for the next bytes; short where a test waits for its end
    :param small_seconds: most time of a small exchange, likewise
    :param is_published: whether a publication that meets it is carried out all the same
    """

    name: str
    act: Callable[[Path, Answer], Act | Sequence[Act]] | None
    cells: Mapping[Path, Cell]
    renewal: Act = field(default_factory=lambda: as_json(FRESH))
    note: str = ""
    read_timeout: float = 10.0
    small_seconds: float = 10.0
    is_published: bool = False


def _everywhere(act: Act) -> Callable[[Path, Answer], Act]:
    return lambda path, good: act


def _reading(error: type[MLBatchError], text: str, *, tries: int = TRIES) -> dict[Path, Cell]:
    """The same on all reading paths: retried by each request, and by the poll once more."""
    cells = {path: Cell(error, text, tries, is_retried=True) for path in READING}
    cells[Path.POLL] = Cell(error, text, 2 * tries, is_retried=True)
    return cells


def _lost(text: str) -> dict[Path, Cell]:
    unknown = Cell(SubmissionUnknownError, f"{text}; the batch may have been started, or not")
    # It was looked for, and is not there.
    publication = Cell(ConnectionLostError, text)
    return {
        **_reading(ConnectionLostError, text),
        Path.SUBMISSION: unknown,
        Path.PUBLICATION: publication,
    }


def _refused(error: type[MLBatchError], text: str) -> dict[Path, Cell]:
    return {path: Cell(error, text) for path in Path}


def _garbled(texts: Mapping[Path, str]) -> dict[Path, Cell]:
    """A success that cannot be read: an error at once, but one poll is forgiven."""
    cells = {path: Cell(ContractError, text) for path, text in texts.items()}
    if Path.POLL in cells:
        cells[Path.POLL] = Cell(ContractError, texts[Path.POLL], 2, is_retried=True)
    if Path.SUBMISSION in cells:
        cells[Path.SUBMISSION] = Cell(SubmissionUnknownError, texts[Path.SUBMISSION])
    return cells


def _busy(status: int) -> dict[Path, Cell]:
    text = f"{status} the server is busy"
    submission = Cell(UnavailableError, text)
    if status in (502, 504):
        submission = Cell(
            SubmissionUnknownError, f"{text}; the batch may have been started, or not"
        )
    return {
        **_reading(UnavailableError, text),
        Path.SUBMISSION: submission,
        Path.PUBLICATION: Cell(UnavailableError, text),
    }


def _slowed(text: str) -> dict[Path, Cell]:
    """429: nothing was done, so that all paths try again."""
    cells = _reading(UnavailableError, text, tries=2)
    cell = Cell(UnavailableError, text, 2, is_retried=True)
    return {**cells, Path.SUBMISSION: cell, Path.PUBLICATION: cell}


def _message(words: str, status: int) -> Answer:
    return as_json({"code": status, "message": words, "fields": ""}, status)


def _good_with(**changes: Any) -> Callable[[Path, Answer], Act]:
    """The good answer of the path, sent in a bad way."""

    def act(path: Path, good: Answer) -> Act:
        return Answer(good.status, good.body, good.headers, **changes)

    return act


def _truncated(path: Path, good: Answer) -> Act:
    assert isinstance(good.body, bytes)
    return Answer(good.status, good.body[:-4], good.headers)


def _dripped(path: Path, good: Answer) -> Act:
    assert isinstance(good.body, bytes)
    # Spaces are no matter in JSON; the file's bytes are.
    padding = b"" if path is Path.ARTIFACT else b" " * 200
    return Answer(good.status, padding + good.body, good.headers, pause=0.02, piece=8)


def _status_only(path: Path, good: Answer) -> Act | Sequence[Act]:
    return as_json(_batch("Pausiert", 1, 3))


def _shrinking(path: Path, good: Answer) -> Sequence[Act]:
    return [as_json(_batch("inProgress", 2, 3)), as_json(_batch("inProgress", 1, 3)), good]


def _expired(path: Path, good: Answer) -> Sequence[Act]:
    return [as_json(_batch("inProgress", 1, 3)), _message("token expired", 401), good]


def _restarted(path: Path, good: Answer) -> Sequence[Act]:
    return [Reset(), _message("the server is busy", 503), _message("unknown token", 401), good]


OTHER_BATCH = "a number of records that shrinks"
PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
_PAGE = "expected JSON (JSON is malformed: invalid character (byte 0)), found <!DOCTYPE html>"
_SOON = [("Retry-After", "3")]
# START and three seconds.
_SOON_AS_DATE = [("Retry-After", "Tue, 14 Nov 2023 22:13:23 GMT")]
assert START == 1_700_000_000

_NOT_201 = "reply to a publication: found status 200, expected 201"
_FOUND_NOTHING = "expected JSON (Input data was truncated)"

FAULTS: Sequence[Fault] = (
    Fault(
        "connection refused",
        None,
        {
            **_reading(ConnectionLostError, "connection refused"),
            Path.SUBMISSION: Cell(
                ConnectionLostError, "connection refused", TRIES, is_retried=True
            ),
        },
        note="Nothing can have arrived, so that a submission is tried again, too.",
    ),
    Fault("connection reset", _everywhere(Reset()), _lost("connection reset")),
    Fault(
        "connection closed without a reply",
        _everywhere(HangUp()),
        _lost("the server closed the connection before the reply was whole"),
    ),
    Fault(
        "reply cut in the middle",
        _good_with(stop_after=5),
        _lost("the server closed the connection before the reply was whole"),
    ),
    Fault(
        "no reply",
        _everywhere(Silence()),
        _lost("no answer in time"),
        note="After `read_timeout`.",
        read_timeout=0.3,
    ),
    Fault(
        "slow drip",
        _dripped,
        {
            **{
                path: cell
                for path, cell in _reading(ConnectionLostError, "no answer in time").items()
                if path in (Path.CALL, Path.POLL)
            },
            Path.SUBMISSION: Cell(None),
            Path.RESULTS: Cell(None),
            Path.ARTIFACT: Cell(None),
            Path.PUBLICATION: Cell(None),
        },
        note="Small exchanges have a time limit; long ones are read as long as bytes come.",
        small_seconds=0.2,
    ),
    Fault(
        "429 with Retry-After in seconds",
        _everywhere(Answer(429, b"slow down", _SOON)),
        _slowed("429 slow down"),
        note="Waits as long as told, unless that is longer than repeats may take.",
    ),
    Fault(
        "429 with Retry-After as a date",
        _everywhere(Answer(429, b"slow down", _SOON_AS_DATE)),
        {
            **{path: Cell(UnavailableError, "429 slow down", 3, is_retried=True) for path in Path},
            Path.POLL: Cell(
                UnavailableError,
                "429 slow down",
                3 + TRIES,
                is_retried=True,
                deferred_requests=3 + 2 * TRIES,
            ),
        },
        note="Waits until then; when that is past, as after any other busy reply.",
    ),
    Fault(
        "500",
        _everywhere(_message("something broke", 500)),
        {
            **_refused(UnavailableError, "500 something broke"),
            Path.POLL: Cell(UnavailableError, "500 something broke", 2, is_retried=True),
        },
        note="Not repeated by the request; the next poll, or the next try of the task, may succeed.",
    ),
    *(
        Fault(str(status), _everywhere(_message("the server is busy", status)), _busy(status))
        for status in (502, 503, 504)
    ),
    Fault(
        "invalid JSON",
        _everywhere(Answer(200, b'{"state" = 3}')),
        _garbled(
            {
                Path.CALL: "list of services: expected JSON",
                Path.SUBMISSION: "reply to the start of a batch: expected JSON",
                Path.POLL: "batch document: it ends too early",
                Path.RESULTS: "batch document: it ends too early",
                Path.PUBLICATION: _NOT_201,
            }
        ),
    ),
    Fault(
        "truncated JSON",
        _truncated,
        _garbled(
            {
                Path.CALL: f"list of services: {_FOUND_NOTHING}",
                Path.SUBMISSION: f"reply to the start of a batch: {_FOUND_NOTHING}",
                Path.RESULTS: "batch document: it ends too early",
            }
        ),
        note="A poll has read what it needs before.",
    ),
    Fault(
        "HTML login page with status 200",
        _everywhere(Answer(200, PAGE, [("Content-Type", "text/html")])),
        _garbled(
            {
                Path.CALL: f"list of services: {_PAGE}",
                Path.SUBMISSION: f"reply to the start of a batch: {_PAGE}",
                Path.POLL: "batch document: expected an object, found <!DOCTYPE html>",
                Path.RESULTS: "batch document: expected an object, found <!DOCTYPE html>",
                Path.PUBLICATION: _NOT_201,
            }
        ),
    ),
    Fault(
        "gzip that does not unpack",
        _everywhere(Answer(200, b"never packed", [("Content-Encoding", "gzip")])),
        _garbled(dict.fromkeys(Path, "the packed reply cannot be unpacked")),
    ),
    Fault(
        "gzip that ends too early",
        _everywhere(Answer(200, gzip.compress(b" " * 999)[:-9], [("Content-Encoding", "gzip")])),
        _garbled(dict.fromkeys(Path, "the packed reply ends too early")),
    ),
    Fault(
        "401",
        _everywhere(_message("token expired", 401)),
        {path: Cell(AuthenticationError, "401 token expired", 2, is_retried=True) for path in Path},
        note="One renewal and one replay.",
    ),
    Fault(
        "401, and the refresh token is dead",
        _everywhere(_message("token expired", 401)),
        {path: Cell(AuthenticationError, "401 token expired", 2, is_retried=True) for path in Path},
        renewal=_message("refresh token expired", 400),
        note="One renewal, one fresh login and one replay.",
    ),
    Fault(
        "401 in mid-poll",
        _expired,
        {Path.POLL: Cell(None, requests=3)},
        note="Renewed, and the poll goes on.",
    ),
    Fault(
        "401 in mid-poll, and the refresh token is dead",
        _expired,
        {Path.POLL: Cell(None, requests=3)},
        renewal=_message("refresh token expired", 400),
        note="A fresh login, and the poll goes on.",
    ),
    Fault(
        "403",
        _everywhere(_message("your role forbids it", 403)),
        _refused(ForbiddenError, "403 your role forbids it"),
    ),
    Fault(
        "404 after a delete",
        _everywhere(_message("execution not found", 404)),
        {
            path: Cell(ExecutionNotFoundError, "404 execution not found", reader_error=NoBatchError)
            for path in (Path.POLL, Path.RESULTS, Path.ARTIFACT)
        },
        note=(
            "The task that started the batch may have been cleared, and then a retry of the task that\n"
            "reads it finds the new batch."
        ),
    ),
    Fault(
        "404 of a service",
        _everywhere(_message("web service not found", 404)),
        {
            path: Cell(ServiceNotFoundError, "404 web service not found")
            for path in (Path.CALL, Path.SUBMISSION)
        },
    ),
    Fault(
        "404 of a file",
        _everywhere(_message("file not found", 404)),
        {Path.ARTIFACT: Cell(ArtifactNotFoundError, "404 file not found")},
    ),
    Fault(
        "400",
        _everywhere(_message("no such input", 400)),
        _refused(RejectedError, "400 no such input"),
    ),
    Fault(
        "a state that nobody knows",
        _status_only,
        {
            Path.POLL: Cell(UnknownStateError, "field 'state': found 'Pausiert', expected one of"),
            Path.RESULTS: Cell(UnknownStateError, "field 'state': found 'Pausiert'"),
        },
    ),
    Fault(
        "counts that shrink",
        _shrinking,
        {Path.POLL: Cell(None, requests=3)},
        note="Reported as they come; what counts is the number of results at the end.",
    ),
    Fault(
        OTHER_BATCH,
        lambda path, good: [
            as_json(_batch("inProgress", 1, 3)),
            as_json(_batch("inProgress", 1, 2)),
        ],
        {
            Path.POLL: Cell(
                ContractError, "found 2 records in the batch, expected 3 as before", 3, True
            )
        },
        note="Seen within one watch; a sensor on a worker remembers nothing from poke to poke.",
    ),
    Fault(
        "fewer results than promised",
        lambda path, good: as_json(_batch("Complete", 2, 3) | {"completedItemCount": 3}),
        {Path.RESULTS: Cell(ContractError, "execution id-1: complete with 2 results, expected 3")},
    ),
    Fault(
        "more than the limit",
        _everywhere(Answer(200, b" " * 200_000)),
        {Path.ARTIFACT: Cell(ReplyTooLargeError, "the reply holds more than 100,000 bytes")},
    ),
    Fault(
        "a redirect to a login page elsewhere",
        _everywhere(Answer(302, b"", [("Location", "/sign-in")])),
        {
            Path.CALL: Cell(ContractError, "list of services: expected JSON"),
            Path.SUBMISSION: Cell(ContractError, "only reading requests are sent on"),
            Path.POLL: Cell(ContractError, "found <!DOCTYPE html>", 2, is_retried=True),
            Path.RESULTS: Cell(ContractError, "found <!DOCTYPE html>"),
            Path.PUBLICATION: Cell(ContractError, "only reading requests are sent on"),
        },
        note="Reading requests are sent on; the token stays with the host it was made for.",
    ),
    Fault(
        "server restart in mid-batch",
        _restarted,
        {path: Cell(None, requests=4) for path in READING},
        note="A reset, a 503, a 401 for the token of before, then well.",
    ),
    Fault(
        "409",
        _everywhere(_message("it is there already", 409)),
        {
            Path.PUBLICATION: Cell(
                ServiceExistsError, "is published already: publish another version"
            )
        },
        note="Somebody else has published the version at the same moment.",
    ),
    Fault(
        "connection reset after the service was published",
        _everywhere(Reset()),
        {Path.PUBLICATION: Cell(None)},
        note="The version is looked for, recognised by its snapshot or its code, and not sent again.",
        is_published=True,
    ),
    Fault(
        "502 after the service was published",
        _everywhere(_message("the server is busy", 502)),
        {Path.PUBLICATION: Cell(None)},
        note="Likewise.",
        is_published=True,
    ),
)


def played_acts(fault: Fault, path: Path) -> list[Act]:
    """What the server does on this path; the last of them is the fault."""
    assert fault.act is not None
    acts = fault.act(path, SCENES[path].good)
    return list(acts) if isinstance(acts, Sequence) else [acts]


def script(fault: Fault, path: Path, *, passes: bool) -> dict[str, list[Act]]:
    """What the server plays: the fault, once or for ever; for :class:`tests.faults.server.Play`."""
    scene, played = SCENES[path], played_acts(fault, path)
    return {
        "POST /login": [as_json(TOKENS), as_json(FRESH)],
        "POST /login/refreshToken": [fault.renewal],
        "GET /sign-in": [Answer(200, PAGE, [("Content-Type", "text/html")])],
        f"{scene.method} {scene.target}": [*played, scene.good] if passes else played,
        **(_looks_for_the_service(fault) if path is Path.PUBLICATION else {}),
    }


def _looks_for_the_service(fault: Fault) -> dict[str, list[Act]]:
    """A publication asks first whether the version is there, and after a lost reply once more."""
    found = {"name": SERVICE, "version": VERSION, "code": PUBLICATION.code}
    absent = _message("web service not found", 404)
    looks: list[Act] = [absent, as_json([found])] if fault.is_published else [absent]
    return {f"GET /services/{SERVICE}/{VERSION}": looks}


# --- the page ------------------------------------------------------------------------------------

_HEAD = """\
# Faults

This page says what happens when something goes wrong between Airflow and the scoring server. The tests
play each line against a server that does these things on purpose: through both drivers, the hook, the
sensor in its three modes, and the operators, waiting and deferred. The page is generated by
`python -m tests.faults.table > docs/faults.md`.

The second column says what we do about the fault:

- *Retried*: the request is repeated. If the fault passes, the work goes on. If it stays, the error follows,
  after that number of requests.
- *Permanent*: the request is not repeated, and the error follows at once.
- *No harm*: the work goes on.

The last column says what Airflow does if the fault stays:

- *Tries the task again*: as often as `retries` says. A batch that an earlier try has started is taken over.
- *Fails for good*: the task is not tried again, because the same request would get the same answer. A task
  of your own that calls the hook finds this in the error's `is_permanent`.

The numbers of requests are those of the tests. They repeat for five seconds (four requests, at 0, 0.5, 1.5
and 3.5 seconds) and forgive two failing polls in a row. The defaults are two minutes, with jitter, and ten
polls. A sensor polls once more before it watches, in every mode, and so does a task that defers. That poll
is forgiven, too.

A publication first asks whether the version is there. The number counts the requests that publish. If a
reply is lost or cannot be read, the version is looked for and recognised by what was sent. It is never
sent twice. A retry of `PublishServiceOperator` recognises it, too.
"""


def _shown(cell: Cell, requests: int) -> str:
    if cell.error is None:
        return f"no harm; {_counted(requests)} | goes on"
    text = f'`{cell.error.__name__}` "{_escaped(cell.text)}"'
    word = "retried" if cell.is_retried else "permanent"
    airflow = "fails for good" if cell.error.is_permanent else "tries the task again"
    if cell.reader_error is not None:
        airflow += "; a task that reads another task's batch is tried again"
    return f"{word}; {text}; {_counted(requests)} | {airflow}"


def _counted(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _rows(fault: Fault) -> Iterator[str]:
    for path in Path:
        cell = fault.cells.get(path)
        if cell is None:
            continue
        yield f"| {path.value} | {_shown(cell, cell.requests)} |\n"
        if path is Path.POLL and fault.name != OTHER_BATCH:
            shown = _shown(cell, cell.requests_after_a_poll)
            yield f"| sensor, deferred task | {shown} |\n"


def page() -> str:
    """``docs/faults.md``."""
    rows = [_HEAD]
    for fault in FAULTS:
        rows.append(f"\n## {fault.name[0].upper()}{fault.name[1:]}\n")
        if fault.note:
            rows.append(f"\n{fault.note}\n")
        rows.append("\n| path | behaviour | Airflow |\n| --- | --- | --- |\n")
        rows += _rows(fault)
    return "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
