"""How the process gets its memory: a training step asks for the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameter numbers (glibc's malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, for the next step to use: on Linux with glibc; elsewhere nothing changes.

    glibc otherwise gives every large block back to the kernel as it is freed, and the next step waits for the kernel to
    zero the same pages once more. The process's peak memory stays what it is; it no longer falls between steps.

    Returns:
        Whether the allocator took the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # No block is mapped on its own, and the top of the heap is never trimmed.
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
