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

name=${1:?"usage: backup NAME"}
: "${DRIVE:?DRIVE is not set}" "${CREDENTIALS_DIRECTORY:?CREDENTIALS_DIRECTORY is not set}"
directory=${BACKUP_DIRECTORY:-${STATE_DIRECTORY:?neither BACKUP_DIRECTORY nor STATE_DIRECTORY is set}}
keep=${KEEP:-7}
case $keep in
    '' | *[!0-9]* | 0) echo "backup: KEEP is not a number from 1 on" >&2 && exit 2 ;;
esac
OHAUTH=$(cat "$CREDENTIALS_DIRECTORY/ohauth")
export OHAUTH

# Under one name until it is whole: what ended a run, the next one goes on.
next=$directory/$name.next.qcow2

# take: gives what is whole its own name.
take() {
    whole=$directory/$name-$(date --utc --reference="$next" +%Y%m%dT%H%M%SZ).qcow2
    mv "$next" "$whole"
    sync "$directory"
    echo "backup: $whole"
}

# A run that was killed between these two.
[ ! -e "$next" ] || take
# shellcheck disable=SC2086  # flags are words
openhosting-download --format qcow2 --compress zstd --progress plain ${OPENHOSTING_FLAGS:-} "$DRIVE" "$next"
take

# The oldest first; only now that there is a newer one.
set -- "$directory/$name"-[0-9]*T[0-9]*Z.qcow2
while [ "$#" -gt "$keep" ]; do
    rm "$1"
    echo "backup: removed $1"
    shift
done
