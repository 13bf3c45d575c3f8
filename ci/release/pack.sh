#!/usr/bin/env bash
# Packs the programs as an archive of a release, which ci/install.sh takes, and prints its path.
#
#   pack.sh DIR [BIN [TARGET]]   makes DIR/openhosting-VERSION-TARGET.tar.gz (.zip for Windows)
#                                of the programs in BIN (default: built here, optimised), and
#                                lists it (index.py)
#   TARGET                       what they were built for (default: this machine)
set -euo pipefail

to=${1:?"usage: pack.sh DIR [BIN [TARGET]]"}
mkdir -p "$to"
to=$(cd "$to" && pwd)
bin=${2:+$(cd "$2" && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${3:-$(rustc -vV | sed -n 's/^host: //p')}
[[ -n $bin ]] || bin=$(ci/release/build.sh "$target")
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
name=openhosting-$version-$target
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/$name"
exe=''
[[ $target != *-windows-* ]] || exe=.exe
tools=(openhosting openhosting-upload openhosting-download)
# The server is for Linux only.
[[ $target != *-linux-* ]] || tools+=(openhosting-server)
for tool in "${tools[@]}"; do
    install -m 755 "$bin/$tool$exe" "$work/$name/$tool$exe"
done
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$work/$name"
# The same programs make the same archive.
find "$work/$name" -exec touch --date "@${SOURCE_DATE_EPOCH:-315532800}" {} +
if [[ -n $exe ]]; then
    archive=$to/$name.zip
    rm -f "$archive"
    (cd "$work" && find "$name" -type f | LC_ALL=C sort | TZ=UTC zip --quiet -X -@ "$archive")
else
    archive=$to/$name.tar.gz
    tar --create --sort=name --owner=0 --group=0 --numeric-owner \
        --directory "$work" "$name" | gzip --no-name --best >"$archive"
fi
ci/release/index.py "$to"
echo "$archive"
