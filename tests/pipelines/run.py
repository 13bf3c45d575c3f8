#!/usr/bin/env python3
"""Lints the files in ci/ and action.yml, and runs the shell in them, as those who read
them would, with the built programs against a real openhosting-server.

    run.py BIN [CASE...]    BIN: directory of the programs; all cases without one

Needs the packages of requirements.txt beside it, shellcheck, qemu-img and curl.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import groovy_parser.parser
import hcl2
import tree_sitter
import tree_sitter_powershell
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CI = ROOT / "ci"
BLOCK = 65536
# A value that is a flag where a script does not say that it is none. Nothing answers there.
HOSTILE = "--endpoint=http://127.0.0.1:9/"
# A guard against a hang, not a promise about time.
WATCHDOG_S = 300


def sh(*words, **options):
    """Runs a command; fails with what it said if that is not as it should be."""
    code = options.pop("code", 0)
    options.setdefault("timeout", WATCHDOG_S)
    done = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
    )
    assert done.returncode == code, f"{words} ended with {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
    return done


class Server:
    """A server of our own, with a made-up user."""

    def __init__(self, data):
        # What a careless script, a URL or a regular expression would mangle.
        self.key = "k%25&'\"$(x)" + uuid.uuid4().hex
        self.auth = f"{uuid.uuid4()}:{self.key}"
        users = Path(data, "users")
        users.write_text(self.auth + "\n")
        users.chmod(0o600)
        words = [BIN / "openhosting-server", "--data", Path(data, "drives-of"), "--users-file", users]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("export OHURI="), line
        self.uri = line.split("=", 1)[1].strip()
        self.data = Path(data, "drives-of")

    def environment(self):
        return {"OHURI": self.uri, "OHAUTH": self.auth}

    def info(self, drive):
        text = sh(BIN / "openhosting", "drives", drive, "info", env={**BARE, **self.environment()}).stdout
        return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)

    def named(self, name):
        listed = sh(BIN / "openhosting", "-j", "drives", "info", env={**BARE, **self.environment()}).stdout
        return [drive["drive"] for drive in json.loads(listed) if drive["name"] == name]

    def holds(self, drive, image):
        size = image.stat().st_size
        with open(self.data / "drives" / f"{drive}.data", "rb") as there:
            assert there.read(size) == image.read_bytes(), f"drive {drive} is not {image}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WATCHDOG_S)
        self.process.stdout.close()


class Scene:
    """A directory, a server, and an image."""

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("work", "home", "data"):
            (self.root / name).mkdir()
        self.work = self.root / "work"
        self.server = Server(self.root / "data")
        self.stack.callback(self.server.stop)
        self.image = self.work / "disk.img"
        self.image.write_bytes(os.urandom(40 * BLOCK + 77))
        # The same image, under a name that could be a flag.
        self.flag = "--help"
        os.link(self.image, self.work / self.flag)
        return self

    def __exit__(self, *_):
        self.stack.close()

    def change(self, block):
        with open(self.image, "r+b") as image:
            image.seek(block * BLOCK)
            image.write(os.urandom(9))

    def leave_unfinished(self, name):
        """Leaves a drive that a run with another image did not finish."""
        other = self.work / "other.img"
        other.write_bytes(os.urandom(1 << 20))
        words = [BIN / "openhosting", "publish", other, f"--name={name}", "--limit-rate=10k", "--deadline=4s"]
        sh(*words, env=self.environment(), code=75)
        assert self.server.named(f"{name} (unfinished)"), "nothing is left"

    def environment(self, **more):
        return {**BARE, "HOME": str(self.root / "home"), **self.server.environment(), **more}

    def shell(self, script, shell=("sh", "-eu"), code=0, **environment):
        """Runs a script; the key is nowhere in what it says."""
        done = sh(*shell, "-c", script, cwd=self.work, env=self.environment(**environment), code=code)
        self.assert_hidden(done.stdout + done.stderr)
        return done

    def assert_hidden(self, text):
        assert self.server.key not in text, f"the key is in: {text}"


def gives_up(scene, script, shell, attempts=3, **environment):
    """Demands that a script runs a program that gives up again, at most so often, and one that
    fails otherwise once. After a success it may remove what is unfinished."""
    tools = scene.root / "tools that give up"
    tools.mkdir(exist_ok=True)
    (tools / "openhosting").write_text(
        "#!/bin/sh\n"
        'case " $* " in *" --cleanup "*) exit 0 ;; esac\n'
        "echo called >>calls\n"
        'exit "$(sed -n "$(wc -l <calls)p" codes)"\n'
    )
    (tools / "openhosting").chmod(0o755)
    for codes, calls, code in [([75] * (attempts - 1) + [0], attempts, 0), ([75] * attempts + [0], attempts, 75), ([4, 0], 1, 4)]:
        (scene.work / "codes").write_text("".join(f"{code}\n" for code in codes))
        (scene.work / "calls").write_text("")
        scene.shell(script, shell=shell, code=code, PATH=f"{tools}:{BARE['PATH']}", **environment)
        assert (scene.work / "calls").read_text().count("called") == calls, codes


# --- GitHub -----------------------------------------------------------------------


def outputs_of(text):
    """The outputs in a file of GITHUB_OUTPUT, as the runner reads it."""
    outputs, lines = {}, iter(text.splitlines())
    for line in lines:
        name, equals, value = line.partition("=")
        heredoc = re.fullmatch(r"([^=<]+)<<(.+)", line)
        if heredoc:
            name, until = heredoc.groups()
            value = "\n".join(iter(functools.partial(next, lines), until))
        else:
            assert equals, f"no output: {line!r}"
        outputs[name] = value
    return outputs


class Runner:
    """A runner of GitHub, as far as a composite action notices it."""

    def __init__(self, scene, **github):
        self.scene = scene
        self.github = {"action_ref": "main", "action_repository": "owner/openhosting", "token": "the token", **github}
        self.server_url = "https://github.invalid"
        self.path = BARE["PATH"]
        self.masks = []

    def attest(self, archive, **built):
        """Puts a stand-in for gh on the PATH, which knows one attestation. As with the real
        one, each flag has to agree with it, and a token is needed."""
        known = {
            "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
            "--repo": "owner/openhosting",
            "--signer-workflow": "owner/openhosting/.github/workflows/release.yml",
            **built,
        }
        tools = self.scene.root / "gh"
        tools.mkdir(exist_ok=True)
        (tools / "gh").write_text(
            f"""#!{sys.executable}
