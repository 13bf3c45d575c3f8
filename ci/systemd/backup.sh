#!/bin/sh
# Backs up a drive as a qcow2 with the date in its name; installed as
# /usr/lib/openhosting/backup and run by openhosting-backup@NAME.service.
#
#   backup NAME
#   OHURI, DRIVE          the endpoint and the drive, from NAME.conf
#   KEEP                  how many backups stay (default: 7)
#   OPENHOSTING_FLAGS     more flags of openhosting-download, as in --allow-live
#   BACKUP_DIRECTORY      where they are (default: STATE_DIRECTORY, systemd's)
#   CREDENTIALS_DIRECTORY   systemd's: the secret is in the file ohauth there
set -eu
export LC_ALL=C

name=${1:?"usage: backup NAME"}
: "${DRIVE:?DRIVE is not set}" "${CREDENTIALS_DIRECTORY:?CREDENTIALS_DIRECTORY is not set}"
directory=${BACKUP_DIRECTORY:-${STATE_DIRECTORY:?neither BACKUP_DIRECTORY nor STATE_DIRECTORY is set}}
keep=${KEEP:-7}
case $name in
    */* | .* | -*) echo "backup: $name is no name of a backup: it begins with . or -, or holds a /" >&2 && exit 2 ;;
esac
case $keep in
    '' | *[!0-9]* | 0) echo "backup: KEEP is not a number from 1 on" >&2 && exit 2 ;;
esac
OHAUTH=$(cat "$CREDENTIALS_DIRECTORY/ohauth")
export OHAUTH

# Under one name until it is whole: what ended a run, the next one goes on.
next=$directory/$name.next.qcow2
whole=''

# take: gives what is whole its own name.
take() {
    whole=$directory/$name-$(date --utc --reference="$next" +%Y%m%dT%H%M%SZ).qcow2
    if [ -e "$whole" ] || [ -L "$whole" ]; then
        echo "backup: $whole is there already, and stays; $next is whole" >&2
        exit 1
    fi
    mv -T "$next" "$whole"
    sync "$directory"
    echo "backup: $whole"
}

# A run that was killed between these two.
[ ! -e "$next" ] || take
# Flags are words, and no names of files.
set -f
# shellcheck disable=SC2086
openhosting-download --format qcow2 --compress zstd --progress plain ${OPENHOSTING_FLAGS:-} "$DRIVE" "$next"
set +f
take

# The backups of this name, the oldest first: those of web-2 are not those of web. A date in
# the future comes from a clock that was wrong: such a file is not counted, and stays.
now=$(date --utc +%Y%m%d%H%M%S)
day='[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]' time='[0-9][0-9][0-9][0-9][0-9][0-9]'
set --
for backup in "$directory/$name"-${day}T${time}Z.qcow2; do
    if [ ! -f "$backup" ] || [ -L "$backup" ]; then continue; fi
    stamp=${backup#"$directory/$name-"}
    stamp=${stamp%Z.qcow2}
    if [ "${stamp%T*}${stamp#*T}" -gt "$now" ]; then
        echo "backup: $backup has a date in the future: it is not counted, and stays" >&2
    else
        set -- "$@" "$backup"
    fi
done
# Only now that there is a newer one, which stays whatever its date.
while [ "$#" -gt "$keep" ]; do
    if [ "$1" != "$whole" ]; then
        rm "$1"
        echo "backup: removed $1"
    fi
    shift
done
