"""Unpacking archives that come from the network: whole and harmless, or not at all.

Nothing an archive says is trusted. Names may not lead out of the folder, only plain files and folders are made, every
file is created new, and what is limited is the number of bytes really written, not the number a header states. All of
it happens in a folder beside the target that takes the target's name only after the last byte was right.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, Protocol, cast

from filelock import FileLock

from audiocl_bench.acquire.download import amount
from audiocl_bench.errors import CorpusError
from audiocl_bench.files import explain_os_error

Progress = Callable[[int, int | None], None]
"""Called with the bytes of the archive that are worked through and the archive's size in bytes."""

MAX_MEMBERS = 2_000_000
"""Members an archive may have; the largest corpora have some 100,000."""

_CHUNK = 1 << 20
_SMALLEST_LIMIT = 200_000_000
_LARGEST_RATIO = 100  # audio packs 3:1 at best, text 20:1; deflate reaches 1032:1
_HEADER_ROOM = 4096  # tar headers and padding per member, beside what it holds
_SLACK = 16 << 20
_LARGEST_READ = 1 << 20  # a tar's extended header is read at once; real ones have some hundred bytes
_LONGEST_PART = 255
_LONGEST_NAME = 2048
_DEEPEST = 64  # the standard library walks and deletes folders by recursion
_BLOCK = tarfile.BLOCKSIZE

# Everything with which the standard library answers a broken archive, apart from OSError.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,
)


def is_archive(path: Path) -> bool:
    """Return whether `path` is a file that begins as a zip or a tar (plain or in gzip, bzip2, xz), whatever its name.

    A damaged archive counts too: `extract` says what is wrong with it.
    """
    try:
        return path.is_file() and _kind(path) is not None
    except OSError:
        return False


def member_names(archive: Path, *, max_bytes: int | None = None) -> tuple[str, ...]:
    """Return the files that `extract` would write, as "/" paths in the archive's order, after the same checks of names.

    A compressed tar is read to its end for this.

    Raises:
        CorpusError: as in `extract`, except for what only writing can show.
    """
    archive = Path(archive)
    with _opened(archive, _limit(archive, max_bytes)) as contents:
        return tuple("/".join(member.parts) for member in contents.members if not member.is_folder)


def extract(archive: Path, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None) -> None:
    """Unpack a zip or a tar (plain or in gzip, bzip2, xz) into the new folder `target`, whole or not at all.

    Files get mode 0644, folders 0755, both the present time. What macOS adds to archives (`__MACOSX`, `.DS_Store`,
    `._*`) is left out. Names stay as they are; a zip's name without a declared encoding is read as UTF-8 if it is that,
    as tools on macOS write it, else as code page 437.

    Args:
        archive: the archive.
        target: the folder to make; there must be none, or an empty one.
        max_bytes: the most that may be unpacked; by default 200 MB or 100 times the archive's size, whichever is more.
        progress: see `Progress`.

    Raises:
        CorpusError: the archive is damaged, encrypted, of an unknown kind, empty or too large, a member would lie
            outside of `target`, is a link or device, or comes twice; `target` is in use or cannot be written. Nothing
            is left behind but an empty lock file beside `target`.
    """
    archive = Path(archive)
    target = Path(target).absolute()
    limit = _limit(archive, max_bytes)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            _check_target(archive, target)
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed: the lock is ours
            try:
                part.mkdir()
                part.chmod(0o755)
                with _opened(archive, limit) as contents:
                    _check_space(archive, part, contents.declared)
                    _Writer(archive, part, limit, progress).write(contents.members)
                part.rename(target)  # replaces an empty folder, and only that
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as cause:  # reading turns its own errors into CorpusError, so this is the disk
        raise CorpusError(explain_os_error(cause, target)) from cause


