"""Images for the measurements, made from files of this machine.

    python3 -m compare.images SIZE_MIB DATA_MIB OUTPUT [upgraded]

run in benches/, makes an ext4 file system of SIZE_MIB with about DATA_MIB of files in it: a choice,
by a fixed seed, of the regular files below /usr/bin, /usr/lib and /usr/share, each in
its own directory as on the machine. Needs mke2fs (Debian: e2fsprogs), not root.

Two machines get different bytes, as they have different files; one machine gets the
same files again, and mke2fs lays them out as it lays out anybody's.
"""

import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 1 << 20
SEED = 4
ROOTS = ("/usr/bin", "/usr/lib", "/usr/share")
# No file may be most of an image.
FILE_BYTES_MAX = 64 * MIB
CHUNK = 5 * MIB
UUID = "0012e24a-6eae-4279-9912-3432f698cec8"


def choose_files(data_bytes):
    """Regular files with about data_bytes in total, counted in blocks of 4 KiB."""
    found = []
    for root in ROOTS:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                is_fit = stat.S_ISREG(status.st_mode) and status.st_size <= FILE_BYTES_MAX
                if is_fit and os.access(path, os.R_OK):
                    found.append((path, status.st_size))
    found.sort()
    random.Random(SEED).shuffle(found)
    chosen, total = [], 0
    for path, size in found:
        if total >= data_bytes:
            break
        chosen.append(path)
        total += -(-size // 4096) * 4096
    return chosen, total


def make_ext4(output, size_bytes, data_bytes, is_upgraded=False):
    """An ext4 file system with real files, in a sparse file. If upgraded, one file in thirty
    is replaced by another version, which is a bit longer and differs from its middle on."""
    output = Path(output)
    files, total = choose_files(data_bytes)
    if total < data_bytes * 9 // 10:
        print(
            f"images: this machine has only {total // MIB} MiB of files for {output}",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory(dir=output.parent) as staging:
        for path in files:
            copy = Path(staging, path[1:])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            if is_upgraded and files.index(path) % 30 == 0:
                upgrade(copy)
        part = output.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(part, "wb") as file:
            file.truncate(size_bytes)
        # In Debian, mke2fs is not in the PATH of ordinary users.
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        command = [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-U",
            UUID,
            "-E",
            f"hash_seed={UUID}",
            "-d",
            staging,
            str(part),
        ]
        subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    part.rename(output)


def upgrade(path):
    """Changes a file like a new version of it."""
    held = path.read_bytes()
    half = len(held) // 2
    # Its own bytes at another place, so that it is as compressible as before.
    path.write_bytes(held[:half] + held[half // 2 : half // 2 + 1000] + held[half:][::-1])


def make_changed(output, image):
    """The image with one in a hundred blocks of 64 KiB changed to the bytes of another block
    with data, at places that depend on a seed."""
    block, chosen = 64 * 1024, random.Random(SEED)
    size_bytes = os.stat(image).st_size
    make_larger(output, image, size_bytes)
    with open(image, "rb") as source, open(output, "r+b") as target:
        full = [
            offset
            for start, end in extents(source)
            for offset in range(start // block * block, end - block, block)
        ]
        for index in chosen.sample(range(size_bytes // block), size_bytes // block // 100):
            source.seek(chosen.choice(full) + 4096)
            held = source.read(block - 4096)
            target.seek(index * block)
            target.write(held)


def extents(file):
    """The runs of data of an open file, as (start, end) in bytes."""
    end = 0
    while True:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, end


def data_bytes(path):
    """The number of bytes of a file outside of holes."""
    with open(path, "rb") as file:
        return sum(end - start for start, end in extents(file))


def make_dense(output, image, size_bytes):
    """An image without holes: chunks with data of another image, evenly spaced over all of
    it."""
    with open(image, "rb") as source, open(output, "wb") as target:
        last = os.fstat(source.fileno()).st_size // CHUNK
        touched = {
            i for start, end in extents(source) for i in range(start // CHUNK, -(-end // CHUNK))
        }
        chunks = sorted(i for i in touched if i < last)
        wanted = min(-(-size_bytes // CHUNK), len(chunks))
        for i in range(wanted):
            source.seek(chunks[i * len(chunks) // wanted] * CHUNK)
            target.write(source.read(CHUNK))
        target.truncate(min(size_bytes, wanted * CHUNK))


def make_sparse(output, data, size_bytes, places, at):
    """A sparse file with the bytes of another one, divided into this many parts; at(i) is
    the offset of the i-th part."""
    with open(data, "rb") as source, open(output, "wb") as target:
        piece = -(-os.fstat(source.fileno()).st_size // places)
        for i in range(places):
            target.seek(at(i))
            copy(source, target, piece)
        target.truncate(size_bytes)


def make_larger(output, image, size_bytes):
    """The same data in a larger sparse file."""
    with open(image, "rb") as source, open(output, "wb") as target:
        for start, end in extents(source):
            source.seek(start)
            target.seek(start)
            copy(source, target, end - start)
        target.truncate(size_bytes)


def make_noise(output, size_bytes):
    """Random bytes, which cannot be compressed, from a seed."""
    noise = random.Random(SEED)
    with open(output, "wb") as target:
        for _ in range(size_bytes // MIB):
            target.write(noise.randbytes(MIB))


def copy(source, target, length):
    """Copies bytes in pieces, because the process must remain small: see processes.py."""
    while length > 0:
        piece = source.read(min(MIB, length))
        if not piece:
            return
        target.write(piece)
        length -= len(piece)


def warm(path):
    """Reads the data of a file, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        for start, end in list(extents(file)):
            for offset in range(start, end, MIB):
                os.pread(file.fileno(), min(MIB, end - offset), offset)


def differ(left, right, length):
    """The first MiB in which two files differ within length bytes, or None. Only places
    where one of them has data are compared."""
    with open(left, "rb", buffering=0) as one, open(right, "rb", buffering=0) as other:
        for start, end in [*extents(one), *extents(other)]:
            for offset in range(start, min(end, length), MIB):
                count = min(MIB, length - offset)
                if os.pread(one.fileno(), count, offset) != os.pread(other.fileno(), count, offset):
                    return offset
    return None


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    size_mib, data_mib, output = sys.argv[1:4]
    upgraded = sys.argv[4:] == ["upgraded"]
    make_ext4(Path(output).absolute(), int(size_mib) * MIB, int(data_mib) * MIB, upgraded)
