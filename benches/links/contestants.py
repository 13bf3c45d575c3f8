"""Those who transfer the image, each in its own way. A contestant prepares what it needs,
gives the command that is measured, and checks afterwards that the bytes are equal."""

import filecmp
import os
import shutil

from lab import OURS, PEERS, PIECE, Failed
from link import SERVER

FIXED = (4, 8, 16, 32, 64)
STREAMS = 16


class Contestant:
    """How one of them transfers; `ways` are the directions in which it can."""

    ways = ("up", "down")
    # The programs that have to be there.
    programs = ()
    has_peers = False

    def __init__(self, name):
        self.name = name

    def missing(self):
        """Programs that are not installed."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return [program for program in self.programs if not shutil.which(program, path=path)]

    def prepare(self, site, way, drive):
        """Makes what the command needs."""

    def command(self, site, way, drive):
        raise NotImplementedError

    def check(self, site, way, drive):
        """Fails if what was transferred is not the image."""
        same(site.directory / "out/image", site.image)


def same(copy, image):
    if not copy.exists():
        raise Failed(f"{copy.name} was not written")
    if not filecmp.cmp(copy, image, shallow=False):
        raise Failed(f"{copy.name} differs from the image")


class Ours(Contestant):
    """The tools with default flags."""

    def command(self, site, way, drive):
        flags = ["--cacert", site.lab.directory / "cert.pem"]
        if way == "up":
            return [site.lab.bin / "openhosting-upload", *flags, site.image]
        return [site.lab.bin / "openhosting-download", *flags, drive, "out/image"]

    def check(self, site, way, drive):
        if way == "down":
            return super().check(site, way, drive)
        (stored,) = site.drives.glob("*.data")
        same(stored, site.image)


class Fixed(Contestant):
    """A fixed number of parallel requests for 4 MiB each, by curl."""

    programs = ("curl",)

    def __init__(self, number):
        super().__init__(str(number))
        self.number = number

    def prepare(self, site, way, drive):
        if way == "up":
            drive = self.create(site)
        requests = []
        with open(site.image, "rb") as image:
            for offset in range(0, site.image.stat().st_size, PIECE):
                piece = image.read(PIECE)
                url = f"https://{SERVER}:{OURS}/drives/{drive}"
                if way == "up":
                    path = site.directory / f"piece-{offset}"
                    path.write_bytes(piece)
                    request = f'url = "{url}/write/{offset}"\ndata-binary = "@{path}"\n'
                    request += 'header = "Content-Type: application/octet-stream"\n'
                    request += 'header = "Expect:"\noutput = "/dev/null"\n'
                else:
                    request = f'url = "{url}/read/{offset}/{len(piece)}"\n'
                    request += f'output = "out/{offset}"\n'
                # What every request needs anew after `next`. Those that are refused (429)
                # or cut off are made again after a second.
                request += f'cacert = "{site.lab.directory}/cert.pem"\n'
                request += (site.lab.directory / "curl.auth").read_text()
                request += "silent\nshow-error\nfail\nretry = 100\nretry-all-errors\nretry-delay = 1\n"
                requests.append(request)
        config = site.directory / "curl.cfg"
        config.touch(0o600)
        config.write_text("next\n".join(requests))

    def create(self, site):
        """A drive of the image's size; its name."""
        body = site.directory / "create"
        body.write_text(f"name fixed\nsize {site.image.stat().st_size}\n")
        answer = site.directory / "created"
        with open(answer, "wb") as file:
            code = site.spawn([
                "curl", "-sS", "--fail", "--cacert", site.lab.directory / "cert.pem",
                "-K", site.lab.directory / "curl.auth", "--data-binary", f"@{body}",
                f"https://{SERVER}:{OURS}/drives/create",
            ], file).wait()
        lines = answer.read_text().splitlines()
        if code:
            raise Failed(f"no drive could be created: {lines[-1:]}")
        return next(line.split()[1] for line in lines if line.startswith("drive "))

    def command(self, site, way, drive):
        return ["curl", "--parallel", "--parallel-immediate", "--parallel-max", self.number,
                "--no-progress-meter", "-K", "curl.cfg"]

    def check(self, site, way, drive):
        if way == "up":
            (stored,) = site.drives.glob("*.data")
            return same(stored, site.image)
        with open(site.image, "rb") as image:
            for offset in range(0, site.image.stat().st_size, PIECE):
                path = site.directory / f"out/{offset}"
                if not path.exists() or path.read_bytes() != image.read(PIECE):
                    raise Failed(f"bytes from {offset} on differ from the image")


class Peer(Contestant):
    """One of the tools that transfer a file from or to a web server."""

    has_peers = True
    url = f"https://{SERVER}:{PEERS}"


class Curl(Peer):
    """One stream."""

    programs = ("curl", "nginx")

    def command(self, site, way, drive):
        return self.stream(site, way, "out/image")

    def stream(self, site, way, output, *flags):
        """An upload of the image, or a download to `output`."""
        start = ["curl", "-sS", "--fail", "--cacert", site.lab.directory / "cert.pem", *flags]
        if way == "up":
            return [*start, "-o", "/dev/null", "-T", site.image, f"{self.url}/put/image"]
        return [*start, "-o", output, f"{self.url}/image"]

    def check(self, site, way, drive):
        same(site.directory / ("put" if way == "up" else "out") / "image", site.image)


class Aria2(Peer):
    programs = ("aria2c", "nginx")
    ways = ("down",)

    def command(self, site, way, drive):
        return ["aria2c", "-q", f"--ca-certificate={site.lab.directory}/cert.pem",
                f"-x{STREAMS}", f"-s{STREAMS}", "-k1M", "--file-allocation=none",
                "-d", "out", "-o", "image", f"{self.url}/image"]


class Rclone(Peer):
    programs = ("rclone", "nginx")
    ways = ("down",)

    def command(self, site, way, drive):
        return ["rclone", "--config", "/dev/null", "--ca-cert", site.lab.directory / "cert.pem",
                "--multi-thread-streams", STREAMS, "--multi-thread-cutoff", "1M",
                "--http-url", self.url, "copyto", ":http:image", "out/image"]


ALL = [Ours("ours"), *map(Fixed, FIXED), Curl("curl"), Aria2("aria2"), Rclone("rclone")]
CONTESTANTS = {contestant.name: contestant for contestant in ALL}
