#!/usr/bin/env bash
# Builds the programs of a release for one target, and prints the directory that they are in.
#
#   build.sh TARGET
#
# Programs for Linux run with glibc 2.17 or newer, or, with musl, without any. For these and for
# FreeBSD it needs cargo-zigbuild and zig, for Windows mingw-w64, for macOS a Mac.
set -euo pipefail

target=${1:?"usage: build.sh TARGET"}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=(cargo build)
as=$target
case $target in
    *-linux-gnu)
        build=(cargo zigbuild)
        as=$target.2.17 ;;
    *-linux-musl | *-freebsd) build=(cargo zigbuild) ;;
esac
# The same sources make the same programs, wherever they are.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
# `openhosting version --verbose` prints them.
OPENHOSTING_COMMIT=${OPENHOSTING_COMMIT:-$(git rev-parse HEAD)}
export OPENHOSTING_COMMIT OPENHOSTING_TARGET=$target
home=${CARGO_HOME:-$HOME/.cargo}
export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=openhosting"$'\x1f'"--remap-path-prefix=$home=cargo"
# The libraries in C name their files too, in what they print when they fail.
cflags="-ffile-prefix-map=$PWD=openhosting -ffile-prefix-map=$home=cargo"
if [[ $target == *-freebsd ]]; then
    # The headers of FreeBSD hide a clock that liblzma falls back to without these.
    cflags+=' -DHAVE_CLOCK_GETTIME=1 -DHAVE_CLOCK_MONOTONIC=1'
fi
export "CFLAGS_${target//-/_}=$cflags"
"${build[@]}" --release --locked --bins --target "$as" >&2
bin=$PWD/target/$target/release
if [[ $target == *-linux-gnu ]]; then
    newest=$(objdump -T "$bin"/openhosting{,-upload,-download,-server} | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -n 1)
    if [[ $(printf '%s\n' "$newest" GLIBC_2.17 | sort -V | tail -n 1) != GLIBC_2.17 ]]; then
        echo "build.sh: a program for $target needs $newest" >&2
        exit 1
    fi
fi
echo "$bin"
