"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The end of the name of what was at a folder's place, while another one takes it.
_OLD = ".old"
#: Linux's AT_FDCWD and RENAME_EXCHANGE (renameat2(2)).
_HERE, _EXCHANGE = -100, 2


def write_file(path: str | Path, content: bytes) -> Path:
    """Write a file such that its name stands for the old content or for all of the new, whenever the power fails.

    Raises:
        OSError: No space, no permission; the old file is as it was, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps the file to its owner; what a run writes is as readable as what the shell writes.
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    flush(path.parent)
    return path


@contextmanager
def new_folder(place: str | Path) -> Iterator[Path]:
    """A folder to fill beside `place`, which takes that name when the block ends without an error.

    What was at `place` before is removed only once the new folder stands there. A link to a folder stays one.
    """
    place = Path(os.path.realpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner
        temporary.chmod(0o777 & ~_umask())
        move_folder(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(new: Path, place: Path) -> None:
    """Give a finished folder its place, in one step; what was there is removed once the new one stands."""
    for path in [*sorted(new.rglob("*")), new]:
        flush(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _swap(new, place)
    flush(place.parent)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(place: Path) -> list[Path]:
    """Where the folder that was at `place` is, if a write over it was killed between two renames (see `_swap`)."""
    return sorted(place.parent.glob(f".{glob.escape(place.name)}.*{_OLD}"))


def _swap(new: Path, place: Path) -> None:
    """Put a finished folder in its place; what was there is removed only once the new one stands.

    The two change places in one step where the system can do that, as Linux can on the usual disks. Elsewhere there is
    a moment between two renames, in which nothing stands at `place`.
    """
    old = place.with_name(f".{place.name}.{new.name.strip('.')}{_OLD}")
    if place.exists():
        if _exchange(new, place):
            shutil.rmtree(new, ignore_errors=True)
            return
        os.replace(place, old)
    try:
        os.replace(new, place)
    except BaseException:
        if old.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; False where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def _umask() -> int:
    """The process's file mode mask, which the system tells only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
