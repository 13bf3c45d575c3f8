"""Free memory that the host has really provided.

A virtual machine may return its free pages to the host (free page reporting of the
balloon device). The next program that needs them must wait for the host, which provides
a few GiB/s at best, and 0.5 GiB/s where this was written. Which program that is depends
on what ran before, so results would be unfair. Therefore free pages are touched before
each round that needs many, and their return is delayed if the kernel permits that.
"""

import contextlib
import mmap
import subprocess
import sys
from pathlib import Path

REPORTING = Path("/sys/module/page_reporting/parameters")
# How long a page must be free before it is returned to the host: the highest value.
WAIT_MS = REPORTING / "min_free_ms"
LONGEST_MS = "120000"
# Not touched, because other processes need it meanwhile.
SPARED_BYTES = 1 << 30
# No round uses more.
TOUCHED_BYTES_MAX = 6 << 30


@contextlib.contextmanager
def kept():
    """Delays the return of free pages to the host during a `with`. The value says whether
    pages are returned at all, so that they must be touched."""
    try:
        before = WAIT_MS.read_text()
        WAIT_MS.write_text(LONGEST_MS)
    except OSError:
        # A different kernel, or no permission.
        yield REPORTING.exists()
        return
    try:
        yield True
    finally:
        WAIT_MS.write_text(before)


def touch():
    """Touches the free memory in a separate process, whose end frees it again."""
    subprocess.run([sys.executable, __file__], check=True)


def free_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":") for line in lines)
    return int(fields["MemFree"].split()[0]) * 1024


if __name__ == "__main__":
    count = min(free_bytes() - SPARED_BYTES, TOUCHED_BYTES_MAX)
    if count > 0:
        mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
