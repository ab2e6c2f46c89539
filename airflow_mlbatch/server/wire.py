"""What the server and its worker processes tell each other: length-prefixed msgpack over a socket.

The server sends a :class:`Task`; the worker answers with an outcome for each record, in order. Those
that come quickly are sent together; see :mod:`airflow_mlbatch.server.outbox`.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.server.blocks import Block

__all__ = [
    "LENGTH",
    "Again",
    "Hello",
    "Outcomes",
    "Task",
    "ToServer",
    "decode_task",
    "frame",
    "framed",
    "to_server",
]

LENGTH = struct.Struct("!I")


class Described(msgspec.Struct, gc=False):
    """A service as it crosses the process boundary."""

    name: str
    version: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    artifacts: list[str]
    operation_id: str
    description: str
    is_vectorized: bool

    @classmethod
    def of(cls, service: Service) -> Described:
        """Pack a description."""
        return cls(
            service.name,
            service.version,
            [(parameter.name, parameter.type) for parameter in service.inputs],
            [(parameter.name, parameter.type) for parameter in service.outputs],
            list(service.artifacts),
            service.operation_id,
            service.description,
            service.is_vectorized,
        )

    def service(self, **more: Any) -> Service:
        """Unpack it; ``more`` is what only the server knows."""
        return Service(
            name=self.name,
            version=self.version,
            inputs=tuple(Parameter(name, kind) for name, kind in self.inputs),  # type: ignore[arg-type]
            outputs=tuple(Parameter(name, kind) for name, kind in self.outputs),  # type: ignore[arg-type]
            artifacts=tuple(self.artifacts),
            operation_id=self.operation_id,
            runtime_type="Python",
            description=self.description,
            is_vectorized=self.is_vectorized,
            **more,
        )


class Hello(msgspec.Struct, tag=True):
    """The first word of a worker: what it can run, or why it cannot.

    :param details: the traceback, where the problem is an exception of the services
    """

    services: list[Described]
    problem: str = ""
    details: str = ""


class Outcomes(msgspec.Struct, tag=True, gc=False):
    """Some records in a row are done.

    :param first: position of the first
    :param count: how many there are
    :param texts: the outcomes as the API sends them, with commas between them
    :param is_last: the worker leaves after these (it has grown too large, or worked enough)
    """

    first: int
    count: int
    texts: bytes
    is_last: bool = False


class Again(msgspec.Struct, tag=True, gc=False):
    """Some records in a row have to be run again because the disk was full.

    :param first: position of the first
    :param count: how many there are
    :param is_last: as for :class:`Outcomes`
    """

    first: int
    count: int
    is_last: bool = False


class Task(msgspec.Struct, gc=False):
    """Some records in a row of one execution.

    :param serial: its number among the tasks of a worker
    :param keep_in: folder for the artifacts, one folder by position below it
    :param first: position of the first record
    :param count: how many there are
    :param texts: the records as JSON, with commas between them
    :param with_files: whether the artifacts also go into the result
    """

    serial: int
    name: str
    version: str
    keep_in: str
    first: int
    count: int
    texts: bytes
    with_files: bool = False

    @property
    def records(self) -> Block:
        """The records themselves."""
        return Block(self.first, self.count, self.texts)


ToServer = Hello | Outcomes | Again
_encoder = msgspec.msgpack.Encoder()
_task_decoder = msgspec.msgpack.Decoder(Task)
_to_server_decoder = msgspec.msgpack.Decoder(ToServer)


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length in front."""
    return framed(_encoder.encode(message))


def framed(body: bytes) -> bytes:
    """The bytes of a message with their length in front."""
    return LENGTH.pack(len(body)) + body


def decode_task(body: bytes) -> Task:
    """Read a message for a worker."""
    return _task_decoder.decode(body)


def to_server(body: bytes) -> ToServer:
    """Read a message for the server."""
    message: ToServer = _to_server_decoder.decode(body)
    return message
