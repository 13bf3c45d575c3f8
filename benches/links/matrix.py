"""The links of the matrix."""

from dataclasses import dataclass

MBIT_BYTES = 125_000
KIB = 1024
# No image is larger: two minutes of 800 Mbit/s would be 12 GB, three times on disk.
IMAGE_BYTES_MAX = 4_000_000_000


@dataclass(frozen=True)
class Link:
    """A link, and what is special about the endpoint or the data on it."""

    name: str
    rate_mbit: float
    rtt_ms: float
    # Of packets, each way.
    loss_percent: float = 0.0
    # Seconds of the link's rate that its queue takes; half a round trip if left out.
    queue_s: float | None = None
    cc: str = "cubic"
    # The link has `rate_mbit` for the first half of its nominal time, then this.
    second_rate_mbit: float | None = None
    compressible: bool = False
    ways: tuple[str, ...] = ("up", "down")
    server_flags: tuple[str, ...] = ()
    # A fault plan for openhosting-server (docs/user/fault-plan.md).
    plan: str = ""
    # Whether politeness is measured here.
    is_shared: bool = False
    note: str = ""

    @property
    def queue_kib(self):
        seconds = self.rtt_ms / 2000 if self.queue_s is None else self.queue_s
        return max(64, self.rate_mbit * MBIT_BYTES * seconds / KIB)

    @property
    def rates_mbit(self):
        return self.rate_mbit, self.second_rate_mbit or self.rate_mbit

    @property
    def is_plain_server(self):
        """Whether our server does nothing that the peers' does not do as well."""
        return not (self.server_flags or self.plan)

    @property
    def is_clean(self):
        """Whether nothing but the link's rate limits a transfer."""
        return self.is_plain_server and not self.second_rate_mbit and self.loss_percent == 0

    def image_bytes(self, seconds):
        """The size of an image that this link carries in about so many seconds."""
        size = sum(self.rates_mbit) / 2 * MBIT_BYTES * seconds
        return int(min(size, IMAGE_BYTES_MAX))

    def change_s(self, seconds):
        """When the rate changes in a transfer of so many nominal seconds."""
        return seconds / 2

    def carries_bytes(self, duration_s, seconds):
        """What the link can carry in the first seconds of a transfer."""
        first = min(duration_s, self.change_s(seconds))
        before, after = self.rates_mbit
        return (first * before + (duration_s - first) * after) * MBIT_BYTES

    def ideal_s(self, size_bytes, seconds):
        """The time that a transfer of an image would take if it always filled the link."""
        before, after = (rate * MBIT_BYTES for rate in self.rates_mbit)
        first = min(size_bytes, before * self.change_s(seconds))
        return first / before + (size_bytes - first) / after

    def __str__(self):
        first, second = self.rates_mbit
        rate = f"{first:g}" if first == second else f"{first:g}, then {second:g}"
        loss = f"{self.loss_percent:g} % lost" if self.loss_percent else "clean"
        words = [f"{rate} Mbit/s", f"{self.rtt_ms:g} ms", loss]
        words += [self.cc] if self.cc != "cubic" else []
        words += [self.note] if self.note else []
        return ", ".join(words)


# A plan plays a fault for at most this many requests: for all of any transfer here.
SLOW_WRITES = """
[[faults]]
request = "POST /drives/*/write/*"
nth = 1
times = 1000000
delay_ms = 300
"""

MATRIX = [
    Link("20-30", 20, 30),
    Link("50-20", 50, 20, is_shared=True),
    Link("50-20-bloat", 50, 20, queue_s=2, note="queue of 2 s"),
    Link("100-80-loss0.1", 100, 80, 0.1, is_shared=True),
    Link("200-100", 200, 100),
    Link("200-100-loss0.1", 200, 100, 0.1),
    Link("200-100-loss1", 200, 100, 1),
    Link("100-250", 100, 250),
    Link("800-10", 800, 10),
    Link("10-100-loss1", 10, 100, 1),
    Link("200-100-loss0.1-bbr", 200, 100, 0.1, cc="bbr"),
    Link("10-100-loss1-bbr", 10, 100, 1, cc="bbr"),
    Link("100-40-slower", 100, 40, second_rate_mbit=25),
    Link("25-40-faster", 25, 40, second_rate_mbit=100),
    Link("50-20-admits4", 50, 20, server_flags=("--max-connections", "4"),
         note="4 connections of a user, 429 to more"),
    Link("100-20-slow-writes", 100, 20, ways=("up",), plan=SLOW_WRITES,
         note="300 ms for each write"),
    Link("50-20-compressible", 50, 20, compressible=True, note="compressible data"),
    Link("200-100-compressible", 200, 100, compressible=True, note="compressible data"),
]
LINKS = {link.name: link for link in MATRIX}
