"""The limits of the machine: the data of an image is moved by the simplest means.

    python3 -m compare.limits memcpy | read | loopback IMAGE
    python3 -m compare.limits write | sync IMAGE OUTPUT
    python3 -m compare.limits http IMAGE URI

Prints wall time and CPU time in seconds and the peak memory as JSON, not counting the
start of Python. Run in benches/, as run.py does for the case `limits`.
"""

import contextlib
import json
import mmap
import os
import resource
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

from .images import CHUNK, extents

CONNECTIONS = 4


def chunks(image):
    """The spans of data in a file as (offset, length), none longer than a chunk."""
    with open(image, "rb") as file:
        for start, end in extents(file):
            for offset in range(start, end, CHUNK):
                yield offset, min(CHUNK, end - offset)


def memcpy(image):
    """Copies the same amount of memory, from an area larger than any cache."""
    spans, target = list(chunks(image)), bytearray(CHUNK)
    source = memoryview(bytearray(os.urandom(CHUNK) * 64))
    with timed():
        for i, (_, length) in enumerate(spans):
            at = i % 64 * CHUNK
            target[:length] = source[at : at + length]


def read(image):
    """Reads the data from the page cache, on one thread."""
    spans, buffer = list(chunks(image)), memoryview(mmap.mmap(-1, CHUNK))
    with open(image, "rb", buffering=0) as file, timed():
        for offset, length in spans:
            os.preadv(file.fileno(), [buffer[:length]], offset)


def write(image, output, is_synced=False):
    """Writes the same amount to a new file, at the same offsets."""
    spans, buffer = list(chunks(image)), memoryview(os.urandom(CHUNK))
    with open(output, "wb", buffering=0) as file, timed():
        for offset, length in spans:
            os.pwrite(file.fileno(), buffer[:length], offset)
        if is_synced:
            os.fsync(file.fileno())
    os.unlink(output)


def sync(image, output):
    write(image, output, is_synced=True)


@contextlib.contextmanager
def timed():
    """Prints the time and CPU time that the body of the `with` took."""
    os.sync()
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    yield
    wall_s, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": after.ru_maxrss * 1024}))


def receive(listener):
    """Reads from connections and ignores the bytes, like `nc -l >/dev/null`."""
    connection, _ = listener.accept()
    buffer = bytearray(256 * 1024)
    while connection.recv_into(buffer):
        pass
    connection.send(b".")
    connection.close()


def send_all(spans, send):
    """Sends all spans over several connections at once."""
    left, lock = iter(spans), threading.Lock()

    def worker():
        connection = None
        while True:
            with lock:
                span = next(left, None)
            if span is None:
                break
            connection = send(connection, *span)
        if connection:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    workers = [threading.Thread(target=worker) for _ in range(CONNECTIONS)]
    with timed():
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()


def loopback(image):
    """sendfile over TCP to readers in another process."""
    spans = list(chunks(image))
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        readers = [threading.Thread(target=receive, args=[listener]) for _ in range(CONNECTIONS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        os._exit(0)
    with open(image, "rb") as file:

        def send(connection, offset, length):
            connection = connection or socket.create_connection(listener.getsockname())
            connection.sendfile(file_of(file), offset, length)
            return connection

        send_all(spans, send)
    os.wait()


def http(image, uri):
    """The same as requests to the sink, which is the minimal cost of HTTP."""
    spans, address = list(chunks(image)), urlsplit(uri)
    path = "/drives/00000000-0000-4000-8000-000000000051/write"
    with open(image, "rb") as file:

        def post(connection, offset, length):
            connection = connection or socket.create_connection((address.hostname, address.port))
            head = (
                f"POST {path}/{offset} HTTP/1.1\r\nHost: sink\r\nContent-Length: {length}\r\n\r\n"
            )
            connection.sendall(head.encode(), socket.MSG_MORE)
            connection.sendfile(file_of(file), offset, length)
            answer = connection.recv(4096)
            if not answer.startswith(b"HTTP/1.1 204"):
                raise SystemExit(f"limits: the sink answered {answer[:60]!r}")
            return connection

        send_all(spans, post)


def file_of(file):
    """Opens the file again for a thread, because socket.sendfile changes the position."""
    return open(f"/proc/self/fd/{file.fileno()}", "rb")


WORKS = {work.__name__: work for work in (memcpy, read, write, sync, loopback, http)}


def main(what="", *arguments):
    if what not in WORKS or not arguments:
        sys.exit(__doc__)
    WORKS[what](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
