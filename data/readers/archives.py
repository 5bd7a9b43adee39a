"""Safe unpacking of a .zip or .tar archive of a data set into a temporary folder.

tarfile's own filter of unsafe members needs Python 3.10.12 or 3.11.4, and Debian 12 has 3.11.2.
"""

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath, PureWindowsPath
from typing import IO, NamedTuple

from utils.errors import DataError

MAX_BYTES = 8 << 30  # of all unpacked members together
MAX_MEMBERS = 500_000

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # compressed; plain .tar has "ustar" at byte 257
_OTHER_MAGIC = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}


class _Member(NamedTuple):
    name: str
    is_folder: bool
    is_file: bool
    size: int  # as declared in the archive
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a file starts as a .zip or a .tar does; RAR and 7-Zip are a DataError."""
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, name in _OTHER_MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is a {name} archive; unpack it, and give its folder")
    return head.startswith(_ZIP_MAGIC + _TAR_MAGIC) or head[257:262] == b"ustar"


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with the files of an archive, and remove it afterwards.

    Raises:
        DataError: The archive is damaged, encrypted or too large, a member would lie outside the
            folder or is neither a file nor a folder, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="dataset-") as name:
        folder = Path(name)
        try:
            _unpack(path, folder)
        except DataError:
            raise
        except Exception as error:  # a damaged archive raises many types
            if isinstance(error, OSError) and error.errno is not None:  # not of gzip or tarfile
                raise DataError(
                    f"{path} could not be unpacked into {folder.parent} ({error.strerror}); "
                    "free disk space there, or set TMPDIR to another folder"
                ) from error
            reason = (str(error) or type(error).__name__).splitlines()[0]
            message = f"{path} is a damaged or truncated archive ({reason}); download it again"
            if isinstance(error, tarfile.ReadError) and path.suffix in (".gz", ".bz2", ".xz"):
                message += ". If it is a single compressed file, unpack it"
            raise DataError(message) from error
        yield folder


def _unpack(path: Path, folder: Path) -> None:
    total, remedy = 0, "the limit; unpack it, and give its folder"
    with open(path, "rb") as file:
        members = _zip_members if file.read(4) in _ZIP_MAGIC else _tar_members
    for count, member in enumerate(members(path), start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{path} has more than {MAX_MEMBERS:,} members, {remedy}")
        target = folder / _safe_name(path, member)
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        total += member.size
        if total > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES / 2**30:g} GiB, {remedy}")
        # zipfile and tarfile read at most the declared size.
        with member.open() as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            size = file.tell()
        if size != member.size:
            raise EOFError(f"{member.name} has {size} of its {member.size} bytes")


def _safe_name(path: Path, member: _Member) -> PurePath:
    name = PureWindowsPath(member.name)  # accepts both kinds of slashes, and drives
    if name.anchor or ".." in name.parts:
        reason = "would lie outside the folder"
    elif not (member.is_file or member.is_folder):
        reason = "is a link or a device"
    else:
        return PurePath(*name.parts)
    raise DataError(f"{path}: the member '{member.name}' {reason}; do not trust this archive")


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{path} is encrypted; unpack it, and give its folder")
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if not created on Unix
            is_file, read = kind in (0, stat.S_IFREG), partial(archive.open, info)
            yield _Member(info.filename, info.is_dir(), is_file, info.file_size, read)


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            read = partial(archive.extractfile, info)
            yield _Member(info.name, info.isdir(), info.isfile(), info.size, read)
        # tarfile takes a damaged header for the end, which must be a block of zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end is missing")
        archive.fileobj.read(1 << 24)  # up to the checksum of a compressed file
