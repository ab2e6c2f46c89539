"""What `make bench` measures: how fast, how large, and against what a user would otherwise use.

Law: every line is a ratio or a bound, both sides measured in the same run on the same machine, each
in a process of its own, so that neither its memory nor its speed is another's.

A module of this package that has a ``BENCHMARK`` (a :class:`benchmarks.lines.Benchmark`) is one of
the benchmarks, with no other list to be entered into.
"""
