"""Archives that are good, damaged or meant to do harm, for the tests of unpacking."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile

GOOD = {"TOY/ADI/a.tif": b"adipose", "TOY/TUM/b.tif": b"tumor"}
LIMIT = 10_000_000


def make_zip(*entries, method=zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of the good members, then `entries`: pairs of a name or ZipInfo and content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in [*GOOD.items(), *entries]:
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_entry(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


def make_tar(*entries, mode="w:gz") -> bytes:
    """A tar of the good members, then `entries`: pairs of a name or TarInfo and content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in [*GOOD.items(), *entries]:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def encrypted() -> bytes:
    packed = bytearray(make_zip())
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


def lying_size(told: int) -> bytes:
    """A zip whose first member's header tells `told` bytes unpacked, in the directory at the end."""
    packed = bytearray(make_zip())
    struct.pack_into("<I", packed, packed.index(b"PK\x01\x02") + 24, told)
    return bytes(packed)


def overlapping() -> bytes:
    """300 names for the bytes of one compressed member, as a zip bomb without nesting has."""
    packed = make_zip(("TOY/ADI/z.tif", bytes(90_000)))
    directory = packed.index(b"PK\x01\x02")
    entries, end = packed[directory : packed.rindex(b"PK\x05\x06")], packed[packed.rindex(b"PK\x05\x06") :]
    last = entries[entries.rindex(b"PK\x01\x02") :]
    more = b"".join(last.replace(b"z.tif", f"{i:05d}".encode()) for i in range(300))
    end = bytearray(end)
    struct.pack_into("<HHI", end, 8, 303, 303, len(entries) + len(more))
    return packed[:directory] + entries + more + bytes(end)


