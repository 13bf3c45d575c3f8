"""Blocks of 64 KiB in which two images differ: their bytes, and those of gzip of each.

    python3 -m compare.changes OLD NEW

run in benches/. Neighbours are one, as a delta sends them.
"""

import sys
import zlib

BLOCK = 64 * 1024
CHUNK = 64 * BLOCK


def changes(old, new):
    """The runs of blocks in which they differ, none longer than a chunk."""
    run = b""
    with open(old, "rb") as left, open(new, "rb") as right:
        at = 0
        while block := right.read(BLOCK):
            is_same = left.read(BLOCK) == block
            if run and (is_same or at % CHUNK == 0):
                yield run
                run = b""
            if not is_same:
                run += block
            at += BLOCK
    if run:
        yield run


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    total = packed = 0
    for run in changes(*sys.argv[1:]):
        total += len(run)
        packed += len(zlib.compress(run, 6))
    print(total, packed)
