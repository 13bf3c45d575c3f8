"""The cases: which alternatives are compared, and the goal for their ratio."""

import functools
import sys

from .bench import AUTO, CHUNK_DOWN, CHUNK_UP, GIB, HERE, Case, Goal, ratio
from .images import MIB
from .processes import measure, missing

# A level that took this many times as long as the best one in the first round cannot be the
# best one: only its first round is measured and reported.
HOPELESS = 2.0


def upload(bench):
    """Upload of the ext4 image"""
    image = bench.image()
    contenders = {
        "openhosting-upload, to the sink": lambda: bench.upload_to_sink(image),
        "openhosting-upload, to openhosting-server": lambda: bench.upload_to_server(image),
    }
    peers = {
        "qemu-img convert -n, to nbdkit memory": f"qemu-img convert -n -f raw -O raw {image} URI",
        "nbdcopy, to nbdkit memory": f"nbdcopy {image} URI",
    }
    for name, command in peers.items():
        words = command.split()
        if not missing("nbdkit", words[0]):
            contenders[name] = functools.partial(bench.to_nbdkit, words)
    case = bench.interleave(contenders)
    sink, server = (case.wall_s(name) for name in list(contenders)[:2])
    best = case.wall_s(*peers)
    case.goals = [
        Goal("wall, to the sink, against the better peer", ratio(sink, best), 1.0),
        Goal("wall, server included, against the better peer", ratio(server, best), 1.5),
    ]
    return case


def formats(bench):
    """Upload of the ext4 image in other formats, to the sink"""
    disk = bench.image()
    contenders = {"raw": lambda: bench.upload_to_sink(disk)}
    made = {
        "qcow2": ("qcow2", "-O qcow2"),
        "qcow2, clusters packed with zlib": ("zlib.qcow2", "-c -O qcow2"),
        "qcow2, clusters packed with zstd": (
            "zstd.qcow2",
            "-c -O qcow2 -o compression_type=zstd",
        ),
        "vmdk, streamOptimized": ("vmdk", "-O vmdk -o subformat=streamOptimized"),
        "vhdx": ("vhdx", "-O vhdx"),
    }
    if missing("qemu-img"):
        made = {}
    for name, (ending, flags) in made.items():
        image = bench.converted(ending, flags)
        contenders[name] = functools.partial(bench.upload_to_sink, image, disk=disk)
        peer = functools.partial(bench.converted_to_sink, image, disk)
        contenders[f"{name}: qemu-img convert, then the raw copy"] = peer
    case = bench.interleave(contenders)
    for name in made:
        share = ratio(case.wall_s("raw"), case.wall_s(name))
        goal = 0.8 if name.startswith("qcow2") else None
        case.goals.append(Goal(f"speed, {name}, against raw", share, goal, is_least=True))
    for name in made:
        peer = case.wall_s(f"{name}: qemu-img convert, then the raw copy")
        what = f"wall, {name}, against convert and upload"
        case.goals.append(Goal(what, ratio(case.wall_s(name), peer), 1.0))
    return case


def classic(bench):
    """Upload of the ext4 image as the providers' script does it"""
    image = bench.image()
    ours, theirs = "openhosting-upload, to the sink", "classic-upload.sh, to the sink"
    contenders = {ours: lambda: bench.upload_to_sink(image)}
    if not missing("curl", "gzip"):

        def classic_upload():
            with bench.sink() as sink:
                return measure(
                    [HERE / "classic-upload.sh", image], bench.log, sink, **sink.environment
                )

        contenders[theirs] = classic_upload
    case = bench.interleave(contenders)
    wall = ratio(case.wall_s(theirs), case.wall_s(ours))
    cpu = ratio(case.cpu_s(theirs), case.cpu_s(ours))
    case.goals = [
        Goal("wall, times faster", wall, 30.0, is_least=True),
        Goal("CPU of the client, times less", cpu, 15.0, is_least=True),
    ]
    return case


def download(bench):
    """Download of the ext4 image to a sparse file"""
    image = bench.image()
    ours, copied, flushed = (
        "openhosting-download, from openhosting-server",
        "nbdcopy, from nbdkit memory",
        "nbdcopy --flush, from nbdkit memory",
    )
    with bench.drives(image) as (server, drives):
        contenders = {ours: lambda: bench.download(server, drives[image], image)}
        if missing("nbdkit", "nbdcopy"):
            case = bench.interleave(contenders)
        else:
            with bench.nbdkit() as nbdkit:
                measure(["nbdcopy", image, nbdkit.uri], bench.log)
                contenders[copied] = lambda: bench.from_nbdkit(nbdkit, image)
                contenders[flushed] = lambda: bench.from_nbdkit(nbdkit, image, "--flush")
                case = bench.interleave(contenders)
    on_disk = ratio(case.wall_s(ours), case.wall_s(flushed))
    in_cache = ratio(case.wall_s(ours), case.wall_s(copied))
    case.goals = [
        Goal("wall, against nbdcopy --flush: on the disk, as ours", on_disk, 1.2),
        Goal("wall, against nbdcopy: maybe in memory only", in_cache, 1.2),
    ]
    return case


