"""``mlbatch artifacts``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.datasets.artifacts import DEFAULT_TEMPLATE
from airflow_mlbatch.datasets.downloads import (
    ArtifactDownload,
    download_records,
    in_threads,
    is_wanted,
)
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.prompt.batches import Named, find_batch
from airflow_mlbatch.prompt.connecting import open_hook
from airflow_mlbatch.prompt.exits import Exit

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook
    from airflow_mlbatch.prompt.screen import Screen

__all__ = ["show_artifacts"]

_AT_ONCE = 8


def show_artifacts(options: argparse.Namespace, screen: Screen) -> int:
    """List the files of an execution, or download them."""
    with closing(open_hook(options, max_connections=_AT_ONCE)) as hook:
        files = _Files(hook, options, screen)
        if options.output is None:
            rows, titles = files.listed(), {"index": "record", "file_name": "file"}
        else:
            rows = files.downloaded()
            titles = {"index": "record", "file_name": "file", "bytes": "bytes", "path": "path"}
    screen.show(sorted(rows, key=lambda row: (row["index"], row["file_name"])), titles)
    return Exit.DONE


def _indexes(hook: MLBatchHook, named: Named, options: argparse.Namespace) -> Sequence[int]:
    total = hook.get_batch_status(*named).total_item_count
    if options.index is None:
        return range(total)
    beyond = [index for index in options.index if index >= total]
    if beyond:
        raise InputError(
            f"--index: found {beyond[0]}, expected less than {total:,}, the number of records"
        )
    return list(dict.fromkeys(options.index))


class _Files:
    """The files that the records of an execution left."""

    def __init__(self, hook: MLBatchHook, options: argparse.Namespace, screen: Screen) -> None:
        self._hook, self._options, self._screen = hook, options, screen
        self._named = find_batch(hook, options)
        self._indexes = _indexes(hook, self._named, options)

    def listed(self) -> list[dict[str, Any]]:
        """Index and name of each file."""

        def names_of(index: int) -> list[dict[str, Any]]:
            return [
                {"index": index, "file_name": name}
                for name in self._hook.list_artifacts(*self._named, index)
                if is_wanted(name, self._options.name)
            ]

        rows: list[dict[str, Any]] = []
        with self._screen.progress("records") as update:
            jobs = (partial(names_of, index) for index in self._indexes)
            for done, found in enumerate(in_threads(jobs, _AT_ONCE), start=1):
                rows += found
                update(done, len(self._indexes))
        return rows

    def downloaded(self) -> list[dict[str, Any]]:
        """Download the files; where each of them is."""
        folder = Path(self._options.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--output: {folder} is no folder and cannot be made one: {error}"
            ) from None
        download = ArtifactDownload(folder, DEFAULT_TEMPLATE, self._named[2])
        records = download_records(
            download,
            self._indexes,
            self._options.name,
            lambda index: self._hook.list_artifacts(*self._named, index),
            lambda index, name, open_sink: self._hook.stream_artifact(
                *self._named, index, name, open_sink
            ),
            _AT_ONCE,
        )
        files = []
        with self._screen.progress("records") as update:
            for done, found in enumerate(records, start=1):
                files += found
                update(done, len(self._indexes))
        download.finish(
            files,
            service_name=self._named[0],
            service_version=self._named[1],
            server=self._hook.url,
        )
        kept = len(files) - download.fetched_count
        size = sum(file.bytes for file in files)
        self._screen.tell(
            f"{len(files):,} files, {size:,} bytes, are in {folder}"
            + (f" ({kept:,} were there already)" if kept else "")
        )
        return [{**asdict(file), "path": str(folder / file.path)} for file in files]
