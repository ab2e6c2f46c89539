"""A large table in shards: the plan, a part for each, and one dataset that is published at the end.

A dataset is a folder::

    part-00000.parquet   part-00001.parquet   …   manifest.json   _SUCCESS

Law: ``_SUCCESS`` is there only while every input row is in exactly one part. It is removed before the
first part is touched (:func:`begin_dataset`) and written last (:func:`publish_dataset`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.datasets import jsonlines, locations
from airflow_mlbatch.datasets.columns import INDEX_COLUMN
from airflow_mlbatch.datasets.failures import Failure, FailurePolicy
from airflow_mlbatch.datasets.formats import named_format, table_format
from airflow_mlbatch.datasets.kinds import KINDS
from airflow_mlbatch.datasets.kinds.kind import Kind
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.manifest import (
    MANIFEST_VERSION,
    Counts,
    Origin,
    columns_object,
    write_manifest,
)
from airflow_mlbatch.datasets.readers import open_rows
from airflow_mlbatch.datasets.staging import write_whole
from airflow_mlbatch.datasets.writers import WrittenTable, open_table
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MANIFEST_NAME",
    "SUCCESS_NAME",
    "begin_dataset",
    "judge_parts",
    "part_name",
    "part_object",
    "plan_shards",
    "publish_dataset",
    "remove_other_parts",
]

MANIFEST_NAME, SUCCESS_NAME = "manifest.json", "_SUCCESS"

_PART = re.compile(rf"^part-\d{{5,}}\.({'|'.join(kind.name for kind in KINDS)})(\.gz)?$")
_STAGED_PART = re.compile(r"^\.part-\d{5,}\..*\.part$")
_CHUNK = 4 * 1024 * 1024


def plan_shards(
    row_count: int, records_per_batch: int, max_map_length: int = 1024
) -> list[dict[str, int]]:
    """Cut a table into shards of consecutive rows.

    :param max_map_length: how many tasks Airflow maps at most (``[core] max_map_length``)
    :return: for each shard ``{"shard", "start", "stop"}``, half-open; nothing for an empty table
    :raises DatasetError: the numbers make no sense, or there would be too many shards
    """
    for name, number in (("row_count", row_count), ("records_per_batch", records_per_batch)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise DatasetError(f"{name}: found {number!r:.80}, expected a whole number")
    if row_count < 0:
        raise DatasetError(f"row_count: found {row_count}, expected 0 or more")
    if records_per_batch < 1:
        raise DatasetError(f"records_per_batch: found {records_per_batch}, expected 1 or more")
    shards = -(-row_count // records_per_batch)
    if shards > max_map_length:
        least = -(-row_count // max_map_length)
        raise DatasetError(
            f"records_per_batch: found {records_per_batch:,}, which cuts {row_count:,} rows into "
            f"{shards:,} shards, but [core] max_map_length allows {max_map_length:,}; choose "
            f"records_per_batch={least} or more, or raise max_map_length"
        )
    return [
        {
            "shard": shard,
            "start": shard * records_per_batch,
            "stop": min((shard + 1) * records_per_batch, row_count),
        }
        for shard in range(shards)
    ]


def part_name(shard: int, format: str = "parquet") -> str:
    """The file name of a shard's part, for example ``part-00000.parquet``.

    :raises DatasetError: there is no such format
    """
    return f"part-{shard:05d}{named_format(format).suffix}"


def part_object(
    shard: Mapping[str, int],
    written: WrittenTable,
    counts: Counts,
    *,
    execution_ids: Sequence[str] = (),
    first_failures: Sequence[Failure] = (),
) -> dict[str, Any]:
    """What a shard's task tells the one that publishes, as a JSON object.

    :param shard: from :func:`plan_shards`
    """
    return {
        **{name: shard[name] for name in ("shard", "start", "stop")},
        **asdict(counts),
        **_of_file(written),
        "execution_ids": list(execution_ids),
        "first_failures": [failure.as_dict() for failure in first_failures],
    }


def judge_parts(
    policy: FailurePolicy, parts: Sequence[Mapping[str, Any]], row_count: int, *, what: str
) -> None:
    """Fail when too many records of a dataset failed.

    :param parts: from :func:`part_object`
    :param row_count: rows of the input table
    :param what: the service to name in the error
    :raises RecordsFailedError: names counts, policy and the first failures
    """
    first = [
        Failure(found["index"], found["error"], found["inputs"])
        for part in parts
        for found in part.get("first_failures", ())
    ]
    policy.judge(sum(part["failed"] for part in parts), row_count, first, what=what)


def _of_file(written: WrittenTable) -> dict[str, Any]:
    return {
        "name": written.name,
        "rows": written.rows,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "columns": columns_object(written.columns),
        "assumed": list(written.assumed),
        "inferred": list(written.inferred),
    }


def begin_dataset(folder: StoragePath) -> None:
    """Take back the mark and the manifest of an earlier run, before the first part changes."""
    locations.remove(folder / SUCCESS_NAME)
    locations.remove(folder / MANIFEST_NAME)


def publish_dataset(
    folder: StoragePath,
    parts: Sequence[Mapping[str, Any]],
    row_count: int,
    origin: Origin,
    *,
    schema: pa.Schema | None = None,
    format: str = "parquet",
    extra: Mapping[str, Any] | None = None,
    attempt: str | None = None,
) -> dict[str, Any]:
    """Check that every input row is there exactly once, then publish.

    The size of each part is compared, and its column ``mlbatch_index`` is read. Parts of other runs are
    removed. Where a part had to assume the type of a column (a shard whose
    records all failed, say) and another part knows it, the former is rewritten, so that the dataset
    has one schema. So are parts whose rows of a JSON Lines table did not show what others did: a key
    that none of them has, whole numbers only.

    :param folder: the dataset
    :param parts: from :func:`part_object`, in any order
    :param row_count: rows of the input table
    :param schema: columns of an empty dataset, which has one part without rows
    :return: the manifest
    :raises DatasetError: names the part or the rows that are missing, there twice or changed
    """
    begin_dataset(folder)
    ordered = sorted((dict(part) for part in parts), key=lambda part: (part["start"], part["stop"]))
    _check_ranges(ordered, row_count)
    for part in ordered:
        _check_part(folder, part)
    if not ordered and schema is not None:
        ordered = [_empty_part(folder, schema, format, attempt)]
    ordered = _with_one_schema(folder, ordered, attempt)
    remove_other_parts(folder, {str(part["name"]) for part in ordered})
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "rows": row_count,
        "succeeded": sum(part["succeeded"] for part in ordered),
        "failed": sum(part["failed"] for part in ordered),
        "columns": ordered[0]["columns"] if ordered else [],
        "files": [_listed_file(part) for part in ordered],
        "execution_ids": [id_ for part in ordered for id_ in part["execution_ids"]],
        **asdict(origin),
        **(extra or {}),
    }
    write_manifest(folder / MANIFEST_NAME, manifest, attempt)
    write_whole(folder / SUCCESS_NAME, b"", attempt)
    return manifest


def _listed_file(part: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "rows", "bytes", "sha256", "succeeded", "failed", "execution_ids")
    return {**{name: part[name] for name in names}, "first_index": part["start"]}


# --- checks --------------------------------------------------------------------------------------


def _check_ranges(parts: Sequence[Mapping[str, Any]], row_count: int) -> None:
    expected = 0
    for part in parts:
        start, stop, name = part["start"], part["stop"], part["name"]
        if start > expected:
            raise DatasetError(f"dataset: found no part for the rows {expected} to {start - 1}")
        if start < expected:
            raise DatasetError(
                f"dataset: found the rows {start} to {min(stop, expected) - 1} in more than one part, "
                f"{name!r} among them, expected each row once"
            )
        size = stop - start
        if size < 1 or part["rows"] != size or part["succeeded"] + part["failed"] != size:
            raise DatasetError(
                f"{name}: found {part['rows']} rows ({part['succeeded']} succeeded, "
                f"{part['failed']} failed), expected {size} for the rows {start} to {stop - 1}"
            )
        if not _PART.match(name):
            raise DatasetError(f"dataset: found a part named {name!r}, expected part-00000.…")
        expected = stop
    if expected != row_count:
        raise DatasetError(
            f"dataset: found parts up to row {expected - 1}, expected {row_count:,} rows"
            if expected
            else f"dataset: found no parts, expected {row_count:,} rows"
        )
    names = [part["name"] for part in parts]
    if len(set(names)) < len(names):
        raise DatasetError("dataset: found two parts of one name, expected a name for each shard")


def _check_part(folder: StoragePath, part: Mapping[str, Any]) -> None:
    path = folder / part["name"]
    size = locations.file_size(path)
    if size is None:
        raise DatasetError(f"{path}: found no such part; clear the task of shard {part['shard']}")
    # A try of publishing that died may have rewritten it, to the same rows in other bytes.
    may_be_rewritten = bool(part["assumed"] or part["inferred"])
    if size != part["bytes"] and not may_be_rewritten:
        raise DatasetError(
            f"{path}: found {size:,} bytes, expected {part['bytes']:,} as written; "
            f"clear the task of shard {part['shard']}"
        )
    _check_index(path, part["start"], part["stop"])


def _check_index(path: StoragePath, start: int, stop: int) -> None:
    import numpy as np
    import pyarrow as pa

    expected = start
    for batch in open_rows(path, [INDEX_COLUMN]):
        found = batch.column(0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        wanted = np.arange(expected, expected + len(found))
        wrong = np.flatnonzero(found != wanted)
        if len(wrong):
            place = int(wrong[0])
            raise DatasetError(
                f"{path}: found {INDEX_COLUMN}={found[place]}, expected {expected + place}"
            )
        expected += len(found)
    if expected != stop:
        raise DatasetError(f"{path}: found {expected - start} rows, expected {stop - start}")


# --- one schema ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PartColumns:
    """The columns of a part by name, in order, and how sure it is of their types."""

    name: str
    start: int
    kinds: dict[str, str]
    assumed: frozenset[str]
    inferred: frozenset[str]

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> _PartColumns:
        """From what the part's task has told."""
        return cls(
            part["name"],
            part["start"],
            dict(_pairs(part)),
            frozenset(part["assumed"]),
            frozenset(part["inferred"]),
        )


