"""The only code that touches the network: two short drivers that do what a flow asks.

Law: nothing is decided here. Whether to repeat, to wait, to log in, whether a state is final, all of
that stands in :mod:`airflow_mlbatch.protocol.flows`.
"""
