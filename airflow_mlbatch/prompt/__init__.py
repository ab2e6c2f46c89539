"""Batches from the command line: look at services, follow a batch, fetch what it left.

Law: data goes to the standard output and everything else to the standard error, so that a pipe carries
nothing but data. What a server has named never reaches a terminal unchecked. A command is thin: it asks
the hook, and shows what it answered.
"""
