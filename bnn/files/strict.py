"""Files of any origin, read with care: regular files of a size that was expected, JSON within limits, checked tensors.

Nothing that is read is executed, and no room is made for what a file only claims to hold.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from torch import Tensor

from bnn.values import in_a_line

#: The largest JSON file that is read: 64 MB, of which Python makes a few GB at worst.
LARGEST_JSON = 64 * 2**20
#: Digits of a whole number; a seed has 20.
_DIGITS = 40
_DEPTH = 100
#: A plain name, in every file system: no folders, no devices, nothing hidden.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
#: Names that are devices on Windows, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: object) -> str:
    """The name of a file in a run folder, if it is a plain one.

    Raises:
        ValueError: It names a folder, a file somewhere else, or a device.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICES.fullmatch(name) or name.endswith("."):
        raise ValueError(
            f"{str(name)[:100]!r} is no name of a file in a run folder: letters, digits, '.', '_' and '-', no folders"
        )
    return name


def open_file(path: Path) -> BufferedReader:
    """A regular file, open to be read. Links are not followed, and a pipe or a device is not waited for.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There is something else of that name.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} is missing")
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is no regular file but a link, a folder or a device: it is not read")
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is no regular file: it is not read")
    return os.fdopen(handle, "rb")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is none, or one beyond the limits: 64 MB, 100 levels, numbers of 40 digits, no name twice.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_JSON:
            raise ValueError(f"{path} is damaged: it has {size:,} bytes, and such a file has at most {LARGEST_JSON:,}")
        content = file.read(LARGEST_JSON + 1)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object in bytes; raises `ValueError`, also for what `read_json` says."""
    text = content.decode("utf-8")
    found = json.loads(text, parse_int=_integer, parse_float=_float, object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not an object")
    _check_depth(found)
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    The library checks, before anything is made, that the header fits the file, and that every shape and dtype fits its
    place in it: all numbers that are claimed are there.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    open_file(path).close()
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error


def _check_depth(found: Any) -> None:
    """Raise `ValueError` for what is nested more deeply than anything here is."""
    level = [found]
    for _ in range(_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEPTH} levels deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)[:100]!r} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {digits[:40]}, which is too large")
    return value