def sparse(bench):
    """A huge sparse file with little data, and the data alone"""
    rounds = bench.scale.short_rounds * bench.rounds
    size, places = bench.scale.sparse_data_bytes, bench.scale.sparse_places
    named = {
        "the data alone": bench.dense(size),
        "all of it in one place": bench.sparse(1),
        f"in {places} places": bench.sparse(places),
    }
    up = {
        f"up: {name}": functools.partial(bench.upload_to_server, image)
        for name, image in named.items()
    }
    case = bench.interleave(up, rounds)
    with bench.drives(*named.values()) as (server, drives):
        down = {
            f"down: {name}": functools.partial(bench.download, server, drives[image], image)
            for name, image in named.items()
        }
        case.runs.update(bench.interleave(down, rounds).runs)
    for way in "up", "down":
        reference, *others = [f"{way}: {name}" for name in named]
        for name in others:
            value = ratio(case.wall_s(name), case.wall_s(reference))
            case.goals.append(Goal(f"wall, {name}", value, 1.2))
    return case


def links(bench):
    """No --level flag against every fixed level, by link"""
    links = [link for link in bench.scale.links if not is_fast(link)]
    return against_levels(bench, links, bench.rounds)


def fast_links(bench):
    """The same where a link is faster than any compressor"""
    links = [link for link in bench.scale.links if is_fast(link)]
    # An upload takes a second, which varies more than the differences to be measured.
    return against_levels(bench, links, bench.rounds * bench.scale.short_rounds)


def is_fast(link):
    """Whether a link is faster than two processors that compress at level 1."""
    _, rate, _ = link
    return rate is None or rate > 10**9


def against_levels(bench, links, rounds):
    """Uploads over each of these links, at every level and at none."""
    whole = Case()
    for link, rate, size in links:
        print(f" {link}", file=sys.stderr)
        image = bench.dense(size)
        contenders = {
            level: functools.partial(
                bench.upload_to_sink,
                image,
                *([] if level == AUTO else ["--level", level]),
                rate=rate,
            )
            for level in bench.scale.levels
        }
        case = bench.interleave(contenders, rounds, is_hopeful, takes_memory=False)
        whole.runs |= {f"{link}: {level}": runs for level, runs in case.runs.items()}
        fixed = {level: case.wall_s(level) for level in bench.scale.levels if level != AUTO}
        best = min(fixed, key=fixed.get)
        value = ratio(case.wall_s(AUTO), fixed[best])
        whole.goals.append(Goal(f"wall, {link}, against level {best}", value, 1.05))
        if rate:
            carried_s = case.median(AUTO, lambda run: run.counted["write_bytes"]) * 8 / rate
            what = f"share of the time in which {link} was full"
            whole.goals.append(Goal(what, ratio(carried_s, case.wall_s(AUTO))))
    return whole


def is_hopeful(level, case):
    """Whether another round of a level is useful, because its first one was not far too
    slow."""
    first = {name: runs[0].wall_s for name, runs in case.runs.items() if runs and name != AUTO}
    return level not in first or first[level] <= HOPELESS * min(first.values())


def incompressible(bench):
    """No --level flag against raw bodies, of noise"""
    image, whole = bench.noise(), Case()
    for link, rate in bench.scale.noise_links:
        auto, raw = f"{link}: auto", f"{link}: 0"
        case = bench.interleave(
            {
                auto: functools.partial(bench.upload_to_sink, image, rate=rate),
                raw: functools.partial(bench.upload_to_sink, image, "--level", 0, rate=rate),
            },
            takes_memory=False,
        )
        whole.runs.update(case.runs)
        whole.goals += [
            Goal(f"wall, {link}", ratio(case.wall_s(auto), case.wall_s(raw)), 1.05),
            Goal(f"CPU of the client, {link}", ratio(case.cpu_s(auto), case.cpu_s(raw)), 1.10),
        ]
    return whole


