"""Smaller wheels for one kind of GPU: python thin_wheel.py WHEEL -o OUT.whl [--sm 90] [--lone]

Leaves out what the product never imports (tools, transformers, the C library) and zeroes the
machine code of other GPUs inside libonnxruntime_providers_cuda.so: headers stay, so the loader
still picks by them, and zeroes pack to nothing. What is kept is the vendor's, byte for byte. --lone
also zeroes kernels that exist for this GPU alone (for onnxruntime: language-model kernels). A
kernel that was zeroed and is needed after all fails loudly when it is loaded.
"""

from __future__ import annotations

import argparse
import fnmatch
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

DROP = (
    "onnxruntime/tools/*", "onnxruntime/transformers/*", "onnxruntime/ThirdPartyNotices.txt",
    "onnxruntime/capi/libonnxruntime.so*",
)  # fmt: skip
THIN = ("*/libonnxruntime_providers_cuda.so",)
MAGIC = 0xBA55ED50  # of a fat binary
ELF = 2  # kind of an entry: machine code, not PTX


@dataclass(frozen=True)
class Entry:
    """Code for one kind of GPU within a fat binary. at, size: its bytes in the file."""

    kind: int
    arch: int
    at: int
    size: int


def section(data: bytearray, name: bytes) -> tuple[int, int]:
    """(offset, size) of a section of an ELF file."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, n, names = struct.unpack_from("<HHH", data, 0x3A)
    head = lambda i: struct.unpack_from("<IIQQQQIIQQ", data, table + i * size)
    strings = head(names)[4]
    for i in range(n):
        found = head(i)
        at = strings + found[0]
        if bytes(data[at : data.find(b"\0", at)]) == name:
            return found[4], found[5]
    raise SystemExit(f"no section {name.decode()}")


def entries_of(data: bytearray, at: int, end: int) -> list[Entry]:
    found = []
    while at < end:
        kind, _, head, size = struct.unpack_from("<HHIQ", data, at)
        (arch,) = struct.unpack_from("<I", data, at + 28)
        found.append(Entry(kind, arch, at + head, size))
        at += head + size
    return found


def thin(data: bytearray, sm: int, lone: bool) -> tuple[int, int]:
    """Zero the code of other GPUs in place -> bytes kept and zeroed."""
    start, size = section(data, b".nv_fatbin")
    at, kept, gone = start, 0, 0
    while at + 16 <= start + size:
        magic, _, head, whole = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            at = data.find(struct.pack("<I", MAGIC), at, start + size)
            if at < 0:
                break
            continue
        found = entries_of(data, at + head, at + head + whole)
        ours = [e for e in found if e.kind == ELF and e.arch == sm]
        alone = all(e.arch == sm for e in found)
        for entry in found:
            if not ours or (entry in ours and not (lone and alone)):
                kept += entry.size
            else:
                data[entry.at : entry.at + entry.size] = bytes(entry.size)
                gone += entry.size
        at += head + whole
    return kept, gone


def is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def write_thin(wheel: Path, out: Path, sm: int, lone: bool) -> None:
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new,
    ):
        for info in old.infolist():
            if is_any(info.filename, DROP):
                continue
            data = bytearray(old.read(info))
            if is_any(info.filename, THIN):
                kept, gone = thin(data, sm, lone)
                print(f"GPU code: kept {kept / 2**20:.1f} MiB, zeroed {gone / 2**20:.1f} MiB")
            if info.filename.endswith("RECORD"):  # sizes and hashes of what is there no more
                lines = data.decode().splitlines()
                lines = [x for x in lines if not is_any(x.split(",")[0], (*DROP, *THIN))]
                data = bytearray("\n".join(lines).encode() + b"\n")
            new.writestr(info.filename, bytes(data))
    print(out, f"{out.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--lone", action="store_true")
    options = parser.parse_args()
    write_thin(options.wheel, options.out, options.sm, options.lone)


if __name__ == "__main__":
    main()
