"""The runs of benches/links/run, which says what they are."""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from contestants import CONTESTANTS
from lab import Failed, Lab, NoLink, Site, stop
from matrix import LINKS, MATRIX, MBIT_BYTES

# A run that takes longer than this many times the ideal is stopped.
PATIENCE = 2.5
# IP and TCP headers, with timestamps.
HEADER_BYTES = 52
RUNS_MAX = 32
# Beside whom a stream is measured where a link is shared, and how long after their start.
COMPANIONS = ("ours", "16", "aria2")
HEAD_START_S = 5
# Set when something ends this program: all runs stop at once.
STOPPING = threading.Event()


class Interrupted(Exception):
    """This program ends, and the run with it."""


class Budget:
    """Lets runs begin, in order, up to a sum of the rates of their links."""

    def __init__(self, mbit):
        self.mbit, self.used = mbit, 0.0
        self.changed = threading.Condition()

    def take(self, mbit):
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + mbit <= self.mbit)
            self.used += mbit

    def give_back(self, mbit):
        with self.changed:
            self.used -= mbit
            self.changed.notify_all()


class Watch:
    """Looks at a run once a second: connections, and bytes that the link delivered."""

    def __init__(self, site, process, way):
        self.site, self.process, self.way = site, process, way
        self.connections, self.delivered = [], []
        self.over = threading.Event()
        self.begin = time.monotonic()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        before = self.site.counts()[self.way]
        first_late = before["late"]
        self.first = before
        second = 1
        while not self.over.wait(max(0, self.begin + second - time.monotonic())):
            now = self.site.counts()[self.way]
            self.delivered.append(now["bytes"] - before["bytes"])
            self.connections.append(self.site.connections(self.process.pid))
            before, second = now, second + 1
        self.last = self.site.counts()[self.way]
        self.late = self.last["late"] - first_late

    def end(self):
        self.over.set()
        self.thread.join()

    def payload_bytes(self):
        """What was delivered, without headers."""
        packets = self.last["packets"] - self.first["packets"]
        return self.last["bytes"] - self.first["bytes"] - packets * HEADER_BYTES


class Run:
    """One transfer by one contestant over a link of its own."""

    def __init__(self, lab, link, way, contestant, seconds, seed):
        self.lab, self.link, self.way = lab, link, way
        self.contestant, self.seconds, self.seed = contestant, seconds, seed

    def prepared(self):
        """The size of the image."""
        return self.link.image_bytes(self.seconds)

    def measure(self):
        """The result, as it is written to the file."""
        link, size = self.link, self.prepared()
        result = {
            "link": link.name, "way": self.way, "contestant": self.contestant.name,
            "kind": type(self).__name__.lower(), "seconds": self.seconds, "image_bytes": size,
            "seed": self.seed,
        }
        if self.contestant.is_missing():
            return {**result, "missing": self.contestant.program}
        image = self.lab.image(size, link.compressible)
        seeded, drive = self.lab.drive(image) if self.way == "down" else (None, None)
        has_peers = self.contestant.has_peers or isinstance(self, Beside)
        site = Site(self.lab, link, image, self.seed, has_peers, seeded)
        with contextlib.closing(site):
            try:
                self.contestant.prepare(site, self.way, drive)
                return {**result, **self.transfer(site, drive, size)}
            except Failed as error:
                return {**result, "failed": str(error)}

    def transfer(self, site, drive, size):
        link, ideal_s = self.link, self.link.ideal_s(size, self.seconds)
        command = self.contestant.command(site, self.way, drive)
        with open(site.directory / "log", "wb") as log:
            process = site.spawn(command, log)
        watch = Watch(site, process, self.way)
        change = threading.Timer(
            link.change_s(self.seconds), lambda: site.ask(f"rate {link.rates_mbit[1]}")
        )
        if link.second_rate_mbit:
            change.start()
        try:
            code, cpu_s = wait(process, PATIENCE * ideal_s)
            took_s = time.monotonic() - watch.begin
        finally:
            stop(process)
            change.cancel()
            watch.end()
        is_whole = code is not None
        if code:
            raise Failed(f"exit code {code}: {site.tail('log')}")
        if is_whole:
            self.contestant.check(site, self.way, drive)
        moved = size if is_whole else watch.payload_bytes()
        counted = [number for number in watch.connections if number is not None]
        return {
            "took_s": round(took_s, 3),
            # A run that was stopped: the rate is of what the link delivered until then.
            "is_whole": is_whole,
            "mbit_per_s": round(moved / MBIT_BYTES / took_s, 3),
            "share": round(self.share(is_whole, ideal_s, took_s, moved), 4),
            "cpu_s": round(cpu_s, 2),
            "connections_peak": max(counted, default=None),
            "connections_median": statistics.median_low(counted) if counted else None,
            "connections": counted,
            "delivered_bytes": watch.delivered,
            # The emulator was not on time.
            "late_packets": watch.late,
            "overflowed_packets": site.overflowed(),
        }

    def share(self, is_whole, ideal_s, took_s, moved):
        """The share of what the link could carry."""
        return ideal_s / took_s if is_whole else moved / self.link.carries_bytes(took_s, self.seconds)


