#!/usr/bin/env python3
"""A bad link between two network namespaces, both made here and removed at the end.

    link.py --rate MBIT --delay MS [--loss PERMILLE] [--queue KIB] [--cc NAME] [--seed N]

Prints `ready CLIENT SERVER`, the names of the namespaces, once packets pass. The
client is 10.78.0.2, the server 10.78.0.1. Then it takes commands on stdin, one a line,
and answers each with a line:

    hole      from now on every packet is lost          -> ok
    through   they pass again                           -> ok
    counts    packets and bytes so far, each way        -> a JSON object

The end of stdin ends it, so it goes with whoever started it. Each way has its own rate
in Mbit/s (of IP packets), delay in ms, losses at random from the seed, and queue in
KiB: what does not fit in is lost too. `--cc` is the congestion control of both ends,
set on their routes: no setting of this machine is touched.

Exit code 77: namespaces or TUN devices cannot be made here. Needs root, iproute2 and
/dev/net/tun. One thread, standard library only; good for about 100 Mbit/s.
"""

import argparse
import collections
import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

CLIENT, SERVER = "10.78.0.2", "10.78.0.1"
MTU = 1500
CANNOT = 77
# From <linux/if_tun.h>; a TUN device without a header before each packet.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def ip(*args):
    subprocess.run(["ip", *args], check=True, stderr=subprocess.PIPE, text=True)


def tun(name, namespace):
    """Makes a TUN device and moves it to a namespace; it lives as long as the file."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", name, "netns", namespace)
    return file


def lay(namespace, device, own, peer, cc):
    """Brings up one end of the link."""
    # No memory of earlier connections, so that each run begins the same; no chatter.
    settings = ("net.ipv4.tcp_no_metrics_save=1", "net.ipv6.conf.all.disable_ipv6=1")
    ip("netns", "exec", namespace, "sysctl", "-qw", *settings)
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "addr", "add", own, "peer", peer, "dev", device)
    ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", "1000", "up")
    congctl = ["congctl", cc] if cc else []
    ip("-n", namespace, "route", "replace", peer, "dev", device, "src", own, *congctl)


class Way:
    """One direction: packets wait for their turn, then for the delay."""

    def __init__(self, source, sink, link, seed):
        self.source, self.sink = source, sink
        self.bytes_per_s = link.rate * 125_000
        self.delay = link.delay / 1000
        self.loss = link.loss / 1000
        self.queue_s = link.queue * 1024 / self.bytes_per_s
        self.random = random.Random(seed)
        self.free_at = 0.0
        self.under_way = collections.deque()
        self.counts = {"packets": 0, "bytes": 0, "lost": 0, "dropped": 0, "swallowed": 0}

    def take(self, is_hole):
        """Takes what the kernel has for us."""
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            now = time.monotonic()
            # Drawn for each packet, so that a hole does not shift the draws.
            is_lost = self.random.random() < self.loss
            start = max(now, self.free_at)
            if is_hole:
                self.counts["swallowed"] += 1
            elif is_lost:
                self.counts["lost"] += 1
            elif start - now > self.queue_s:
                self.counts["dropped"] += 1
            else:
                self.counts["packets"] += 1
                self.counts["bytes"] += len(packet)
                self.free_at = start + len(packet) / self.bytes_per_s
                self.under_way.append((self.free_at + self.delay, packet))

    def give(self):
        """Gives on what is due; the seconds until the next."""
        while self.under_way:
            wait = self.under_way[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, packet = self.under_way.popleft()
            try:
                os.write(self.sink, packet)
            except OSError:
                self.counts["dropped"] += 1
        return None


def relay(up, down):
    """Passes packets and obeys until stdin ends."""
    is_hole, typed = False, b""
    ways = {up.source: up, down.source: down}
    while True:
        waits = [wait for wait in (up.give(), down.give()) if wait is not None]
        ready, _, _ = select.select([0, *ways], [], [], min(waits, default=None))
        for file in ready:
            if file:
                ways[file].take(is_hole)
                continue
            some = os.read(0, 4096)
            if not some:
                return
            *lines, typed = (typed + some).split(b"\n")
            for line in lines:
                if line in (b"hole", b"through"):
                    is_hole = line == b"hole"
                    print("ok", flush=True)
                else:
                    print(json.dumps({"up": up.counts, "down": down.counts}), flush=True)


def hurry():
    """Goes first, so that on a busy machine it is still the link that is slow."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError as error:
        print(f"link.py: packets may be late: {error}", file=sys.stderr)


def sweep():
    """Removes what a killed link left behind."""
    listed = ["ip", "netns", "list"]
    names = subprocess.run(listed, capture_output=True, text=True).stdout
    for line in names.splitlines():
        name = line.split()[0]
        owner = name.split("-")[2] if name.startswith("oh-link-") else None
        if owner and not os.path.exists(f"/proc/{owner}"):
            subprocess.run(["ip", "netns", "del", name])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--loss", type=float, default=0)
    parser.add_argument("--queue", type=float, default=256)
    parser.add_argument("--cc")
    parser.add_argument("--seed", type=int, default=1)
    link = parser.parse_args()
    # Ends as by the end of stdin: the namespaces are removed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    client, server = (f"oh-link-{os.getpid()}-{end}" for end in ("client", "server"))
    try:
        try:
            sweep()
            ip("netns", "add", client)
            ip("netns", "add", server)
            near = tun(f"ohc{os.getpid()}", client)
            far = tun(f"ohs{os.getpid()}", server)
            lay(client, f"ohc{os.getpid()}", CLIENT, SERVER, link.cc)
            lay(server, f"ohs{os.getpid()}", SERVER, CLIENT, link.cc)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            print(f"link.py: no link can be made here: {why}".strip(), file=sys.stderr)
            sys.exit(CANNOT)
        hurry()
        print("ready", client, server, flush=True)
        relay(Way(near, far, link, link.seed), Way(far, near, link, ~link.seed))
    finally:
        for name in (client, server):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
