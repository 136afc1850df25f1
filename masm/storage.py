"""What lies under a storage path or URI: put, brought back, removed, and kept to one process."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout
from pyarrow.fs import FileSystem, FileType

from masm.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a place that has no room."""


def store(folder: Path, uri: str) -> None:
    """Put the files of a folder, without folders in it, into one at a path or URI.

    What was there is replaced as a whole or not at all.
    """
    filesystem, path = FileSystem.from_uri(uri)
    unfinished = f"{path}.{uuid4().hex}"
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(unfinished) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(folder, arcname=".")
        filesystem.move(unfinished, path)
    except OSError:  # most often it is full, and half a checkpoint would only take room
        with suppress(OSError):
            filesystem.delete_file(unfinished)
        raise


def recall(uri: str, folder: Path) -> bool:
    """Bring the files back into a folder; whether there are any.

    One by one: tarfile's own filter, which keeps them in the folder, came with Python 3.11.4.
    """
    filesystem, path = FileSystem.from_uri(uri)
    if filesystem.get_file_info(path).type is FileType.NotFound:
        return False
    with filesystem.open_input_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                with (folder / Path(member.name).name).open("wb") as out:
                    shutil.copyfileobj(file, out)
    return True


def discard(storage: str, name: str) -> None:
    """Remove finished work from the storage path; what is not there is no fault."""
    filesystem, path = FileSystem.from_uri(storage)
    if filesystem.get_file_info(f"{path}/{name}").type is not FileType.NotFound:
        filesystem.delete_dir(f"{path}/{name}")


@contextmanager
def held(lock: str, taken: str) -> Iterator[None]:
    """Hold a lock file; a process that dies lets go of it.

    Raises:
        UserError: another process holds it, which is said as `taken`, or it cannot be made.
    """
    try:
        file = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise UserError(taken) from None
    except OSError as error:
        raise UserError(
            f"the lock {lock} cannot be made ({error.strerror}): set ray.storage, or search.study.storage for a "
            "study, to a place that can be written."
        ) from None
    with file:
        yield


def storage_full(storage: str, error: OSError) -> str:
    """What is said of a checkpoint for which there was no room."""
    return (
        f"a checkpoint could not be written: {error.filename or f'the storage path {storage}'} is full "
        f"({os.strerror(error.errno or 0)}). Free some space there and run this again: it goes on from the checkpoint "
        "before, which is whole."
    )
