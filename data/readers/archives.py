"""A .zip or .tar(.gz) of a data set, unpacked with care into a folder that goes away again."""

from __future__ import annotations

import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import IO

from utils.errors import DataError

MAX_BYTES = 8 << 30  # of all members together, unpacked
MAX_MEMBERS = 500_000

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # compressed; a plain one says so at byte 257
_OTHER_MAGIC = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    is_file: bool
    size: int  # as declared: what is written is counted too
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a file's first bytes are those of a .zip or a .tar, compressed or not.

    Raises:
        DataError: they are those of an archive that only another program can unpack.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, name in _OTHER_MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is a {name} archive; unpack it, and name its folder")
    return head.startswith(_ZIP_MAGIC + _TAR_MAGIC) or head[257:262] == b"ustar"


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a temporary folder of an archive's files, and remove it when the block ends.

    Raises:
        DataError: the archive is damaged, cut off, encrypted or too large; a
            member would lie outside the folder, or is no plain file or folder;
            or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="faces-") as name:
        folder = Path(name)
        try:
            _unpack(path, folder)
        except DataError:
            raise
        except OSError as error:
            if error.errno is None:  # gzip's and tarfile's own, of damaged bytes
                raise _damaged(path, error) from error
            raise DataError(
                f"{path} could not be unpacked into {folder.parent} ({error.strerror}); "
                "free disk space there, or name another folder in TMPDIR"
            ) from error
        except Exception as error:  # a damaged archive raises a dozen kinds
            raise _damaged(path, error) from error
        yield folder


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    alone = isinstance(error, tarfile.ReadError) and path.suffix in (".gz", ".bz2", ".xz")
    return DataError(
        f"{path} is a damaged or cut-off archive ({reason}); fetch it anew"
        + ", or if it is a single file, no .tar, unpack it and name that" * alone
    )


def _unpack(path: Path, folder: Path) -> None:
    total = 0
    with open(path, "rb") as file:
        members = _zip_members if file.read(4) in _ZIP_MAGIC else _tar_members
    for count, member in enumerate(members(path), start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{path} holds more than {MAX_MEMBERS:,} members; unpack it yourself")
        target = folder / _safe_name(path, member)
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        room = MAX_BYTES - total
        with member.open() as packed, open(target, "wb") as file:
            written = _copy(packed, file, room) if member.size <= room else room + 1
        if written > room:
            raise DataError(
                f"{path} unpacks to more than {MAX_BYTES / 2**30:g} GiB, the limit; "
                "unpack it yourself, and name its folder"
            )
        if written != member.size:
            raise EOFError(f"{member.name} has {written} of its {member.size} bytes")
        total += written


def _copy(packed: IO[bytes], file: IO[bytes], room: int) -> int:
    """Copy until the end or until `room` is exceeded; return the number of bytes."""
    written = 0
    while written <= room and (block := packed.read(1 << 20)):
        written += file.write(block)
    return written


def _safe_name(path: Path, member: _Member) -> PurePath:
    name = PureWindowsPath(member.name)  # it knows slashes of both kinds, and drives
    if name.anchor or ".." in name.parts:
        fault = "would lie outside the folder"
    elif not (member.is_file or member.is_folder):
        fault = "is a link or a device"
    else:
        return PurePath(*name.parts)
    raise DataError(f"{path}: its member '{member.name}' {fault}; do not trust this archive")


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{path} is encrypted; unpack it, and name its folder")
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not made on Unix
            yield _Member(
                info.filename,
                info.is_dir(),
                kind in (0, stat.S_IFREG),
                info.file_size,
                lambda info=info: archive.open(info),
            )


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            yield _Member(
                info.name,
                info.isdir(),
                info.isfile(),
                info.size,
                lambda info=info: archive.extractfile(info),
            )
        archive.fileobj.seek(archive.offset)  # where tarfile stopped, be it at a damaged header
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("its end is missing")
        archive.fileobj.read(1 << 24)  # the padding too, for a checksum may stand behind it
