"""Fetches the files that records left."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.errors import InputError, ReplyTooLargeError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import airflow_errors, completed, reading_of_another_task
from airflow_mlbatch.hooks.task_fate import can_be_retried
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.links import BatchExecutionLink, checked_id, note_batch
from airflow_mlbatch.operators.batch_results import attempt_of
from airflow_mlbatch.operators.lineage import DownloadLineage
from airflow_mlbatch.operators.locations import location
from airflow_mlbatch.operators.rendered import as_list, as_whole_number

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.downloads import DownloadedFile

__all__ = ["ArtifactDownloadOperator"]

MIB = 1024 * 1024
# A manifest goes through XCom with its files up to this many; beyond, only the file holds them.
_FILES_IN_XCOM = 1000


class ArtifactDownloadOperator(DownloadLineage, BaseOperator):
    """Downloads files of a batch's records, to storage or into XCom.

    With ``dest`` each file is streamed to its place, whole or not at all, and the XCom is the
    manifest: ``dest``, ``manifest_path``, ``file_count``, ``byte_count`` and, up to 1,000 of them,
    ``files`` (``index``, ``file_name``, ``path``, ``bytes``, ``sha256``). A retry fetches only what
    is missing. Several tasks may download files of one execution to one ``dest``; its manifest lists
    them all.

    Without ``dest`` the XCom is a list of ``index``, ``file_name``, ``encoding`` (``text`` or
    ``base64``) and ``content``.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for that of the run
    :param execution_id: a complete batch
    :param indexes: zero-based places of the records; all unless given
    :param file_names: names or globs (``*.png``); all files unless given
    :param dest: a folder, anywhere that Airflow's ``ObjectStoragePath`` reaches
    :param dest_conn_id: the connection of that storage
    :param path_template: where a file goes below ``dest``, from ``{index}`` and ``{file_name}``
    :param max_connections: how many requests are under way at once
    :param max_xcom_bytes: most bytes that may go through XCom, all files together
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    timing: Timing | None = None
    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "execution_id",
        "indexes",
        "file_names",
        "dest",
        "dest_conn_id",
        "path_template",
        "max_connections",
        "max_xcom_bytes",
        "mlbatch_conn_id",
    )
    operator_extra_links = (BatchExecutionLink(),)
    ui_color = "#e3f0d9"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        execution_id: str,
        indexes: Any = None,
        file_names: Any = None,
        dest: str | None = None,
        dest_conn_id: str | None = None,
        path_template: str = "{index}/{file_name}",
        max_connections: int = 16,
        max_xcom_bytes: int = MIB,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.execution_id = execution_id
        self.indexes = indexes
        self.file_names = file_names
        self.dest = dest
        self.dest_conn_id = dest_conn_id
        self.path_template = path_template
        self.max_connections = max_connections
        self.max_xcom_bytes = max_xcom_bytes
        self.mlbatch_conn_id = mlbatch_conn_id
        self.linked_execution_id = ""
        self._most_bytes = MIB

    def execute(self, context: Context) -> Any:
        """Fetch the files."""
        is_retried = can_be_retried(context["ti"])
        with airflow_errors(), reading_of_another_task(is_retried=is_retried):
            globs = self._globs()
            wanted = self._wanted_indexes()
            connections = as_whole_number("max_connections", self.max_connections, least=1)
            self._most_bytes = as_whole_number("max_xcom_bytes", self.max_xcom_bytes)
            hook = MLBatchHook(
                self.mlbatch_conn_id, max_connections=connections, timing=self.timing
            )
            settle_version(self, context, hook)
            self._note_lineage(hook)
            self.linked_execution_id = checked_id(self.execution_id)
            note_batch(context, self)
            try:
                indexes = self._known_indexes(hook, wanted)
                if self.dest is None:
                    return self._to_xcom(hook, indexes, globs)
                return self._to_storage(context, hook, indexes, globs, connections)
            finally:
                hook.close()

    # --- what is wanted --------------------------------------------------------------------------

    def _named(self) -> tuple[str, str, str]:
        return self.service_name, self.service_version, self.execution_id

    def _globs(self) -> list[str] | None:
        found = self.file_names
        if found is None:
            return None
        names = as_list(found, of=str)
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"file_names: found {found!r:.80}, expected names or globs")
        return names

    def _wanted_indexes(self) -> Sequence[int] | None:
        found = self.indexes
        if found is None or isinstance(found, range):
            return found
        try:
            indexes = [as_whole_number("indexes", index) for index in as_list(found, of=int)]
        except InputError:
            raise InputError(
                f"indexes: found {found!r:.80}, expected zero-based whole numbers"
            ) from None
        return list(dict.fromkeys(indexes))

    def _known_indexes(self, hook: MLBatchHook, wanted: Sequence[int] | None) -> Sequence[int]:
        """The records to look at.

        :raises BatchError: the batch still runs, so files are still to come
        :raises InputError: there is no such record
        """
        status = completed(self.execution_id, hook.get_batch_status(*self._named()))
        total = status.total_item_count
        if wanted is None:
            return range(total)
        beyond = [index for index in wanted if index >= total]
        if beyond:
            raise InputError(
                f"indexes: found {beyond[0]}, expected less than {total:,}, the number of records"
            )
        return wanted

    # --- where it goes ---------------------------------------------------------------------------

    def _to_storage(
        self,
        context: Context,
        hook: MLBatchHook,
        indexes: Sequence[int],
        globs: list[str] | None,
        connections: int,
    ) -> dict[str, Any]:
        from airflow_mlbatch.datasets.downloads import ArtifactDownload, download_records

        assert self.dest is not None
        dest = location(self.dest, self.dest_conn_id)
        download = ArtifactDownload(
            dest, self.path_template, self.execution_id, attempt_of(context)
        )
        downloaded = download_records(
            download,
            indexes,
            globs,
            lambda index: hook.list_artifacts(*self._named(), index),
            lambda index, name, sink: hook.stream_artifact(*self._named(), index, name, sink),
            connections,
        )
        files = [file for of_record in downloaded for file in of_record]
        manifest = download.finish(
            files,
            service_name=self.service_name,
            service_version=self.service_version,
            server=hook.url,
        )
        if not files and globs:
            self.log.warning("no record has a file named %s", " or ".join(map(repr, globs)))
        byte_count = sum(file.bytes for file in files)
        kept = len(files) - download.fetched_count
        self.log.info(
            "downloaded %s files of %s records, %s bytes, to %s%s",
            f"{len(files):,}",
            f"{len(indexes):,}",
            f"{byte_count:,}",
            self.dest,
            f" ({kept:,} were there already)" if kept else "",
        )
        self._written = self._summary(str(manifest), files, byte_count)
        return self._written

    def _summary(
        self, manifest: str, files: list[DownloadedFile], byte_count: int
    ) -> dict[str, Any]:
        from dataclasses import asdict

        summary: dict[str, Any] = {
            "execution_id": self.execution_id,
            "dest": self.dest,
            "manifest_path": manifest,
            "file_count": len(files),
            "byte_count": byte_count,
        }
        if len(files) <= _FILES_IN_XCOM:
            files = sorted(files, key=lambda file: (file.index, file.file_name))
            summary["files"] = [asdict(file) for file in files]
        return summary

    def _to_xcom(
        self, hook: MLBatchHook, indexes: Sequence[int], globs: list[str] | None
    ) -> list[dict[str, Any]]:
        contents, count = [], 0
        for index, name in self._named_files(hook, indexes, globs):
            try:
                content = hook.get_artifact(
                    *self._named(), index, name, max_bytes=self._most_bytes - count
                )
            except ReplyTooLargeError:
                raise InputError(
                    f"max_xcom_bytes: found more than {self._most_bytes:,} bytes of files at "
                    f"{name!r} of record {index}, expected at most that; give dest to write them "
                    "to storage"
                ) from None
            count += len(content)
            contents.append({"index": index, "file_name": name, **_as_json(content)})
        return contents

    def _named_files(
        self, hook: MLBatchHook, indexes: Sequence[int], globs: list[str] | None
    ) -> Iterator[tuple[int, str]]:
        from airflow_mlbatch.datasets.downloads import is_wanted

        for index in indexes:
            for name in hook.list_artifacts(*self._named(), index):
                if is_wanted(name, globs):
                    yield index, name


def _as_json(content: bytes) -> dict[str, str]:
    """Text as text, anything else as base64."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return {"encoding": "base64", "content": base64.b64encode(content).decode("ascii")}
    return {"encoding": "text", "content": text}
