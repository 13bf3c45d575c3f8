"""Shared by all cases: the programs, the images, a scratch directory, and the rounds."""

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import images, memory
from .images import MIB
from .processes import Endpoint, Failed, Nbdkit, Run, clean_environment, measure, missing

HERE = Path(__file__).resolve().parent
BENCHES = HERE.parent
ROOT = BENCHES.parent
GIB = 1 << 30
AUTO = "auto"
CHUNK_UP = 5 * MIB
CHUNK_DOWN = 4 * MIB


@dataclass
class Scale:
    """The sizes of everything."""

    image_bytes: int = 4 * GIB
    files_bytes: int = 900 * MIB
    sparse_bytes: int = 1 << 40
    sparse_data_bytes: int = 100 * MIB
    sparse_places: int = 100
    noise_bytes: int = 512 * MIB
    publish_bytes: int = 2 * GIB
    # Name, bits per second, and bytes of the image, chosen so that a run takes seconds.
    links: tuple = (
        ("10 Mbit/s", 10**7, 48 * MIB),
        ("100 Mbit/s", 10**8, 240 * MIB),
        ("1 Gbit/s", 10**9, 880 * MIB),
        ("10 Gbit/s", 10**10, 880 * MIB),
        ("loopback", None, 880 * MIB),
    )
    noise_links: tuple = (("1 Gbit/s", 10**9), ("loopback", None))
    levels: tuple = (AUTO, 0, 1, 2, 3, 6, 9, 12)
    memory_bytes: tuple = (4 * GIB, 16 * GIB, 64 * GIB)
    memory_jobs: tuple = (1, 4, 16)
    # Runs of less than a second vary more, so they get this many times the rounds.
    short_rounds: int = 3


QUICK = Scale(
    image_bytes=128 * MIB,
    files_bytes=32 * MIB,
    sparse_bytes=1 * GIB,
    sparse_data_bytes=10 * MIB,
    sparse_places=10,
    noise_bytes=16 * MIB,
    publish_bytes=64 * MIB,
    links=(("1 Gbit/s", 10**9, 20 * MIB), ("loopback", None, 20 * MIB)),
    levels=(AUTO, 0, 1),
    memory_bytes=(128 * MIB, 256 * MIB),
    memory_jobs=(1, 4),
    short_rounds=1,
)


@dataclass
class Goal:
    """A ratio, and its limit."""

    what: str
    # None if it could not be measured.
    value: float | None
    # None if there is no goal.
    limit: float | None = None
    # Whether the limit is a minimum and not a maximum.
    is_least: bool = False


@dataclass
class Case:
    """Alternatives that were measured in turn, with the runs of each."""

    runs: dict = field(default_factory=dict)
    goals: list = field(default_factory=list)

    def wall_s(self, *names):
        """The median wall time of the best of these, or None if none of them ran."""
        return self.best(names, lambda run: run.wall_s)

    def cpu_s(self, *names):
        return self.best(names, lambda run: run.cpu_s)

    def best(self, names, what):
        return min((self.median(name, what) for name in names if self.runs.get(name)), default=None)

    def median(self, name, what):
        return statistics.median(map(what, self.runs[name]))


def ratio(left, right):
    return left / right if left is not None and right else None


