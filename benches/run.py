#!/usr/bin/env python3
"""Compares the tools with other programs for the same purpose.

    benches/run.py CACHE                  everything: about an hour, 12 GB in CACHE
    benches/run.py CACHE --case links     one case; may be given several times
    benches/run.py CACHE --quick          small images and one round, to check that it works
    benches/run.py CACHE --docs           also updates the figures in docs/dev/performance.md

The images are made and stored in CACHE, which must be on a disk. Nothing is installed:
programs that are missing are named and left out. In each round all programs run in turn,
so that changes of the machine's speed affect all of them, and the result is the median
of the rounds. The page cache is warm, both ends are on this machine, and the machine
should be idle otherwise.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from compare import memory, report
from compare.bench import QUICK, ROOT, Bench, Scale
from compare.cases import CASES
from compare.processes import PACKAGES, Failed, missing


def build(profile):
    """Builds the programs as they are released, without the features that only tests and
    examples enable, and then the programs that measure them."""
    flags = ["--locked", "--quiet", "--profile", profile]
    # Without optimisation the figures mean nothing, so one build for both is fastest.
    targets = [["--bins", "--examples"]] if profile == "dev" else [["--bins"], ["--examples"]]
    for which in targets:
        subprocess.run(["cargo", "build", *flags, *which], check=True, cwd=ROOT)


def log(what):
    print(f"run.py: {what}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cache", type=Path, metavar="CACHE", help="directory for images and all that is written")
    add("--case", action="append", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    add("--rounds", type=int, help="[default: 5, with --quick 1]")
    add("--quick", action="store_true", help="small images: whether it works, and no figures")
    add("--profile", choices=["release", "dev"], default="release", help="of cargo")
    add("--docs", action="store_true", help="put the figures into docs/dev/performance.md")
    arguments = parser.parse_args()
    if arguments.docs and (arguments.quick or arguments.profile == "dev"):
        parser.error("--docs is for figures that count: without --quick and --profile dev")
    if missing("mke2fs"):
        sys.exit("run.py: mke2fs is missing (Debian: e2fsprogs), and without it there is no image")
    for program in missing(*PACKAGES):
        log(f"{program} is missing (Debian: {PACKAGES[program]}): cases that need it are left out")
    load = os.getloadavg()[0]
    if load > 0.5 and not arguments.quick:
        log(f"the load is {load:.1f}: something else is running, and the figures will show it")

    build(arguments.profile)
    cache = arguments.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    scale = QUICK if arguments.quick else Scale()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    report_name = "report-quick" if arguments.quick else "report"
    directory = ROOT / "docs" if arguments.docs else cache / report_name
    results = report.Results(directory, is_docs=arguments.docs)
    with memory.kept() as is_given_back:
        bench = Bench(
            cache, scale, rounds, arguments.profile, is_given_back and not arguments.quick
        )
        try:
            for name in arguments.case or CASES:
                print(name, file=sys.stderr)
                bench.warmed.clear()
                case = CASES[name](bench)
                results.add(name, CASES[name].__doc__, case)
                results.save(bench.programs / "examples/plot")
                print("\n".join(results.tables(name)), flush=True)
        except Failed as failed:
            sys.exit(f"run.py: {failed}")
        finally:
            shutil.rmtree(bench.scratch)


if __name__ == "__main__":
    main()
