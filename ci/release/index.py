#!/usr/bin/env python3
"""Makes what a release has besides its archives and packages, of those that are in DIR:
SHA256SUMS, the install scripts with the version filled in, a Homebrew formula, a manifest for
Scoop, and the example workflows.

    index.py DIR

Where GitHub runs it, GITHUB_REPOSITORY and GITHUB_SHA say what the action is and its commit.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
COMMIT = os.environ.get("GITHUB_SHA", "")
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
DESCRIPTION = re.search(r'^description = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
ADDRESS = f"https://github.com/{REPOSITORY or 'OWNER/openhosting'}"
LISTED = [".tar.gz", ".zip", ".deb", ".rpm", ".oci.tar", ".cdx.json"]


def digest_of(file):
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def archive(target):
    ending = "zip" if "windows" in target else "tar.gz"
    return f"openhosting-{VERSION}-{target}.{ending}"


def url(target):
    return f"{ADDRESS}/releases/download/v{VERSION}/{archive(target)}"


def formula(digests):
    """For Homebrew: https://docs.brew.sh/Formula-Cookbook."""
    systems = {
        ("macos", "arm"): "aarch64-apple-darwin",
        ("macos", "intel"): "x86_64-apple-darwin",
        ("linux", "arm"): "aarch64-unknown-linux-musl",
        ("linux", "intel"): "x86_64-unknown-linux-musl",
    }
    lines = [
        "class Openhosting < Formula",
        f"  desc {json.dumps(DESCRIPTION)}",
        f"  homepage {json.dumps(ADDRESS)}",
        f"  version {json.dumps(VERSION)}",
        '  license any_of: ["MIT", "Apache-2.0"]',
    ]
    for system in ["macos", "linux"]:
        lines += ["", f"  on_{system} do"]
        for processor in ["arm", "intel"]:
            target = systems[system, processor]
            lines += [
                f"    on_{processor} do",
                f"      url {json.dumps(url(target))}",
                f"      sha256 {json.dumps(digests[archive(target)])}",
                "    end",
            ]
        lines += ["  end"]
    lines += [
        "",
        "  def install",
        '    bin.install Dir["openhosting*"].select { |file| File.executable?(file) }',
        "  end",
        "",
        "  test do",
        '    assert_equal "openhosting #{version}", shell_output("#{bin}/openhosting --version").strip',
        "  end",
        "end",
    ]
    return "\n".join(lines) + "\n"


def scoop(digests):
    """For Scoop: its wiki, App Manifests."""
    target = "x86_64-pc-windows-gnu"
    manifest = {
        "version": VERSION,
        "description": DESCRIPTION,
        "homepage": ADDRESS,
        "license": "MIT|Apache-2.0",
        "architecture": {
            "64bit": {
                "url": url(target),
                "hash": digests[archive(target)],
                "extract_dir": f"openhosting-{VERSION}-{target}",
            }
        },
        "bin": ["openhosting.exe", "openhosting-upload.exe", "openhosting-download.exe"],
    }
    return json.dumps(manifest, indent=4) + "\n"


def example(text, digest):
    """An example workflow with the action, its commit and the digest of its archive."""
    text = re.sub(r".*# OWNER.*\n", "", text)
    text = re.sub(r"OWNER/openhosting@0{40} # v.*", f"{REPOSITORY}@{COMMIT} # v{VERSION}", text)
    text = re.sub(r"version: [0-9.]*$", f"version: {VERSION}", text, flags=re.M)
    return re.sub(r'sha256: "0{64}"$', f'sha256: "{digest}"', text, flags=re.M)


def main(to):
    for script in ["install.sh", "install.ps1"]:
        text = (ROOT / "ci" / script).read_text()
        text = text.replace("https://github.com/OWNER/openhosting", ADDRESS)
        # The first one is the default; the others compare with it.
        text = re.sub(r"0\.0\.0", VERSION, text, count=1)
        (to / script).write_text(text)
        (to / script).chmod(0o755)
    digests = {file.name: digest_of(file) for file in to.iterdir() if file.name.endswith(tuple(LISTED))}
    for name, make, targets in [
        ("openhosting.rb", formula, ["aarch64-apple-darwin", "x86_64-apple-darwin", "aarch64-unknown-linux-musl", "x86_64-unknown-linux-musl"]),
        ("openhosting.json", scoop, ["x86_64-pc-windows-gnu"]),
    ]:
        if all(archive(target) in digests for target in targets):
            (to / name).write_text(make(digests))
    runner = digests.get(archive("x86_64-unknown-linux-gnu"))
    if REPOSITORY and COMMIT and runner:
        for file in (ROOT / "ci/github/examples").glob("*.yml"):
            (to / file.name).write_text(example(file.read_text(), runner))
    (to / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
