#!/usr/bin/env bash
# Measures transfers over a bad link, made for the purpose between two network
# namespaces (links/link.py), against one curl stream and against the link:
#
#   benches/shaped-link.sh [PART...]
#
#   throughput   10 Mbit/s, 100 ms, 1 % of packets lost each way; cubic and bbr
#   holes        the same, and black holes of 10 s and of 90 s in the middle
#   kills        the same, and every connection killed every few seconds
#   slow         256 kbit/s and 600 ms; 1 Mbit/s, 300 ms and 3 % lost
#
# All parts take about half an hour, which the link spends, not the processor. Prints
# a table for each; ends with an error if bytes differ or a transfer fails. Needs root,
# iproute2, /dev/net/tun, curl, openssl and python3; says SKIPPED where no link can be
# made. OH_BIN is a directory of built programs to use instead of building them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${OH_BIN:-} ]]; then
    cargo build --release --locked --manifest-path "$here/Cargo.toml"
    export OH_BIN=${CARGO_TARGET_DIR:-$here/target}/release
fi
exec python3 "$here/benches/shaped-link/run.py" "$@"
