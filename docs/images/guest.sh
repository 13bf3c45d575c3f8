#!/usr/bin/env bash
# Makes guest.png: the screen of a server that boots fixtures/images/boot.img, as QMP's
# screendump draws it. Needs the programs, built, and QEMU.
#
#   guest.sh [PROFILE]      default: release
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$PWD/target/${1:-release}:$PATH
data=$(mktemp -d)
server=
leave() {
    [[ -z ${id:-} ]] || openhosting servers "$id" destroy
    [[ -z $server ]] || kill "$server"
    rm -r "$data"
}
trap leave EXIT

openhosting-server --data "$data/cloud" >"$data/env" 2>"$data/log" &
server=$!
until [[ $(grep -c . "$data/env") == 2 ]]; do sleep 0.1; done
# shellcheck source=/dev/null
. "$data/env"
drive=$(openhosting-upload --no-journal fixtures/images/boot.img | awk '/^Created/ { print $3 }')
id=$(printf 'name guest\ncpu 500\nmem 16\nide:0:0 %s\nboot ide:0:0\n' "$drive" |
    openhosting --fail -c servers create | awk '$1 == "server" { print $2 }')
for _ in {1..300}; do
    ! openhosting servers "$id" console | grep -q 'boot 1' || break
    sleep 0.2
done
openhosting --fail servers "$id" screen >docs/images/guest.png
