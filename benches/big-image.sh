#!/usr/bin/env bash
# Measures the main job against something named, in one run, interleaved:
#
#   benches/big-image.sh [SCRATCH-DIR] [ROUNDS]
#
# 1. A 4 GiB ext4 image with about 1 GB of files (this machine's /usr/share and
#    /usr/bin) goes up with --local, and every byte is compared. Against
#    `cp --sparse=always` of the same image.
# 2. A 1 TiB sparse file with 100 MB of data goes up, the data in one place and in a
#    hundred. Against the 100 MB alone. A hundred places touch a hundred chunks or
#    more, which go whole.
# Prints medians of ROUNDS (5), ratios, and peak memory against its bound. Needs
# e2fsprogs, GNU time and about 4 GB of room.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=${1:-$(mktemp -d)}
rounds=${2:-5}
jobs=4
chunk_kib=5120
for tool in mke2fs cmp awk; do
    command -v "$tool" >/dev/null || { echo "big-image: $tool is missing" >&2; exit 1; }
done
[[ -x /usr/bin/time ]] || { echo "big-image: GNU time is missing" >&2; exit 1; }
mkdir -p "$scratch"
cargo build --release --locked --manifest-path "$here/Cargo.toml"
upload=$here/target/release/openhosting-upload
export XDG_STATE_HOME=$scratch/state

if [[ ! -f $scratch/ext4.img ]]; then
    mkdir -p "$scratch/files"
    cp -a /usr/share /usr/bin "$scratch/files/"
    truncate -s 4G "$scratch/ext4.img"
    mke2fs -q -t ext4 -d "$scratch/files" "$scratch/ext4.img"
    rm -rf "$scratch/files"
fi
if [[ ! -f $scratch/tib.img ]]; then
    dd if="$scratch/ext4.img" of="$scratch/100mb.img" bs=1M skip=256 count=100 status=none
    truncate -s 1T "$scratch/tib.img"
    truncate -s 1T "$scratch/tib1.img"
    dd if="$scratch/100mb.img" of="$scratch/tib1.img" bs=1M seek=500000 conv=notrunc status=none
    # A MiB in each of a hundred places.
    for i in $(seq 0 99); do
        dd if="$scratch/100mb.img" of="$scratch/tib.img" bs=1M skip="$i" count=1 \
            seek=$((i * 10485 + 7)) conv=notrunc status=none
    done
fi

# timed NAME COMMAND...: appends wall, CPU seconds and KiB to NAME's file.
timed() {
    local name=$1
    shift
    /usr/bin/time -f '%e %U %S %M' -o "$scratch/time" "$@" >/dev/null
    awk '{ print $1, $2 + $3, $4 }' "$scratch/time" >>"$scratch/$name.times"
}

up() {
    local name=$1 image=$2
    shift 2
    rm -rf "$scratch/cloud"
    timed "$name" "$upload" --local "$scratch/cloud" -j "$jobs" "$@" "$image"
}

rm -f "$scratch"/*.times
cat "$scratch/ext4.img" >/dev/null
for round in $(seq "$rounds"); do
    echo "round $round of $rounds"
    timed cp cp --sparse=always "$scratch/ext4.img" "$scratch/copy.img"
    rm "$scratch/copy.img"
    up ext4 "$scratch/ext4.img"
    cmp "$scratch/ext4.img" "$scratch"/cloud/drives/*.data
    up ext4-level1 "$scratch/ext4.img" --level 1
    cmp "$scratch/ext4.img" "$scratch"/cloud/drives/*.data
    up 100mb "$scratch/100mb.img"
    up tib1 "$scratch/tib1.img"
    up tib "$scratch/tib.img"
done
rm -rf "$scratch/cloud"

median() {
    awk -v k="$2" '{ print $k }' "$scratch/$1.times" | sort -n |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}
row() {
    local name=$1 against=$2 what=$3
    awk -v w="$(median "$name" 1)" -v c="$(median "$name" 2)" -v m="$(median "$name" 3)" \
        -v aw="$(median "$against" 1)" -v ac="$(median "$against" 2)" -v what="$what" \
        'BEGIN { printf "| %s | %.2f | %.2f | %.0f | %.2f | %.2f |\n", what, w, c, m / 1024, w / aw, c / ac }'
}
echo
echo "| case | wall s | CPU s | peak MiB | wall against | CPU against |"
echo "|---|---|---|---|---|---|"
row cp cp "cp --sparse=always of the 4 GiB image"
row ext4 cp "upload --local of the same"
row ext4-level1 cp "upload --local --level 1 of the same"
row 100mb 100mb "upload --local of 100 MB"
row tib1 100mb "upload --local of 1 TiB with 100 MB in one place"
row tib 100mb "upload --local of 1 TiB with 100 MB in a hundred places"
echo
bound=$((64 * 1024 + 3 * jobs * chunk_kib))
echo "Bound of memory, server included: $((bound / 1024)) MiB (64 MiB + 3 x jobs x chunk)"
for name in ext4 ext4-level1 tib; do
    peak=$(awk '{ print $3 }' "$scratch/$name.times" | sort -n | tail -n 1)
    ((peak < bound)) || { echo "big-image: $name took $peak KiB" >&2; exit 1; }
done