def _with_one_schema(
    folder: StoragePath, parts: Sequence[dict[str, Any]], attempt: str | None
) -> list[dict[str, Any]]:
    unlike = list({_pairs(part): _PartColumns.of(part) for part in parts}.values())
    if len(unlike) <= 1:
        return list(parts)
    names = _merged_names(unlike)
    for name in names:
        _check_absent(name, unlike)
    kind = table_format(folder / parts[0]["name"]).kind
    schema = _merged_schema(folder, unlike, names) if kind.has_column_types else None
    if schema is None:
        wanted = [(name, _text_kind(name, unlike, kind)) for name in names]
    else:
        # Parquet has its own name for the elements of a list.
        wanted = [
            (field.name, str(field.type).replace("<element: ", "<item: ")) for field in schema
        ]

    def is_alike(part: Mapping[str, Any]) -> bool:
        pairs = _pairs(part)
        return [name for name, _ in pairs] == names if schema is None else pairs == tuple(wanted)

    return [
        {
            **(part if is_alike(part) else _rewritten(folder, part, names, schema, attempt)),
            "columns": columns_object(wanted),
        }
        for part in parts
    ]


def _pairs(part: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((column["name"], column["type"]) for column in part["columns"])


def _merged_names(parts: Sequence[_PartColumns]) -> list[str]:
    """The columns of all parts, each where it stands in its own."""
    names: list[str] = []
    for part in parts:
        names = _merged(names, list(part.kinds))
    # A data.frame that never came is one column of nothing; where it came it may be several others.
    shown = {
        name
        for part in parts
        for name, kind in part.kinds.items()
        if kind != "null" or name not in part.assumed
    }
    everywhere = set.intersection(*(set(part.kinds) for part in parts))
    return [name for name in names if name in shown or name in everywhere]


def _merged(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """``names``, with each new one of ``more`` after the known one that it follows there."""
    known = set(names)
    after: dict[str | None, list[str]] = {None: []}
    last: str | None = None
    for name in more:
        if name in known:
            last = name
        else:
            after.setdefault(last, []).append(name)
    merged = list(after[None])
    for name in names:
        merged += [name, *after.get(name, ())]
    return merged


def _check_absent(name: str, parts: Sequence[_PartColumns]) -> None:
    """A part may lack a key that none of its rows had, or columns of a data.frame that never came."""
    having = next(part for part in parts if name in part.kinds)
    for part in parts:
        is_allowed = name in having.inferred or part.assumed
        if name not in part.kinds and not is_allowed:
            raise _contradiction(name, part, having)


def _merged_schema(
    folder: StoragePath, parts: Sequence[_PartColumns], names: Sequence[str]
) -> pa.Schema:
    import pyarrow as pa

    schemas = [open_rows(folder / part.name).schema for part in parts]
    return pa.schema([_merged_field(name, parts, schemas) for name in names])


def _merged_field(
    name: str, parts: Sequence[_PartColumns], schemas: Sequence[pa.Schema]
) -> pa.Field:
    """The column with the type that all values have, by those parts that know it."""
    having = [
        (part, schema.field(name))
        for part, schema in zip(parts, schemas, strict=True)
        if schema.get_field_index(name) >= 0
    ]
    knowing = [(part, field) for part, field in having if name not in part.assumed]
    first, merged = (knowing or having)[0]
    for part, field in knowing[1:]:
        if field.type != merged.type:
            is_inferred = name in part.inferred and name in first.inferred
            kind = jsonlines.unify(merged.type, field.type) if is_inferred else None
            if kind is None:
                raise _contradiction(name, part, first)
            merged = merged.with_type(kind)
    return merged


def _text_kind(name: str, parts: Sequence[_PartColumns], format: Kind) -> str:
    """What the manifest calls a column of text, whose values need no common type."""
    having = [part for part in parts if name in part.kinds]
    knowing = [part for part in having if name not in part.assumed] or having[:1]
    kinds = {part.kinds[name]: part for part in reversed(knowing)}
    if len(kinds) > 1:
        kinds.pop("null", None)
    if len(kinds) > 1:
        is_inferred = all(name in part.inferred for part in knowing)
        # Among other values, CSV holds a text as JSON, in quotes; in a column of texts it is bare.
        if not is_inferred or ("string" in kinds and not format.has_value_types):
            first, second, *_ = kinds.values()
            raise _contradiction(name, first, second)
        return "double" if kinds.keys() == {"int64", "double"} else "json"
    return next(iter(kinds))


def _contradiction(name: str, part: _PartColumns, other: _PartColumns) -> DatasetError:
    if part.start < other.start:
        part, other = other, part
    own, elsewhere = (each.kinds.get(name, "absent") for each in (part, other))
    if name in part.inferred or name in other.inferred:
        way_out = (
            "The input's values of this column change their type from row to row: leave it out with "
            'keep_columns, or choose format="jsonl"'
        )
    else:
        way_out = (
            "The service's outputs change their shape from record to record: choose "
            'data_frames="columns" or "nested", or format="jsonl"'
        )
    return DatasetError(
        f"{part.name}: found columns that differ from those of {other.name}: {name!r} ({own}, "
        f"elsewhere {elsewhere}); expected the same in each part. {way_out}"
    )


def _rewritten(
    folder: StoragePath,
    part: dict[str, Any],
    names: Sequence[str],
    schema: pa.Schema | None,
    attempt: str | None,
) -> dict[str, Any]:
    """The part again, with the columns that all parts have; what it did not have is null.

    :param schema: their types; ``None`` leaves each as it is
    """
    import pyarrow as pa

    path = folder / part["name"]
    rows = open_rows(path)
    if schema is None:
        own = {field.name: field for field in rows.schema}
        schema = pa.schema([own.get(name, pa.field(name, pa.null())) for name in names])
    with open_table(path, schema=schema, attempt=attempt) as table:
        for batch in rows:
            table.write(_recast(batch, schema, part["name"]))
    assert table.written is not None
    return {**part, **_of_file(replace(table.written, assumed=()))}


def _recast(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    import pyarrow as pa

    own = set(batch.schema.names)
    arrays = [
        _recast_column(batch.column(field.name), field, where)
        if field.name in own
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _recast_column(array: pa.Array, field: pa.Field, where: str) -> pa.Array:
    import pyarrow as pa

    if array.type == field.type:
        return array
    # Not every pair of types has a cast in Arrow; values of an assumed column are null or empty
    # lists, which is the same in every type, and whole numbers become doubles only where they fit.
    try:
        return pa.array(array.to_pylist(), field.type)
    except (pa.ArrowException, OverflowError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{where}, column {field.name!r}: found values of type {array.type} that are none of "
            f"{field.type}, as in other parts ({error}); leave it out with keep_columns, or choose "
            'format="jsonl"'
        ) from None


# --- files ---------------------------------------------------------------------------------------


def _empty_part(
    folder: StoragePath, schema: pa.Schema, format: str, attempt: str | None
) -> dict[str, Any]:
    path = folder / part_name(0, format)
    with open_table(path, schema=schema, attempt=attempt) as table:
        pass
    assert table.written is not None
    shard = {"shard": 0, "start": 0, "stop": 0}
    return part_object(shard, table.written, Counts(0, 0, 0))


def remove_other_parts(folder: StoragePath, names: set[str]) -> None:
    """Parts of earlier runs, and what was left of parts that were never finished."""
    for name in locations.file_names(folder):
        if (_PART.match(name) and name not in names) or _STAGED_PART.match(name):
            locations.remove(folder / name)
