"""What the machine allows: one thing at a time, with nothing else around it.

    python3 -m compare.limits memcpy | read IMAGE | write IMAGE OUTPUT | loopback IMAGE | http IMAGE URI

Prints the bytes and the seconds as JSON. Run in benches/, as run.py does for the case `limits`.
"""

import json
import mmap
import os
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

from .images import CHUNK, MIB, extents

CONNECTIONS = 4
DRIVE = "00000000-0000-4000-8000-000000000051"


def memcpy():
    """Copies memory, a chunk at a time, from more than any cache holds."""
    source, target = bytearray(64 * CHUNK), bytearray(CHUNK)
    for at in range(0, len(source), 4096):
        source[at] = 1
    begin = time.monotonic()
    for at in range(0, len(source), CHUNK):
        target[:] = memoryview(source)[at : at + CHUNK]
    return len(source), time.monotonic() - begin


def chunks(image):
    """Spans of data of a file, none longer than a chunk, as (offset, length)."""
    with open(image, "rb") as file:
        for start, end in extents(file):
            for offset in range(start, end, CHUNK):
                yield offset, min(CHUNK, end - offset)


def read(image):
    """Reads the data of a file from the page cache, on one thread."""
    spans, buffer = list(chunks(image)), mmap.mmap(-1, CHUNK)
    with open(image, "rb", buffering=0) as file:
        begin = time.monotonic()
        for offset, length in spans:
            os.preadv(file.fileno(), [memoryview(buffer)[:length]], offset)
        return sum(length for _, length in spans), time.monotonic() - begin


def write(image, output):
    """Writes as much to a new file at the same places, and syncs it; two times: until
    it is written, and until it is on the disk."""
    spans, buffer = list(chunks(image)), memoryview(os.urandom(CHUNK))
    with open(output, "wb", buffering=0) as file:
        begin = time.monotonic()
        for offset, length in spans:
            os.pwrite(file.fileno(), buffer[:length], offset)
        written_s = time.monotonic() - begin
        os.fsync(file.fileno())
        synced_s = time.monotonic() - begin
    os.unlink(output)
    return sum(length for _, length in spans), written_s, synced_s


def receive(listener):
    """Reads what comes and does nothing with it, as `nc -l >/dev/null`."""
    connection, _ = listener.accept()
    buffer = bytearray(256 * 1024)
    while connection.recv_into(buffer):
        pass
    connection.send(b".")
    connection.close()


def sends(spans, of_span):
    """Sends all spans over several connections at once."""
    left, lock = iter(spans), threading.Lock()

    def worker():
        connection = None
        while True:
            with lock:
                span = next(left, None)
            if span is None:
                break
            connection = of_span(connection, *span)
        if connection:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    workers = [threading.Thread(target=worker) for _ in range(CONNECTIONS)]
    begin = time.monotonic()
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return sum(length for _, length in spans), time.monotonic() - begin


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

        moved = sends(spans, send)
    os.wait()
    return moved


def http(image, uri):
    """The same as requests, to the sink: the least that HTTP can cost."""
    spans, address = list(chunks(image)), urlsplit(uri)
    with open(image, "rb") as file:

        def post(connection, offset, length):
            connection = connection or socket.create_connection((address.hostname, address.port))
            head = f"POST /drives/{DRIVE}/write/{offset} HTTP/1.1\r\nHost: sink\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode(), socket.MSG_MORE)
            connection.sendfile(file_of(file), offset, length)
            answer = connection.recv(4096)
            if not answer.startswith(b"HTTP/1.1 204"):
                raise SystemExit(f"limits: the sink answered {answer[:60]!r}")
            return connection

        return sends(spans, post)


def file_of(file):
    """A file of its own for a thread: socket.sendfile moves the position."""
    return open(f"/proc/self/fd/{file.fileno()}", "rb")


def main(what="", *arguments):
    works = {"memcpy": memcpy, "read": read, "write": write, "loopback": loopback, "http": http}
    if what not in works:
        sys.exit(__doc__)
    moved, *seconds = works[what](*arguments)
    print(json.dumps({"bytes": moved, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
