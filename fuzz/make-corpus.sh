#!/usr/bin/env bash
# Makes the corpus of the targets of image formats anew, out of small images of
# qemu-img. The inputs are files with holes; src/lib.rs tells how.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/corpus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
truncate -s 3M "$work/disk"
printf 'some text, some text, some text' | dd of="$work/disk" conv=notrunc status=none
printf 'more' | dd of="$work/disk" bs=1 seek=2500000 conv=notrunc status=none

# pack IMAGE INPUT: an input that tells this file
pack() {
    python3 - "$1" "$2" <<'PYTHON'
import re, struct, sys

data = open(sys.argv[1], "rb").read()
out = bytearray(b"\1" + struct.pack(">I", len(data)))
# Runs of data, with no more than a few zeros within.
for run in re.finditer(rb"[^\0](?:\0{0,7}[^\0])*", data):
    for at in range(run.start(), run.end(), 255):
        piece = data[at : min(at + 255, run.end())]
        out += struct.pack(">IB", at, len(piece)) + piece
open(sys.argv[2], "wb").write(out)
PYTHON
}

# input TARGET NAME FORMAT OPTION...: one input
input() {
    local target=$1 name=$2 format=$3
    shift 3
    qemu-img convert -f raw -O "$format" "$@" "$work/disk" "$work/image"
    mkdir -p "$target"
    pack "$work/image" "$target/$name"
}

# archive NAME FORMAT FILE...: an input of the target of archives
archive() {
    local name=$1 format=$2
    shift 2
    mkdir -p ova
    tar -C "$work" --format="$format" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$work/image" "$@"
    pack "$work/image" "ova/$name"
}

input qcow2 v2 qcow2 -o compat=0.10,cluster_size=512
input qcow2 v3 qcow2 -o cluster_size=4k
input qcow2 zlib qcow2 -c -o cluster_size=64k
input qcow2 zstd qcow2 -c -o cluster_size=64k,compression_type=zstd
input qcow2 subclusters qcow2 -o cluster_size=16k,extended_l2=on
input vmdk sparse vmdk
input vmdk stream vmdk -o subformat=streamOptimized
input vmdk zeroed vmdk -o zeroed_grain=on
input vdi dynamic vdi
input vdi static vdi -o static=on
input vhd dynamic vpc -o force_size=on
input vhd fixed vpc -o subformat=fixed,force_size=on
input vhdx dynamic vhdx -o block_size=1M
input vhdx fixed vhdx -o subformat=fixed,block_size=1M
qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$work/disk" "$work/disk.vmdk"
cat >"$work/box.ovf" <<'OVF'
<Envelope xmlns:ovf="u"><References><File ovf:href="disk.vmdk" ovf:id="f"/></References>
<DiskSection><Disk ovf:fileRef="f"/></DiskSection></Envelope>
OVF
printf 'a disk' >"$work/disk.img"
long=$work/$(printf 'l%.0s' {1..120}).img
cp "$work/disk.img" "$long"
truncate -s 100k "$work/sparse.img"
printf 'end' >>"$work/sparse.img"
archive appliance ustar box.ovf disk.vmdk
archive bare ustar disk.img
printf 'SHA1(disk.img)= %s\n' "$(sha1sum <"$work/disk.img" | cut -d ' ' -f 1)" >"$work/box.mf"
archive manifest ustar disk.img box.mf
archive gnu gnu "$(basename "$long")" disk.img
archive pax pax "$(basename "$long")" disk.img
archive sparse gnu -S sparse.img disk.img
mkdir -p streams
head -c 300 "$work/disk" | lz4 -q -c >"$work/lz4"
python3 - "$work/lz4" streams <<'PYTHON'
import bz2, gzip, io, os, sys, zipfile

lz4 = open(sys.argv[1], "rb").read()
os.chdir(sys.argv[2])
text = b"some text, some text, some text" * 5

def write(name, *parts):
    open(name, "wb").write(b"".join(parts))

def archive(how, files, out):
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return out

class Pipe(io.RawIOBase):
    def __init__(self):
        self.all = b""
    def writable(self):
        return True
    def write(self, data):
        self.all += bytes(data)
        return len(data)

files = [("__MACOSX/._disk.img", b"attributes"), ("disk.img", text)]
member = gzip.compress(text, mtime=0)
write("gzip", member, member)
write("gzip_padded", member, bytes(20))
write("gzip_trailer", member, bytes(8), b"FWx0")
write("bzip2", bz2.compress(text), bz2.compress(text), b"behind")
write("lz4", b"\x51\x2a\x4d\x18\x03\0\0\0abc", lz4, b"\x50\x2a\x4d\x18\0\0\0\0", lz4)
write("zip_deflated", archive(zipfile.ZIP_DEFLATED, files, io.BytesIO()).getvalue())
write("zip_stored", archive(zipfile.ZIP_STORED, files, io.BytesIO()).getvalue())
write("zip_streamed", archive(zipfile.ZIP_DEFLATED, files, Pipe()).all)
PYTHON
find . -type f -size +2048c -printf 'larger than -max_len of .ci/run: %P\n'
