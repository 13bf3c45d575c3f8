#!/usr/bin/env python3
"""Records terminal sessions of the programs as SVG pictures.

    ci/terminal/record.py [--bin target/debug] [--out docs/images/terminal] [--only SCENE]

Starts an openhosting-server of its own in a temporary directory, runs the commands of a few
scenes on pseudo terminals of 40, 80 and 200 columns, and writes one picture for each. A picture
follows the color scheme of the page; --theme light or dark fixes one. Needs python3 and nothing
else, and no network.
"""

import argparse
import fcntl
import html
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unicodedata

COLUMNS = (40, 80, 200)
MIB = 1 << 20
# A scene that takes longer has gone wrong.
TIMEOUT_S = 120
AUTH = "00000000-0000-4000-8000-000000000001:recorded-session"

LIGHT = {"bg": "#ffffff", "fg": "#24292f", "dim": "#8c959f", "31": "#cf222e", "32": "#116329",
         "33": "#7d4e00", "34": "#0550ae", "35": "#8250df", "36": "#1b7c83"}
DARK = {"bg": "#0d1117", "fg": "#e6edf3", "dim": "#6e7681", "31": "#ff7b72", "32": "#7ee787",
        "33": "#d29922", "34": "#79c0ff", "35": "#d2a8ff", "36": "#56d4dd"}


class Screen:
    """As much of a terminal as the programs use; other sequences are an error."""

    def __init__(self, columns):
        self.columns = columns
        self.rows = [[]]
        self.row = self.column = 0
        self.style = ()
        self.pending = ""

    def feed(self, text):
        text = self.pending + text
        self.pending = ""
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\x1b":
                match = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(\x07|\x1b\\)").match(text, at)
                if not match:
                    self.pending = text[at:]
                    return
                if match.group(2):
                    self.sequence(match.group(1), match.group(2))
                at = match.end()
                continue
            at += 1
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self.row += 1
                while len(self.rows) <= self.row:
                    self.rows.append([])
            elif char >= " ":
                self.put(char)

    def sequence(self, numbers, letter):
        if letter == "m":
            for number in numbers.split(";"):
                self.style = () if number in ("", "0") else self.style + (number,)
        elif letter == "K" and numbers in ("", "0"):
            del self.rows[self.row][self.column:]
        elif numbers[:1] != "?":
            sys.exit(f"record: unknown sequence ESC [ {numbers} {letter}")

    def put(self, char):
        width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if self.column + width > self.columns:
            self.row += 1
            self.column = 0
            if len(self.rows) <= self.row:
                self.rows.append([])
        row = self.rows[self.row]
        row.extend([(" ", ())] * (self.column + width - len(row)))
        row[self.column] = (char, self.style)
        self.column += width

    def text(self):
        return ["".join(char for char, _ in row) for row in self.rows]

    def copy(self):
        return [list(row) for row in self.rows]


class Session:
    """A command on a terminal, as somebody at a prompt runs it."""

    def __init__(self, columns, directory, env):
        self.columns, self.directory, self.env = columns, directory, env
        self.frames = []

    def run(self, shown, command, at=(), code=0):
        """Runs a command. `at` are pairs of a regular expression and what to do when the text
        on the terminal matches: "frame" keeps the screen, a function is called."""
        screen = Screen(self.columns)
        screen.style = ("1",)
        screen.feed("$ ")
        screen.style = ()
        screen.feed(shown + "\r\n")
        at = list(at)
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(self.directory)
            size = struct.pack("HHHH", 60, self.columns, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            os.execvpe(command[0], command, self.env)
        began, raw = time.monotonic(), b""
        while True:
            if time.monotonic() - began > TIMEOUT_S:
                os.kill(pid, signal.SIGKILL)
                sys.exit(f"record: {shown} takes too long:\n" + "\n".join(screen.text()))
            if select.select([fd], [], [], 0.05)[0]:
                try:
                    part = os.read(fd, 65536)
                except OSError:
                    break
                if not part:
                    break
                raw += part
            # A character may be cut off at the end of what was read.
            text = raw.decode("utf-8", "ignore")
            raw = raw[len(text.encode()):]
            screen.feed(text)
            if at and re.search(at[0][0], "\n".join(screen.text())):
                _, what = at.pop(0)
                if what == "frame":
                    self.frames.append(screen.copy())
                elif what == "interrupt":
                    self.frames.append(screen.copy())
                    os.write(fd, b"\x03")
                else:
                    what()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = "\n".join(screen.text())
        if status != code:
            sys.exit(f"record: {shown} ended with {status}, not {code}:\n{text}")
        if at:
            sys.exit(f"record: {shown} never showed {at[0][0]}:\n{text}")
        self.frames.append(screen.copy())
        return text

    def svg(self, theme):
        """All frames below each other."""
        wide, high, pad = 8.4, 18, 12
        rows = []
        for frame in self.frames:
            while frame and not frame[-1]:
                frame.pop()
            rows += frame + [None]
        rows.pop()
        width = int(self.columns * wide + 2 * pad)
        height = len(rows) * high + 2 * pad

        def css(colors):
            lines = [f".b{{fill:{colors['bg']}}}", f"text{{fill:{colors['fg']}}}",
                     f".c2{{fill:{colors['dim']}}}", f"line{{stroke:{colors['dim']}}}"]
            lines += [f".c{n}{{fill:{colors[str(n)]}}}" for n in range(31, 37)]
            return "".join(lines)

        style = css(DARK if theme == "dark" else LIGHT)
        if theme == "auto":
            style += "@media(prefers-color-scheme:dark){" + css(DARK) + "}"
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">',
            "<style>text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
            f"white-space:pre}}.c1{{font-weight:bold}}{style}</style>",
            f'<rect class="b" width="{width}" height="{height}" rx="6"/>',
        ]
        for number, row in enumerate(rows):
            y = pad + number * high
            if row is None:
                middle = y + high // 2
                out.append(f'<line x1="{pad}" x2="{width - pad}" y1="{middle}" y2="{middle}" stroke-dasharray="2 4"/>')
                continue
            spans, at = [], 0
            while at < len(row):
                end = at
                while end < len(row) and row[end][1] == row[at][1]:
                    end += 1
                text = html.escape("".join(char for char, _ in row[at:end]), quote=False)
                names = " ".join(f"c{n}" for n in row[at][1])
                # Each piece has its own place, whatever the font's width is.
                if text.strip():
                    span = f' class="{names}"' if names else ""
                    length = f' textLength="{(end - at) * wide:.1f}" lengthAdjust="spacingAndGlyphs"'
                    spans.append(f'<tspan x="{pad + at * wide:.1f}"{length}{span}>{text}</tspan>')
                at = end
            if spans:
                out.append(f'<text y="{y + 14}" xml:space="preserve">{"".join(spans)}</text>')
        return "\n".join(out + ["</svg>"]) + "\n"