def publish(bench):
    """Publication of an image that changed, over 100 Mbit/s: all of it, and a delta"""
    rate, whole = 10**8, Case()
    first, second = bench.image(bench.scale.publish_bytes), bench.changed()
    # The goals are for the first one, because nobody controls what an upgrade changes.
    pairs = {"1 % of the blocks": (first, second), "files of an upgrade": bench.upgrade()}
    if debian := bench.debian():
        pairs["apt-get upgrade in place"] = debian
    with bench.server(bench.scratch / "cloud") as server:
        for what, (old, new) in pairs.items():
            changed, packed = bench.script("changes", old, new).split()
            base = bench.publish(server, old, f"base of {what}")["drive"]
            told = {}

            def contender(name, *flags):
                def run():
                    # Another name each time: one that is there would be found.
                    number = len(told.setdefault(name, []))
                    flags_now = [*flags, "--limit-rate", str(rate // 8)]
                    done = bench.publish(server, new, f"{name} {number}", *flags_now)
                    told[name].append(done)
                    return done["run"]

                return run

            full, delta = f"{what}: all of it", f"{what}: a delta"
            case = bench.interleave(
                {full: contender(full, "--base", "none"), delta: contender(delta, "--base", base)}
            )
            whole.runs.update(case.runs)
            sent = max(done["bytes_sent"] for done in told[delta])
            again = bench.publish(server, new, f"{delta} 0")["bytes_sent"]
            count = int(changed) // (64 * 1024)
            whole.goals += [
                Goal(f"sent, {what}, of {count} compressed", ratio(sent, int(packed)), 1.3),
                Goal(
                    f"wall, {what}, of all of it",
                    ratio(case.wall_s(delta), case.wall_s(full)),
                    0.1 if new == second else None,
                ),
                Goal(f"bytes sent again, {what}", again, 0.0),
            ]
            bench.forget(server)
    return whole


def memory(bench):
    """Peak memory, by size of the image and requests in flight"""
    # A peak is no median: it is the worst of few rounds. The link is slow enough that
    # all buffers fill.
    rounds, rate = min(bench.rounds, 3), 2 * 10**9
    sizes = {
        f"{size // MIB} MiB" if size < GIB else f"{size // GIB} GiB": bench.image(size)
        for size in bench.scale.memory_bytes
    }
    whole = Case()
    partial = functools.partial
    with bench.drives(*sizes.values()) as (server, drives):
        for jobs in bench.scale.memory_jobs:
            up = {
                f"up -j {jobs}: {size}": partial(bench.upload_to_sink, image, "-j", jobs, rate=rate)
                for size, image in sizes.items()
            }
            down = {
                f"down -j {jobs}: {size}": partial(
                    bench.download, server, drives[image], image, "-j", jobs
                )
                for size, image in sizes.items()
            }
            for contenders, chunk in (up, CHUNK_UP), (down, CHUNK_DOWN):
                case = bench.interleave(contenders, rounds)
                whole.runs.update(case.runs)
                bound = 64 * MIB + 3 * jobs * chunk
                for name, runs in case.runs.items():
                    what = f"peak, {name}, against {bound // MIB} MiB"
                    peak = max(run.peak_bytes for run in runs)
                    whole.goals.append(Goal(what, peak / bound, 1.0))
    smallest, *_, largest = sizes
    for way in "up -j 4", "down -j 4":
        value = ratio(whole.wall_s(f"{way}: {largest}"), whole.wall_s(f"{way}: {smallest}"))
        what = f"wall, {way}, {largest} against {smallest} with the same data"
        whole.goals.append(Goal(what, value, 1.2))
    return whole


def limits(bench):
    """What the machine allows, one thing at a time, and how far from it we are"""
    image, output = bench.image(), bench.scratch / "written.img"

    def http():
        with bench.sink() as sink:
            return bench.limit("http", image, sink.environment["OHURI"])

    copied = "memory copy, one thread"
    read = "read from the page cache, one thread"
    loopback = "TCP over loopback: sendfile to a reader"
    requests = "requests to the sink: sendfile as bodies"
    written, synced = "written to a new sparse file", "written to a new sparse file, and synced"
    with bench.drives(image) as (server, drives):
        case = bench.interleave(
            {
                copied: lambda: bench.limit("memcpy", image),
                read: lambda: bench.limit("read", image),
                loopback: lambda: bench.limit("loopback", image),
                requests: http,
                "openhosting-upload, to the sink": lambda: bench.upload_to_sink(image),
                written: lambda: bench.limit("write", image, output),
                synced: lambda: bench.limit("sync", image, output),
                "openhosting-download, from openhosting-server": lambda: bench.download(
                    server, drives[image], image
                ),
            }
        )
    names = list(case.runs)
    up, down = (next(name for name in names if tool in name) for tool in ("-upload", "-download"))
    case.goals = [
        Goal(
            "wall, upload against requests by sendfile",
            ratio(case.wall_s(up), case.wall_s(requests)),
        ),
        Goal("wall, download against a synced file", ratio(case.wall_s(down), case.wall_s(synced))),
        Goal("wall, download against a file", ratio(case.wall_s(down), case.wall_s(written))),
    ]
    return case


CASES = {
    case.__name__: case
    for case in (
        upload, formats, classic, download, sparse, links, fast_links, incompressible, publish,
        memory, limits,
    )  # fmt: skip
}
