"""What a run needs: images, certificates, a link of its own and servers at its far end."""

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import link as emulated

ROOT = emulated.HERE.parents[1]
MIB = 1 << 20
PIECE = 4 * MIB
OURS, PEERS = 8443, 9443
SEED = 20
CERTIFICATE = f"""[req]
distinguished_name = name
x509_extensions = end
prompt = no
[name]
CN = emulated link
[end]
subjectAltName = IP:{emulated.SERVER}
"""
NGINX = """worker_processes 1; daemon off; user root;
error_log {directory}/nginx.err; pid {directory}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  access_log off; client_max_body_size 0; client_body_temp_path {directory}/bodies;
  server {{
    listen {address}:{port} ssl;
    ssl_certificate {lab}/cert.pem; ssl_certificate_key {lab}/key.pem;
    location /image {{ alias {image}; }}
    location /put/ {{ alias {directory}/put/; dav_methods PUT; }}
  }}
}}
"""


def programs():
    """The directory of the programs to measure: OH_BIN, or what is built here."""
    if "OH_BIN" in os.environ:
        return Path(os.environ["OH_BIN"])
    subprocess.run(["cargo", "build", "--release", "--locked", "--bins"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "release")


def check_links():
    """Fails where this machine cannot emulate links; builds the emulator."""
    trial = [sys.executable, emulated.__file__, "--rate", "1", "--delay", "1"]
    done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == emulated.CANNOT:
        raise NoLink(done.stderr.strip())
    if done.returncode:
        raise Failed(done.stderr.strip())


def end_in_order():
    """Lets every signal that ends this program go through its clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


class Failed(Exception):
    """A program failed, or transferred other bytes than it should."""


class NoLink(Exception):
    """This machine cannot emulate links."""


class Lab:
    """A directory for all runs: an identity, a certificate, images."""

    def __init__(self, programs):
        sweep()
        self.bin = programs.resolve()
        self.directory = Path(tempfile.mkdtemp(prefix=f"oh-links-{os.getpid()}-"))
        self.making = threading.Lock()
        self.auth = f"{uuid.uuid4()}:{secrets.token_hex(16)}"
        private(self.directory / "users", self.auth + "\n")
        # curl reads the credentials from a file, so that they are not in its arguments.
        private(self.directory / "curl.auth", f'user = "{self.auth}"\n')
        (self.directory / "tls.cnf").write_text(CERTIFICATE)
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7"
        make += " -config tls.cnf -keyout key.pem -out cert.pem"
        subprocess.run(make.split(), cwd=self.directory, check=True, stderr=subprocess.DEVNULL)

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, size, compressible):
        return self.directory / f"{'records' if compressible else 'noise'}-{size}.img"

    def discard(self, size, compressible):
        """Removes an image, and the drive with it."""
        path = self.path(size, compressible)
        path.unlink(missing_ok=True)
        shutil.rmtree(path.with_suffix(".drives"), ignore_errors=True)

    def image(self, size, compressible=False):
        """An image of this size, the same each time."""
        path = self.path(size, compressible)
        with self.making:
            if not path.exists():
                noise = random.Random(SEED)
                with open(path, "wb") as file:
                    while (left := size - file.tell()) > 0:
                        file.write((records_mib if compressible else noise_mib)(noise)[:left])
        return path

    def drive(self, image):
        """A directory of drives with this image in one of them, and that drive's name.
        Uploaded once, over loopback, by the programs that are measured."""
        directory = image.with_suffix(".drives")
        with self.making:
            if not directory.exists():
                server = [self.bin / "openhosting-server", "--data", directory]
                server += ["--users-file", self.directory / "users"]
                log = open(self.directory / "seed.log", "ab")
                running = subprocess.Popen(
                    [str(word) for word in server], stdout=subprocess.PIPE, stderr=log, text=True
                )
                try:
                    line = running.stdout.readline()
                    uri = line.removeprefix("export ").strip().partition("=")[2].strip("'\"")
                    upload = [self.bin / "openhosting-upload", "--no-journal", image]
                    env = {**self.environment(self.directory), "OHURI": uri}
                    done = subprocess.run([str(word) for word in upload], env=env, stdout=log,
                                          stderr=log)
                    if done.returncode:
                        raise Failed(f"the image for downloads was not stored: {log.name}")
                finally:
                    running.terminate()
                    running.wait()
        return directory, next((directory / "drives").glob("*.meta")).stem

    def environment(self, home):
        return {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": str(home),
            "SSL_CERT_FILE": str(self.directory / "cert.pem"),
            "OHURI": f"https://{emulated.SERVER}:{OURS}/",
            "OHAUTH": self.auth,
        }


def private(path, text):
    path.touch(0o600)
    path.write_text(text)


def noise_mib(noise):
    return noise.randbytes(MIB)


def records_mib(noise):
    """What gzip makes about three times smaller: 4 random bytes in each 16."""
    fields = iter(noise.randbytes(MIB // 4))
    record = bytes(5) + b"%c%c" + bytes(3) + b"%c%c\xff\xff\xff\xff"
    return b"".join(record % values for values in zip(fields, fields, fields, fields))


def sweep():
    """Removes the directories of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob("oh-links-*"):
        owner = path.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)


