#!/usr/bin/env bash
# Two images of one Debian: as it was released, and after `apt-get upgrade` in place.
#
#   debian.sh SIZE_BYTES BEFORE.img AFTER.img
#
# What an image pipeline makes every night. Needs root, loop devices, debootstrap and
# e2fsprogs, and fetches about 100 MB from a Debian mirror (DEBIAN_MIRROR).
set -euo pipefail

size=$1 before=$2 after=$3
suite=bookworm
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${DEBIAN_SECURITY:-http://deb.debian.org/debian-security}
packages=ca-certificates,curl,openssh-server,python3,perl,sudo,vim,git,systemd-sysv
root=$(mktemp -d)

cleanup() {
    umount -q "$root/proc" "$root" 2>/dev/null || true
    rmdir "$root" 2>/dev/null || true
}
trap cleanup EXIT

rm -f "$after.part"
truncate -s "$size" "$after.part"
mke2fs -q -F -t ext4 "$after.part"
mount -o loop "$after.part" "$root"
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >&2
rm -rf "$root"/var/cache/apt/archives/*.deb
umount "$root"
cp --sparse=always "$after.part" "$before.part"

mount -o loop "$after.part" "$root"
mount -t proc proc "$root/proc"
printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite-updates" \
    "$security" "$suite-security" >"$root/etc/apt/sources.list"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Services are not started in a chroot.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot "$root" apt-get -q update >&2
chroot "$root" apt-get -q -y upgrade >&2
chroot "$root" apt-get -q clean >&2
rm "$root/usr/sbin/policy-rc.d"
umount "$root/proc" "$root"
mv "$before.part" "$before"
mv "$after.part" "$after"