def huge_tar_member() -> bytes:
    """A header that tells 10 GB, with nothing behind it."""
    info = tarfile.TarInfo("TOY/ADI/huge.tif")
    info.size = 10**10
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def sparse_tar() -> bytes:
    info = tar_entry("TOY/ADI/sparse.tif", tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    return bytes(header) + bytes(1024)


# file name, content, start of the name of the member that must be named, part of the reason
HOSTILE = {
    "zip parent path": ("a.zip", make_zip(("TOY/../../evil", b"x")), "TOY/../../evil", "parent folder"),
    "zip absolute path": ("a.zip", make_zip(("/tmp/evil", b"x")), "/tmp/evil", "absolute"),
    "zip drive letter": ("a.zip", make_zip(("C:/evil", b"x")), "C:/evil", "drive letter"),
    "zip backslash": ("a.zip", make_zip(("TOY\\..\\evil", b"x")), "TOY\\\\..\\\\evil", "backslash"),
    "zip NUL in a name": (
        "a.zip",
        make_zip(("TOY/a#", b"x")).replace(b"a#", b"a\0"),
        "TOY/a\\x00",
        "control character",
    ),
    "zip symbolic link": ("a.zip", make_zip((zip_entry("TOY/l", stat.S_IFLNK), b"/etc")), "TOY/l", "symbolic link"),
    "zip device": ("a.zip", make_zip((zip_entry("TOY/d", stat.S_IFBLK), b"")), "TOY/d", "block device"),
    "zip FIFO": ("a.zip", make_zip((zip_entry("TOY/p", stat.S_IFIFO), b"")), "TOY/p", "FIFO"),
    "zip same name twice": ("a.zip", make_zip(("TOY/ADI/./a.tif", b"x")), "TOY/ADI/./a.tif", "twice"),
    "zip same name in capitals": ("a.zip", make_zip(("TOY/ADI/A.TIF", b"x")), "TOY/ADI/A.TIF", "twice"),
    "zip file used as folder": (
        "a.zip",
        make_zip(("TOY/ADI/a.tif/x", b"x")),
        "TOY/ADI/a.tif",
        "both a file and a folder",
    ),
    "zip encrypted": ("a.zip", encrypted(), "TOY/ADI/a.tif", "encrypted"),
    "zip other compression": ("a.zip", make_zip(method=zipfile.ZIP_LZMA), "TOY/ADI/a.tif", "compression method 14"),
    "zip ratio bomb": ("a.zip", make_zip(("TOY/ADI/z.tif", bytes(5_000_000))), "TOY/ADI/z.tif", "bomb"),
    "zip ratio bomb among honest members": (
        "a.zip",
        make_zip(("TOY/noise", random.Random(0).randbytes(200_000)), ("TOY/ADI/z.tif", bytes(5_000_000))),
        "TOY/ADI/z.tif",
        "bomb",
    ),
    "zip overlapping bomb": ("a.zip", overlapping(), "TOY/ADI/", "bomb"),
    "zip too large": (
        "a.zip",
        make_zip(("TOY/z", bytes(LIMIT)), method=zipfile.ZIP_STORED),
        "TOY/z",
        "limit 10,000,000",
    ),
    "zip header tells less": ("a.zip", lying_size(3), "TOY/ADI/a.tif", "Bad CRC-32"),
    "zip header tells more": ("a.zip", lying_size(5000), "TOY/ADI/a.tif", "header tells 5,000 bytes, 7"),
    "zip truncated": ("a.zip", make_zip()[:-30], "", "truncated or damaged"),
    "zip name too long": ("a.zip", make_zip(("TOY/" + "n" * 300, b"x")), "TOY/nnn", "too long"),
    "tar parent path": ("a.tar.gz", make_tar(("../evil", b"x")), "../evil", "parent folder"),
    "tar absolute path": ("a.tar.gz", make_tar(("/tmp/evil", b"x")), "/tmp/evil", "absolute"),
    "tar drive letter": ("a.tgz", make_tar(("C:evil", b"x")), "C:evil", "drive letter"),
    "tar backslash": ("a.tar", make_tar(("TOY\\evil", b"x"), mode="w:"), "TOY\\\\evil", "backslash"),
    "tar symbolic link": (
        "a.tar.gz",
        make_tar((tar_entry("TOY/l", tarfile.SYMTYPE, ".."), b"")),
        "TOY/l",
        "symbolic link",
    ),
    "tar hard link": (
        "a.tar.gz",
        make_tar((tar_entry("TOY/h", tarfile.LNKTYPE, "TOY/ADI/a.tif"), b"")),
        "TOY/h",
        "hard link",
    ),
    "tar character device": (
        "a.tar.gz",
        make_tar((tar_entry("TOY/c", tarfile.CHRTYPE), b"")),
        "TOY/c",
        "character device",
    ),
    "tar FIFO": ("a.tar.gz", make_tar((tar_entry("TOY/p", tarfile.FIFOTYPE), b"")), "TOY/p", "FIFO"),
    "tar sparse file": ("a.tar", sparse_tar(), "TOY/ADI/sparse.tif", "sparse"),
    "tar same name in capitals": ("a.tar.gz", make_tar(("toy/adi/A.tif", b"x")), "toy/adi/A.tif", "twice"),
    "tar header of 10 GB": ("a.tar.gz", huge_tar_member(), "TOY/ADI/huge.tif", "bomb"),
    "tar too large": ("a.tar", make_tar(("TOY/z", bytes(LIMIT)), mode="w:"), "TOY/z", "limit 10,000,000"),
    "tar cut between members": ("a.tar", make_tar(mode="w:")[:1024], "TOY/ADI/a.tif", "does not end after it"),
    "tar cut inside a member": ("a.tar", make_tar(mode="w:")[:700], "", "truncated or damaged"),
    "tar damaged header": (
        "a.tar",
        make_tar(mode="w:").replace(b"TOY/TUM", b"TOY/XXX"),
        "TOY/ADI",
        "does not end after it",
    ),
    "tar something behind the end": ("a.tar", make_tar(mode="w:") + b"more", "TOY/TUM", "does not end after it"),
    "tar.gz truncated": ("a.tar.gz", make_tar()[:-20], "", "truncated or damaged"),
    "not an archive": ("a.zip", b"<html>Sign in</html>", "", "truncated or damaged"),
    "another format": ("a.7z", b"7z", "", "its name ends in none of"),
    "no such folder inside": ("a.zip", make_zip().replace(b"TOY", b"YOT"), "", "it holds no folder TOY"),
}
