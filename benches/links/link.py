#!/usr/bin/env python3
"""An emulated link between two network namespaces; both are removed at its end.

    link.py --rate MBIT --delay MS [--loss PERCENT] [--queue KIB] [--cc NAME] [--seed N]

Prints `ready CLIENT SERVER`, the names of the namespaces, as soon as packets pass. The
client is 10.78.0.2, the server 10.78.0.1. Then it takes commands on stdin, one a line,
and answers each with one line:

    hole        drop every packet from now on           -> ok
    through     carry packets again                     -> ok
    rate MBIT   change the rate                         -> ok
    counts      packets and bytes so far, each way      -> a JSON object

It ends at the end of stdin, so it cannot outlive the process that started it, and kills
what still runs in its namespaces. Each way has its own rate in Mbit/s (of IP packets),
delay in ms, random losses from the seed, and queue in KiB; a packet that finds a full
queue is dropped. `--cc` is the congestion control of both ends, set on their routes: no
setting of this machine is changed.

Exit code 77: this machine cannot make namespaces or TUN devices. Needs root, iproute2,
/dev/net/tun and cargo, which builds the emulator (`emulator/`) on first use.
"""

import argparse
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

CLIENT, SERVER = "10.78.0.2", "10.78.0.1"
MTU = 1500
CANNOT = 77
HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "target/links"
# From <linux/if_tun.h>; a TUN device without a header before each packet.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# Namespaces are named PREFIX-PID-END, so that those of a killed process can be removed.
PREFIX = "oh-link"


def ip(*args):
    subprocess.run(["ip", *args], check=True, stderr=subprocess.PIPE, text=True)


def build():
    """Builds the emulator where it is not yet built; its path."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", TARGET]
    command += ["--manifest-path", HERE / "emulator/Cargo.toml"]
    try:
        # stdout is for our own answers.
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"link.py: the emulator could not be built: {error}")
    return TARGET / "release/openhosting-link-emulator"


def tun(name, namespace):
    """Makes a TUN device and moves it to a namespace; it exists until the file is closed."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
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
    # The kernel's own queue only has to last until the emulator runs.
    ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", "10000", "up")
    congctl = ["congctl", cc] if cc else []
    ip("-n", namespace, "route", "replace", peer, "dev", device, "src", own, *congctl)


def hurry():
    """Runs first on a busy machine, so that the link has its rate and delay there too."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError as error:
        print(f"link.py: packets may be late: {error}", file=sys.stderr)


def carry(emulator, link, near, far):
    """Starts the emulator; the process, and the lines to and from it."""
    own, its = socket.socketpair()
    settings = (link.rate, link.delay, link.loss, int(link.queue * 1024), link.seed)
    process = subprocess.Popen(
        [emulator, *map(str, settings)], stdin=near, stdout=far, stderr=its, preexec_fn=hurry
    )
    its.close()
    lines = own.makefile("rw")
    said = lines.readline().strip()
    if said != "ready":
        sys.exit(f"link.py: the emulator did not start: {said}")
    return process, lines


def remove(namespace):
    """Removes a namespace and kills what still runs in it."""
    listed = ["ip", "netns", "pids", namespace]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    for pid in subprocess.run(listed, **quiet).stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    subprocess.run(["ip", "netns", "del", namespace], **quiet)


def sweep():
    """Removes what a killed link left behind."""
    listed = ["ip", "netns", "list"]
    names = subprocess.run(listed, capture_output=True, text=True).stdout
    for line in names.splitlines():
        name = line.split()[0]
        owner = name.split("-")[2] if name.startswith(f"{PREFIX}-") else None
        if owner and not os.path.exists(f"/proc/{owner}"):
            remove(name)


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
    client, server = (f"{PREFIX}-{os.getpid()}-{end}" for end in ("client", "server"))
    process = None
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
        process, lines = carry(build(), link, near, far)
        print("ready", client, server, flush=True)
        for line in sys.stdin:
            lines.write(line)
            lines.flush()
            answer = lines.readline()
            if not answer:
                sys.exit("link.py: the emulator ended")
            print(answer, end="", flush=True)
    finally:
        for name in (client, server):
            remove(name)
        if process:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
