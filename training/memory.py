"""Memory that a process has freed: glibc keeps it for later allocations instead of returning it to the system."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory. By default it returns large blocks, and the system zeroes each new page.

    If GLIBC_TUNABLES is set, or the C library is not glibc, the function does nothing.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # no block is mapped for itself
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # the heap never shrinks


def return_freed_memory() -> None:
    """Return the memory that glibc has kept to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
