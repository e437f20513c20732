"""One fit at a time in a folder, on this computer or on others that share the disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The file that is locked. It stays, since to remove it would let two in.
NAME = ".lock"
#: The folders of this process: the system's lock keeps out other processes alone.
_ours: dict[str, object] = {}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder to this block.

    The lock is the system's, of a process: it ends with the process however that ends, ``kill -9`` included, and
    children that are forked meanwhile do not have it.

    Raises:
        ValueError: Another block has the folder, here or in another process.
    """
    own, key = object(), os.path.realpath(folder)
    if _ours.setdefault(key, own) is not own:
        raise ValueError(f"{folder} is in use by another fit of this process: wait for it, or give another folder")
    try:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, folder)
            yield
        finally:
            os.close(handle)
    finally:
        del _ours[key]


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
        raise ValueError(f"{folder} is in use by {holder}: wait for it, or give another folder") from None
    except OSError as error:  # a network disk, say, that was mounted without
        warnings.warn(
            f"{folder} is on a disk without locks ({error.strerror}): see to it that no other process uses it",
            stacklevel=2,
        )
        return
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
