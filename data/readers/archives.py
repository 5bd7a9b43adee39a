"""Safe unpacking of a .zip or .tar archive of a data set into a temporary folder."""

import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import DataError

MAX_BYTES = 8 << 30  # of all unpacked members together
MAX_MEMBERS = 500_000

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # compressed; plain .tar has "ustar" at byte 257
_OTHER_MAGIC = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}


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

    No member is written outside the folder: zipfile changes such a name, tarfile refuses it. An
    archive that is damaged, encrypted or too large is a DataError.
    """
    with tempfile.TemporaryDirectory(prefix="dataset-") as folder:
        try:
            _unpack(path, folder)
        except DataError:
            raise
        except Exception as error:  # a damaged archive raises many types
            fault = f"{path} cannot be unpacked into {Path(folder).parent}"
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            remedy = "download it again, or unpack it, and give its content"
            if isinstance(error, OSError) and error.errno is not None:  # not of gzip or tarfile
                reason = error.strerror
                remedy = "free disk space there, or set TMPDIR to another folder"
            raise DataError(f"{fault} ({reason}); {remedy}") from error
        yield Path(folder)


def _unpack(path: Path, folder: str) -> None:
    with open(path, "rb") as file:
        is_zip = file.read(4) in _ZIP_MAGIC
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder, _limited(path, archive.infolist()))
        return
    with tarfile.open(path) as archive:
        archive.extractall(folder, _limited(path, archive), filter="data")
        # tarfile takes a damaged header for the end, which must be a block of zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end is missing")
        archive.fileobj.read(1 << 24)  # up to the checksum of a compressed file


def _limited(path: Path, members: Iterable[Any]) -> Iterator[Any]:
    """Yield members; those that exceed a limit are a DataError before they are unpacked."""
    total = 0
    for count, member in enumerate(members, start=1):
        # The declared size, of which zipfile and tarfile write no more.
        total += member.file_size if isinstance(member, zipfile.ZipInfo) else member.size
        if count > MAX_MEMBERS or total > MAX_BYTES:
            limits = f"more than {MAX_MEMBERS:,} members or {MAX_BYTES / 2**30:g} GiB"
            raise DataError(f"{path} has {limits}, the limits; unpack it, and give its folder")
        yield member
