#!/usr/bin/env python3
"""Builds the programs for other platforms, and runs those that can run here against
a server on this machine: under Wine, under qemu-user, and in an empty chroot.

    run.py [TEST...]      all tests, or some of: build windows aarch64 static journals image link

ci/cross has the compilers, and calls this as `ci/cross test`. Needs root and openssl.
CROSS_BIN is the directory of the programs for this machine (default: target/debug).
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CROSS = ROOT / "ci" / "cross"
BIN = Path(os.environ.get("CROSS_BIN", ROOT / "target" / "debug"))
LINUX = "x86_64-unknown-linux-gnu"
AARCH64 = "aarch64-unknown-linux-gnu"
STATIC = "x86_64-unknown-linux-musl"
STATIC_AARCH64 = "aarch64-unknown-linux-musl"
WINDOWS = "x86_64-pc-windows-gnu"
# What nothing here runs.
LINKED = ["x86_64-unknown-freebsd", "aarch64-apple-darwin", "x86_64-apple-darwin"]
BUILT = [WINDOWS, AARCH64, STATIC, STATIC_AARCH64]
MIB = 1 << 20
# A guard against a hang, not a promise about time.
WATCHDOG_S = 600
# A transfer at this rate takes long enough to be stopped in the middle of it.
SLOWLY = ["--limit-rate", "2M"]


class Server:
    """A server for Linux on this machine, over HTTP or, with a certificate, over TLS."""

    def __init__(self, directory, *flags):
        self.auth = f"{uuid.uuid4()}:{uuid.uuid4().hex}"
        users = Path(directory, "users")
        users.write_text(self.auth + "\n")
        users.chmod(0o600)
        words = [BIN / "openhosting-server", "--data", Path(directory, "data"), "--users-file", users, *flags]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("export OHURI="), line
        self.uri = line.split("=", 1)[1].strip()

    def environment(self):
        return {"OHURI": self.uri, "OHAUTH": self.auth}

    def stop(self):
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def serving(directory, *flags):
    server = Server(directory, *flags)
    try:
        yield server
    finally:
        server.stop()


class Platform:
    """The programs of one target, run in the directory `work`."""

    def __init__(self, target, server, work):
        self.target, self.server, self.work = target, server, work

    def command(self, program, *words):
        """The command of a program, and its environment."""
        variables = dict(self.server.environment())
        words = [str(word) for word in words]
        if self.target == LINUX:
            variables |= {"PATH": os.environ["PATH"], "XDG_STATE_HOME": str(self.work / "state")}
            return [str(BIN / program), *words], variables
        if self.target != WINDOWS:
            variables["XDG_STATE_HOME"] = "/work/state"
        settings = [f"{name}={value}" for name, value in variables.items()]
        return [str(CROSS), "run", self.target, *settings, program, *words], {**os.environ, "WORK": str(self.work)}

    def start(self, program, *words):
        command, environment = self.command(program, *words)
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, program, *words, code=0):
        process = self.start(program, *words)
        try:
            output, _ = process.communicate(timeout=WATCHDOG_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == code, (
            f"{self.target}: {program} {words} ended with {process.returncode}, not {code}:\n{output}"
        )
        return output

    def upload(self, image, *flags, **options):
        """Uploads an image; gives the drive, or with another code than 0 what was printed."""
        output = self.run("openhosting-upload", "-n", "platforms", *flags, image, **options)
        return drive_in(output) if options.get("code", 0) == 0 else output

    def download(self, drive, file, *flags, **options):
        return self.run("openhosting-download", *flags, drive, file, **options)

    def killed(self, program, *words, until):
        """Starts a program, and kills it as soon as `until` says so."""
        process = self.start(program, *words)
        wait_for(lambda: until() or process.poll() is not None)
        assert process.poll() is None, f"it ended before it was killed:\n{process.stdout.read()}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def drive_in(output):
    """The drive that an upload names."""
    for word in output.replace("=", " ").split():
        with contextlib.suppress(ValueError):
            return str(uuid.UUID(word.strip(".,:'\"()")))
    raise AssertionError(f"no drive is named:\n{output}")


def wait_for(is_so):
    end = time.monotonic() + WATCHDOG_S
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def make_image(path, seed=1):
    """20 MiB that do not compress, in pieces with holes between them."""
    bytes_of = random.Random(seed)
    with open(path, "wb") as file:
        for at in range(0, 40, 2):
            file.seek(at * MIB)
            file.write(bytes_of.randbytes(MIB))
        file.truncate(40 * MIB)
    return path


def equal(a, b):
    assert Path(a).read_bytes() == Path(b).read_bytes(), f"{a} and {b} differ"


def data_bytes(directory):
    """Bytes of data in the files below a directory."""
    return sum(file.stat().st_blocks * 512 for file in Path(directory).rglob("*") if file.is_file())


def part_has(work, name, bytes_min):
    part = Path(work, name + ".oh-part")
    return lambda: part.exists() and part.stat().st_blocks * 512 >= bytes_min


def journals(work):
    return list(Path(work).rglob("*.ohj"))


def built(target):
    """The directory of the programs that were built for a target."""
    done = subprocess.run([CROSS, "path", target], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def in_chroot(work, *words):
    """Runs a command in the chroot of ci/cross, where `work` is /work; gives what it printed."""
    environment = {**os.environ, "WORK": str(work)}
    return subprocess.run([CROSS, "shell", *words], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


# Tests. Each has a directory of its own, with an image in it.


def test_link():
    for target in LINKED:
        subprocess.run([CROSS, "build", target], check=True)


def test_build():
    for target in BUILT:
        subprocess.run([CROSS, "build", target], check=True)


def resumes(first, second, work, drive):
    """A download that `first` began and was killed in is finished by `second`."""
    journal = ["--journal", "down.ohj"]
    name = f"{first.target}-{second.target}.img"
    until = part_has(work, name, 4 * MIB)
    first.killed("openhosting-download", *SLOWLY, *journal, drive, name, until=until)
    assert journals(work), "no journal"
    second.download(drive, name, *journal)
    equal(work / "disk.img", work / name)
    assert not journals(work) and not Path(work, name + ".oh-part").exists(), os.listdir(work)


def upload_resumes(first, second, work, server_data):
    """The same of an upload; gives the drive."""
    journal = ["--journal", "up.ohj"]
    before = data_bytes(server_data)
    until = lambda: data_bytes(server_data) - before >= 4 * MIB
    first.killed("openhosting-upload", "-n", "platforms", *SLOWLY, *journal, "disk.img", until=until)
    assert journals(work), "no journal"
    drive = second.upload("disk.img", *journal)
    assert not journals(work)
    return drive


def test_windows():
    with tempfile.TemporaryDirectory() as there:
        work = Path(there)
        make_image(work / "disk.img")
        with serving(there) as server:
            windows, aarch64 = (Platform(target, server, work) for target in (WINDOWS, AARCH64))
            # What Windows uploads, aarch64 downloads, and the other way around.
            drive = windows.upload("disk.img")
            aarch64.download(drive, "a.img")
            equal(work / "disk.img", work / "a.img")
            windows.download(aarch64.upload("disk.img"), "b.img")
            equal(work / "disk.img", work / "b.img")
            # A path with a drive letter, and one without the rules for names.
            windows.download(drive, r"Z:\work\c.img")
            equal(work / "disk.img", work / "c.img")
            windows.download(drive, r"\\?\Z:\work\d.img")
            equal(work / "disk.img", work / "d.img")
            # As qcow2, which the same program reads again.
            windows.download(drive, "e.qcow2", "--format", "qcow2")
            aarch64.download(windows.upload("e.qcow2"), "e.img")
            equal(work / "disk.img", work / "e.img")
            # What is there is not overwritten.
            assert "is there already" in windows.download(drive, "b.img", code=1)
            windows.download(drive, "b.img", "--force")
            # Killed, and run again: without --journal, so that it is below LOCALAPPDATA.
            upload_resumes(windows, windows, work, Path(there, "data"))
            resumes(windows, windows, work, drive)
            # There is no server.
            assert "Linux only" in windows.run("openhosting-server", code=2)
            busy_files(windows, work, drive)


def busy_files(windows, work, drive):
    """Two at once, a file that is open elsewhere, and Ctrl-C: several programs of one Wine."""
    script = work / "busy.sh"
    down = windows.command("openhosting-download", "--limit-rate", "1M", drive, "busy.img")[0]
    environment = dict(word.split("=", 1) for word in down if "=" in word and not word.startswith("-"))
    lines = ["cd /work", "export WINEPREFIX=/root/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='"]
    lines += [f"export {name}='{value}'" for name, value in environment.items()]
    program = f"wine /target/{WINDOWS}/debug/openhosting-download.exe"
    lines += [
        f"{program} --limit-rate 1M {drive} busy.img >first.txt 2>&1 & first=$!",
        "until [ -e busy.img.oh-part ]; do sleep 0.1; done; sleep 1",
        "wine cmd /c second.bat",
        "kill -INT $first; wait $first; echo $? >first.code",
        "echo x >held.img",
        "x86_64-w64-mingw32-gcc -o hold.exe hold.c",
        "wine hold.exe held.img 600 >hold.txt & hold=$!",
        "until grep -qs held hold.txt; do sleep 0.1; done",
        "wine cmd /c third.bat",
        "kill $hold",
    ]
    shutil.copy(ROOT / "tests/platforms/hold.c", work)
    # By cmd.exe, which asks for the exit code: the process of Wine that runs a program beside another
    # one sometimes ends with 0 whatever that was.
    windows_program = f"Z:\\target\\{WINDOWS}\\debug\\openhosting-download.exe"
    for name, flags in [("second", f"{drive} busy.img"), ("third", f"--force {drive} held.img")]:
        batch = ["@echo off", f"{windows_program} {flags} >{name}.txt 2>&1", f">{name}.code echo %errorlevel%", ""]
        Path(work, f"{name}.bat").write_bytes("\r\n".join(batch).encode())
    script.write_text("\n".join(lines) + "\n")
    in_chroot(work, "bash", "/work/busy.sh")
    text = lambda name: Path(work, name).read_text(errors="replace").strip()
    assert text("second.code") == "1" and "Another process" in text("second.txt"), text("second.code") + text("second.txt")
    # Its exit code is 130, or lost by Wine as above; that it stopped cleanly is in what it printed.
    assert text("first.code") in ["130", "0"], text("first.code") + text("first.txt")
    assert "finishing the requests in flight" in text("first.txt"), text("first.txt")
    assert Path(work, "busy.img.oh-part").exists() and not Path(work, "busy.img").exists(), os.listdir(work)
    assert text("third.code") == "1" and "Cannot replace" in text("third.txt"), text("third.code") + text("third.txt")
    assert not Path(work, "held.img.oh-part").exists(), "it was downloaded first"


def test_aarch64():
    with tempfile.TemporaryDirectory() as there:
        work = Path(there)
        make_image(work / "disk.img")
        with serving(there) as server:
            aarch64 = Platform(AARCH64, server, work)
            drive = upload_resumes(aarch64, aarch64, work, Path(there, "data"))
            resumes(aarch64, aarch64, work, drive)


def test_journals():
    """A journal that one platform began: another one resumes by it."""
    with tempfile.TemporaryDirectory() as there:
        work = Path(there)
        make_image(work / "disk.img")
        with serving(there) as server:
            linux, aarch64, windows = (Platform(target, server, work) for target in (LINUX, AARCH64, WINDOWS))
            data = Path(there, "data")
            for first, second in [(linux, aarch64), (windows, linux), (linux, windows)]:
                drive = upload_resumes(first, second, work, data)
                name = f"up-{first.target}-{second.target}.img"
                linux.download(drive, name)
                equal(work / "disk.img", work / name)
            resumes(aarch64, linux, work, drive)
            resumes(windows, linux, work, drive)
            resumes(linux, windows, work, drive)


def test_static():
    """The static program in a directory with nothing but an image and a certificate."""
    with tempfile.TemporaryDirectory() as there:
        work, empty = Path(there), Path(there, "empty")
        empty.mkdir()
        make_image(empty / "disk.img")
        certificate = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", work / "key.pem", "-out", empty / "ca.pem"]
        subprocess.run(["openssl", "req", *certificate, *names, *files], check=True, capture_output=True)
        for program in ["openhosting-upload", "openhosting-download"]:
            shutil.copy(built(STATIC) / program, empty)
        with serving(there, "--tls-cert", empty / "ca.pem", "--tls-key", work / "key.pem") as server:

            def run(program, *words):
                command = [shutil.which("chroot"), empty, f"/{program}", "--cacert", "/ca.pem", *words]
                done = subprocess.run(
                    command, env=server.environment(), capture_output=True, text=True, timeout=WATCHDOG_S
                )
                assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
                return done.stdout + done.stderr

            drive = drive_in(run("openhosting-upload", "-n", "static", "--journal", "/up.ohj", "/disk.img"))
            run("openhosting-download", "--journal", "/down.ohj", drive, "/out.img")
        equal(empty / "disk.img", empty / "out.img")
        assert not (empty / "proc").exists()


def test_image():
    """The container image of the static programs: what is in it runs, for both processors."""
    with tempfile.TemporaryDirectory() as there:
        work = Path(there)
        for target in [STATIC, STATIC_AARCH64]:
            subprocess.run([ROOT / "ci/release/pack.sh", work, built(target), target], check=True, stdout=subprocess.DEVNULL)
        archive = in_chroot(work, "/source/ci/release/image.sh", "/work").strip()
        first = Path(there, Path(archive).name).read_bytes()
        in_chroot(work, "/source/ci/release/image.sh", "/work")
        assert Path(there, Path(archive).name).read_bytes() == first, "the same programs make another image"
        for processor, loader, target in [("amd64", [], STATIC), ("arm64", ["qemu-aarch64"], STATIC_AARCH64)]:
            copy = ["--insecure-policy", "--override-arch", processor, "copy", f"oci-archive:{archive}", f"dir:/work/{processor}"]
            in_chroot(work, "skopeo", *copy)
            image = work / processor
            blob = lambda described: image / described["digest"].removeprefix("sha256:")
            manifest = json.loads((image / "manifest.json").read_text())
            config = json.loads(blob(manifest["config"]).read_text())
            assert config["architecture"] == processor and config["config"]["User"] == "65532:65532", config
            assert config["config"]["Entrypoint"] == ["/usr/bin/openhosting"], config
            root = image / "root"
            root.mkdir()
            for layer in manifest["layers"]:
                subprocess.run(["tar", "-xf", blob(layer), "-C", root], check=True)
            assert (root / "state").stat().st_uid == 65532 and (root / "etc/ssl/certs/ca-certificates.crt").stat().st_size
            said = in_chroot(work, *loader, f"/work/{processor}/root/usr/bin/openhosting", "version", "--verbose")
            assert f"target   {target}\n" in said, said


def main(names):
    tests = {name.removeprefix("test_"): test for name, test in globals().items() if name.startswith("test_")}
    if set(names) - set(tests):
        sys.exit(__doc__)
    # The builds before what needs them.
    order = ["build", "windows", "aarch64", "journals", "static", "image", "link"]
    assert set(order) == set(tests)
    for name in order:
        if not names or name in names:
            began = time.monotonic()
            print(f"cross: {name}", flush=True)
            tests[name]()
            print(f"cross: {name}: passed in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
