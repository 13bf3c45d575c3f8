#!/usr/bin/env bash
# Makes a container image of the static programs in the archives in DIR, for both processors, as
# DIR/openhosting-VERSION.oci.tar, which `skopeo copy --all oci-archive:` and `podman load` read.
# Needs buildah, but no service and no registry: nothing is based on another image, and nothing
# runs while it is built. The certificates are those of this machine.
#
#   image.sh DIR
set -euo pipefail

from=$(cd "${1:?"usage: image.sh DIR"}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
archive=$from/openhosting-$version.oci.tar
# The same programs make the same image.
date=${SOURCE_DATE_EPOCH:-315532800}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
context=$work/context
install -D --mode 644 "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$context/common/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$context"/writable/{state,images,tmp}
buildah=(buildah --root "$work/images" --runroot "$work/run" --storage-driver vfs)
for pair in amd64:x86_64 arm64:aarch64; do
    processor=${pair%:*}
    mkdir -p "$context/$processor"
    name=openhosting-$version-${pair#*:}-unknown-linux-musl
    tar -xzf "$from/$name.tar.gz" --directory "$context/$processor" --strip-components 1 \
        --wildcards "$name/openhosting*"
    "${buildah[@]}" build --quiet --isolation chroot --timestamp "$date" \
        --platform "linux/$processor" --manifest openhosting --file ci/docker/Dockerfile.static "$context" >&2
done
"${buildah[@]}" manifest push --quiet --all --format oci openhosting "oci:$work/layout" >&2
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime "@$date" --file "$archive" --directory "$work/layout" .
echo "$archive"
