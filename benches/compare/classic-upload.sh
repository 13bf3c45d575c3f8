#!/usr/bin/env bash
# An upload as the providers' script does it, written anew for the benchmark: one
# chunk after another, each through gzip at its default level and a curl of its own
# (docs/dev/reference.md, 4.3). It sends zeros like everything else, and does not try again.
#
#   OHURI=... OHAUTH=USER:KEY classic-upload.sh IMAGE [CHUNK-BYTES]
set -euo pipefail

image=$1
chunk=${2:-5242880}
size=$(stat -L -c %s -- "$image")

# call CONTENT-TYPE PATH [CURL-OPTION...]: posts stdin. No argument contains the key.
call() {
    local type=$1 path=$2
    shift 2
    curl --silent --show-error --fail --data-binary @- -H "Content-Type: $type" "$@" \
        --config <(printf 'user = "%s"\n' "$OHAUTH") "${OHURI%/}/$path"
}

drive=$(printf 'name %s\nsize %s\ntier disk' "${image##*/}" "$size" |
    call text/plain drives/create | awk '$1 == "drive" { print $2 }')
echo "Created drive $drive of size $size"

exec 3<"$image"
for ((offset = 0; offset < size; offset += chunk)); do
    head -c "$chunk" <&3 | gzip |
        call application/octet-stream "drives/$drive/write/$offset" -H 'Content-Encoding: gzip'
    printf .
done
echo ' completed'
