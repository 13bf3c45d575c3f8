"""The runs of benches/shaped-link.sh, which tells what they are."""

import argparse
import contextlib
import filecmp
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

HERE = pathlib.Path(__file__).parent
BIN = pathlib.Path(os.environ["OH_BIN"])
ENDPOINT = "https://10.78.0.1:8443/"
MIB = 1 << 20
# Mbit/s, ms each way, percent lost each way.
P3 = {"rate": 10, "delay": 50, "loss": 1}
P4 = {"rate": 1, "delay": 150, "loss": 3}
P5 = {"rate": 0.256, "delay": 300, "loss": 0}
CERTIFICATE = """[req]
distinguished_name = name
x509_extensions = end
prompt = no
[name]
CN = shaped link
[end]
subjectAltName = IP:10.78.0.1
"""


class Lab:
    """A directory to work in, an identity, and a certificate for the server."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.auth = f"{uuid.uuid4()}:{secrets.token_hex(16)}"
        (self.directory / "tls.cnf").write_text(CERTIFICATE)
        users = self.directory / "users"
        users.touch(0o600)
        users.write_text(self.auth + "\n")
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7"
        make += " -config tls.cnf -keyout key.pem -out cert.pem"
        subprocess.run(make.split(), cwd=directory, check=True, stderr=subprocess.DEVNULL)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "SSL_CERT_FILE": str(self.directory / "cert.pem"),
            "OHURI": ENDPOINT,
            "OHAUTH": self.auth,
        }

    def image(self, mib):
        """An image that no compressor makes smaller, the same each time."""
        path = self.directory / f"{mib}.img"
        if not path.exists():
            make = "openssl enc -aes-128-ctr -nosalt -pbkdf2 -pass pass:shaped -in /dev/zero"
            with open(path, "wb") as file, subprocess.Popen(
                make.split(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as source:
                for _ in range(mib):
                    file.write(source.stdout.read(MIB))
                source.kill()
        return path


class Link:
    """link.py and a server at its far end."""

    def __init__(self, lab, cc, rate, delay, loss, queue=256):
        self.lab, self.spawned = lab, []
        settings = {"rate": rate, "delay": delay, "loss": loss, "queue": queue, "cc": cc}
        command = [sys.executable, HERE.parent / "links/link.py"]
        command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        self.relay = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready = self.relay.stdout.readline().split()
        if not ready:
            if self.relay.wait() == 77:
                print("SKIPPED: no link can be made here, nothing was measured")
                sys.exit(0)
            sys.exit("link.py failed")
        _, self.near, self.far = ready
        self.drives = lab.directory / "data/drives"
        server = f"{BIN}/openhosting-server --listen 10.78.0.1:8443 --data data"
        server += " --users-file users --tls-cert cert.pem --tls-key key.pem"
        # For curl, which reads in one piece.
        server += f" --read-max {1 << 30}"
        log = open(lab.directory / "server.log", "a")
        server = self.spawn(self.far, server.split(), stdout=subprocess.PIPE, stderr=log)
        server.stdout.readline()

    def spawn(self, namespace, command, **how):
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *map(str, command)],
            cwd=self.lab.directory, env=self.lab.env, text=True, **how
        )
        self.spawned.append(process)
        return process

    def command(self, line):
        self.relay.stdin.write(line + "\n")
        self.relay.stdin.flush()
        return self.relay.stdout.readline()

    def hole(self, seconds):
        """Loses every packet for so long."""
        self.command("hole")
        time.sleep(seconds)
        self.command("through")

    def kill_connections(self):
        """Resets all that are open; how many there were."""
        kill = ["ip", "netns", "exec", self.near, "ss", "-K", "-H", "-t", "state", "established"]
        return len(subprocess.run(kill, stdout=subprocess.PIPE, text=True).stdout.splitlines())

    def close(self):
        for process in self.spawned:
            process.kill()
            process.wait()
        self.relay.stdin.close()
        self.relay.wait()
        for file in self.drives.glob("*"):
            file.unlink()

    # What moves an image; each gives a Run.

    def curl(self, *args):
        auth = self.lab.directory / "curl"
        auth.touch(0o600)
        auth.write_text(f'user = "{self.lab.auth}"\n')
        began = time.monotonic()
        command = ["curl", "-sS", "--fail", "--cacert", "cert.pem", "-K", "curl", *args]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        done = self.spawn(self.near, command, **quiet)
        said = done.communicate()[1]
        if done.returncode:
            sys.exit(f"curl failed: {said}")
        return Run(time.monotonic() - began)

    def curl_up(self, drive, image):
        url = f"{ENDPOINT}drives/{drive}/write/0"
        octets = "Content-Type: application/octet-stream"
        return self.curl("-H", octets, "-H", "Expect:", "--data-binary", f"@{image}", url)

    def curl_down(self, drive, image):
        return self.curl(f"{ENDPOINT}drives/{drive}/read/0/{image.stat().st_size}")

    def tool(self, name, args, meanwhile=None):
        """A tool of ours; `meanwhile(ended)` goes on beside it."""
        began = time.monotonic()
        command = [BIN / f"openhosting-{name}", "--progress", "json", *args]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        tool = self.spawn(self.near, command, **quiet)
        ended = threading.Event()
        beside = threading.Thread(target=meanwhile or (lambda _: None), args=[ended], daemon=True)
        beside.start()
        run = Run(0)
        for line in tool.stderr:
            if line.startswith("{"):
                run.hear(json.loads(line))
            else:
                print(line, end="", file=sys.stderr)
        run.code = tool.wait()
        run.seconds = time.monotonic() - began
        ended.set()
        beside.join()
        return run

    def up(self, image, *args, meanwhile=None):
        run = self.tool("upload", [*args, image], meanwhile)
        self.check(run, self.drives / f"{run.drive}.data", image)
        return run

    def down(self, image, drive, *args, meanwhile=None):
        copy = self.lab.directory / "copy.img"
        run = self.tool("download", [*args, drive, copy], meanwhile)
        self.check(run, copy, image)
        copy.unlink()
        return run

    def check(self, run, copy, image):
        if run.code or not filecmp.cmp(copy, image, shallow=False):
            sys.exit(f"FAILED with exit code {run.code}, {copy} and {image}: {run.end}")


class Run:
    """How one transfer went."""

    def __init__(self, seconds):
        self.seconds, self.code, self.drive, self.end = seconds, 0, None, {}
        self.workers, self.said = [], []
        # When bytes were settled last, and the longest time without.
        self.done, self.done_at, self.pause = 0, 0, 0

    def hear(self, event):
        if event["event"] == "notice":
            self.said.append(event["message"])
            return
        self.drive = event["drive"] or self.drive
        if event["event"] == "progress" and self.workers[-1:] != [event.get("workers")]:
            self.workers.append(event.get("workers"))
        if event["event"] == "end":
            self.end = event


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells):
    print()
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


def mbit(image, run):
    return image.stat().st_size * 8 / 1e6 / run.seconds


def waste(image, run):
    """Bytes that moved in vain, as a share of the image."""
    size = image.stat().st_size
    return f"{max(run.end['bytes_wire'] - size, 0) / size:.1%}"


def story(run):
    return " ".join(map(str, run.workers))


def throughput(lab, args):
    small = lab.image(16)
    head("congestion control", "what", "MiB", "Mbit/s", "of the link", "of curl", "workers", "retries", "in vain")
    for cc in ("cubic", "bbr"):
        with contextlib.closing(Link(lab, cc, **P3)) as link:
            # The drive that curl writes to and reads from.
            blank = link.up(small, "--verify", "none").drive
            curls = {"up": link.curl_up(blank, small), "down": link.curl_down(blank, small)}
            for way, curl in curls.items():
                rate = mbit(small, curl)
                row(cc, f"curl, {way}, one stream", 16, f"{rate:.2f}", f"{rate / P3['rate']:.0%}",
                    "1.0", 1, "", "")

            def tell(what, run):
                rate = mbit(image, run)
                curl = mbit(small, curls["up" if "upload" in what else "down"])
                row(cc, what, mib, f"{rate:.2f}", f"{rate / P3['rate']:.0%}", f"{rate / curl:.1f}",
                    story(run), run.end["retries"], waste(image, run))

            for mib in args.mib:
                image = lab.image(mib)
                for jobs in args.jobs:
                    both_ways(link, image, ["-j", str(jobs)] if jobs else [], None, tell)


def both_ways(link, image, flags, meanwhile, tell):
    for way in ("up", "down"):
        if way == "up":
            run = link.up(image, *flags, meanwhile=meanwhile)
            drive = run.drive
        else:
            run = link.down(image, drive, *flags, meanwhile=meanwhile)
        tell(" ".join([f"openhosting-{way}load", *flags]), run)


def holes(lab, args):
    image = lab.image(64)
    head("congestion control", "what", "black holes", "seconds", "workers", "retries", "in vain", "notices")
    for cc in ("cubic", "bbr"):
        for pauses in ([10, 10], [90]):
            with contextlib.closing(Link(lab, cc, **P3)) as link:

                def fall(ended):
                    for pause in pauses:
                        if not ended.wait(20):
                            link.hole(pause)

                both_ways(link, image, [], fall, lambda what, run: row(
                    cc, what, " and ".join(f"{pause} s" for pause in pauses), f"{run.seconds:.0f}",
                    story(run), run.end["retries"], waste(image, run), "; ".join(dict.fromkeys(run.said))))


def kills(lab, args):
    image = lab.image(64)
    head("congestion control", "what", "seconds", "kills", "connections killed", "workers", "retries", "in vain")
    # A chunk has to fit between two kills.
    flags = ["-c", str(MIB // 2)]
    for cc in ("cubic", "bbr"):
        with contextlib.closing(Link(lab, cc, **P3)) as link:
            killed = []

            def kill(ended):
                killed.clear()
                while not ended.wait(args.kill_every):
                    killed.append(link.kill_connections())

            both_ways(link, image, flags, kill, lambda what, run: row(
                cc, what, f"{run.seconds:.0f}", len(killed), sum(killed), story(run),
                run.end["retries"], waste(image, run)))


def slow(lab, args):
    head("link", "what", "seconds", "of the link", "workers", "retries", "in vain")
    runs = (("256 kbit/s, 600 ms", P5, 16, ["-j", "8"]), ("1 Mbit/s, 300 ms, 3 %", P4, 8, []))
    for name, shape, mib, flags in runs:
        image = lab.image(mib)
        for cc in ("cubic", "bbr"):
            with contextlib.closing(Link(lab, cc, **shape)) as link:
                both_ways(link, image, flags, None, lambda what, run: row(
                    f"{name}, {cc}", what, f"{run.seconds:.0f}",
                    f"{mbit(image, run) / shape['rate']:.0%}", story(run),
                    run.end["retries"], waste(image, run)))


PARTS = {part.__name__: part for part in (throughput, holes, kills, slow)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", default=[*PARTS])
    parser.add_argument("--mib", type=int, nargs="*", default=[64, 256], help="sizes of images")
    parser.add_argument("--jobs", type=int, nargs="*", default=[0], help="-j to try; 0 is the default")
    parser.add_argument("--kill-every", type=float, default=5, help="seconds between kills")
    args = parser.parse_args()
    # Whatever ends it, nothing is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="oh-shaped-") as directory:
        lab = Lab(directory)
        for part in args.parts:
            PARTS[part](lab, args)


main()
