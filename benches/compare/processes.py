"""Runs a program and tells what it took; starts what it talks to.

CPU is user and system time. Of the program measured it is what the kernel counted for
it and its descendants at their end (wait4); of what it talks to, the difference of
/proc/PID/stat before and after. Memory is the peak resident set of the program
(ru_maxrss). The kernel counts towards it what this very process had when it started
the program, so this one stays small, and no peak below its own is told.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A program failed, or did not do what it claims."""


@dataclass
class Run:
    """What one run of a program took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    other_cpu_s: float = 0.0
    # What the sink counted.
    counted: dict = field(default_factory=dict)


def clean_environment(**more):
    """The environment without what an OpenHosting user has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OH", "EH"))}
    return {**kept, **more}


def measure(command, log, other=None, **environment):
    """Runs a command to its end. What it says goes to the file log; other is the server
    it talks to."""
    os.sync()  # What was written before is not to be written now.
    with open(log, "ab") as said:
        other_before = other.cpu_s() if other else 0.0
        begin = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=clean_environment(**environment),
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        other_cpu_s = other.cpu_s() - other_before if other else 0.0
    if process.returncode != 0:
        tail = Path(log).read_text(errors="replace").splitlines()[-5:]
        raise Failed(f"{command[0]} ended with {process.returncode}:\n  " + "\n  ".join(tail))
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, other_cpu_s)


class Server:
    """A process that others talk to, for the length of a `with`."""

    def __init__(self, command, log, **how):
        self.log = open(log, "ab")
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stderr=self.log,
            env=clean_environment(),
            **how,
        )

    def cpu_s(self):
        """User and system time until now, of all its threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def stop(self):
        """Asks it to end, and gives what it said last."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        self.log.close()
        return said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Endpoint(Server):
    """One of our servers: it says on stdout where it is and for whom."""

    def __init__(self, command, log):
        super().__init__(command, log, stdout=subprocess.PIPE, text=True)
        self.environment = {}
        for _ in range(2):
            line = self.process.stdout.readline()
            name, _, value = line.removeprefix("export ").strip().partition("=")
            self.environment[name] = value
        if "OHURI" not in self.environment:
            self.process.kill()
            raise Failed(f"{command[0]} did not start: see {log}")

    def counted(self):
        """Stops a sink and gives what it counted."""
        return json.loads(self.stop())


class Nbdkit(Server):
    """nbdkit with a disk in memory, on a Unix socket."""

    def __init__(self, size_bytes, directory, log):
        path = Path(directory, "nbd")
        path.unlink(missing_ok=True)
        command = [
            "nbdkit",
            "--foreground",
            "--exit-with-parent",
            "--unix",
            path,
            "memory",
            size_bytes,
        ]
        super().__init__(command, log, stdout=subprocess.DEVNULL)
        self.uri = f"nbd+unix:///?socket={path}"
        for _ in range(1000):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    return
            time.sleep(0.01)
        self.process.kill()
        raise Failed(f"nbdkit did not start: see {log}")


# The programs of the peers, and the Debian packages they are in.
PACKAGES = {
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "curl": "curl",
    "gzip": "gzip",
    "mke2fs": "e2fsprogs",
}


def missing(*programs):
    """Those that are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [program for program in programs if not shutil.which(program, path=path)]
