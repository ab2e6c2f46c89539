"""What the server and its worker processes tell each other: length-prefixed msgpack over a socket.

The server sends a :class:`Task`; the worker answers with one :class:`Outcome` for each record, in
order and as soon as it has it, so that when it dies the record it was on is known.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from airflow_mlbatch.protocol.services import Parameter, Service

__all__ = ["LENGTH", "Hello", "Outcome", "Task", "ToServer", "decode_task", "frame", "to_server"]

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
            **more,
        )


class Hello(msgspec.Struct, tag=True):
    """The first word of a worker: what it can run, or why it cannot.

    :param details: the traceback, where the problem is an exception of the services
    """

    services: list[Described]
    problem: str = ""
    details: str = ""


class Outcome(msgspec.Struct, tag=True, gc=False):
    """One record is done.

    :param result: the outcome as the API sends it; empty where the record has to be run again
        because the disk was full
    :param is_last: the worker leaves after this one (it has grown too large, or worked enough)
    """

    position: int
    result: bytes
    is_last: bool = False


class Task(msgspec.Struct, gc=False):
    """Some records of one execution.

    :param keep_in: folder for the artifacts, one folder by position below it
    :param with_files: whether the artifacts also go into the result
    """

    name: str
    version: str
    keep_in: str
    records: list[tuple[int, bytes]]
    with_files: bool = False


ToServer = Hello | Outcome
_encoder = msgspec.msgpack.Encoder()
_task_decoder = msgspec.msgpack.Decoder(Task)
_to_server_decoder = msgspec.msgpack.Decoder(ToServer)


def frame(message: Hello | Outcome | Task) -> bytes:
    """A message with its length in front."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_task(body: bytes) -> Task:
    """Read a message for a worker."""
    return _task_decoder.decode(body)


def to_server(body: bytes) -> ToServer:
    """Read a message for the server."""
    message: ToServer = _to_server_decoder.decode(body)
    return message
