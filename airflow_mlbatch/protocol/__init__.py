"""What is said on the wire, by a client or by a server.

Law of this room: no socket, clock, sleep, thread, file, Airflow, requests or aiohttp. Whatever
needs one of these is asked for with a message (:mod:`airflow_mlbatch.protocol.messages`) and done
by a driver in :mod:`airflow_mlbatch.transport`.
"""
