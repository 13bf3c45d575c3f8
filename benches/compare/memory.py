"""Free memory that is really there.

A guest may give its free pages back to its host (free page reporting of the balloon).
Whoever takes them next waits for the host, some GiB/s at best and 0.5 GiB/s where this
was written, and who that is depends on what ran before. So free pages are touched
before each round that takes many, and given back later where the kernel lets us.
"""

import contextlib
import mmap
import subprocess
import sys
from pathlib import Path

REPORTING = Path("/sys/module/page_reporting/parameters")
# How long a page has to be free before it is given back: the most that there can be.
WAIT_MS = REPORTING / "min_free_ms"
LONGEST_MS = "120000"
# Left alone: what others need meanwhile.
SPARED_BYTES = 1 << 30
# No round takes more.
TOUCHED_BYTES_MAX = 6 << 30


@contextlib.contextmanager
def kept():
    """Free pages are given back late for the length of a `with`; gives whether they are
    given back at all, and so have to be touched."""
    try:
        before = WAIT_MS.read_text()
        WAIT_MS.write_text(LONGEST_MS)
    except OSError:
        # Another kernel, or nobody may.
        yield REPORTING.exists()
        return
    try:
        yield True
    finally:
        WAIT_MS.write_text(before)


def touch():
    """Touches the free memory, in a process of its own, whose end frees it again."""
    subprocess.run([sys.executable, __file__], check=True)


def free_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":") for line in lines)
    return int(fields["MemFree"].split()[0]) * 1024


if __name__ == "__main__":
    count = min(free_bytes() - SPARED_BYTES, TOUCHED_BYTES_MAX)
    if count > 0:
        mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