class Server:
    """An openhosting-server on a port that stays the same when it is started again."""

    def __init__(self, binary, directory):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.binary, self.directory, self.process = binary, directory, None
        self.start()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}/"

    def start(self):
        command = [self.binary, "--data", self.directory, "--listen", f"127.0.0.1:{self.port}", "--user", AUTH]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        sys.exit("record: the server does not start")

    def stop(self):
        self.process.kill()
        self.process.wait()


def image(path, seed, data=40, zeros=24):
    """An image of noise with a hole, so that sent bytes and zeros differ."""
    block = bytes((i * i * seed + i // 7) % 251 for i in range(MIB))
    with open(path, "wb") as file:
        for i in range(data):
            if i == data // 2:
                file.seek(zeros * MIB, os.SEEK_CUR)
            # Noise does not compress. No boot signature would be worth a line.
            start = b"\0" * 510 + b"\x55\xaa" if i == 0 else b""
            noise = os.urandom(MIB // 2)
            file.write(start + noise[len(start):] + block[i:MIB // 2 + i])


def record(columns, bins, theme, out, only):
    root = pathlib.Path(tempfile.mkdtemp(prefix="oh-record-"))
    work = root / "work"
    work.mkdir()
    image(work / "disk.img", 3)
    server = Server(str(bins / "openhosting-server"), str(root / "data"))
    env = {"PATH": f"{bins}:{os.environ['PATH']}", "HOME": str(root), "TERM": "xterm-256color",
           "LANG": "C.UTF-8", "OHURI": server.uri, "OHAUTH": AUTH}

    def scene(name, *steps):
        """A step is what is typed, what happens meanwhile, and the exit code."""
        session = Session(columns, work, env)
        for typed, at, code in steps:
            session.run(typed, typed.split(), at, code)
        if only in (None, name):
            (out / f"{name}-{columns}.svg").write_text(session.svg(theme))

    done = "[ ][3-6][0-9]% "
    try:
        upload = "openhosting-upload --limit-rate 8M -n first disk.img"
        scene("upload", (upload, [(done, "frame")], 0))
        upload = "openhosting-upload --limit-rate 8M -n second disk.img"
        scene("stop", (upload, [(done, "interrupt")], 130))
        scene("resume", (upload, [("[ ][5-9][0-9]% ", "frame")], 0))
        upload = "openhosting-upload --limit-rate 8M -n third disk.img"
        waits = "giv[a-z]* up in"
        scene("outage", (upload, [(done, server.stop), (waits, "frame"), (waits, server.start)], 0))
        publish = "openhosting publish disk.img --name nightly --receipt nightly.json"
        slow = publish + " --limit-rate 8M"
        scene("publish", (slow, [("Hash", "frame"), ("Publish.*" + done, "frame")], 0), (publish, [], 0))
        scene("verify", ("openhosting verify nightly.json", [], 0))
        scene("ls", ("openhosting ls", [], 0))
    finally:
        server.stop()
        shutil.rmtree(root)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="target/debug", help="where the programs are")
    parser.add_argument("--out", default="docs/images/terminal")
    parser.add_argument("--theme", choices=("auto", "light", "dark"), default="auto")
    parser.add_argument("--columns", type=int, action="append", help="default: 40, 80 and 200")
    parser.add_argument("--only", help="write this scene only")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    bins = pathlib.Path(arguments.bin).resolve()
    for columns in arguments.columns or COLUMNS:
        record(columns, bins, arguments.theme, out, arguments.only)


if __name__ == "__main__":
    main()
