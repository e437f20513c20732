"""Data on disk that are read piece by piece, in memory that does not grow with their number of rows.

A stream is data for `bnn.fit` as arrays are: ``bnn.fit(model, bnn.streams.Parquet("train.parquet", target="price"))``.
Arrays that numpy has mapped from files are taken as a stream by themselves.
"""

from bnn.streams.arrays import MemoryMapped, as_stream
from bnn.streams.base import MEMORY, Piece, Stream
from bnn.streams.parquet import Parquet
from bnn.streams.predictions import predict
from bnn.streams.scaling import Moments, moments
from bnn.streams.source import StreamSource

__all__ = [
    "MEMORY",
    "MemoryMapped",
    "Moments",
    "Parquet",
    "Piece",
    "Stream",
    "StreamSource",
    "as_stream",
    "moments",
    "predict",
]
