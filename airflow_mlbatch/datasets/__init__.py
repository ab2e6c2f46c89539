"""Tables in, scored tables out, whatever their size.

Law: this room knows tables and paths, errors and protocol. It never sees Airflow or the network:
who has a connection makes a path object with it (``ObjectStoragePath``, ``UPath`` or ``pathlib``)
and hands it over. Memory depends on a block, never on the table. pandas, pyarrow and NumPy are
imported inside functions.

Where to find what::

    formats.table_format(path, named=None) -> TableFormat(name, is_gzip)

    readers.count_rows(path, format=None) -> int
    readers.read_inputs(path, inputs, *, columns=None, row_range=None, format=None, indexes=None)
        -> ({input: [JSON value, …]}, row count)                 ready for protocol.encode_columns
    readers.open_rows(path, columns=None, row_range=None, format=None) -> TableRows(schema, batches)
    readers.row_range_of((start, stop)) -> RowRange              validated

    scored.chosen_columns(present, outputs, *, keep_columns="all", id_columns=()) -> [column, …]
    scored.ScoredRows(outputs, *, format, rows=TableRows|None, kept=[…], first_index=0,
                      data_frames="auto")
        .add(RecordBlock) / .finish() -> list of ScoredBatch(scored, rows | None); .schema

    writers.open_table(path, *, format=None, schema=None, attempt=None)   with … as table:
        table.write(batch); afterwards table.written -> WrittenTable(name, rows, bytes, sha256, columns)
    staging.StagedFile(path, attempt=None)                       any file, whole or not at all
    staging.write_whole(path, data, attempt=None)

    manifest.table_manifest(written, Counts(rows, succeeded, failed), execution_ids=, server=,
        service_name=, service_version=, created_at=, …) -> dict
    manifest.write_manifest(path, dict); manifest.manifest_path(table_path); read_manifest(path)

    failures.FailurePolicy(max_failed_records=0).judge(failed, total, log.first, what="")
    failures.FailureLog(inputs=None).take(scored batch, input batch); .failed .total .first
    failures.open_rejects(path, *, input_schema=None, attempt=None)
        with … as rejects: rejects.take(scored batch, input batch)
    failures.splice(RecordBlock, {index: RecordResult}) -> RecordBlock

``attempt`` names a piece of work and not a try of it (dag, task, run, map index): a retry removes
the staged leftovers of its predecessors, and of nobody else.
"""
