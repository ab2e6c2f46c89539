"""A server that does on purpose what servers and networks do by accident.

It speaks raw sockets, so that it can break what a well-behaved library would not: reset a line, cut
a reply, promise another length, say nothing. Law: it decides nothing; a script maps each request to
an act, and everything that arrived is kept in :attr:`FaultServer.requests`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

REASONS = {200: "OK", 202: "Accepted", 401: "Unauthorized", 404: "Not Found"}


@dataclass(frozen=True)
class Request:
    """What arrived: the target as it stood on the line, header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int = field(compare=False)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def shown(self) -> tuple[str, str, dict[str, str], bytes]:
        """What two clients must agree on: the headers that mean something to the protocol."""
        meaning = ("authorization", "content-type", "accept", "accept-encoding")
        headers = {name: self.headers[name] for name in meaning if name in self.headers}
        return self.method, self.target, headers, self.body


@dataclass(frozen=True)
class Answer:
    """A reply.

    :param body: bytes as they go out, or an iterator that makes them for ever
    :param length: what ``Content-Length`` promises; ``None`` for the truth
    :param chunk_sizes: sends the body in chunks of these sizes (the last one repeats), unframed
        length; empty for a plain body
    :param stop_after: closes the line after so many bytes of the framed body
    :param pause: seconds between pieces of ``piece`` bytes
    :param interim: goes out before the head: replies such as 103, which are not the last word
    """

    status: int = 200
    body: bytes | Callable[[], Iterator[bytes]] = b""
    headers: Sequence[tuple[str, str]] = ()
    length: int | None = None
    chunk_sizes: Sequence[int] = ()
    stop_after: int | None = None
    pause: float = 0.0
    piece: int = 1
    close: bool = False
    interim: bytes = b""


@dataclass(frozen=True)
class Reset:
    """Take the request, then break the line so that the other side sees a reset."""


@dataclass(frozen=True)
class HangUp:
    """Take the request, then close the line politely, without a word."""


@dataclass(frozen=True)
class Silence:
    """Take the request and never answer."""


@dataclass(frozen=True)
class Raw:
    """Write these bytes, whatever they are, and close.

    :param pause: seconds between one byte and the next
    """

    data: bytes
    pause: float = 0.0


Act: TypeAlias = Answer | Reset | HangUp | Silence | Raw
Script: TypeAlias = Callable[[Request], Act]


def as_json(value: Any, status: int = 200, **more: Any) -> Answer:
    """A JSON reply."""
    body = json.dumps(value).encode()
    return Answer(status, body, [("Content-Type", "application/json")], **more)


