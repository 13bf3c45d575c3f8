#!/usr/bin/env bash
# Makes a container image of the static programs in the archives in DIR, for both processors, as
# DIR/openhosting-VERSION.oci.tar, which `skopeo copy oci-archive:` and `docker load` read. Needs docker
# with buildx.
#
#   image.sh DIR
set -euo pipefail

from=$(cd "${1:?"usage: image.sh DIR"}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
context=$(mktemp -d)
trap 'rm -r "$context"' EXIT
for pair in amd64:x86_64 arm64:aarch64; do
    mkdir "$context/${pair%:*}"
    tar -xzf "$from/openhosting-$version-${pair#*:}-unknown-linux-musl.tar.gz" \
        --directory "$context/${pair%:*}" --strip-components 1
done
docker buildx create --use --name openhosting >/dev/null 2>&1 || docker buildx use openhosting
docker buildx build --platform linux/amd64,linux/arm64 --file ci/docker/Dockerfile.static \
    --output "type=oci,dest=$from/openhosting-$version.oci.tar" "$context"