import hashlib, os, sys
known = {known!r}
words = sys.argv[1:]
assert words[:2] == ["attestation", "verify"] and os.environ["GH_TOKEN"] == "the token", words
flags = words[3:]
flags.remove("--deny-self-hosted-runners")
told = dict(zip(flags[::2], flags[1::2], strict=True))
told["sha256"] = hashlib.sha256(open(words[2], "rb").read()).hexdigest()
assert {{"--repo", "--signer-workflow", "--source-ref"}} <= set(told), told
wrong = [name for name, value in told.items() if known.get(name) != value]
if wrong:
    sys.exit(f"gh: no attestation with {{wrong}}")
"""
        )
        (tools / "gh").chmod(0o755)
        self.path = f"{tools}:{self.path}"

    def value(self, text, inputs, steps):
        """Replaces the expressions in a value."""

        def one(match):
            words = match[1].strip().split(".")
            if words[0] == "inputs":
                return inputs[words[1]]
            if words[0] == "github":
                return self.github[words[1]]
            if words[0] == "steps":
                return steps.get(words[1], {}).get(words[3], "")
            raise AssertionError(f"unknown expression {match[0]}")

        return re.sub(r"\$\{\{(.*?)\}\}", one, text)

    def log(self, text):
        """What the log shows: masks are taken, and kept from it."""
        shown = []
        for line in text.splitlines():
            if line.startswith("::add-mask::"):
                self.masks.append(line.removeprefix("::add-mask::").replace("%25", "%"))
                continue
            shown.append(line)
        text = "\n".join(shown)
        self.scene.assert_hidden(text)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), repr(text)
        return text

    def run(self, inputs, environment, code=0):
        """Runs the action; gives its outputs, its log, and its summary."""
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        assert set(inputs) <= set(action["inputs"]), inputs
        inputs = {name: inputs.get(name, told["default"]) for name, told in action["inputs"].items()}
        # All a step of a composite action sees of them is what it is told.
        steps, log, summary = {}, "", ""
        for step in action["runs"]["steps"]:
            condition = step.get("if")
            if condition:
                assert condition == "inputs.image != ''", condition
                if not inputs["image"]:
                    continue
            assert step["shell"] == "bash"
            files = {name: self.scene.root / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH")}
            for file in files.values():
                file.write_text("")
            script = self.scene.root / "step.sh"
            script.write_text(self.value(step["run"], inputs, steps))
            (self.scene.root / "runner temp").mkdir(exist_ok=True)
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
                cwd=self.scene.work,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=WATCHDOG_S,
                env={
                    "PATH": self.path,
                    "HOME": str(self.scene.root / "home"),
                    "GITHUB_ACTIONS": "true",
                    "GITHUB_ACTION_PATH": str(ROOT),
                    "GITHUB_SERVER_URL": self.server_url,
                    "RUNNER_TEMP": str(self.scene.root / "runner temp"),
                    **{name: str(file) for name, file in files.items()},
                    **environment,
                    **{name: self.value(value, inputs, steps) for name, value in step.get("env", {}).items()},
                },
            )
            log += self.log(done.stdout) + "\n"
            for line in files["GITHUB_PATH"].read_text().splitlines():
                self.path = f"{line}:{self.path}"
            steps[step.get("id")] = outputs_of(files["GITHUB_OUTPUT"].read_text())
            summary += files["GITHUB_STEP_SUMMARY"].read_text()
            if done.returncode:
                assert done.returncode == code, f"{step['name']} ended with {done.returncode}, not {code}:\n{log}"
                break
        else:
            assert code == 0, f"nothing failed:\n{log}"
        told = {name: self.value(told["value"], inputs, steps) for name, told in action["outputs"].items()}
        return told, log, summary


@contextlib.contextmanager
def releases(scene):
    """A site with a release of the programs, as ci/release/pack.sh packs it."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    at = scene.root / "site/owner/openhosting/releases/download" / f"v{version}"
    archive = Path(sh(ROOT / "ci/release/pack.sh", at, BIN).stdout.strip())
    again = Path(sh(ROOT / "ci/release/pack.sh", scene.root / "again", BIN).stdout.strip())
    assert archive.read_bytes() == again.read_bytes(), "the same programs make another archive"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=scene.root / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_address[1]}", version, archive
        site.shutdown()
        thread.join()


