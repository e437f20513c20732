"""Tables in files and from standard input, checked: polars columns, and errors in one sentence with row and value."""

from bnn.tables.reading import FORMATS, MISSING, parse, read_table
from bnn.tables.table import Kind, Table, TableError, as_floats, nearest, repeated

__all__ = [
    "FORMATS", "MISSING", "Kind", "Table", "TableError", "as_floats", "nearest", "parse", "read_table", "repeated",
]  # fmt: skip