class Bench:
    """The programs, the images, and a directory for files that are written."""

    def __init__(self, cache, scale, rounds, profile, touches_memory=False):
        self.cache, self.scale, self.rounds = cache, scale, rounds
        # Whether free memory must be touched before each round (see memory.py).
        self.touches_memory = touches_memory
        self.programs = ROOT / "target" / ("debug" if profile == "dev" else "release")
        self.scratch = Path(tempfile.mkdtemp(dir=cache, prefix="scratch-"))
        self.log = self.scratch / "log"
        self.compared = set()
        # The files of the current case that must be in the page cache.
        self.warmed = set()

    def interleave(
        self, contenders, rounds=None, is_wanted=lambda name, case: True, takes_memory=True
    ):
        """Runs each contender once per round. Each round begins with a different one.
        `takes_memory` says whether some write files, or hold the image in memory."""
        case = Case({name: [] for name in contenders})
        rounds = rounds or self.rounds
        touches = self.touches_memory and takes_memory
        for number in range(rounds):
            # The order is that of the contenders that run: otherwise the one that follows
            # an omitted one would be first too often.
            names = [name for name in contenders if is_wanted(name, case)]
            first = number % len(names)
            turn = names[first:] + names[:first]
            if touches:
                memory.touch()
            # Kernels that return unused memory may have removed the file from the cache.
            for path in self.warmed:
                images.warm(path)
            if touches or number == 0:
                # An additional run that is not counted: the first run of all, and the first
                # one after memory was touched, are a fifth slower than the others.
                contenders[turn[0]]()
            for name in turn:
                run = contenders[name]()
                case.runs[name].append(run)
                print(
                    f"  {number + 1}/{rounds} {name}: {run.wall_s:.2f} s, CPU {run.cpu_s:.2f} s",
                    file=sys.stderr,
                )
        return case

    def warm(self, path):
        """Reads a file into the page cache, and keeps it there during this case."""
        images.warm(path)
        self.warmed.add(path)

    def script(self, module, *arguments):
        """Runs a module of this package, and returns its output. It runs in a separate
        process, so that this one remains small."""
        command = [sys.executable, "-m", f"compare.{module}", *map(str, arguments)]
        done = subprocess.run(command, check=True, cwd=BENCHES, stdout=subprocess.PIPE, text=True)
        return done.stdout

    # Images. Each is made once, and its name contains the parameters.

    def made(self, name, make):
        path = self.cache / name
        if not path.exists():
            print(f"  making {path}", file=sys.stderr)
            part = path.with_suffix(".new")
            make(part)
            part.rename(path)
        self.warm(path)
        return path

    def image(self, size_bytes=None):
        """The ext4 image, or the same with a hole at its end."""
        size_bytes = size_bytes or self.scale.image_bytes
        whole, files = self.scale.image_bytes // MIB, self.scale.files_bytes // MIB
        first = self.made(
            f"ext4-{whole}.img", lambda path: self.script("images", whole, files, path)
        )
        if size_bytes == self.scale.image_bytes:
            return first
        return self.made(
            f"ext4-{size_bytes // MIB}.img",
            lambda path: images.make_larger(path, first, size_bytes),
        )

    def dense(self, size_bytes):
        """Chunks with data from all over the ext4 image."""
        name = f"dense-{size_bytes // MIB}-of-{self.scale.image_bytes // MIB}.img"
        return self.made(name, lambda path: images.make_dense(path, self.image(), size_bytes))

    def sparse(self, places):
        """A huge file with little data, at this many places that are not at the start of
        a chunk."""
        size, data = self.scale.sparse_bytes, self.dense(self.scale.sparse_data_bytes)
        step = size // places // MIB * MIB
        return self.made(
            f"sparse-{size // GIB}-{places}.img",
            lambda path: images.make_sparse(
                path, data, size, places, lambda i: i * step + (step // 3 // MIB + 2) * MIB
            ),
        )

    def changed(self):
        """The image of publications with one block in a hundred changed."""
        size = self.scale.publish_bytes
        first = self.image(size)
        return self.made(
            f"changed-{size // MIB}.img", lambda path: images.make_changed(path, first)
        )

    def upgrade(self):
        """Two ext4 images with the same files, before and after some of them are upgraded."""
        size, files = self.scale.publish_bytes // MIB, self.scale.publish_bytes // 3 // MIB
        make = functools.partial(self.script, "images", size, files)
        return (
            self.made(f"before-{size}.img", lambda path: make(path)),
            self.made(f"after-{size}.img", lambda path: make(path, "upgraded")),
        )

    def debian(self):
        """Two images of a Debian system, before and after an upgrade. None if they cannot be
        made."""
        size = self.scale.publish_bytes
        pair = [self.cache / f"debian-{when}-{size // MIB}.img" for when in ("before", "after")]
        if not all(path.exists() for path in pair):
            if self.scale == QUICK or os.geteuid() != 0 or missing("debootstrap"):
                return None
            print(f"  making {pair[0]} and {pair[1]}", file=sys.stderr)
            subprocess.run([HERE / "debian.sh", str(size), *pair], check=True)
        for path in pair:
            self.warm(path)
        return pair

    def converted(self, name, flags):
        """The ext4 image, converted by qemu-img with these flags."""
        image = self.image()
        return self.made(
            f"{image.stem}.{name}",
            lambda path: subprocess.run(
                ["qemu-img", "convert", "-f", "raw", *flags.split(), image, path], check=True
            ),
        )

    def noise(self):
        size = self.scale.noise_bytes
        return self.made(f"noise-{size // MIB}.img", lambda path: images.make_noise(path, size))

    # Our tools with the defaults of users, including journal, digests and sample.

    def sink(self, *flags):
        return Endpoint([self.programs / "examples/sink", *flags], self.log)

    def server(self, directory):
        return Endpoint([self.programs / "openhosting-server", "--data", directory], self.log)

    def upload(self, endpoint, image, *flags):
        command = [self.programs / "openhosting-upload", *flags, image]
        state = self.scratch / "state"
        return measure(command, self.log, endpoint, XDG_STATE_HOME=state, **endpoint.environment)

    def upload_to_sink(self, image, *flags, rate=None, disk=None):
        """What is read back from the sink comes from the image, or from a raw file with the
        same disk."""
        link = ["--rate", rate] if rate else []
        with self.sink("--file", disk or image, *link) as sink:
            run = self.upload(sink, image, *flags)
            run.counted = sink.counted()
        return run

    def converted_to_sink(self, image, disk):
        """The procedure without a tool that reads the format: make a raw copy, and upload
        that."""
        copy = self.scratch / "converted.img"
        script = 'qemu-img convert -O raw "$1" "$2" && exec "$3" "$2"'
        program = self.programs / "openhosting-upload"
        with self.sink("--file", disk) as sink:
            state = self.scratch / "state"
            run = measure(
                ["sh", "-c", script, "sh", image, copy, program],
                self.log,
                sink,
                XDG_STATE_HOME=state,
                **sink.environment,
            )
            run.counted = sink.counted()
        copy.unlink()
        return run

    def upload_to_server(self, image, *flags):
        directory = self.scratch / "cloud"
        with self.server(directory) as server:
            run = self.upload(server, image, *flags)
            server.stop()
        [drive] = directory.glob("drives/*.data")
        self.compare(image, drive, ("up", image))
        shutil.rmtree(directory)
        return run

    def publish(self, server, image, name, *flags):
        """The output of `openhosting publish --json`, and the run."""
        told = self.scratch / "told"
        command = [
            "sh", "-c", 'exec "$@" >"$0"', told, self.programs / "openhosting", "publish",
            "--json", image, "--name", name, *flags,
        ]  # fmt: skip
        state = self.scratch / "state"
        run = measure(command, self.log, server, XDG_STATE_HOME=state, **server.environment)
        return {**json.loads(told.read_text()), "run": run}

    def forget(self, server):
        """Destroys all drives of a server."""
        simple = [self.programs / "openhosting", "drives"]
        environment = clean_environment(**server.environment)
        run = functools.partial(subprocess.run, check=True, env=environment, text=True)
        for drive in run([*simple, "list"], stdout=subprocess.PIPE).stdout.split():
            run([*simple, drive, "destroy"])

    @contextlib.contextmanager
    def drives(self, *uploaded):
        """A server with these images as drives, and the drives by image."""
        directory = self.scratch / "cloud"
        with self.server(directory) as server:
            drives = {}
            for image in uploaded:
                before = set(directory.glob("drives/*.data"))
                self.upload(server, image)
                [drive] = set(directory.glob("drives/*.data")) - before
                self.warm(drive)
                drives[image] = drive.stem
            yield server, drives
        for drive in drives.values():
            self.warmed.discard(directory / "drives" / f"{drive}.data")
        shutil.rmtree(directory)

    def download(self, endpoint, drive, image, *flags):
        output = self.scratch / "down.img"
        command = [self.programs / "openhosting-download", *flags, drive, output]
        run = measure(command, self.log, endpoint, **endpoint.environment)
        self.compare(image, output, ("down", image))
        output.unlink()
        return run

    def limit(self, what, *arguments):
        """A measurement of limits.py, which reports its own times, without those of its
        start."""
        return Run(**json.loads(self.script("limits", what, *arguments)))

    # Peers.

    def nbdkit(self):
        return Nbdkit(self.scale.image_bytes, self.scratch, self.log)

    def to_nbdkit(self, command):
        """A copy to new memory, whose address replaces the word URI in the command."""
        with self.nbdkit() as nbdkit:
            words = [nbdkit.uri if word == "URI" else word for word in command]
            return measure(words, self.log, nbdkit)

    def from_nbdkit(self, nbdkit, image, *flags):
        output = self.scratch / "down.img"
        run = measure(["nbdcopy", *flags, nbdkit.uri, output], self.log, nbdkit)
        self.compare(image, output, ("nbdcopy", image))
        output.unlink()
        return run

    def compare(self, image, copy, what):
        """Fails if a copy differs from its source. Checked once for each kind of copy."""
        if what in self.compared:
            return
        length = image.stat().st_size
        at = images.differ(image, copy, length)
        if at is not None or copy.stat().st_size < length:
            raise Failed(f"{copy} is no copy of {image}: it differs in the MiB at {at}")
        self.compared.add(what)
