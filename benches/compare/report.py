"""The results as JSON, as tables in Markdown, and as charts."""

import json
import os
import re
import resource
import statistics
import subprocess
import time
from pathlib import Path

from .processes import missing

MIB = 1 << 20


def said_by(*command):
    """The first line of a program's output, or nothing if it is not installed."""
    if missing(command[0]):
        return "not installed"
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next(iter(done.stdout.splitlines()), "")


def machine():
    """The machine on which it was measured."""
    here = Path(__file__).parent
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    commit = said_by("git", "-C", str(here), "describe", "--always", "--dirty")
    return {
        "CPU": f"{cpu[1] if cpu else os.uname().machine}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(memory[1]) / MIB:.0f} GiB",
        "kernel": os.uname().release,
        "openhosting": commit,
        "rustc": said_by("rustc", "--version"),
        "qemu-img": said_by("qemu-img", "--version"),
        "nbdcopy": said_by("nbdcopy", "--version"),
        "nbdkit": said_by("nbdkit", "--version"),
        "curl": said_by("curl", "--version").split(" (")[0],
        "gzip": said_by("gzip", "--version"),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "load when it began": f"{os.getloadavg()[0]:.2f}",
    }


class Results:
    """The results of all cases, with the earlier ones of cases that did not run now."""

    def __init__(self, directory, is_docs):
        self.directory = directory / "performance" if is_docs else directory
        self.document = directory / "dev/performance.md" if is_docs else None
        self.path = self.directory / "results.json"
        self.cases = json.loads(self.path.read_text())["cases"] if self.path.exists() else {}
        self.machine = machine()

    def add(self, name, title, case):
        runs = [
            {
                "name": what,
                "wall_s": [run.wall_s for run in of],
                "cpu_s": [run.cpu_s for run in of],
                "other_cpu_s": [run.other_cpu_s for run in of],
                "peak_bytes": [run.peak_bytes for run in of],
                "sent_bytes": [run.counted.get("write_bytes") for run in of],
                # The lowest peak that can be measured for any program: see processes.py.
                "floor_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            for what, of in case.runs.items()
        ]
        goals = [
            {"what": goal.what, "value": goal.value, "limit": goal.limit, "is_least": goal.is_least}
            for goal in case.goals
        ]
        self.cases[name] = {
            "title": title,
            "machine": self.machine,
            "runs": runs,
            "goals": goals,
        }

    def tables(self, name):
        case = self.cases[name]
        lines = ["", f"**{case['title']}**"]
        heads = [
            "rounds",
            "wall s",
            "from – to",
            "CPU s",
            "other end's CPU s",
            "peak MiB",
            "sent MB",
        ]
        lines += ["", f"| | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
        lines += [run_row(run) for run in case["runs"]]
        if case["goals"]:
            lines += ["", "| ratio | measured | goal | |", "|---|--:|--:|---|"]
            lines += [goal_row(goal) for goal in case["goals"]]
        return lines

    def save(self, plot):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"cases": self.cases}, indent=1) + "\n")
        subprocess.run([plot, "results", self.path, self.directory], check=True)
        if self.document:
            text = self.document.read_text()
            for name in self.cases:
                text = put(text, name, "\n".join(self.tables(name)))
            text = put(text, "machine", "\n".join(self.machines()))
            self.document.write_text(text)

    def machines(self):
        """One table of the machine, and which cases were measured when."""
        lines = ["", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in self.machine.items()]
        for name, case in self.cases.items():
            differs = set(case["machine"].items()) - set(self.machine.items())
            if differs:
                lines += [f"| but `{name}` | {', '.join(map(': '.join, sorted(differs)))} |"]
        return lines


def run_row(run):
    if not run["wall_s"]:
        return f"| {run['name']} | 0 | | | | | | |"
    wall, cpu, other = run["wall_s"], run["cpu_s"], run["other_cpu_s"]
    peak, floor = max(run["peak_bytes"]), run["floor_bytes"]
    peak_text = f"{peak / MIB:.0f}" if peak > floor else f"< {floor / MIB:.0f}"
    sent = [bytes_sent for bytes_sent in run["sent_bytes"] if bytes_sent is not None]
    cells = [
        run["name"],
        len(wall),
        f"{statistics.median(wall):.2f}",
        f"{min(wall):.2f} – {max(wall):.2f}",
        f"{statistics.median(cpu):.2f}",
        f"{statistics.median(other):.2f}",
        peak_text,
        f"{statistics.median(sent) / 1e6:.0f}" if sent else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def goal_row(goal):
    value, limit = goal["value"], goal["limit"]
    if limit is None:
        return f"| {goal['what']} | {value:.2f} | | |"
    goal_text = f"{'at least' if goal['is_least'] else 'at most'} {limit:g}"
    if value is None:
        return f"| {goal['what']} | | {goal_text} | not measured: a peer is missing |"
    is_met = value >= limit if goal["is_least"] else value <= limit
    return f"| {goal['what']} | {value:.2f} | {goal_text} | {'ok' if is_met else '**MISSED**'} |"


def put(text, name, table):
    """Replaces the table between the marks with this name in a text."""
    begin, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"docs/dev/performance.md has no {begin} with an {end}")
    return f"{before}{begin}\n{table}\n\n{end}{after}"
