#!/usr/bin/env python3
"""Runs a command that receives wrong answers about holes, from a filter of its system calls.

usage: lying.py WHENCE ERRNO FROM COMMAND...

lseek with this WHENCE (3: SEEK_DATA, 4: SEEK_HOLE) and an offset of at least FROM bytes
fails with this error number. ENXIO (6) of SEEK_DATA says that there is no data at or
after the offset. FROM is below 4 GiB.
"""
import ctypes
import os
import platform
import struct
import sys

LSEEK = {"x86_64": 8, "aarch64": 62}
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
# Offsets in the kernel's description of a call: its number and its arguments.
NUMBER, OFFSET_LOW, OFFSET_HIGH, WHENCE = 0, 24, 28, 32

try:
    number = LSEEK[platform.machine()]
except KeyError:
    sys.exit(125)
whence, error, least = (int(word) for word in sys.argv[1:4])
steps = [
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 0, 7, number),
    (LOAD, 0, 0, WHENCE),
    (EQUAL, 0, 5, whence),
    (LOAD, 0, 0, OFFSET_HIGH),
    (EQUAL, 0, 2, 0),
    (LOAD, 0, 0, OFFSET_LOW),
    (AT_LEAST, 0, 1, least),
    (RETURN, 0, 0, FAIL | error),
    (RETURN, 0, 0, ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(SET_SECCOMP, FILTER, program, 0, 0):
    sys.exit(125)
os.execvp(sys.argv[4], sys.argv[4:])
