#!/usr/bin/env bash
# First step of the action: puts the tools on the PATH of the steps that follow, from
# a release, or built from the source of the action.
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
    case "$(uname -s) $(uname -m)" in
        'Linux x86_64') target=x86_64-unknown-linux-gnu ;;
        'Linux aarch64') target=aarch64-unknown-linux-gnu ;;
        *) fail 'There is no release for this system: give build as version' ;;
    esac
    # As the tools themselves: https, or http to this very machine.
    protocol='=https'
    [[ $GITHUB_SERVER_URL != http://127.0.0.1:* ]] || protocol='=http'
    archive=openhosting-$version-$target.tar.gz
    from=$GITHUB_SERVER_URL/$ACTION_REPOSITORY/releases/download/v$version
    work=$(mktemp -d "$RUNNER_TEMP/openhosting-XXXXXX")
    curl --fail --silent --show-error --location --proto "$protocol" --retry 5 --retry-connrefused \
        --output "$work/$archive" "$from/$archive" || fail "Cannot fetch $archive of release $version"
    if [[ -n ${INPUT_SHA256:-} ]]; then
        (cd "$work" && sha256sum --check --strict --quiet - <<<"$INPUT_SHA256  $archive") ||
            fail "$archive does not have the SHA-256 of the input sha256"
    else
        command -v gh >/dev/null ||
            fail 'There is no gh to verify the release with: give its digest as sha256, or build as version'
        built=(--repo "$ACTION_REPOSITORY" --source-ref "refs/tags/v$version" --deny-self-hosted-runners
            --signer-workflow "$ACTION_REPOSITORY/.github/workflows/release.yml")
        what="built by release.yml of $ACTION_REPOSITORY at the tag v$version"
        # An action that is pinned to a commit installs what was built from that commit.
        if [[ ${ACTION_REF:-} =~ ^[0-9a-f]{40}$ ]]; then
            built+=(--source-digest "$ACTION_REF")
            what+=", from the commit $ACTION_REF that the action is pinned to"
        fi
        GH_TOKEN=$token gh attestation verify "$work/$archive" "${built[@]}" ||
            fail "$archive has no attestation that it was $what: name the action by the commit of that release, give the digest as sha256, or build as version"
    fi
    tar --extract --gzip --no-same-owner --file "$work/$archive" --directory "$work"
    for tool in openhosting openhosting-upload openhosting-download openhosting-server; do
        install -m 755 "$work/openhosting-$version-$target/$tool" "$bin/$tool"
    done
    rm -r "$work"
    [[ $("$bin/openhosting" --version) == "openhosting $version" ]] ||
        fail "What release $version holds is another version"
fi
"$bin/openhosting" --version
printf '%s\n' "$bin" >>"$GITHUB_PATH"
