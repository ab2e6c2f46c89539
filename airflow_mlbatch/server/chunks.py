"""What the server and the workers of a cluster tell each other: chunks of records and their outcomes.

Law: plain data, as msgpack, that both sides read with the same release of this package.
"""

from __future__ import annotations

import msgspec

from airflow_mlbatch.server.blocks import Block

__all__ = ["Chunk", "Done", "Rules", "Stop", "chunk_folder"]


class Rules(msgspec.Struct, frozen=True):
    """How a worker of the cluster scores records.

    :param seconds: begin no further record after so long; what is left goes back to the server
    :param record_timeout: seconds that a record may take; 0 for no limit
    :param load_timeout: seconds that services may take to be loaded
    :param max_records: a process is replaced after so many records; 0 for never
    :param max_growth: a process is replaced when its memory has grown by so many bytes; 0 for never
    :param max_memory: most bytes of memory for a process of a published service; 0 for no limit
    :param artifact_bytes: most bytes of the artifacts of one record that come back with the results
    :param shared_folder: where artifacts are put instead; empty for nowhere
    """

    seconds: float
    record_timeout: float
    load_timeout: float
    max_records: int
    max_growth: int
    max_memory: int
    artifact_bytes: int
    shared_folder: str


class Chunk(msgspec.Struct, tag=True):
    """Some records of one execution, which one process scores.

    :param id: the server's own word for it
    :param parcel: the id of what the worker needs for it
    """

    id: str
    parcel: str
    name: str
    version: str
    records: list[Block]
    rules: Rules


class Stop(msgspec.Struct, tag=True):
    """End these chunks at once."""

    ids: list[str]


class Done(msgspec.Struct, tag=True):
    """What became of a chunk.

    :param outcomes: of the records that were scored; the others have none
    :param files: the artifacts of each position that has some, unless there is a shared folder
    :param seconds: how long they took, without the loading of the services
    :param problem: why no more were scored; empty when the time was up
    :param is_unloadable: whether the problem is that the services cannot be loaded
    """

    id: str
    outcomes: list[Block]
    files: dict[int, dict[str, bytes]]
    seconds: float
    problem: str = ""
    is_unloadable: bool = False


def chunk_folder(chunk_id: str) -> str:
    """The name of the folder where the artifacts of a chunk lie."""
    return f"chunk-{chunk_id}"
