#!/usr/bin/env bash
# Makes a .deb and a .rpm of programs for Linux that build.sh built on this kind of processor,
# with cargo-deb and cargo-generate-rpm.
#
#   packages.sh DIR TARGET
set -euo pipefail

to=${1:?"usage: packages.sh DIR TARGET"}
target=${2:?"usage: packages.sh DIR TARGET"}
mkdir -p "$to"
to=$(cd "$to" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ci/deb.sh "$to" "$target"
# Of what deb.sh laid out for it.
cargo generate-rpm --target "$target" --output "$to/"