class _Source(Protocol):
    """A member's contents."""

    def read(self, n: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Member:
    """One member whose name was checked.

    Attributes:
        name: as the archive has it.
        parts: the path inside the target.
        is_folder: a folder, without contents.
        size: the length in bytes that the archive states.
        open: begins to read the contents.
        position: bytes of the archive worked through before the end of this member.
    """

    name: str
    parts: tuple[str, ...]
    is_folder: bool
    size: int
    open: Callable[[], _Source]
    position: Callable[[], int]


@dataclass(frozen=True)
class _Contents:
    """What an archive holds.

    Attributes:
        declared: bytes it will take at least, by its own account.
        members: to be read in order, each before the next.
    """

    declared: int
    members: Iterator[_Member]


class _Writer:
    """Writes members into a folder that nobody else uses."""

    def __init__(self, archive: Path, root: Path, limit: int, progress: Progress | None) -> None:
        self._archive = archive
        self._root = root
        self._limit = limit
        self._tell: Progress = progress or (lambda done, total: None)
        self._size = _size(archive)
        self._written = 0
        self._folders: set[tuple[str, ...]] = {()}

    def write(self, members: Iterator[_Member]) -> None:
        files = 0
        for member in members:
            self._check_path(member)
            if member.is_folder:
                self._folder(member.parts, member)
            else:
                self._folder(member.parts[:-1], member)
                self._file(member)
                files += 1
            self._tell(min(member.position(), self._size), self._size)
        if not files:
            raise CorpusError(f"{self._archive} holds no files: get another copy.")
        self._tell(self._size, self._size)

    def _folder(self, parts: tuple[str, ...], member: _Member) -> None:
        """Make a folder and those above it, one after the other, so that all of them get their mode."""
        missing = []
        while parts not in self._folders:
            missing.append(parts)
            parts = parts[:-1]
        for each in reversed(missing):
            path = self._root.joinpath(*each)
            try:
                path.mkdir()
            except FileExistsError:
                # The same folder in another letter case or Unicode form, or else a file.
                if not path.is_dir():
                    _refuse(self._archive, member.name, "would be a folder and a file at once")
            else:
                path.chmod(0o755)
            self._folders.add(each)

    def _file(self, member: _Member) -> None:
        if member.size > self._limit - self._written:
            self._too_large(member)
        _check_space(self._archive, self._root, member.size)
        path = self._root.joinpath(*member.parts)
        try:
            # Exclusive: the file system itself says whether two names are one, in letter case or Unicode form.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, IsADirectoryError):
            _refuse(self._archive, member.name, "would overwrite another member")
        written = 0
        with os.fdopen(handle, "wb", buffering=0) as sink, closing(self._open(member)) as source:
            os.fchmod(sink.fileno(), 0o644)
            while chunk := self._read(source, member):
                written += len(chunk)
                self._written += len(chunk)
                if self._written > self._limit:
                    self._too_large(member)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[sink.write(rest) :]
        if written != member.size:
            raise _damaged(self._archive, f"{_shown(member.name)} has {written:,} of {member.size:,} bytes")

    def _open(self, member: _Member) -> _Source:
        with _reading(self._archive, member.name):
            return member.open()

    def _read(self, source: _Source, member: _Member) -> bytes:
        with _reading(self._archive, member.name):
            return source.read(_CHUNK)

    def _check_path(self, member: _Member) -> None:
        if len(os.fsencode(str(self._root.joinpath(*member.parts)))) >= 4096:
            _refuse(self._archive, member.name, f"has too long a path below {self._root}")

    def _too_large(self, member: _Member) -> NoReturn:
        raise _bomb(self._archive, self._limit, f" (at {_shown(member.name)})")


# ------------------------------------------------------------------------------------------------------------- reading


@contextmanager
def _opened(archive: Path, limit: int) -> Iterator[_Contents]:
    """Open an archive of any kind."""
    kind = _kind(archive)
    if kind is None:
        raise CorpusError(
            f"{archive} is no archive that can be unpacked (zip, tar, tar.gz, tar.bz2, tar.xz): get another copy."
        )
    with archive.open("rb") as raw:
        if kind == "zip":
            yield _zip_contents(archive, raw, limit)
        else:
            # A plain tar's contents are as long as the tar; of a compressed one that much is certain.
            members = _tar_members(archive, raw, _DECOMPRESSORS[kind](raw), limit, packed=kind != "tar")
            yield _Contents(_size(archive), members)


def _zip_contents(archive: Path, raw: IO[bytes], limit: int) -> _Contents:
    with _reading(archive):
        bundle = zipfile.ZipFile(raw)
        infos = bundle.infolist()
    _check_count(archive, len(infos))
    checked = [(info, _checked_zip(archive, info)) for info in infos]
    wanted = [(info, parts) for info, parts in checked if parts is not None]
    declared = sum(info.file_size for info, _ in wanted)
    if declared > limit:
        raise _bomb(archive, limit, f" ({amount(declared)} by its own account)")
    return _Contents(declared, _zip_members(bundle, wanted))


def _zip_members(bundle: zipfile.ZipFile, wanted: list[tuple[zipfile.ZipInfo, tuple[str, ...]]]) -> Iterator[_Member]:
    done = 0
    for info, parts in wanted:
        done += info.compress_size

        def opened(info: zipfile.ZipInfo = info) -> _Source:
            return bundle.open(info)

        def position(done: int = done) -> int:
            return done

        yield _Member(info.orig_filename, parts, info.is_dir(), info.file_size, opened, position)


def _checked_zip(archive: Path, info: zipfile.ZipInfo) -> tuple[str, ...] | None:
    """Return where a zip's member lies below the target, or None if it is left out."""
    name = info.orig_filename  # `filename` ends at the first NUL
    parts = _checked_name(archive, _zip_name(info))
    is_folder = name.endswith("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        _refuse(archive, name, "is a symbolic link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        _refuse(archive, name, "is a device, a pipe or a socket")
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, masked headers
        _refuse(archive, name, "is encrypted", fix="unpack it with its password and add the folder")
    if is_folder and info.file_size:
        _refuse(archive, name, "is a folder with contents of its own")
    if not parts and not is_folder:
        _refuse(archive, name, "has no name")
    return parts if parts and not _left_out(parts) else None


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if info.flag_bits & 0x800 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _tar_members(archive: Path, raw: IO[bytes], data: IO[bytes], limit: int, *, packed: bool) -> Iterator[_Member]:
    """Read a tar from its beginning to its end, once: looking ahead in a compressed one means to unpack it twice."""
    stream = _Forward(archive, data, limit)
    yield from _tar_files(archive, raw, stream)
    if not stream.ends_with_zeros:
        # tarfile takes any header it cannot read for the end
        raise _damaged(archive, "it breaks off, or a header in it is unreadable")
    # The end of a compressed file holds its checksum. Of a plain tar, nothing that follows matters.
    while packed and stream.read(_LARGEST_READ):
        pass


def _tar_files(archive: Path, raw: IO[bytes], stream: _Forward) -> Iterator[_Member]:
    with _reading(archive):
        bundle = tarfile.TarFile(fileobj=cast("IO[bytes]", stream), mode="r", encoding="utf-8")
    count = 0
    while True:
        with _reading(archive):
            info = bundle.next()
            bundle.members = []  # type: ignore[attr-defined]  # kept for looking back, which is not done here
        if info is None:
            return
        count += 1
        _check_count(archive, count)
        stream.allow(_HEADER_ROOM)
        parts = _checked_tar(archive, info)
        if parts is None:
            continue

        def opened(info: tarfile.TarInfo = info) -> _Source:
            source = bundle.extractfile(info)
            assert source is not None
            return source

        yield _Member(info.name, parts, info.isdir(), info.size, opened, raw.tell)


def _checked_tar(archive: Path, info: tarfile.TarInfo) -> tuple[str, ...] | None:
    """Return where a tar's member lies below the target, or None if it is left out."""
    parts = _checked_name(archive, info.name)
    if info.issym():
        _refuse(archive, info.name, "is a symbolic link")
    if info.islnk():
        _refuse(archive, info.name, "is a hard link")
    if not info.isreg() and not info.isdir():
        _refuse(archive, info.name, "is a device, a pipe or of an unknown kind")
    if info.issparse():
        _refuse(archive, info.name, "is a sparse file")
    if info.size < 0:
        raise _damaged(archive, f"{_shown(info.name)} has a negative length")
    if not parts and not info.isdir():
        _refuse(archive, info.name, "has no name")
    return parts if parts and not _left_out(parts) else None


class _Forward:
    """A decompressed stream for `tarfile` that only goes forward and counts what comes out of it.

    Headers and skipped members count too; tarfile itself would follow a negative length backwards for ever and read a
    header of any stated length into memory.
    """

    def __init__(self, archive: Path, data: IO[bytes], limit: int) -> None:
        self._archive = archive
        self._data = data
        self._limit = limit
        self._allowed = limit + _SLACK
        self._position = 0
        self._last = b""

    def allow(self, more: int) -> None:
        """Raise the limit, since one more member was seen."""
        self._allowed += more

    @property
    def ends_with_zeros(self) -> bool:
        """Whether the last read gave one block of zeros: the mark at a tar's end."""
        return self._last == bytes(_BLOCK)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("a member that lies before its own header")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position

    def read(self, n: int) -> bytes:
        """Return `n` bytes, fewer only at the end."""
        if not 0 <= n <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {n:,} bytes")
        with _reading(self._archive):
            data = self._data.read(n)
            while len(data) < n and (more := self._data.read(n - len(data))):
                data += more
        self._last = data if n == _BLOCK else b""
        self._position += len(data)
        if self._position > self._allowed:
            raise _bomb(self._archive, self._limit, "")
        return data


def _gunzipped(raw: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))


def _bunzipped(raw: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", bz2.BZ2File(raw))


def _unxzed(raw: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", lzma.LZMAFile(raw))


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "tar": lambda raw: raw,
    "gzip": _gunzipped,
    "bzip2": _bunzipped,
    "xz": _unxzed,
}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


_TAR_NAME = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$")


def _kind(path: Path) -> str | None:
    """Return "zip", "tar", "gzip", "bzip2" or "xz" by the first bytes of a file, or None if it is no archive.

    A tar whose first header cannot be read is told by the file's name: it is damaged.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(_BLOCK)
            if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return "zip"
            kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
            raw.seek(0)
            try:
                tarfile.TarInfo.frombuf(_DECOMPRESSORS[kind](raw).read(_BLOCK), "utf-8", "surrogateescape")
            except (OSError, *_DAMAGE):
                return kind if _TAR_NAME.search(path.name.lower()) else None
    except OSError as cause:
        raise CorpusError(f"{path} cannot be read ({cause.strerror or cause}): check the path.") from cause
    return kind


# -------------------------------------------------------------------------------------------------------------- checks


def _checked_name(archive: Path, name: str) -> tuple[str, ...]:
    """Return the parts of a member's name, without "." and empty ones.

    Raises:
        CorpusError: it leads out of the folder, on this or another system, or cannot be the name of a file.
    """
    if "\0" in name:
        _refuse(archive, name, "has a NUL in its name")
    if name.startswith("/"):
        _refuse(archive, name, "has an absolute path")
    if re.match(r"[A-Za-z]:", name):
        _refuse(archive, name, "has a drive letter")
    if "\\" in name:
        _refuse(archive, name, "has a backslash in its name, which leads elsewhere on some systems")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        _refuse(archive, name, "has '..' in its path")
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        _refuse(archive, name, "has a name that this system cannot write")
    if max(lengths, default=0) > _LONGEST_PART or sum(lengths) + len(lengths) > _LONGEST_NAME:
        _refuse(archive, name, f"has too long a name (over {_LONGEST_PART} bytes, or {_LONGEST_NAME:,} with folders)")
    if len(parts) > _DEEPEST:
        _refuse(archive, name, f"lies more than {_DEEPEST} folders deep")
    return parts


def _left_out(parts: tuple[str, ...]) -> bool:
    """Whether a member is what macOS adds to archives: resource forks and window positions."""
    return "__MACOSX" in parts or parts[-1] == ".DS_Store" or parts[-1].startswith("._")


def _check_count(archive: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise CorpusError(f"{archive} has more than {MAX_MEMBERS:,} members: it is no corpus, get another copy.")


def _check_target(archive: Path, target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CorpusError(f"{archive} cannot be unpacked into {target}, which is no folder: name another one.")
    if target.is_dir() and any(target.iterdir()):
        raise CorpusError(f"{archive} cannot be unpacked into {target}, which is not empty: remove it or name another.")


def _check_space(archive: Path, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise CorpusError(
            f"{archive} needs {amount(need)} in {folder.parent} but only {amount(free)} are free: free some space or "
            f"point AUDIOCL_HOME at another disk."
        )


def _limit(archive: Path, max_bytes: int | None) -> int:
    return max(_SMALLEST_LIMIT, _LARGEST_RATIO * _size(archive)) if max_bytes is None else max_bytes


def _size(archive: Path) -> int:
    try:
        return archive.stat().st_size
    except OSError as cause:
        raise CorpusError(f"{archive} cannot be read ({cause.strerror or cause}): check the path.") from cause


# ------------------------------------------------------------------------------------------------------------ messages


@contextmanager
def _reading(archive: Path, member: str | None = None) -> Iterator[None]:
    """Turn whatever the readers of the standard library raise into one sentence."""
    at = f"at {_shown(member)}: " if member is not None else ""
    try:
        yield
    except NotImplementedError as cause:
        raise CorpusError(
            f"{archive} cannot be unpacked ({at}{_told(cause)}): unpack it with another tool and add the folder."
        ) from cause
    except RuntimeError as cause:
        if not isinstance(cause, RecursionError):  # a compression module that this Python was built without
            raise CorpusError(
                f"{archive} cannot be unpacked ({at}{_told(cause)}): unpack it with another tool and add the folder."
            ) from cause
        raise _damaged(archive, f"{at}headers without end") from cause
    except (OSError, *_DAMAGE) as cause:
        raise _damaged(archive, f"{at}{_told(cause)}") from cause


def _refuse(archive: Path, name: str, why: str, *, fix: str = "nothing was unpacked, get another copy") -> NoReturn:
    raise CorpusError(f"{archive} is refused because its member {_shown(name)} {why}: {fix}.")


def _damaged(archive: Path, how: str) -> CorpusError:
    return CorpusError(f"{archive} is truncated or damaged ({how}): delete it and download it again.")


def _bomb(archive: Path, limit: int, where: str) -> CorpusError:
    return CorpusError(
        f"{archive} unpacks to more than the {amount(limit)} allowed{where}: it is no corpus, get another copy."
    )


def _shown(name: str) -> str:
    """Return a member's name in quotes, on one line, escaped where a terminal could take it for a command."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def _told(cause: BaseException) -> str:
    return " ".join(str(cause).split()) or type(cause).__name__
