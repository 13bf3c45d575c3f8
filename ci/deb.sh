#!/usr/bin/env bash
# Makes the Debian package with cargo-deb (cargo install cargo-deb), and prints its path.
#
#   deb.sh [DIR [TARGET]]   DIR: where the package goes (default: target/debian)
#                           TARGET: what ci/release/build.sh built; without one it is built here
set -euo pipefail

to=$(realpath -m "${1:-target/debian}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${2:-}
[[ -n $target ]] || cargo build --release --locked --bins >&2

share=target/deb/share
rm -rf target/deb
mkdir -p "$share/doc/openhosting"
cp -r README.md SECURITY.md docs/user docs/dev docs/schema "$share/doc/openhosting/"
# Debian's name for it.
cp CHANGELOG.md "$share/doc/openhosting/changelog"
gzip --no-name --best "$share/doc/openhosting/changelog"

# Pages and completions, which the program makes of its own flags, if it is one that does.
own=target/${target:+$target/}release/openhosting
help=$("$own" --help)
if [[ $help == *'  man '* ]]; then
    mkdir -p "$share/man/man1"
    "$own" man "$share/man/man1" >&2
    gzip --no-name --best "$share"/man/man1/*
fi
if [[ $help == *'  completions '* ]]; then
    "$own" completions bash "$share/bash-completion/completions" >&2
    "$own" completions zsh "$share/zsh/vendor-completions" >&2
    "$own" completions fish "$share/fish/vendor_completions.d" >&2
fi
cargo deb --no-build --no-strip ${target:+--target "$target" --variant release} --output "$to/"
