"""Arrays that numpy has mapped from files, read from the files."""

from __future__ import annotations

import mmap
from typing import Any, TypeGuard

import numpy as np


def is_mapped(value: Any) -> TypeGuard[np.memmap[Any, Any]]:
    """Whether this is an array, or a part of one, that is mapped from a file that can be read by its name.

    Results of calculations bear the class of a mapped array too, and are not.
    """
    return isinstance(value, np.memmap) and isinstance(_root(value).base, mmap.mmap) and value.filename is not None


class Mapped:
    """Rows of a mapped array, or of a view of one, read into memory: ``mapped(start, stop)``.

    What is read through a mapping stays in the process's resident memory until the system wants it back; what is read
    from the file does not. A private copy (``mmap_mode="c"``) may differ from the file, and is read as it is.

    Args:
        array: Rows first.
        name: For messages.

    Raises:
        ValueError: Rows are not together in the file, so that a few of them cannot be read without the others.
    """

    def __init__(self, array: np.memmap[Any, Any], name: str):
        self.array, self.name = array, name
        if array.size and array.ndim > 1 and abs(array.strides[0]) < max(abs(s) for s in array.strides[1:]):
            raise ValueError(
                f"{name} is stored column by column in {array.filename}, so that rows cannot be read without all of "
                f"it: save np.ascontiguousarray({name})"
            )
        if array.mode in ("r+", "w+"):
            array.flush()
        root = _root(array)
        #: From an address in memory to a place in the file.
        self._shift = root.offset - root.ctypes.data

    def __call__(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows from `start` to before `stop`, in memory of their own.

        Raises:
            OSError: The file has become shorter.
        """
        view = self.array[start:stop]
        if self.array.mode == "c":
            return np.array(view)
        low, high = np.lib.array_utils.byte_bounds(view)
        raw = np.fromfile(str(self.array.filename), np.uint8, high - low, offset=low + self._shift)
        if len(raw) < high - low:
            raise OSError(f"{self.array.filename} has become shorter: {self.name} cannot be read at row {start}")
        place = view.ctypes.data - low
        rows = np.ndarray(view.shape, view.dtype, raw, place, view.strides)
        return np.ascontiguousarray(rows)


def _root(array: np.ndarray[Any, Any]) -> Any:
    """The array that numpy made when it mapped the file."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
