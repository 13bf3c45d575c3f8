#!/bin/sh
# Installs openhosting for the user who runs it; root is not needed:
#
#   curl -fsSL https://github.com/OWNER/openhosting/releases/latest/download/install.sh | sh
#
#   install.sh [OPTION...]
#     --version VERSION   a release, as in 1.2.3 (default: the one this script is of)
#     --to DIR            where the programs go (default: $XDG_BIN_HOME or ~/.local/bin)
#     --target TARGET     as in x86_64-unknown-linux-musl (default: that of this machine)
#     --sha256 DIGEST     the SHA-256 that the archive must have
#     --require-attestation
#                         fail where the attestation of the build cannot be verified
#     --source-digest COMMIT
#                         the commit that the attestation must name
#     --from URL          address of the repository; OWNER/NAME of it is what the attestation names
#
# The archive has to have the digest that was given. Without one it has to match SHA256SUMS of
# the release; but whoever can change a release can change both files. So, where gh is
# installed, its attestation has to say that release.yml of this repository built it at the tag
# of the version.
#
# The action of this repository runs this script too (ci/github/install.sh).
set -eu

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

# fetch URL FILE: over https, or from this machine.
fetch() {
    case $1 in
        https://*) scheme='=https' ;;
        http://127.0.0.1:*) scheme='=http' ;;
        file:///*) scheme='=file' ;;
        *) fail "not an https address: $1" ;;
    esac
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --proto "$scheme" --retry 5 \
            --retry-connrefused --output "$2" "$1"
    elif command -v wget >/dev/null && [ "$scheme" != '=file' ]; then
        wget --quiet --https-only --output-document "$2" "$1"
    else
        fail 'curl is missing'
    fi
}

digest_of() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d ' ' -f 1
    elif command -v shasum >/dev/null; then
        shasum -a 256 "$1" | cut -d ' ' -f 1
    elif command -v sha256 >/dev/null; then
        sha256 -q "$1"
    else
        fail 'there is no sha256sum, shasum or sha256 to check the archive with'
    fi
}

# The target of this machine.
target_here() {
    case "$(uname -s) $(uname -m)" in
        'Linux x86_64') echo "x86_64-unknown-linux-$(libc_here)" ;;
        'Linux aarch64') echo "aarch64-unknown-linux-$(libc_here)" ;;
        'Darwin arm64') echo aarch64-apple-darwin ;;
        'Darwin x86_64') echo x86_64-apple-darwin ;;
        'FreeBSD amd64') echo x86_64-unknown-freebsd ;;
        MINGW* | MSYS* | CYGWIN*)
            fail 'this script is not for Windows: use install.ps1 of the same release' ;;
        *) fail "there is no release for $(uname -s) on $(uname -m): build it with cargo install" ;;
    esac
}

# gnu for glibc 2.17 or newer, else musl, which is linked statically.
libc_here() {
    version=$(getconf GNU_LIBC_VERSION 2>/dev/null) || version=''
    version=${version#glibc 2.}
    case $version in
        '' | *[!0-9]*) echo musl ;;
        *) if [ "$version" -ge 17 ]; then echo gnu; else echo musl; fi ;;
    esac
}

# verify ARCHIVE REPOSITORY VERSION COMMIT: by gh, that release.yml built it at the tag.
verify() {
    set -- "$1" "$3" "$4" --repo "$2" --source-ref "refs/tags/v$3" --deny-self-hosted-runners \
        --signer-workflow "$2/.github/workflows/release.yml"
    attested=$1 commit=$3
    shift 3
    [ -z "$commit" ] || set -- "$@" --source-digest "$commit"
    GH_TOKEN=$token gh attestation verify "$attested" "$@"
}

main() {
    # For gh alone.
    token=${GH_TOKEN:-}
    unset GH_TOKEN
    version=0.0.0 to='' target='' digest='' commit='' is_required=''
    from=https://github.com/OWNER/openhosting
    while [ $# -gt 0 ]; do
        case $1 in
            --require-attestation)
                is_required=1
                shift
                continue ;;
            --version | --to | --target | --sha256 | --source-digest | --from)
                [ $# -ge 2 ] || fail "$1 needs a value" ;;
            *) fail "unknown option: $1" ;;
        esac
        case $1 in
            --version) version=${2#v} ;;
            --to) to=$2 ;;
            --target) target=$2 ;;
            --sha256) digest=$2 ;;
            --source-digest) commit=$2 ;;
            --from) from=${2%/} ;;
        esac
        shift 2
    done
    case $version in
        0.0.0) fail 'this script is of no release: give one with --version' ;;
        *[!0-9A-Za-z.-]* | '') fail "not a version: $version" ;;
    esac
    case $digest in
        *[!0-9a-f]*) fail "not a SHA-256: $digest" ;;
    esac
    [ -n "$to" ] || to=${XDG_BIN_HOME:-${HOME:?is not set; give a directory with --to}/.local/bin}
    [ -n "$target" ] || target=$(target_here)
    name=openhosting-$version-$target
    work=$(mktemp -d "${TMPDIR:-/tmp}/openhosting-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    release=$from/releases/download/v$version
    fetch "$release/$name.tar.gz" "$work/$name.tar.gz" ||
        fail "cannot fetch $name.tar.gz of release $version from $release"
    what='the digest that was given' is_pinned=1
    if [ -z "$digest" ]; then
        is_pinned=''
        what='SHA256SUMS of the release'
        fetch "$release/SHA256SUMS" "$work/SHA256SUMS" || fail "cannot fetch SHA256SUMS from $release"
        digest=$(sed -n "s/^\([0-9a-f]\{64\}\) [ *]$name\.tar\.gz\$/\1/p" "$work/SHA256SUMS")
        [ -n "$digest" ] || fail "SHA256SUMS of release $version does not list $name.tar.gz"
    fi
    [ "$(digest_of "$work/$name.tar.gz")" = "$digest" ] ||
        fail "$name.tar.gz does not have the SHA-256 of $what: nothing was installed"

    repository=${from#*://*/}
    if [ -n "$is_pinned" ] && [ -z "$is_required" ]; then
        :
    elif [ -n "$is_required" ] || command -v gh >/dev/null; then
        command -v gh >/dev/null || fail 'gh is missing, which verifies the attestation of the build'
        verify "$work/$name.tar.gz" "$repository" "$version" "$commit" ||
            fail "$name.tar.gz has no attestation that release.yml of $repository built it at the tag v$version${commit:+ from the commit $commit}: nothing was installed"
    else
        echo 'install.sh: gh is not installed, so the attestation of the build was not verified' >&2
    fi

    tar -xzf "$work/$name.tar.gz" -C "$work"
    mkdir -p "$to"
    for program in "$work/$name"/openhosting*; do
        # In two steps: a program that runs cannot be written to, only replaced.
        cp "$program" "$to/.${program##*/}.new"
        chmod 755 "$to/.${program##*/}.new"
        mv -f "$to/.${program##*/}.new" "$to/${program##*/}"
    done
    [ "$("$to/openhosting" --version)" = "openhosting $version" ] ||
        fail "$to/openhosting does not run here, or is not version $version"
    echo "openhosting $version is in $to"
    case :$PATH: in
        *:"$to":*) ;;
        *) echo "Add it to your PATH: export PATH=\"$to:\$PATH\"" ;;
    esac
}

# At the end, so that a script that was cut off does nothing.
main "$@"
