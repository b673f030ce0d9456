"""Freed main memory is kept, in huge pages, for the next step; and the peak of the memory in use."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

import psutil
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt, from malloc.h."""

MADV_HUGEPAGE = 14
"""From sys/mman.h."""

HUGE = 2**21
"""Bytes of a huge page."""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, and back it with huge pages where the kernel has them.

    By default every tensor above some megabytes is mapped anew and unmapped when freed: a step of a model with 124
    million parameters then takes 300,000 page faults, a quarter of its time. Huge pages make what faults remain cheap
    and strided matrix products faster. Call before the first tensor is made. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_TOP_PAD, 2**26)
        _reserve(libc, psutil.virtual_memory().available)


def _reserve(libc: ctypes.CDLL, size: int) -> None:
    """Grow the heap by `size` untouched bytes, which take no memory yet, and request huge pages for them."""
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    libc.sbrk.argtypes, libc.malloc.argtypes, libc.free.argtypes = (
        [ctypes.c_ssize_t],
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = libc.sbrk(0)
    libc.free(libc.malloc(size))  # given back to the allocator, which keeps it
    start, end = -(-begin // HUGE) * HUGE, libc.sbrk(0) // HUGE * HUGE
    if end > start:
        libc.madvise(start, end - start, MADV_HUGEPAGE)


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held so far: of the GPU, or else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