class Site:
    """One emulated link with both servers at its far end, for one run."""

    def __init__(self, lab, link, image, seed=1, has_peers=False, seeded=None):
        self.lab, self.link, self.image = lab, link, image
        self.directory = Path(tempfile.mkdtemp(prefix="site-", dir=lab.directory))
        for name in ("bodies", "put", "out"):
            (self.directory / name).mkdir()
        self.drives = self.directory / "data/drives"
        self.speaking = threading.Lock()
        self.servers, self.relay = [], None
        try:
            self.relay = self.connect(seed)
            if seeded:
                copy_links(seeded, self.directory / "data")
            self.serve_ours()
            if has_peers:
                self.serve_peers()
        except BaseException:
            self.close()
            raise

    def connect(self, seed):
        link = self.link
        settings = {"rate": link.rate_mbit, "delay": link.rtt_ms / 2, "loss": link.loss_percent,
                    "queue": link.queue_kib, "cc": link.cc, "seed": seed}
        command = [sys.executable, emulated.__file__]
        command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        # Its own session, so that Ctrl-C reaches us first and we close in order.
        relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 text=True, start_new_session=True)
        ready = relay.stdout.readline().split()
        if not ready:
            raise Failed(f"link.py ended with {relay.wait()}")
        _, self.near, self.far = ready
        return relay

    def serve_ours(self):
        command = [self.lab.bin / "openhosting-server", "--listen", f"{emulated.SERVER}:{OURS}",
                   "--data", self.directory / "data", "--users-file", self.lab.directory / "users",
                   "--tls-cert", self.lab.directory / "cert.pem",
                   "--tls-key", self.lab.directory / "key.pem", *self.link.server_flags]
        if self.link.plan:
            plan = self.directory / "plan.toml"
            plan.write_text(self.link.plan)
            command += ["--faults", plan]
        server = self.start(self.far, command, stdout=subprocess.PIPE)
        if not server.stdout.readline():
            raise Failed(f"openhosting-server did not start: {self.tail('servers.log')}")

    def serve_peers(self):
        config = self.directory / "nginx.conf"
        config.write_text(NGINX.format(
            directory=self.directory, lab=self.lab.directory, image=self.image,
            address=emulated.SERVER, port=PEERS,
        ))
        self.start(self.far, ["nginx", "-c", config])
        for _ in range(100):
            if (self.directory / "nginx.pid").exists():
                return
            time.sleep(0.05)
        raise Failed(f"nginx did not start: {self.tail('servers.log')}")

    def start(self, namespace, command, **how):
        with open(self.directory / "servers.log", "ab") as log:
            how.setdefault("stdout", log)
            server = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *map(str, command)], stderr=log,
                stdin=subprocess.DEVNULL, cwd=self.directory, text=True,
                env=self.lab.environment(self.directory), start_new_session=True, **how,
            )
        self.servers.append(server)
        return server

    def spawn(self, command, stdout):
        """Starts a program at the near end, in a process group of its own."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.near, *map(str, command)], stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=subprocess.STDOUT, cwd=self.directory, start_new_session=True,
            env=self.lab.environment(self.directory),
        )

    def ask(self, line):
        """Sends a command to link.py; its answer."""
        with self.speaking:
            self.relay.stdin.write(line + "\n")
            self.relay.stdin.flush()
            answer = self.relay.stdout.readline().strip()
        if not answer:
            raise Failed("the link ended")
        return answer

    def counts(self):
        return json.loads(self.ask("counts"))

    def overflowed(self):
        """Packets that the kernel dropped before the emulator read them: it was too slow."""
        shown = subprocess.run(
            ["sh", "-c", f"ip -n {self.near} -s -j link; ip -n {self.far} -s -j link"],
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout
        return sum(
            device["stats64"]["tx"]["dropped"]
            for line in shown.splitlines() for device in json.loads(line)
            if device["ifname"] != "lo"
        )

    def connections(self, pid):
        """Connections that are open in the namespace of a process."""
        # The fourth field is the state, 01 is ESTABLISHED.
        try:
            lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        except OSError:
            return None
        return sum(line.split()[3] == "01" for line in lines)

    def tail(self, name):
        path = self.directory / name
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return "; ".join(lines[-2:])

    def close(self):
        for server in self.servers:
            server.kill()
            server.wait()
        if self.relay:
            self.relay.stdin.close()
            self.relay.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def copy_links(source, target):
    """Copies a directory of drives; the data are hard links, as downloads only read."""
    shutil.copytree(source, target, copy_function=lambda from_, to: (
        os.link if from_.endswith(".data") else shutil.copy2
    )(from_, to))


def stop(process):
    """Ends a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
