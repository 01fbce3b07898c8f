"""DiskTier: memory of large tensors in files of a directory, for graphs whose activations do not fit.

A block is a file that has no name: it is there as long as something maps it, and gone with the process, however that
ends. Its room is reserved when it is made, so that a full disk is an error then and not a lost page later. What lies in
such memory is read and written like any other; the system moves pages between it and the disk, least used first, and
`rest` asks it to do so now.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from sarc.errors import OffloadError

# Linux 5.4; Python has no name for it.
_MADV_PAGEOUT = 21
_PREFIX = "sarc-tier-"


class DiskTier:
    """A source of a pool's memory.

    Args:
        directory: on a local disk; None: the system's directory for temporary files.

    Raises:
        OffloadError: no file can be made there.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self.directory = Path(directory or tempfile.gettempdir())
        remove_stale(self.directory)
        self.map(mmap.PAGESIZE).close()

    def map(self, nbytes: int) -> mmap.mmap:
        """A block of at least `nbytes` in a file of its own."""
        try:
            with tempfile.TemporaryFile(prefix=f"{_PREFIX}{os.getpid()}-", dir=self.directory) as file:
                # Without it a full disk would end the process at the first write to a page (SIGBUS).
                os.posix_fallocate(file.fileno(), 0, nbytes)
                return mmap.mmap(file.fileno(), nbytes)
        except OSError as error:
            raise OffloadError(self._told(error, nbytes)) from error

    def rest(self, block: mmap.mmap) -> None:
        """Move a block's pages to the disk; its contents stay."""
        with suppress(OSError):  # an older system keeps them until it needs the room
            block.madvise(_MADV_PAGEOUT)

    def _told(self, error: OSError, nbytes: int) -> str:
        where = f"offload: {self.directory}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.directory).free
            return (
                f"{where} has no room for another {nbytes} B ({free} B free): nothing is lost, the step was not "
                f"done; free some, or pass offload_dir= on a larger disk"
            )
        return (
            f"{where}: expected a directory in which files can be made and mapped, got {error.strerror or error}; pass "
            f"another one as offload_dir="
        )


def remove_stale(directory: Path) -> None:
    """Remove files of processes that are no more: where files cannot be made without a name, a crash may leave one."""
    with suppress(OSError):
        for path in sorted(directory.glob(f"{_PREFIX}*")):
            pid = path.name.removeprefix(_PREFIX).split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with suppress(OSError):
                    path.unlink()
