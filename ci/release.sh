#!/usr/bin/env bash
# Packs the programs as a release, which ci/github/install.sh takes.
#
#   release.sh DIR [BIN]    makes DIR/openhosting-VERSION-TARGET.tar.gz and DIR/SHA256SUMS
#                           of the programs in BIN (default: built here, optimised)
#
# Where GitHub runs it (GITHUB_REPOSITORY, GITHUB_SHA), DIR gets the example workflows as
# well, with the action, its commit and the digest of the archive filled in.
set -euo pipefail

to=${1:?"usage: release.sh DIR [BIN]"}
mkdir -p "$to"
to=$(cd "$to" && pwd)
bin=${2:+$(cd "$2" && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z $bin ]]; then
    cargo build --release --locked --bins
    bin=$PWD/target/release
fi
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
target=$(rustc -vV | sed -n 's/^host: //p')
name=openhosting-$version-$target
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/$name"
for tool in openhosting openhosting-upload openhosting-download openhosting-server; do
    install -m 755 "$bin/$tool" "$work/$name/$tool"
done
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$work/$name"
# The same programs make the same archive.
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" \
    --directory "$work" "$name" | gzip --no-name --best >"$to/$name.tar.gz"
if [[ -n ${GITHUB_REPOSITORY:-} && -n ${GITHUB_SHA:-} ]]; then
    digest=$(sha256sum <"$to/$name.tar.gz")
    for example in ci/github/examples/*.yml; do
        sed -e '/# OWNER/d' \
            -e "s|OWNER/openhosting@0\{40\} # v.*|$GITHUB_REPOSITORY@$GITHUB_SHA # v$version|" \
            -e "s|version: [0-9.]*\$|version: $version|" \
            -e "s|sha256: \"0\{64\}\"\$|sha256: \"${digest%% *}\"|" "$example" >"$to/${example##*/}"
    done
fi
(cd "$to" && sha256sum "$name.tar.gz" >SHA256SUMS)
echo "$to/$name.tar.gz"
