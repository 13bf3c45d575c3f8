"""Runs a program and measures it; starts the server that it uses.

CPU time is user and system time. For the program it is the time that the kernel counted
for it and its descendants when they ended (wait4). For the server it is the difference
in /proc/PID/stat between begin and end. Memory is the peak resident set of the program
(ru_maxrss). The kernel includes in that the memory of this process at the time when it
started the program. So this process remains small, and peaks below its own are not
reported.
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
    """The measurements of one run of a program."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    other_cpu_s: float = 0.0
    # The counters of the sink.
    counted: dict = field(default_factory=dict)


def clean_environment(**more):
    """The environment without variables for OpenHosting."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OH", "EH"))}
    return {**kept, **more}


def measure(command, log, other=None, **environment):
    """Runs a command to its end. Its output is written to the file log; other is the server
    that it uses."""
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
    """A server process, which runs during a `with`."""

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
        """User and system time of all its threads so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def stop(self):
        """Stops it, and returns the end of its output."""
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
    """One of our servers, which prints its address and credentials on stdout."""

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
        """Stops a sink, and returns its counters."""
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


# The programs of the peers, and their Debian packages.
PACKAGES = {
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "curl": "curl",
    "gzip": "gzip",
    "mke2fs": "e2fsprogs",
}


def missing(*programs):
    """The packages that are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [program for program in programs if not shutil.which(program, path=path)]
