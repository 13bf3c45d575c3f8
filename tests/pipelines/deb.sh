#!/usr/bin/env bash
# Makes the Debian package, installs it with dpkg in a root that has nothing but what it
# says it needs, and runs there what it installed. As root, on Debian.
#
#   deb.sh PACKAGE.deb
set -euo pipefail

package=$(realpath "${1:?"usage: deb.sh PACKAGE.deb"}")
work=$(mktemp -d)
server=''
leave() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    umount -q "$work/root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap leave EXIT
root=$work/root

dpkg-deb --info "$package"
field() { dpkg-deb --field "$package" "$1"; }
[[ $(field Package) == openhosting ]]
depends=$(field Depends)
echo "Depends: $depends"

# What it depends on, and what that depends on, from Debian: libraries only.
(
    cd "$work"
    fetch() { apt-get download -qq libc6 libgcc-s1 ca-certificates; }
    fetch 2>/dev/null || { apt-get update -qq && fetch; }
)
mkdir -p "$root"
for library in "$work"/*.deb; do
    dpkg-deb -x "$library" "$root"
done
# All that it names is in there.
while read -r name _; do
    ls "$work/${name}"_*.deb >/dev/null || { echo "deb: $name is needed, and not expected to be" >&2; exit 1; }
done < <(tr ',' '\n' <<<"$depends")
mkdir -p "$root"/var/lib/dpkg/{info,updates} "$root"/{tmp,etc,proc}
# A journal gets its name through /proc, which every system that runs has.
mount -t proc proc "$root/proc"
touch "$root/var/lib/dpkg/status"
# dpkg runs the scripts of the package with a shell, which every Debian has.
install -D /bin/sh "$root/bin/sh"
# The libraries were laid there without dpkg.
dpkg --root="$root" --force-depends --install "$package" 2>&1 | grep -v 'problems\|depends on' || true
dpkg --root="$root" --status openhosting | grep -qx 'Status: install ok installed'
dpkg --root="$root" --verify openhosting

inside() { chroot "$root" /usr/bin/env -i "$@"; }
# env and a shell are the test's own: the root has none.
install -D "$(command -v env)" "$root/usr/bin/env"
for program in openhosting openhosting-upload openhosting-download openhosting-server; do
    inside "$program" --version
done

# A server, an upload and a download, all within the root.
# Not by the function: that would be a shell of its own, and it the one that is stopped.
chroot "$root" /usr/bin/env -i openhosting-server --data /tmp/drives >"$work/server.out" 2>"$work/server.err" &
server=$!
until grep -q '^export OHAUTH=' "$work/server.out"; do
    kill -0 "$server" || { cat "$work/server.err" >&2; exit 1; }
    sleep 0.1
done
OHURI='' OHAUTH=''
eval "$(grep '^export OH[A-Z]*=' "$work/server.out")"
head -c 9000000 /dev/urandom >"$root/tmp/disk.img"
inside OHURI="$OHURI" OHAUTH="$OHAUTH" HOME=/tmp openhosting publish /tmp/disk.img --name nightly >"$work/drive"
inside OHURI="$OHURI" OHAUTH="$OHAUTH" HOME=/tmp openhosting-download --quiet "$(<"$work/drive")" /tmp/copy.img
cmp "$root/tmp/disk.img" "$root/tmp/copy.img"
kill "$server"
wait "$server"
server=''

# The units are found, and what they start is there.
if command -v systemd-analyze >/dev/null; then
    cp -a /usr/lib/systemd/system/. "$root/usr/lib/systemd/system/"
    for unit in openhosting-backup@web.service openhosting-backup@web.timer openhosting-server.service; do
        told=$(systemd-analyze verify --man=no --root="$root" "$unit" 2>&1)
        if grep openhosting <<<"$told"; then exit 1; fi
    done
fi
[[ -z $(find "$root/etc/systemd" -name 'openhosting*' 2>/dev/null) ]] || { echo "deb: a unit is enabled" >&2; exit 1; }
for file in changelog.gz copyright user/pipelines.md README.md examples/backup.conf.example; do
    [[ -s $root/usr/share/doc/openhosting/$file ]] || { echo "deb: there is no $file" >&2; exit 1; }
done
# Where the program makes its own pages and completions they are in the package.
help=$(inside openhosting --help)
if [[ $help == *'  man '* ]]; then
    for page in openhosting openhosting-upload openhosting-download openhosting-server; do
        zcat "$root/usr/share/man/man1/$page.1.gz" | grep -q '^\.TH'
    done
fi
if [[ $help == *'  completions '* ]]; then
    bash -n "$root"/usr/share/bash-completion/completions/*
    for file in zsh/vendor-completions/_openhosting fish/vendor_completions.d/openhosting.fish; do
        [[ -s $root/usr/share/$file ]] || { echo "deb: there is no $file" >&2; exit 1; }
    done
fi

dpkg --root="$root" --force-depends --remove openhosting >/dev/null
[[ ! -e $root/usr/bin/openhosting && ! -e $root/usr/lib/openhosting ]]
echo "deb: $(basename "$package") was installed, run and removed"