class Beside(Run):
    """One stream of curl beside a contestant that transfers all the time: how much of the
    link is left to it."""

    def prepared(self):
        # Enough for the contestant to outlast the stream.
        return self.link.image_bytes(2 * self.seconds + 2 * HEAD_START_S)

    def transfer(self, site, drive, size):
        stream = CONTESTANTS["curl"].command(site, self.way, drive)
        counted = "%{size_download}" if self.way == "down" else "%{size_upload}"
        stream += ["-o", "/dev/null", "--max-time", self.seconds, "-w", f"bytes {counted}\n"]
        with open(site.directory / "log", "wb") as log, open(site.directory / "stream", "wb") as own:
            process = site.spawn(self.contestant.command(site, self.way, drive), log)
            try:
                code, _ = wait(process, HEAD_START_S)
                if code is None:
                    wait(site.spawn(stream, own), 2 * self.seconds)
                    code, _ = wait(process, 0)
            finally:
                stop(process)
        if code is not None:
            raise Failed(f"{self.contestant.name} ended with {code} before the stream did")
        (moved,) = re.findall(r"^bytes (\d+)", (site.directory / "stream").read_text(), re.MULTILINE)
        mbit_per_s = int(moved) / MBIT_BYTES / self.seconds
        return {"stream_mbit_per_s": round(mbit_per_s, 3),
                "stream_share": round(mbit_per_s / self.link.rate_mbit, 4)}


def wait(process, seconds):
    """Waits for the end of a process; its exit code, none if it is not over in time, and
    its CPU time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime
        if STOPPING.wait(0.01):
            raise Interrupted
    return None, 0.0


def arguments():
    parser = argparse.ArgumentParser(prog="benches/links/run", description=__doc__)
    parser.add_argument("links", nargs="*", metavar="LINK", help="links of the matrix [default: all]")
    parser.add_argument("--list", action="store_true", help="list the links and end")
    parser.add_argument("--way", choices=("up", "down"), help="one direction only")
    parser.add_argument("--contestants", metavar="A,B", help=f"of {','.join(CONTESTANTS)}")
    parser.add_argument("--seconds", type=float, default=20,
                        help="size of the image: what the link carries in this time [default: 20]")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, with different seeds")
    parser.add_argument("--together", type=float, default=300, metavar="MBIT",
                        help="run links at the same time up to this sum of rates; 0: one [default: 300]")
    parser.add_argument("--output", default="links.jsonl", help="append results to this file")
    args = parser.parse_args()
    for name in args.links:
        if name not in LINKS:
            parser.error(f"no such link: {name} (see --list)")
    chosen = args.contestants.split(",") if args.contestants else list(CONTESTANTS)
    for name in chosen:
        if name not in CONTESTANTS:
            parser.error(f"no such contestant: {name}")
    args.links = [LINKS[name] for name in args.links] or MATRIX
    args.contestants = [CONTESTANTS[name] for name in chosen]
    return args


def runs(lab, args):
    for link in args.links:
        for seed in range(1, args.rounds + 1):
            for way in link.ways:
                for contestant in args.contestants:
                    if way not in contestant.ways or args.way not in (None, way):
                        continue
                    if contestant.has_peers and not link.is_plain_server:
                        continue
                    yield Run(lab, link, way, contestant, args.seconds, seed)
                    if link.is_shared and contestant.name in COMPANIONS:
                        yield Beside(lab, link, way, contestant, args.seconds, seed)


def say(result):
    what = f"{result['link']:24} {result['way']:4} {result['contestant']:8}"
    if "missing" in result:
        rest = f"is not installed: {result['missing']}"
    elif "failed" in result:
        rest = f"failed: {result['failed']}"
    elif "stream_share" in result:
        rest = f"leaves {result['stream_share']:.0%} of the link to one stream of curl"
    else:
        rest = f"{result['took_s']:7.1f} s {result['mbit_per_s']:7.1f} Mbit/s {result['share']:5.0%}"
        rest += f"  {result['connections_peak']} connections"
        rest += "" if result["is_whole"] else ", stopped"
    print(what, rest, flush=True)


def main():
    args = arguments()
    if args.list:
        for link in MATRIX:
            print(f"{link.name:24} {link}")
        return
    # Every way to end goes through the clean-up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    lab = Lab(os.environ["OH_BIN"])
    budget, writing = Budget(args.together), threading.Lock()
    failures = []

    def one(run, mbit):
        try:
            result = run.measure()
        finally:
            budget.give_back(mbit)
        with writing, open(args.output, "a") as output:
            output.write(json.dumps(result) + "\n")
            say(result)
            if "failed" in result:
                failures.append(result)

    try:
        with ThreadPoolExecutor(max_workers=RUNS_MAX) as pool:
            try:
                pending = []
                for run in runs(lab, args):
                    mbit = max(run.link.rates_mbit)
                    budget.take(mbit)
                    pending.append(pool.submit(one, run, mbit))
                    # What one of them raised ends all.
                    for done in filter(Future.done, pending):
                        done.result()
                for done in pending:
                    done.result()
            except BaseException:
                STOPPING.set()
                pool.shutdown(cancel_futures=True)
                raise
    except NoLink as error:
        print(f"SKIPPED: {error}, nothing was measured")
    finally:
        lab.close()
    sys.exit(1 if failures else 0)


main()
