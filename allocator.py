"""glibc's memory allocator, told to keep what a training step frees.

By default it gives every large block back to the system, and the next step pays for fresh pages: on
two CPU cores that was more than half of the fast engine's time.
"""

import ctypes
import sys

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
SETTINGS = {
    M_MMAP_MAX: 0,  # large blocks from the heap, too
    M_TRIM_THRESHOLD: -1,  # the heap never shrinks
    M_TOP_PAD: 2**29,  # bytes by which it grows
}


def keep_freed_memory() -> bool:
    """Apply the settings to this process; false where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) for parameter, value in SETTINGS.items()]
    return all(taken)