def github_action():
    with Scene() as scene, releases(scene) as (url, version, archive):
        secrets = scene.server.environment()

        commit = "ab" * 20
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        sound = archive.read_bytes()

        def runner(ref="main", **built):
            runner = Runner(scene, action_ref=ref)
            runner.server_url = url
            archive.write_bytes(sound)
            (archive.parent / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
            runner.attest(archive, **{"--source-ref": f"refs/tags/v{version}", "--source-digest": commit, **built})
            return runner

        # By the tag of the release that it was named by.
        first = runner(f"v{version}")
        inputs = {
            "image": "disk.img",
            "name": "nightly",
            "tags": "ci\n  main\n",
            "readers": "all",
            "keep": "1",
            "receipt": "r.json",
        }
        outputs, log, summary = first.run(inputs, secrets)
        drive = outputs["drive"]
        scene.server.holds(drive, scene.image)
        info = scene.server.info(drive)
        assert info["name"] == "nightly" and info["tags"] == "ci main", info
        assert info["readers"] == "ffffffff-ffff-ffff-ffff-ffffffffffff", info
        assert outputs["digest"] == info["user:oh-digest"] and outputs["outcome"] == "complete", outputs
        assert int(outputs["bytes_sent"]) >= scene.image.stat().st_size, outputs
        assert summary.startswith("### openhosting publish: complete\n\n| | |\n|---|---|\n"), summary
        assert "::group::openhosting publish nightly" in log and f"openhosting {version}" in log, log
        assert scene.server.key in first.masks and len(first.masks) == 2, "the key is masked, and its base64"
        # It is the release that runs, not what was on the machine.
        assert first.path.startswith(str(scene.root / "runner temp")), first.path
        # Once is enough, and the next one is a delta that takes its place.
        outputs, _, _ = runner().run({**inputs, "version": version}, secrets)
        assert (outputs["drive"], outputs["bytes_sent"]) == (drive, "0"), outputs
        scene.change(7)
        outputs, _, summary = runner().run({**inputs, "version": f"v{version}", "sha256": digest}, secrets)
        assert outputs["drive"] != drive and int(outputs["bytes_sent"]) < 2 * BLOCK, outputs
        assert "delta on top of" in summary, summary
        assert scene.server.named("nightly") == [outputs["drive"]], "the old one stays"

        # What another run left stays, unless it is to be removed.
        scene.leave_unfinished("nightly")
        runner().run({**inputs, "version": version}, secrets)
        assert scene.server.named("nightly (unfinished)")
        runner().run({**inputs, "version": version, "cleanup": "true"}, secrets)
        assert not scene.server.named("nightly (unfinished)") and scene.server.named("nightly") == [outputs["drive"]]
        # One that gives up is run again, thrice at most; another failure is one.
        publish = {"INPUT_IMAGE": "disk.img", "INPUT_NAME": "nightly"}
        gives_up(scene, shlex.quote(str(CI / "github/publish.sh")), ("bash", "-e"), **publish)
        gives_up(scene, shlex.quote(str(CI / "github/publish.sh")), ("bash", "-e"), attempts=2, INPUT_ATTEMPTS="2", **publish)

        # Without an image the tools are installed, for the steps that follow.
        only = runner()
        assert only.run({"version": version}, {})[0]["drive"] == ""
        sh("openhosting-upload", "--version", env={"PATH": only.path})
        # A name that means something to a shell, and to the runner.
        hostile = "a $(touch pwned) `x`\n::error::y;'\".img"
        shutil.copy(scene.image, scene.work / hostile)
        outputs, log, _ = runner().run({"image": hostile, "name": "n $(id)", "version": version}, secrets)
        scene.server.holds(outputs["drive"], scene.image)
        assert scene.server.info(outputs["drive"])["name"] == "n $(id)"
        assert not (scene.work / "pwned").exists() and "\n::error::" not in log, log
        # Values that could be flags are values.
        outputs, log, _ = runner().run({"image": scene.flag, "name": HOSTILE, "version": version}, secrets)
        assert scene.server.info(outputs["drive"])["name"] == HOSTILE

        def fails(why, inputs, environment, code, runner):
            path = runner.path
            outputs, log, _ = runner.run(inputs, environment, code=code)
            assert re.search(rf"^::error title=openhosting[^:]*::.*{why}", log, re.M), log
            assert outputs["drive"] == "", outputs
            return runner.path == path

        fails("OHAUTH is not set", {**inputs, "version": version}, {"OHURI": secrets["OHURI"]}, 2, runner())
        fails("The input name is missing", {**inputs, "name": "", "version": version}, secrets, 2, runner())
        # An endpoint of the wrong protocol fails at once; one that is not there is waited for.
        no_tls = secrets["OHURI"].replace("http://", "https://")
        fails("cannot connect", {**inputs, "endpoint": no_tls, "version": version}, {**secrets, "OHURI": "http://127.0.0.1:8/"}, 1, runner())
        # Nothing of these is installed.
        for why, more in [
            ("neither as 1.2.3 nor build", {"version": "1.2.3;touch pwned"}),
            ("not 64 hexadecimal", {"version": version, "sha256": "x"}),
            ("of the digest that was given", {"version": version, "sha256": "0" * 64}),
            ("cannot fetch", {"version": "9.9.9"}),
        ]:
            assert fails(why, {**inputs, **more}, secrets, 1, runner()), why
        # Whoever can change the release, and its checksums with it, cannot change what it is
        # verified against.
        def tampered(runner):
            archive.write_bytes(tampered_with)
            digest = hashlib.sha256(tampered_with).hexdigest()
            (archive.parent / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
            return runner

        with tempfile.TemporaryDirectory() as place:
            sh("tar", "-xzf", archive, "-C", place)
            (tree,) = Path(place).iterdir()
            (tree / "openhosting").write_text(f'#!/bin/sh\ntouch "{scene.work}/pwned"\necho "openhosting {version}"\n')
            sh("tar", "-czf", Path(place, "tampered"), "-C", place, tree.name)
            tampered_with = Path(place, "tampered").read_bytes()
        attested = {**inputs, "version": version}
        assert fails("no attestation", attested, secrets, 1, tampered(runner()))
        assert fails("no attestation", attested, secrets, 1, tampered(runner(commit)))
        assert fails("no attestation", inputs, secrets, 1, tampered(runner(f"v{version}")))
        assert fails("of the digest that was given", {**attested, "sha256": digest}, secrets, 1, tampered(runner()))
        assert not (scene.work / "pwned").exists()
        # Of another workflow, tag or repository; and a pinned action takes what was built from
        # the commit that it is pinned to.
        for wrong in [
            {"--signer-workflow": "owner/openhosting/.github/workflows/ci.yml"},
            {"--source-ref": "refs/heads/main"},
            {"--repo": "other/openhosting"},
        ]:
            assert fails("no attestation", attested, secrets, 1, runner(**wrong)), wrong
        assert fails(f"from the commit {'cd' * 20}", attested, secrets, 1, runner("cd" * 20))
        assert runner(commit).run(attested, secrets)[0]["outcome"] == "complete"
        # With a pinned digest no gh is needed; without both nothing is installed.
        bare = runner()
        bare.path = BARE["PATH"]
        assert bare.run({**attested, "sha256": digest}, secrets)[0]["outcome"] == "complete"
        if shutil.which("gh") is None:
            bare = runner()
            bare.path = BARE["PATH"]
            assert fails("There is no gh", attested, secrets, 1, bare)

        # Built from source where it was named by no release. That cargo builds is
        # proven elsewhere: this one hands out what it has built.
        tools = scene.root / "tools"
        tools.mkdir()
        (tools / "cargo").write_text(
            "#!/bin/sh\n"
            '[ -z "${GH_TOKEN:-}" ] || exit 1\n'
            f'[ "$1 $2 $3 $4 $5" = "install --locked --path {ROOT} --root" ] || exit 1\n'
            f'mkdir -p "$6/bin" && cp {BIN}/openhosting "$6/bin/"\n'
        )
        (tools / "cargo").chmod(0o755)
        build = runner()
        build.path = f"{tools}:{build.path}"
        outputs, log, _ = build.run(inputs, secrets)
        assert outputs["bytes_sent"] == "0" and "::group::Building openhosting" in log, log


def install_script():
    """ci/install.sh by itself: what it installs it has verified, or it installs nothing."""
    with Scene() as scene, releases(scene) as (url, version, archive):
        sound, sums = archive.read_bytes(), (archive.parent / "SHA256SUMS").read_text()
        home = scene.root / "home of install"
        home.mkdir()
        script = archive.parent / "install.sh"
        assert f"version={version}" in script.read_text(), "the version is not filled in"
        files = (scene.root / "site").as_uri()

        def install(*flags, tools=None, code=0, script=script, at=f"{url}/owner/openhosting"):
            path = BARE["PATH"] if tools is None else f"{tools}:{BARE['PATH']}"
            told = {"PATH": path, "HOME": str(home)}
            done = sh("sh", script, "--from", at, *flags, env=told, code=code)
            return done.stdout + done.stderr

        def is_installed():
            bin = home / ".local/bin"
            there = bin.is_dir() and sorted(file.name for file in bin.iterdir())
            shutil.rmtree(bin, ignore_errors=True)
            return bool(there and "openhosting" in there and all(not name.endswith(".new") for name in there))

        bare = shutil.which("gh", path=BARE["PATH"]) is None
        said = install()
        assert f"openhosting {version} is in {home}/.local/bin" in said and "Add it to your PATH" in said, said
        assert not bare or "the attestation of the build was not verified" in said, said
        assert is_installed()
        install(at=f"{files}/owner/openhosting")
        assert is_installed()
        install("--to", scene.root / "else where", "--version", f"v{version}")
        assert (scene.root / "else where/openhosting").exists() and not is_installed()
        # Neither another archive than the sums list, nor one that they do not list.
        archive.write_bytes(sound[:-1] + b"x")
        assert "does not have the SHA-256 of SHA256SUMS" in install(code=1)
        archive.write_bytes(sound)
        (archive.parent / "SHA256SUMS").write_text(sums.replace("openhosting-", "other-"))
        assert "does not list" in install(code=1)
        (archive.parent / "SHA256SUMS").write_text(sums)
        assert "the digest that was given" in install("--sha256", "0" * 64, code=1)
        assert "cannot fetch" in install("--target", "m68k-unknown-none", code=1)
        assert "not an https address" in install(at="http://example.invalid/owner/openhosting", code=1)
        assert "unknown option" in install("--force", code=1)
        # The sums and the archive of whoever can change both: gh says no.
        tools = scene.root / "tools that refuse"
        tools.mkdir()
        (tools / "gh").write_text("#!/bin/sh\nexit 1\n")
        (tools / "gh").chmod(0o755)
        assert "has no attestation" in install(tools=tools, code=1)
        if bare:
            assert "gh is missing" in install("--require-attestation", code=1)
        assert not is_installed()
        # A script that was cut off does nothing.
        text = script.read_text()
        for part in range(1, 8):
            cut = scene.root / "cut.sh"
            cut.write_text(text[: len(text) * part // 8])
            subprocess.run(["sh", cut], env={"PATH": BARE["PATH"], "HOME": str(home)}, capture_output=True)
            assert not is_installed(), part


def install_ps1():
    """ci/install.ps1 cannot run here: a grammar of PowerShell reads it."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    with Scene() as scene, releases(scene) as (_, version, archive):
        script = (archive.parent / "install.ps1").read_bytes()
        assert f"$Version = '{version}'".encode() in script, "the version is not filled in"
        assert not parser.parse(script).root_node.has_error
        for wrong in [(b"} finally {", b" finally {"), (b"$wanted = $Sha256", b"$wanted = $Sha256)")]:
            assert wrong[0] in script
            assert parser.parse(script.replace(*wrong)).root_node.has_error, wrong


def github_examples():
    """The steps of the workflows that are no actions of others."""
    with Scene() as scene:
        (scene.work / "make-image.sh").write_text("#!/bin/sh\n")
        (scene.work / "make-image.sh").chmod(0o755)
        matrix = yaml.safe_load((CI / "github/examples/matrix.yml").read_text())
        output, summary = scene.root / "output", scene.root / "summary"
        shards = matrix["jobs"]["shard"]["strategy"]["matrix"]["shard"]

        def job(name, **environment):
            for step in matrix["jobs"][name]["steps"]:
                if "run" in step:
                    told = {key: value for key, value in environment.items() if key in step.get("env", {}) or key.startswith("GITHUB_")}
                    scene.shell(step["run"], shell=("bash", "-e"), **told)

        files = {}
        for shard in shards:
            files[shard] = scene.root / f"output-{shard}"
            files[shard].write_text("")
        summary.write_text("")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [pool.submit(job, "shard", SHARD=str(shard), GITHUB_OUTPUT=str(files[shard]), GITHUB_STEP_SUMMARY=str(summary)) for shard in shards]
            for run in runs:
                run.result()
        drives = {outputs_of(file.read_text())["drive"] for file in files.values()}
        assert len(drives) == 1 and scene.server.named("big") == [], drives
        # Each appended its table whole.
        assert summary.read_text().count("### openhosting publish: complete\n\n| | |\n|---|---|\n") == len(shards)
        output.write_text("")
        job("join", GITHUB_OUTPUT=str(output), GITHUB_STEP_SUMMARY=str(summary))
        assert {outputs_of(output.read_text())["drive"]} == drives
        assert set(scene.server.named("big")) == drives
        scene.server.holds(drives.pop(), scene.image)


def assert_least_rights(text):
    """Demands that each action is pinned by its commit, with the version beside it; that a
    workflow gives no rights but to jobs that name them; that a job which may change something
    runs no code of the repository; and that none may both attest and publish."""
    for line in text.splitlines():
        if re.match(r"\s*(- )?uses:", line):
            assert re.fullmatch(r"\s*(- )?uses: \S+@[0-9a-f]{40} # v\S+", line), line
    workflow = yaml.safe_load(text)
    assert workflow.get("permissions") in ({}, {"contents": "read"}), workflow.get("permissions")
    for name, job in workflow["jobs"].items():
        rights = {right for right, level in job.get("permissions", {}).items() if level != "read"}
        words = [step.get("uses", step.get("run", "")) for step in job["steps"]]
        runs_ours = any("checkout" in word or "cargo" in word or "ci/" in word for word in words)
        assert not (rights and runs_ours), f"{name} runs code of the repository with {rights}"
        assert not {"contents", "id-token"} <= rights, name


def lint_github():
    # --color-mode is of newer ones; what they fetch is in the package.
    workflows = sorted(CI.glob("github/examples/*.yml")) + sorted(ROOT.glob(".github/workflows/*.yml"))
    sh(VENV / "check-jsonschema", "--builtin-schema", "vendor.github-actions", ROOT / "action.yml")
    sh(VENV / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    with tempfile.TemporaryDirectory() as root:
        # As files of a repository are audited.
        place = Path(root, ".github/workflows")
        place.mkdir(parents=True)
        for workflow in workflows:
            shutil.copy(workflow, place)
        shutil.copy(ROOT / "action.yml", root)
        sh(VENV / "zizmor", "--offline", "--no-progress", "--strict-collection", root)
        # It does find what is wrong.
        text = (place / "matrix.yml").read_text()
        (place / "matrix.yml").write_text(text.replace('"$SHARD/4"', '"${{ github.head_ref }}/4"'))
        found = subprocess.run([VENV / "zizmor", "--offline", "--no-progress", root], capture_output=True, text=True)
        assert found.returncode != 0 and "template-injection" in found.stdout, found
    # What is attached to a release names who made it, and the commit, and is pinned as before.
    with tempfile.TemporaryDirectory() as root:
        told = {"GITHUB_REPOSITORY": "acme/openhosting", "GITHUB_SHA": "ab" * 20}
        subprocess.run([ROOT / "ci/release/pack.sh", root, BIN], check=True, capture_output=True, env={**os.environ, **told})
        place = Path(root, ".github/workflows")
        place.mkdir(parents=True)
        for example in CI.glob("github/examples/*.yml"):
            text = Path(root, example.name).read_text()
            assert "OWNER" not in text and "000000" not in text, text
            uses = [line for line in text.splitlines() if "/openhosting@" in line]
            assert uses and all(f"acme/openhosting@{'ab' * 20} # v" in line for line in uses), uses
            (archive,) = Path(root).glob("*.tar.gz")
            assert f'sha256: "{hashlib.sha256(archive.read_bytes()).hexdigest()}"' in text, text
            shutil.copy(Path(root, example.name), place)
        sh(VENV / "zizmor", "--offline", "--no-progress", "--strict-collection", place.parent.parent)
    # Actions of others are pinned, and code of the repository runs without a right to change it.
    for workflow in workflows:
        assert_least_rights(workflow.read_text())
    release = (ROOT / ".github/workflows/release.yml").read_text()
    for wrong in [
        ("contents: read", "contents: write"),
        ("@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f #", "@v7 #"),
        ("permissions: {}\n", ""),
        ("      id-token: write\n", "      id-token: write\n      contents: write\n"),
    ]:
        assert wrong[0] in release, wrong
        try:
            assert_least_rights(release.replace(*wrong))
        except AssertionError:
            continue
        raise AssertionError(f"{wrong} was not noticed")
    # The names that docs and scripts use are those of the action.
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    for workflow in workflows:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            for step in job["steps"]:
                if "/openhosting@" in step.get("uses", ""):
                    assert set(step.get("with", {})) <= set(action["inputs"]), step


# --- the others -------------------------------------------------------------------


def gitlab():
    path = CI / "gitlab/openhosting.gitlab-ci.yml"
    sh(VENV / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", path)
    template = yaml.safe_load(path.read_text())

    def job(name):
        told = template[name]
        base = job(told["extends"]) if "extends" in told else {}
        variables = {**base.get("variables", {}), **told.get("variables", {})}
        return {**base, **told, "variables": variables}

    assert job(".openhosting-shard")["retry"]["exit_codes"] == [75]
    variables = {name: told["value"] for name, told in template["variables"].items()}
    # GitLab takes bash where there is one, else sh.
    for shell in (("bash", "-eo", "pipefail"), ("sh", "-e")):
        with Scene() as scene:

            def run(name, code=0, **more):
                told = job(name)
                # The endpoint is a line of the script; variables that a pipeline was started
                # with cannot send the key elsewhere.
                script = "\n".join(told["before_script"] + told["script"])
                assert "https://api-east1.openhosting.com/" in script
                script = script.replace("https://api-east1.openhosting.com/", scene.server.uri)
                elsewhere = {"OHURI": "http://127.0.0.1:9/", "OPENHOSTING_PROFILE": "elsewhere"}
                return scene.shell(script, shell=shell, code=code, **{**variables, **told["variables"], **elsewhere, **more})

            run(".openhosting-publish", OPENHOSTING_NAME="n", OPENHOSTING_TAGS="a b", OPENHOSTING_KEEP="1")
            told = outputs_of((scene.work / "openhosting.env").read_text())
            drive = told["OPENHOSTING_DRIVE"]
            scene.server.holds(drive, scene.image)
            info = scene.server.info(drive)
            assert info["tags"] == "a b" and told["OPENHOSTING_DIGEST"] == info["user:oh-digest"], told
            assert int(told["OPENHOSTING_BYTES_SENT"]) > 0 and len(told) == 3, told
            assert (scene.work / "openhosting-receipt.json").exists()
            # Whatever they hold, values are no flags, and no names of files.
            run(".openhosting-publish", OPENHOSTING_IMAGE=scene.flag, OPENHOSTING_NAME=HOSTILE, OPENHOSTING_TAGS=f"* {HOSTILE}", OPENHOSTING_KEEP="2")
            (drive,) = scene.server.named(HOSTILE)
            assert set(scene.server.info(drive)["tags"].split()) == {"*", HOSTILE}
            run(".openhosting-publish", code=2, OPENHOSTING_NAME="n", OPENHOSTING_KEEP=f"1 {HOSTILE}")
            # What another run left stays, unless it is to be removed.
            scene.leave_unfinished("n")
            run(".openhosting-publish", OPENHOSTING_NAME="n")
            assert scene.server.named("n (unfinished)")
            run(".openhosting-publish", OPENHOSTING_NAME="n", OPENHOSTING_CLEANUP="yes")
            assert not scene.server.named("n (unfinished)") and len(scene.server.named("n")) == 1
            shards = job(".openhosting-shard")["parallel"]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                runs = [
                    pool.submit(run, ".openhosting-shard", OPENHOSTING_NAME="big", CI_NODE_INDEX=str(i + 1), CI_NODE_TOTAL=str(shards))
                    for i in range(shards)
                ]
                for done in runs:
                    done.result()
            assert scene.server.named("big") == []
            run(".openhosting-join", OPENHOSTING_NAME="big")
            told = outputs_of((scene.work / "openhosting.env").read_text())
            assert scene.server.named("big") == [told["OPENHOSTING_DRIVE"]]
            scene.server.holds(told["OPENHOSTING_DRIVE"], scene.image)


def jenkins():
    text = (CI / "jenkins/Jenkinsfile").read_text()
    tree = groovy_parser.parser.parse_groovy_content(text)
    assert tree is not None
    with tempfile.TemporaryDirectory():
        try:
            groovy_parser.parser.parse_groovy_content(text.replace("agent {", "agent }", 1))
        except Exception:
            pass
        else:
            raise AssertionError("the parser takes what is wrong")
    scripts = re.findall(r"script: '''(.*?)'''", text, re.S)
    assert len(scripts) == 2
    # Between ''' Groovy takes a backslash at the end of a line away, and so does the shell.
    scripts = [script.replace("\\\n", "") for script in scripts]
    defaults = dict(re.findall(r"string\(name: '(\w+)', defaultValue: '([^']*)'", text))
    with Scene() as scene:
        # What Jenkins runs: sh -xe, so that each command is in the log.
        for script in scripts:
            scene.shell(script, shell=("sh", "-xe"), **defaults)
        drive = (scene.work / "drive.txt").read_text().strip()
        assert scene.server.named(defaults["NAME"]) == [drive]
        scene.server.holds(drive, scene.image)
        scene.shell(scripts[0], shell=("sh", "-xe"), **{**defaults, "IMAGE": scene.flag, "NAME": HOSTILE})
        assert scene.server.named(HOSTILE) == [(scene.work / "drive.txt").read_text().strip()]
        # One that gives up is run again, thrice at most; another failure is one.
        gives_up(scene, scripts[0], ("sh", "-xe"), **defaults)
        # What another run left is removed.
        scene.leave_unfinished(defaults["NAME"])
        scene.shell(scripts[0], shell=("sh", "-xe"), **defaults)
        assert not scene.server.named(f"{defaults['NAME']} (unfinished)")


def packer():
    path = CI / "packer/publish.pkr.hcl"
    with open(path) as file:
        told = hcl2.load(file)

    def plain(value):
        """Strings come with their quotes."""
        if isinstance(value, str) and value[:1] == value[-1:] == '"':
            return value[1:-1].replace('\\"', '"')
        return value

    find = lambda items, name: next(v for item in items for k, v in item.items() if plain(k) == name)
    post = find(told["build"][0]["post-processor"], "shell-local")
    defaults = {}
    for variable in told["variable"]:
        for name, about in variable.items():
            if isinstance(about, dict) and "default" in about:
                defaults[plain(name)] = str(plain(about["default"]))
    assert "OHAUTH" not in json.dumps([told["variable"], post]), "no variable of Packer holds the secret"
    expand = lambda value: re.sub(r"\$\{var\.(\w+)\}", lambda match: defaults[match[1]], plain(value))
    with Scene() as scene:
        (scene.work / "output").mkdir()
        sh("qemu-img", "convert", "-O", "qcow2", scene.image, scene.work / "output/disk.qcow2")
        # Packer writes the lines to a file below the shebang, and runs that.
        lines = ["#!" + plain(post["inline_shebang"])] + [plain(line) for line in post["inline"]]
        script = scene.work / "inline"
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)
        sh("shellcheck", script)
        environment = dict(expand(pair).split("=", 1) for pair in post["environment_vars"])
        done = sh(script, cwd=scene.work, env=scene.environment(**environment))
        scene.assert_hidden(done.stdout + done.stderr)
        drive = (scene.work / f"{environment['NAME']}.drive").read_text().strip()
        assert f"published as drive {drive}" in done.stdout, done.stdout
        assert scene.server.named(defaults["name"]) == [drive]
        sh(script, cwd=scene.work, env=scene.environment(**{**environment, "NAME": "--join"}))
        assert len(scene.server.named("--join")) == 1
        # A qcow2 has whole sectors: what follows the last byte is zeros.
        scene.server.holds(drive, scene.image)


def kubernetes():
    jobs = {}
    for path in sorted(CI.glob("kubernetes/*.yaml")):
        sh(VENV / "kubernetes-validate", "--strict", path)
        for told in yaml.safe_load_all(path.read_text()):
            jobs[told["metadata"]["name"]] = told
    with Scene() as scene:

        def run(name, **more):
            container = jobs[name]["spec"]["template"]["spec"]["containers"][0]
            environment = {pair["name"]: pair["value"] for pair in container["env"]}
            environment.update(more, IMAGE=str(scene.image))
            done = sh(*container["command"], *container["args"], cwd="/", env=scene.environment(**environment))
            scene.assert_hidden(done.stdout + done.stderr)
            return environment["SHARDS"] if name == "publish-shards" else environment["NAME"]

        count = jobs["publish-shards"]["spec"]["completions"]
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            runs = [pool.submit(run, "publish-shards", JOB_COMPLETION_INDEX=str(i)) for i in range(count)]
            assert {done.result() for done in runs} == {str(count)}
        name = run("publish-join")
        runs = [functools.partial(run, "publish-shards", JOB_COMPLETION_INDEX=str(i), NAME=HOSTILE) for i in range(count)]
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(one) for one in runs]:
                done.result()
        run("publish-join", NAME=HOSTILE)
        assert len(scene.server.named(HOSTILE)) == 1
        (drive,) = scene.server.named(name)
        scene.server.holds(drive, scene.image)


def slurm():
    with Scene() as scene:
        # A queue of Slurm: runs the tasks of an array, all at a time, and then what
        # waits for them.
        tools = scene.root / "tools"
        tools.mkdir()
        (tools / "sbatch").write_text(
            """#!/bin/bash
set -euo pipefail
echo "$*" >>sbatch.log
array='' wrap=''
while (($#)); do
    case $1 in
        --array=1-*) array=${1#--array=1-} ;;
        --dependency=afterok:4711) [[ -e done-4711 ]] ;;
        --wrap) wrap=$2; shift ;;
        --parsable | --export=ALL | --job-name=* | --requeue | --kill-on-invalid-dep=yes) ;;
        *) echo "sbatch: what is $1?" >&2; exit 1 ;;
    esac
    shift
done
if [[ -n $array ]]; then
    pids=()
    for ((i = 1; i <= array; i++)); do
        SLURM_ARRAY_TASK_ID=$i sh -c "$wrap" >"task-$i.out" & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    touch done-4711
    echo '4711;cluster'
else
    sh -c "$wrap" >join.out
    echo 4712
fi
"""
        )
        (tools / "sbatch").chmod(0o755)
        path = f"{tools}:{BARE['PATH']}"
        scene.shell(f"{shlex.quote(str(CI / 'slurm/publish.sh'))} disk.img 'a b' 3", PATH=path)
        (drive,) = scene.server.named("a b")
        assert (scene.work / "join.out").read_text().strip() == drive
        scene.server.holds(drive, scene.image)
        log = (scene.work / "sbatch.log").read_text()
        scene.assert_hidden(log)
        assert log.count("\n") == 2, log
        (scene.work / "done-4711").unlink()
        scene.shell(f"{shlex.quote(str(CI / 'slurm/publish.sh'))} {scene.flag} '{HOSTILE}' 2", PATH=path)
        assert len(scene.server.named(HOSTILE)) == 1
        scene.shell(f"{shlex.quote(str(CI / 'slurm/publish.sh'))} disk.img n 0", code=2, PATH=path)


def systemd():
    backup = CI / "systemd/backup.sh"
    with Scene() as scene:
        sh(BIN / "openhosting-upload", scene.image, cwd=scene.work, env=scene.environment())
        (drive,) = scene.server.named("disk.img")
        credentials, state = scene.root / "credentials", scene.root / "state of it"
        credentials.mkdir()
        state.mkdir()
        (credentials / "ohauth").write_text(scene.server.auth + "\n")
        example = outputs_of("\n".join(line for line in (CI / "systemd/backup.conf.example").read_text().splitlines() if not line.startswith("#")))
        assert set(example) == {"OHURI", "DRIVE", "KEEP"}, example

        def run(code=0, **more):
            told = {"DRIVE": drive, "KEEP": "2", "STATE_DIRECTORY": str(state), "CREDENTIALS_DIRECTORY": str(credentials), **more}
            environment = {**scene.environment(), **told}
            del environment["OHAUTH"]
            done = sh(backup, "web", cwd="/", env=environment, code=code)
            scene.assert_hidden(done.stdout + done.stderr)
            return done

        def backups():
            return sorted(state.iterdir())

        def age(seconds):
            """Makes what is there older, as nights do."""
            for path in backups():
                stamp = path.stat().st_mtime - seconds
                os.utime(path, (stamp, stamp))
                if path.name.startswith("web-"):
                    when = subprocess.run(["date", "-u", "-d", f"@{int(stamp)}", "+%Y%m%dT%H%M%SZ"], capture_output=True, text=True).stdout.strip()
                    path.rename(state / f"web-{when}.qcow2")

        run()
        (first,) = backups()
        assert re.fullmatch(r"web-\d{8}T\d{6}Z\.qcow2", first.name), first
        sh("qemu-img", "check", first)
        # The drive is the image and zeros up to the end of a sector.
        raw = scene.root / "raw"
        sh("qemu-img", "convert", "-O", "raw", first, raw)
        assert raw.read_bytes()[: scene.image.stat().st_size] == scene.image.read_bytes()
        age(86400)
        run()
        age(86400)
        # One that failed leaves what there is alone, and the next one is good again.
        run(code=1, DRIVE="0012e24a-6eae-4279-9912-3432f698cec8")
        assert len(backups()) == 2, backups()
        run()
        assert len(backups()) == 2, "the oldest of three stays"
        # Killed after it was whole and before it had its name.
        age(86400)
        newest = backups()[-1]
        newest.rename(state / "web.next.qcow2")
        run()
        assert len(backups()) == 2 and not (state / "web.next.qcow2").exists(), backups()
        # Others in the same directory: another instance, a date that is not over, a link, and a
        # directory. None of them is counted or removed, and the new one is never removed for
        # them.
        others = {
            "web-2-20200101T000000Z.qcow2",
            "web-2T-20200101T000000Z.qcow2",
            "web-20990101T000000Z.qcow2",
            "web-20200101T000000Z.qcow2.txt",
            "web-2020T1Z.qcow2",
        }
        for other in others:
            (state / other).write_text("another's")
        (state / "web-20200102T000000Z.qcow2").symlink_to("web-2020T1Z.qcow2")
        (state / "web-20200103T000000Z.qcow2").mkdir()
        others |= {"web-20200102T000000Z.qcow2", "web-20200103T000000Z.qcow2"}
        for path in backups():
            if path.name not in others:
                path.unlink()
        (state / "web-20200104T000000Z.qcow2").write_text("the oldest")
        (state / "web-20200105T000000Z.qcow2").write_text("the one before")
        done = run(KEEP="2")
        assert "web-20990101T000000Z.qcow2 has a date in the future" in done.stderr, done.stderr
        left = {path.name for path in backups()} - others
        assert others <= {path.name for path in backups()}, backups()
        assert len(left) == 2 and "web-20200105T000000Z.qcow2" in left, left
        (new,) = left - {"web-20200105T000000Z.qcow2"}
        (state / new).rename(state / "web-20200106T000000Z.qcow2")
        run(KEEP="1")
        left = {path.name for path in backups()} - others
        assert others <= {path.name for path in backups()} and len(left) == 1, left
        assert not left & {"web-20200105T000000Z.qcow2", "web-20200106T000000Z.qcow2"}, left
        run(code=2, KEEP="0")
        run(code=2, KEEP="x")
        run(code=2, DRIVE="")
    # The units, where a machine has them.
    with tempfile.TemporaryDirectory() as root:
        units = Path(root, "usr/lib/systemd/system")
        units.mkdir(parents=True)
        for unit in CI.glob("systemd/openhosting-backup@.*"):
            shutil.copy(unit, units)
        script = Path(root, "usr/lib/openhosting/backup")
        script.parent.mkdir(parents=True)
        shutil.copy(backup, script)
        shutil.copytree("/usr/lib/systemd/system", units, dirs_exist_ok=True, symlinks=True)
        for target in ("openhosting-backup@web.service", "openhosting-backup@web.timer"):
            done = sh("systemd-analyze", "verify", "--man=no", f"--root={root}", target)
            ours = [line for line in done.stderr.splitlines() if "openhosting" in line]
            assert not ours, ours
        # At most 2.0 of 10: an offline look at how much of the machine it could reach.
        unit = CI / "systemd/openhosting-backup@.service"
        done = sh("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", unit)
        print("   ", done.stdout.strip().splitlines()[-1])
    sh("systemd-analyze", "calendar", re.search(r"OnCalendar=(.*)", (CI / "systemd/openhosting-backup@.timer").read_text())[1])


def systemd_server():
    unit = CI / "systemd/openhosting-server.service"
    with tempfile.TemporaryDirectory() as root:
        units = Path(root, "usr/lib/systemd/system")
        shutil.copytree("/usr/lib/systemd/system", units, symlinks=True)
        shutil.copy(unit, units)
        users = Path(root, "usr/lib/sysusers.d/openhosting.conf")
        users.parent.mkdir()
        Path(root, "etc").mkdir()
        shutil.copy(CI / "systemd/openhosting-server.sysusers", users)
        program = Path(root, "usr/bin/openhosting-server")
        program.parent.mkdir()
        shutil.copy(BIN / "openhosting-server", program)
        # The user of the unit is the one that the package makes.
        sh("systemd-sysusers", f"--root={root}", "openhosting.conf")
        accounts = [line.split(":") for line in Path(root, "etc/passwd").read_text().splitlines()]
        (user,) = re.findall(r"^User=(.*)$", unit.read_text(), re.MULTILINE)
        assert [(a[0], a[5]) for a in accounts if a[0] == user] == [(user, "/var/lib/openhosting-server")], accounts
        assert re.search(rf"^kvm:.*:{user}$", Path(root, "etc/group").read_text(), re.MULTILINE)
        done = sh("systemd-analyze", "verify", "--man=no", f"--root={root}", unit.name)
        ours = [line for line in done.stderr.splitlines() if "openhosting" in line]
        assert not ours, ours
    done = sh("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", unit)
    print("   ", done.stdout.strip().splitlines()[-1])
    # What would end guests with the server, or keep the next run from finding them or from starting them.
    settings = re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE)
    assert ("KillMode", "process") in settings
    assert not {"DynamicUser", "PrivateTmp", "MemoryDenyWriteExecute", "PrivateDevices"} & {key for key, _ in settings}
    assert ("SystemCallFilter", "@system-service seccomp") in settings
    for script in (CI / "systemd/debian").iterdir():
        sh("sh", "-n", script)


def docker():
    path = CI / "docker/Dockerfile"
    sh(VENV / "hadolint", "--failure-threshold", "style", path)
    # What the .dockerignore lets in is enough for cargo to know what there is to build.
    with tempfile.TemporaryDirectory() as context:
        for line in (CI / "docker/Dockerfile.dockerignore").read_text().splitlines():
            if line.startswith("!"):
                source, target = ROOT / line[1:], Path(context, line[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        told = sh("cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version=1", cwd=context)
        programs = {t["name"] for p in json.loads(told.stdout)["packages"] for t in p["targets"] if t["kind"] == ["bin"]}
        assert programs == {"openhosting", "openhosting-upload", "openhosting-download", "openhosting-server"}
    # The image that has nothing but glibc, libgcc and certificates is enough.
    for program in programs:
        needs = sh("ldd", BIN / program).stdout
        needs = {Path(line.split()[0]).name for line in needs.splitlines()}
        allowed = {"linux-vdso.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
        assert needs <= allowed, needs - allowed


def lint_yaml():
    files = [ROOT / "action.yml", *sorted(CI.rglob("*.yml")), *sorted(CI.rglob("*.yaml")), *sorted(ROOT.glob(".github/**/*.yml"))]
    assert len(files) >= 5, files
    sh(VENV / "yamllint", "--strict", "-c", Path(__file__).with_name("yamllint.yml"), *files)


CASES = [lint_yaml, lint_github, github_action, install_script, install_ps1, github_examples, gitlab, jenkins, packer, kubernetes, slurm, systemd, systemd_server, docker]


def main():
    wanted = sys.argv[2:]
    unknown = set(wanted) - {case.__name__ for case in CASES}
    assert not unknown, f"no such case: {unknown}"
    failed = 0
    chosen = [case for case in CASES if not wanted or case.__name__ in wanted]
    for case in chosen:
        try:
            case()
            print(f"ok    {case.__name__}", flush=True)
        except Exception as error:  # the others are worth knowing, too
            failed += 1
            print(f"FAIL  {case.__name__}: {type(error).__name__}: {error}", flush=True)
            if os.environ.get("TRACE"):
                raise
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BIN = Path(sys.argv[1]).resolve()
    VENV = Path(sys.executable).parent
    # What a job has, and nothing of whoever runs this.
    BARE = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    sys.exit(main())
