"""Tables in, scored tables out, whatever their size.

Law: this room knows tables and paths, errors and protocol. It never sees Airflow or the network: whoever
has a connection makes a path object with it (``ObjectStoragePath``, ``UPath`` or ``pathlib``) and hands
it over. Memory depends on a block, never on the table. pandas, pyarrow and NumPy are imported inside
functions.

Start reading at :mod:`~airflow_mlbatch.datasets.readers` (tables in),
:mod:`~airflow_mlbatch.datasets.scored` (results joined with their inputs) and
:mod:`~airflow_mlbatch.datasets.writers` (tables out). Everything that depends on a format is in
:mod:`~airflow_mlbatch.datasets.kinds`. :mod:`~airflow_mlbatch.datasets.parts` makes one dataset of the
tables of many tasks.

Many functions take an ``attempt``. It names a piece of work and not a try of it (dag, task, run, map
index): a retry removes the staged leftovers of its predecessors, and of nobody else.
"""
