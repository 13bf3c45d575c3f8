#!/usr/bin/env bash
# Builds the programs of the last commit for one target twice: from two clones in directories of
# different names, with two homes of cargo. Fails if a program or its archive differs.
#
#   reproducible.sh TARGET [DIR]   DIR: where the clones stay (default: they are removed)
set -euo pipefail

target=${1:?"usage: reproducible.sh TARGET [DIR]"}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ -n ${2:-} ]]; then
    mkdir -p "$2"
    work=$(cd "$2" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
home=${CARGO_HOME:-$HOME/.cargo}
unset CARGO_TARGET_DIR OPENHOSTING_COMMIT
for clone in first a-second-one; do
    git clone --quiet --no-hardlinks . "$work/$clone"
    # What is downloaded already is not downloaded again.
    mkdir -p "$work/$clone-home"
    for part in registry config.toml; do
        [[ ! -e $home/$part ]] || cp -r --reflink=auto "$home/$part" "$work/$clone-home/"
    done
    bin=$(CARGO_HOME=$work/$clone-home "$work/$clone/ci/release/build.sh" "$target")
    "$work/$clone/ci/release/pack.sh" "$work/$clone-archive" "$bin" "$target"
done
cat "$work/first-archive/SHA256SUMS"
diff --recursive "$work/first-archive" "$work/a-second-one-archive"
echo "reproducible: $target is the same from both clones"
