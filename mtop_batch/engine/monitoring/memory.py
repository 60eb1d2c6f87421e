"""The environment in which a process that trains on the CPU keeps the memory it frees."""

from __future__ import annotations

from collections.abc import Mapping

KEEP_FREED_MEMORY: Mapping[str, str] = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}
"""Settings of glibc's allocator, read when a process starts; others ignore them.

The dense gradient of the word-embedding table (47 MB for MiniLM) is made and freed at every step. glibc gives so
large a block back to the system each time, which clears and maps it again. With these, blocks come from one heap that
is kept (`benchmarks/train_speed.py` measures the difference). It has to be one heap because those of other threads
than the main one do not keep large blocks, and engines train in another.
"""
