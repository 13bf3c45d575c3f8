#!/usr/bin/env bash
# First step of the action: puts the tools on the PATH of the steps that follow, from
# a release (ci/install.sh, which others run by themselves), or built from the source of the
# action.
#
# Whoever can change a release can change its files and their checksums together. So the
# archive is verified against something else: the SHA-256 that the workflow pins, or the
# attestation of the workflow that built it, which only a run of that workflow can make.
#
#   INPUT_VERSION      a release, as in 1.2.3, or build; empty: by ACTION_REF, if that
#                      is the tag of a release, else build
#   INPUT_SHA256       SHA-256 that the archive must have; empty: its attestation is verified
#   ACTION_REF, ACTION_REPOSITORY                      what the action was named by
#   GH_TOKEN           token that gh reads the attestation with
#   GITHUB_ACTION_PATH, GITHUB_PATH, GITHUB_SERVER_URL, RUNNER_TEMP       the runner's
set -euo pipefail

fail() {
    printf '::error title=openhosting::%s\n' "$1"
    exit 1
}

# For gh alone: a build runs code of others.
token=${GH_TOKEN:-}
unset GH_TOKEN

version=${INPUT_VERSION:-}
if [[ -z $version ]]; then
    version=build
    [[ ! ${ACTION_REF:-} =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]] || version=$ACTION_REF
fi
version=${version#v}

# On a tag the version is exact, so that a tree of it is what is run.
bin=$RUNNER_TEMP/openhosting/bin
mkdir -p "$bin"

if [[ $version == build ]]; then
    command -v cargo >/dev/null || fail 'There is no cargo to build openhosting with: give a release as version'
    echo "::group::Building openhosting"
    cargo install --locked --path "$GITHUB_ACTION_PATH" --root "$RUNNER_TEMP/openhosting"
    echo "::endgroup::"
else
    [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || fail 'The input version is neither as 1.2.3 nor build'
    [[ ${INPUT_SHA256:-} =~ ^([0-9a-f]{64})?$ ]] || fail 'The input sha256 is not 64 hexadecimal digits'
    options=(--from "$GITHUB_SERVER_URL/$ACTION_REPOSITORY" --version "$version" --to "$bin")
    if [[ -n ${INPUT_SHA256:-} ]]; then
        options+=(--sha256 "$INPUT_SHA256")
    else
        command -v gh >/dev/null ||
            fail 'There is no gh to verify the release with: give its digest as sha256, or build as version'
        options+=(--require-attestation)
        # An action that is pinned to a commit installs what was built from that commit.
        [[ ! ${ACTION_REF:-} =~ ^[0-9a-f]{40}$ ]] || options+=(--source-digest "$ACTION_REF")
    fi
    if ! said=$(GH_TOKEN=$token sh "$GITHUB_ACTION_PATH/ci/install.sh" "${options[@]}" 2>&1); then
        printf '%s\n' "$said"
        fail "${said##*install.sh: }"
    fi
fi
"$bin/openhosting" --version
printf '%s\n' "$bin" >>"$GITHUB_PATH"