class FaultServer:
    """Listens on a free port of 127.0.0.1 until it is closed.

    :param script: what to do for each request
    :param tls: wraps each line
    :param patience: seconds to wait for the next bytes of a request
    :param read_pause: seconds between pieces of 64 KiB of a request's body
    """

    def __init__(
        self,
        script: Script,
        tls: ssl.SSLContext | None = None,
        patience: float = 5.0,
        read_pause: float = 0.0,
    ) -> None:
        self._script, self._tls, self._patience = script, tls, patience
        self._read_pause = read_pause
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._lines: dict[threading.Thread, socket.socket] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self.bytes_sent = 0
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; silent lines are closed, and those that a client keeps open."""
        self._is_closing.set()
        self.refuse()
        self._acceptor.join(5)
        self._hang_up()
        for thread in self._threads:
            thread.join(5)

    def refuse(self) -> None:
        """Stop listening, but finish what has begun: from now on, lines are refused.

        Lines that a client keeps open for later are closed when this returns.
        """
        # A plain close would leave accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        with self._lock:
            lines = dict(self._lines)
        lines.pop(threading.current_thread(), None)
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RD)
        for thread in lines:
            thread.join(5)

    def _accept(self) -> None:
        while not self._is_closing.is_set():
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
            thread = threading.Thread(target=self._serve, args=(line, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, line: socket.socket, number: int) -> None:
        line.settimeout(self._patience)
        # Head and body go out apart: without this each reply would wait 40 ms for a delayed ACK.
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is not None:
                line = self._tls.wrap_socket(line, server_side=True)
            with self._lock:
                self._lines[threading.current_thread()] = line
            with contextlib.closing(line), line.makefile("rb") as reader:
                while (request := self._read(reader, number)) is not None:
                    with self._lock:
                        self.requests.append(request)
                    if not self._perform(line, self._script(request)):
                        return
        except (OSError, ValueError):
            # Gone, silent, or no HTTP at all: a client that does not trust us, for one.
            line.close()
        finally:
            with self._lock:
                self._lines.pop(threading.current_thread(), None)

    def _read(self, reader: Any, number: int) -> Request | None:
        first = reader.readline()
        if not first:
            return None
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (row := reader.readline()) not in (b"\r\n", b""):
            name, _, value = row.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        left, body = int(headers.get("content-length", "0")), b""
        while left > 0 and (piece := reader.read(min(left, 64 * 1024))):
            left, body = left - len(piece), body + piece
            if self._read_pause:
                self._is_closing.wait(self._read_pause)
        return Request(method, target, headers, body, number)

    def _perform(self, line: socket.socket, act: Act) -> bool:
        """Do as the script says; false when the line is done with."""
        if isinstance(act, Answer):
            return self._answer(line, act)
        if isinstance(act, Raw):
            step = 1 if act.pause else len(act.data)
            for start in range(0, len(act.data), step):
                line.sendall(act.data[start : start + step])
                if act.pause and self._is_closing.wait(act.pause):
                    return False
        elif isinstance(act, Silence):
            self._is_closing.wait()
        elif isinstance(act, Reset):
            # Closing with a linger of zero sends RST instead of FIN.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _answer(self, line: socket.socket, act: Answer) -> bool:
        head = [f"HTTP/1.1 {act.status} {REASONS.get(act.status, 'Whatever')}"]
        head += [f"{name}: {value}" for name, value in act.headers]
        if act.chunk_sizes:
            head.append("Transfer-Encoding: chunked")
        elif isinstance(act.body, bytes):
            head.append(f"Content-Length: {len(act.body) if act.length is None else act.length}")
        elif act.length is not None:
            head.append(f"Content-Length: {act.length}")
        is_last = act.close or act.stop_after is not None or not isinstance(act.body, bytes)
        if is_last:
            head.append("Connection: close")
        line.sendall(act.interim + ("\r\n".join(head) + "\r\n\r\n").encode("utf-8"))
        rest = act.stop_after
        for piece in _pieces(act):
            out = piece if rest is None else piece[:rest]
            line.sendall(out)
            self.bytes_sent += len(out)
            if rest is not None:
                rest -= len(out)
                if rest <= 0:
                    return False
            if act.pause and self._is_closing.wait(act.pause):
                return False
        is_whole = act.length is None or (
            isinstance(act.body, bytes) and act.length == len(act.body)
        )
        return not is_last and is_whole


def _pieces(act: Answer) -> Iterator[bytes]:
    if not isinstance(act.body, bytes):
        yield from act.body()
        return
    framed = _chunked(act.body, act.chunk_sizes) if act.chunk_sizes else act.body
    step = act.piece if act.pause else 64 * 1024
    for start in range(0, len(framed), step):
        yield framed[start : start + step]


def _chunked(body: bytes, sizes: Sequence[int]) -> bytes:
    framed, start, turn = b"", 0, 0
    while start < len(body):
        piece = body[start : start + sizes[min(turn, len(sizes) - 1)]]
        framed += b"%x\r\n%b\r\n" % (len(piece), piece)
        start, turn = start + len(piece), turn + 1
    return framed + b"0\r\n\r\n"


def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class Play:
    """A script from acts in order: one list for each path, whose last act repeats.

    :param acts: by ``"METHOD /path"``, or by ``"METHOD"`` for any other path of that verb
    """

    def __init__(self, acts: Mapping[str, Sequence[Act]]) -> None:
        self._left = {key: list(value) for key, value in acts.items()}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Act:
        with self._lock:
            for key in (f"{request.method} {request.path}", request.method):
                if key in self._left:
                    left = self._left[key]
                    return left.pop(0) if len(left) > 1 else left[0]
        return as_json({"code": 404, "message": f"not in the script: {request.path}"}, 404)
