#!/usr/bin/env python3
"""Prints the bill of materials of the programs for one target, as CycloneDX 1.6: every crate that
is part of them, by Cargo.lock, with its licence and the SHA-256 of its package.

    sbom.py TARGET
"""

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def parts_of(metadata, root):
    """The packages that are linked: not those of tests and of build scripts."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    seen, todo = set(), [root]
    while todo:
        package = todo.pop()
        if package in seen:
            continue
        seen.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return seen


def main(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    root = next(id for id, package in packages.items() if package["name"] == "openhosting")
    lock = (ROOT / "Cargo.lock").read_text()
    entry = r'\[\[package\]\]\nname = "(.*)"\nversion = "(.*)"\nsource = ".*"\nchecksum = "(.*)"'
    checksums = {(name, version): checksum for name, version, checksum in re.findall(entry, lock)}

    def component(package, kind):
        name, version = package["name"], package["version"]
        made = {
            "type": kind,
            "bom-ref": f"pkg:cargo/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:cargo/{name}@{version}",
        }
        if package["license"]:
            made["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if (name, version) in checksums:
            made["hashes"] = [{"alg": "SHA-256", "content": checksums[name, version]}]
        return made

    parts = sorted(parts_of(metadata, root) - {root}, key=lambda id: (packages[id]["name"], packages[id]["version"]))
    text = lock + target
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same lock file makes the same bill.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text)}",
        "version": 1,
        "metadata": {"component": component(packages[root], "application")},
        "components": [component(packages[id], "library") for id in parts],
    }
    print(json.dumps(bill, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
