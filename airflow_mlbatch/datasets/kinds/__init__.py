"""The formats that a table can have, one module for each."""
