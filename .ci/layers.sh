#!/usr/bin/env bash
# Who may import whom (ARCHITECTURE.md): fails and names the line where a module
# reaches up, or does what belongs to another layer.
#
#   layers.sh [SOURCE-DIR]      default: src of this repository, with its crates
#
# What a crate may use, Cargo enforces; here are the rules within the root crate, and those
# about the standard library.
# It reads text, not Rust: lines that are comments are left out, `use` lists of
# several lines are understood, macros that build paths are not.
set -euo pipefail

src=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/src}
[[ -d $src ]] || { echo "layers: no directory $src" >&2; exit 1; }
command -v perl >/dev/null || { echo "layers: perl is missing" >&2; exit 1; }
found=0
rules=0

# deny LAYER WHY REGEX FILE...: no file may match the Perl regex. With CODE=1 the tests of a file,
# which are at its end, are left out.
deny() {
    local layer=$1 why=$2 regex=$3 hits
    shift 3
    rules=$((rules + 1))
    (($#)) || return 0
    hits=$(RE=$regex perl -0777 -ne '
        s{^[ \t]*//.*$}{}mg;                      # comment lines, their line ends kept
        s{^#\[cfg\(test\)\].*}{}ms if $ENV{CODE};
        while (/$ENV{RE}/g) {
            my $line = 1 + (substr($_, 0, $-[0]) =~ tr/\n//);
            my $text = (split /\n/)[$line - 1];
            $text =~ s/^\s+//;
            print "  $ARGV:$line: $text\n";
        }' "$@")
    if [[ -n $hits ]]; then
        echo "layers: $layer: $why"
        echo "$hits"
        found=1
    fi
}

# files NAME...: the sources of these modules: src/NAME.rs and all below src/NAME.
files() {
    local name
    for name; do
        find "$src" \( -path "$src/$name.rs" -o -path "$src/$name/*.rs" \) -type f
    done | sort
}

# imports NAME...: a regex for paths that start at one of these modules or crates, in a
# path or in a list of `use crate::{...}`.
imports() {
    local names
    names=$(IFS='|' && echo "$*")
    printf '%s' "\\b(?:crate|openhosting)\\s*::\\s*(?:(?:$names)\\b|\\{[^;]*?\\b(?:$names)\\b)|\\bsuper::(?:super::)*(?:$names)\\b|\\bopenhosting_(?:$names)\\b"
}

# forbid LAYER NAME... -- MODULE...: these modules import none of the names.
forbid() {
    local layer=$1 names=() list
    shift
    while [[ $1 != -- ]]; do names+=("$1"); shift; done
    shift
    mapfile -t list < <(files "$@")
    deny "$layer" "must not import ${names[*]}" "$(imports "${names[@]}")" "${list[@]}"
}

# Everything that is not one of the upper layers is a noun, or journal.
upper='api|driver|verify|upload|download|probe|web_image|transfer|builder|publish|cli|bin|lib'
mapfile -t low < <(find "$src" -mindepth 1 -maxdepth 1 \( -name '*.rs' -o -type d \) -printf '%f\n' |
    sed 's/\.rs$//' | grep -vxE "$upper" | sort -u)

# What knows of transfers, each room after those that it may use.
rooms=(driver verify upload download probe web_image transfer)
forbid 'nouns, journal' api engine policy "${rooms[@]}" publish server cli -- "${low[@]}"
forbid api engine policy "${rooms[@]}" publish server cli -- api
forbid driver verify upload download probe web_image transfer publish server cli -- driver
forbid verify upload download probe web_image transfer publish server cli -- verify
forbid upload download probe web_image transfer publish server cli -- upload
forbid download upload probe web_image transfer publish server cli -- download
forbid 'probe, web_image' verify upload download transfer publish server cli -- probe web_image
forbid transfer publish server cli -- transfer
forbid publish server cli -- publish

crates=$(dirname "$src")/crates
mapfile -t list < <(find "$crates/base/src" -name '*.rs' | sort)
deny base 'pure functions: no files, no network, no clock' \
    '\bstd::(?:fs|net)\b|\b(?:Instant|SystemTime)\b' "${list[@]}"

# One function of debug builds reads a variable that only tests set.
mapfile -t list < <(find "$src" "$crates"/*/src -name '*.rs' ! -path "$src/cli/*" ! -path "$src/cli.rs" ! -path "$src/bin/*" \
    ! -path "$crates/filesystem/src/plain.rs" | sort)
deny 'all but cli and bin' 'no printing, no environment, no process' \
    '\be?print(?:ln)?!|\bstd::env\b|\bstd::\{[^;]*\benv\b|\benv::(?:var|args|current_dir)|\bprocess::exit\b' "${list[@]}"
deny 'all but cli and bin' 'clap, indicatif and rpassword belong to cli' \
    '\b(?:clap|indicatif|rpassword)\s*::' "${list[@]}"

# A library names options as data (`Remedy`), which src/cli/remedies.rs words. Commands of other
# programs may have flags, and src/commands.rs builds commands from what the command line passes.
mapfile -t list < <(printf '%s\n' "${list[@]}" | grep -vxF "$src/commands.rs")
CODE=1 deny 'all but cli and bin' 'no flags in texts: name the option with a Remedy' \
    '(?m)^(?!.*\b(?:maxcso|ntfsclone|rbd|nix-store|xz|zstd|git lfs|VBoxManage|qemu-img) ).*?["\s(`'"'"']\K--[a-z]' "${list[@]}"

# What differs between operating systems. The server and what runs virtual servers are for
# Linux only, and two files of the root crate leave the server out elsewhere, or without its feature.
mapfile -t list < <(find "$src" "$crates"/*/src -name '*.rs' ! -path "$crates/system/*" \
    ! -path "$crates/server/*" ! -path "$crates/vm/*" ! -path "$src/cli/server.rs" | sort)
CODE=1 deny 'all but system and the server' 'calls of one operating system belong to crates/system' \
    '\bstd::os::|\brustix\s*::|\btokio::signal\b|\bwinapi_util\b' "${list[@]}"
CODE=1 deny 'all but system and the server' 'only crates/system asks for the operating system' \
    '\bcfg(?:_attr)?!?\s*\((?:not\()?\s*(?:unix|windows|target_(?!os = "linux"\)))|\b(?:all|any)\((?!target_os = "linux", feature = "server"\))[^)]*\b(?:unix|windows|target_\w+)\b' "${list[@]}"
mapfile -t list < <(printf '%s\n' "${list[@]}" | grep -vxF -e "$src/lib.rs" -e "$src/cli.rs")
CODE=1 deny 'all but system and the server' 'only crates/system asks for the operating system' \
    '\btarget_os\b' "${list[@]}"

((found == 0)) || exit 1
echo "layers: $rules rules hold over $(find "$src" "$crates"/*/src -name '*.rs' | wc -l) files"
