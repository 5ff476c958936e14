"""Where a folder of result files lies: on the disk, or on another file system, named by a URL.

`place` reads what the user wrote. A path, and file://, is a `Folder`. S3, Google Cloud Storage, Azure (abfs://) and
HDFS are reached through pyarrow, every other scheme (memory://, az://, sftp:// ...) through fsspec and its packages;
all of them are `Remote`. Files are named relative to their place, with "/".

Remote files are read and written whole. On object stores a file that is being written is not there yet; elsewhere it is
written under another name and moved. Locks, checkpoints and what else unfinished runs need stay on this machine, below
the cache directory, in a folder named by a hash of the URL.

URLs may hold credentials (`s3://KEY:SECRET@bucket/folder`). They are in `address` alone, by which another process finds
the place; names and messages are without.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pyarrow as pa
from pyarrow import fs as arrow

from audiocl_bench import files
from audiocl_bench.errors import AudioclError, ResultsError

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

_AT_ONCE = 16  # requests to a remote file system; S3 answers each in some 50 ms, however small the file
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*([A-Za-z][A-Za-z0-9+.-]*)://")
_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_STORES = ("s3", "gcs", "abfs")  # of pyarrow: the first part of a path is a bucket, and a file is there when whole
_WHOLE = frozenset(("memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"))  # of fsspec: likewise whole
_NAMED_USERS = frozenset(("abfs", "abfss", "hdfs", "viewfs", "gs", "gcs", "sftp", "ssh", "smb", "ftp"))
"""Schemes whose URLs name a user or container before the @, which is no secret; of others it may be a key."""
_HARMLESS = frozenset(("scheme", "region", "endpoint_override", "project_id", "retry_limit_seconds"))
"""Parameters of URLs that may be shown. Others may be keys."""
_OURS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=30", "gcs": "retry_limit_seconds=30"}
"""One request for a small file instead of three, and no quarter of an hour for a server that is not there."""
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write s3://KEY:SECRET@BUCKET/FOLDER",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or log in with gcloud",
}
_SERVERS = {"s3": "AWS_ENDPOINT_URL, or ?endpoint_override=HOST:PORT&scheme=http behind the address"}

_NO_BUCKET = re.compile(r"no_?such_?bucket|(bucket|container)\W+(does ?n[o']t exist|not found)", re.I)
_DENIED = re.compile(
    r"access_?denied|access_?key|signature_?does|invalid_?client|credential|forbidden|unauthori|permission|"
    r"expired_?token|authenticat|\b40[13]\b",
    re.I,
)
_QUOTED = re.compile(r"'[^']*'")  # names of files, which may hold any word
_UNREACHED = re.compile(r"network_?connection|connect|resolve|time[d_-]?\s?out|unreachable|unavailable|curl", re.I)


def is_url(given: object) -> bool:
    """Tell whether a text names a place by URL."""
    return isinstance(given, str) and _URL.match(given) is not None


def place(given: str | os.PathLike[str]) -> Place:
    """Return the place that a text or path names.

    Raises:
        ResultsError: it looks like a URL and is none.
    """
    text = os.fspath(given)
    if is_url(given):
        scheme = urlsplit(text).scheme
        return _local(text) if scheme in ("file", "local") else Remote(text)
    if not isinstance(given, str) and (broken := re.match(r"([a-z][a-z0-9+.-]+):/[^/]", text)):
        raise ResultsError(f"a path cannot name {broken[1]}:// (it keeps one slash only): give it as text.")
    return Folder(Path(text))


def expanded(given: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Replace `~` at the beginning of a path; leave a URL alone."""
    return given if is_url(given) else Path(given).expanduser()


def _local(text: str) -> Folder:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ResultsError(f"{text} names no folder: write file:///FOLDER with three slashes, or the path alone.")
    return Folder(Path(unquote(parts.path)))


# ---------------------------------------------------------------------------------------------------------- on the disk


class Folder:
    """A folder of this machine. Making the object touches nothing.

    Attributes:
        path: the folder.
        name: how messages name the place; `NAME/FILE` names a file in it.
        typed: how a command names it, without credentials.
        work: folder of this machine for what unfinished runs need.
        private: no other process sees the place.
    """

    private = False

    def __init__(self, path: Path, *, copy_of: Remote | None = None) -> None:
        self.path, self._original = path, copy_of
        self.name = str(path) if copy_of is None else copy_of.name
        self.typed = str(path) if copy_of is None else copy_of.typed
        self.work = path / "work"

    @property
    def address(self) -> str:
        """By what another process finds the place, credentials included."""
        return str(self.path.absolute())

    @property
    def identity(self) -> str:
        """Equal for the same place."""
        return str(self.path.resolve()) if self._original is None else self._original.identity

    def listed(self, folder: str) -> list[str]:
        """Return the names of what lies in one of its folders; none if there is no such folder."""
        inside = self.path / folder
        if self.path.exists() and not self.path.is_dir():
            raise ResultsError(f"{self.path} is a file: point --results at a directory.")
        try:
            return [entry.name for entry in inside.iterdir()] if inside.is_dir() else []
        except OSError as cause:
            raise ResultsError(f"{inside} cannot be listed ({cause.strerror}): check its permissions.") from cause

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return (self.path / name).is_file()

    def source(self, name: str) -> Path | None:
        """Return what pyarrow reads a file from, or None if it is not there."""
        path = self.path / name
        return path if path.is_file() else None

    def each(self, function: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
        """Apply a function that reads a file each; to many at once where that is faster."""
        return [function(item) for item in items]

    def put(self, written: dict[str, Callable[[Path], Any]]) -> None:
        """Write files: all of them in full before the first is there. The last one goes first and comes last.

        Args:
            written: functions that write a file to the path they are given, by the file's name.
        """
        # The blocks end innermost first, which is in the order of `written`.
        with ExitStack() as blocks:
            parts: dict[str, Path] = {}
            for name in reversed(written):
                parts[name] = blocks.enter_context(files.atomic_path(self.path / name, error=ResultsError))
            for name, part in parts.items():
                written[name](part)
            (self.path / next(reversed(written))).unlink(missing_ok=True)

    def tidy(self, pattern: str) -> None:
        """Remove unfinished files that killed processes left; `pattern` is FOLDER/.NAME.*.part."""
        folder, _, name = pattern.rpartition("/")
        for part in (self.path / folder).glob(name):
            part.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise a ResultsError if nothing can be written there."""
        probe = self.work / ".writable"
        files.write_text(probe, "", error=ResultsError)
        probe.unlink(missing_ok=True)

    def holders(self, folder: str) -> tuple[Folder, ...]:
        """Return this place if it has a folder of this name, else those directly below it that have one."""
        if (self.path / folder).is_dir():
            return (self,)
        return tuple(Folder(found.parent) for found in sorted(self.path.glob(f"*/{folder}")) if found.is_dir())

    @contextmanager
    def on_disk(self, wanted: Callable[[str], bool], most: int) -> Iterator[Folder]:
        """Yield the place as a folder of this machine: itself, or a copy for as long as the block lasts.

        In a copy, files that are not `wanted` or have over `most` bytes are holes of the same name and size. Errors
        that leave the block name the place, not the copy.
        """
        yield self


# ------------------------------------------------------------------------------------------------------------ elsewhere


class Remote:
    """A folder on a file system that pyarrow or fsspec reaches; attributes and methods are those of `Folder`.

    Every error is a `ResultsError`: one sentence that names the URL and what to do.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        chain, _, inner = address.rpartition("::")
        try:
            parts = urlsplit(inner, allow_fragments=False)
            parameters = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            raise ResultsError("the address of the results cannot be read: write SCHEME://HOST/FOLDER.") from None
        self.scheme = parts.scheme
        user, _, host = parts.netloc.rpartition("@")
        if self.scheme in ("s3", "gs", "gcs") and (not host or ":" in host):
            # Without the text: what stands there may be a secret with a slash that is not escaped.
            raise ResultsError(
                f"the address of the results names no bucket: write {self.scheme}://BUCKET/FOLDER; a / in a key before "
                "an @ is written %2F."
            )
        user, _, password = user.partition(":")
        kept = user if self.scheme in _NAMED_USERS else ""
        shown = [(key, value) for key, value in parameters if key in _HARMLESS and "@" not in value]
        self._bucket = user if self.scheme in ("abfs", "abfss") else host
        body = f"{kept}@{host}" if kept else host
        prefix = f"{chain}::{self.scheme}://" if chain else f"{self.scheme}://"
        self.name = prefix + (body + parts.path).rstrip("/")
        self.typed = f"{self.name}?{urlencode(shown, safe='/:')}" if shown else self.name
        server = dict(shown).get("endpoint_override", "")
        self.identity = re.sub(r"(?<!:)/{2,}", "/", self.name) + (f"?endpoint_override={server}" if server else "")
        self.private = self.scheme == "memory"
        hidden = [password, *(value for item in parameters if item not in shown for value in item[1:])]
        hidden += [user] if not kept and len(user) > 7 else []
        self._secrets = {text for each in hidden for text in (each, unquote(each)) if len(text) > 3}

    def __repr__(self) -> str:
        return f"Remote({self.typed!r})"

    @property
    def work(self) -> Path:
        """Folder of this machine for what unfinished runs need."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name.partition("://")[2])[-60:].strip("-.")
        return files.home() / "remote" / f"{readable or 'results'}-{files.sha256_text(self.identity)[:16]}" / "work"

    # ---- what a place does ------------------------------------------------------------------------------------------

    def listed(self, folder: str) -> list[str]:
        """Return the names of the files in one of its folders; none if there is no such folder."""
        return [info.base_name for info in self._list(folder) if info.type == arrow.FileType.File]

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        system, path = self._at(name)
        info = self._tried("read", lambda: system.get_file_info(path))
        return bool(info.type == arrow.FileType.File)

    def source(self, name: str) -> pa.BufferReader | None:
        """Return what pyarrow reads a file from, its bytes in memory; None if it is not there."""
        data = self._read(name)
        return None if data is None else pa.BufferReader(data)

    def each(self, function: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
        """Apply a function that reads a file each, to many at once."""
        _ = self._opened  # once, not in every thread
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(function, items))  # after an error, what has not begun is left

    def put(self, written: dict[str, Callable[[Path], Any]]) -> None:
        """Write files, see `Folder.put`. If the connection breaks, the last one is not there."""
        data: dict[str, bytes] = {}
        with TemporaryDirectory(prefix="audiocl-") as folder:
            for number, (name, write) in enumerate(written.items()):
                part = Path(folder) / str(number)
                try:
                    write(part)
                    data[name] = part.read_bytes()
                except OSError as cause:
                    raise ResultsError(files.explain_os_error(cause, part)) from cause
        last = next(reversed(data))
        if self.holds(last):
            self._delete(last)
        for name, content in data.items():
            self._write(name, content)

    def tidy(self, pattern: str) -> None:
        """Remove unfinished files that killed processes left, see `Folder.tidy`."""
        if self._is_whole:
            return
        folder, _, name = pattern.rpartition("/")
        for found in self.listed(folder):
            if PurePosixPath(found).match(name):
                self._delete(f"{folder}/{found}")

    def check(self) -> None:
        """Raise an error if nothing can be written there, or into the folder of this machine that goes with it."""
        try:
            self.work.parent.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(mode=0o700, exist_ok=True)  # jobs are described there, with the credentials they need
        except OSError as cause:
            raise ResultsError(files.explain_os_error(cause, self.work)) from cause
        Folder(self.work.parent).check()
        self._write(".writable", b"")
        with contextlib.suppress(ResultsError):  # of the many, another process may have removed it
            self._delete(".writable")

    def holders(self, folder: str) -> tuple[Remote, ...]:
        """Return this place if it has a folder of this name, else those directly below it that have one."""
        inside = self._folders("")
        if folder in inside:
            return (self,)
        found = self.each(lambda name: folder in self._folders(name), inside)
        return tuple(self._below(name) for name, yes in zip(inside, found, strict=True) if yes)

    @contextmanager
    def on_disk(self, wanted: Callable[[str], bool], most: int) -> Iterator[Folder]:
        """Yield a copy on this machine, see `Folder.on_disk`."""
        with TemporaryDirectory(prefix="audiocl-results-") as temporary:
            copy = Path(temporary) / "results"
            try:
                self._fetch(copy, wanted, most)
                yield Folder(copy, copy_of=self)
            except AudioclError as error:
                raise type(error)(str(error).replace(str(copy), self.name)) from error

    # ---- requests ---------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> tuple[arrow.FileSystem, str]:
        """The file system, and the path on it."""
        if self.scheme in _ARROW and "::" not in self.address:
            ours = _OURS.get(self.scheme, "=")
            known = ours.partition("=")[0] in self.address
            more = [] if ours == "=" or known else [f"{self.address}{'&' if '?' in self.address else '?'}{ours}"]
            for text in (*more, self.address):
                try:
                    system, base = arrow.FileSystem.from_uri(text)
                    return system, base.rstrip("/")
                except pa.ArrowNotImplementedError:
                    break  # this pyarrow was built without it; fsspec may know
                except Exception as cause:
                    if text == self.address or not isinstance(cause, pa.ArrowInvalid):
                        raise self._explained(cause, "opened") from None  # the cause may tell the whole URL
        return self._through_fsspec()

    def _through_fsspec(self) -> tuple[arrow.FileSystem, str]:
        fsspec = importlib.import_module("fsspec")
        try:
            system, base = fsspec.core.url_to_fs(self.address)
        except ImportError as cause:
            first = (str(cause).splitlines() or [""])[0]
            package = re.search(r"\b(?:install|requires)\s+[\"']?([A-Za-z][\w.-]*)", first, re.I)
            fix = f"pip install {package[1]}" if package else "install what it names"
            raise ResultsError(
                f"{self.name} cannot be opened, because a package is missing ({first.rstrip('.')}): {fix}."
            ) from cause
        except Exception as cause:
            known = sorted({*_ARROW, "file", *fsspec.available_protocols()})
            if self.scheme in known or "not known" not in str(cause):
                raise self._explained(cause, "opened") from None
            near = difflib.get_close_matches(self.scheme, known, n=3, cutoff=0.5) or ["s3", "gs", "file"]
            raise ResultsError(
                f"{self.name}: nothing knows the scheme '{self.scheme}': did you mean "
                f"{' or '.join(f'{name}://' for name in near)}? A folder is written without ://."
            ) from None
        return arrow.PyFileSystem(arrow.FSSpecHandler(system)), base.rstrip("/")

    @cached_property
    def _is_whole(self) -> bool:
        """Whether a file that is being written is not there before it is whole."""
        system, _ = self._opened
        if not isinstance(system, arrow.PyFileSystem):
            return system.type_name in _STORES
        spoken = system.handler.fs.protocol
        return not _WHOLE.isdisjoint((spoken,) if isinstance(spoken, str) else spoken)

    def _at(self, name: str) -> tuple[arrow.FileSystem, str]:
        system, base = self._opened
        if isinstance(system, arrow.PyFileSystem):
            system.handler.fs.invalidate_cache()  # other processes write there too
        return system, f"{base}/{name}" if base and name else base or name

    def _below(self, name: str) -> Remote:
        head, mark, parameters = self.address.partition("?")
        below = Remote(f"{head.rstrip('/')}/{quote(name) if self.scheme in _ARROW else name}{mark}{parameters}")
        below.__dict__["_opened"] = self._opened[0], self._at(name)[1]
        return below

    def _list(self, folder: str, *, recursive: bool = False) -> list[arrow.FileInfo]:
        system, path = self._at(folder)
        selector = arrow.FileSelector(path, allow_not_found=True, recursive=recursive)
        found: list[arrow.FileInfo] = self._tried("listed", lambda: system.get_file_info(selector))
        if not found and system.type_name in _STORES:
            bucket = path.partition("/")[0]
            info = self._tried("listed", lambda: system.get_file_info(bucket))
            if info.type == arrow.FileType.NotFound:
                raise self._no_bucket()
        return found

    def _folders(self, folder: str) -> list[str]:
        return sorted(info.base_name for info in self._list(folder) if info.type == arrow.FileType.Directory)

    def _read(self, name: str) -> Any:
        system, path = self._at(name)

        def read() -> Any:
            try:
                with system.open_input_stream(path, compression=None) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

        return self._tried("read", read)

    def _write(self, name: str, data: bytes) -> None:
        system, path = self._at(name)

        def write() -> None:
            if self._is_whole and isinstance(system, arrow.PyFileSystem):
                system.handler.fs.pipe_file(path, data)  # in one piece: a file object would keep what an error left
            elif self._is_whole:
                with system.open_output_stream(path, compression=None) as stream:
                    stream.write(data)
            else:
                folder, _, own = path.rpartition("/")
                part = f"{folder}/.{own}.{os.urandom(4).hex()}.part"
                system.create_dir(folder, recursive=True)
                try:
                    with system.open_output_stream(part, compression=None) as stream:
                        stream.write(data)
                    if system.get_file_info(path).type == arrow.FileType.File:
                        system.delete_file(path)  # some refuse to move onto a file
                    system.move(part, path)
                except BaseException:
                    with contextlib.suppress(Exception):
                        system.delete_file(part)
                    raise

        self._tried("written", write)

    def _delete(self, name: str) -> None:
        system, path = self._at(name)

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                system.delete_file(path)

        self._tried("changed", delete)

    def _fetch(self, copy: Path, wanted: Callable[[str], bool], most: int) -> None:
        _, base = self._opened
        found = [info for info in self._list("", recursive=True) if info.type == arrow.FileType.File]
        sizes = {info.path.removeprefix(base).lstrip("/"): info.size or 0 for info in found}

        def fetch(name: str) -> None:
            if not {"..", ".", ""}.isdisjoint(name.split("/")) or "\0" in name:
                raise ResultsError(f"{self.name} holds {name!r}, which is no name of a file: remove it.")
            data = self._read(name) if wanted(name) and sizes[name] <= most else None
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                if data is None:
                    stream.truncate(sizes[name])
                else:
                    stream.write(data)

        try:
            copy.mkdir()
            self.each(fetch, sizes)
        except OSError as cause:
            raise ResultsError(files.explain_os_error(cause, copy)) from cause

    # ---- what went wrong --------------------------------------------------------------------------------------------

    def _tried(self, what: str, request: Callable[[], _Made]) -> _Made:
        try:
            return request()
        except Exception as cause:  # fsspec's packages raise whatever their clients do
            raise self._explained(cause, what) from None

    def _explained(self, cause: Exception, what: str) -> ResultsError:
        """Say in one sentence why nothing could be read or written, and what to do.

        The error goes on without its cause: that may tell the credentials of the URL.
        """
        text = f"{type(cause).__name__} {re.sub(_QUOTED, '', str(cause))}"
        told = re.sub(r"\s*\(Request ID: [^)]*\)", "", (str(cause).strip().splitlines() or [type(cause).__name__])[0])
        told = told.replace(self.address, self.name)
        for secret in self._secrets:
            told = told.replace(secret, "***")
        told = (told if len(told) <= 200 else f"{told[:197]}...").rstrip(".: ") or type(cause).__name__
        if _NO_BUCKET.search(text):
            return self._no_bucket()
        if isinstance(cause, ValueError | NotImplementedError):
            return ResultsError(f"{self.name} cannot be {what} ({told}): correct the address.")
        if isinstance(cause, PermissionError) or _DENIED.search(text):
            fix = _CREDENTIALS.get(self.scheme.replace("gcs", "gs"), "check the credentials for it")
            return ResultsError(f"{self.name} cannot be {what} with these credentials ({told}): {fix}.")
        if isinstance(cause, ConnectionError | TimeoutError) or _UNREACHED.search(text):
            fix = f" ({_SERVERS[self.scheme]})" if self.scheme in _SERVERS else ""
            return ResultsError(
                f"{self.name} cannot be {what}, because its server does not answer ({told}): check the network and the "
                f"address{fix}, then give the same command again."
            )
        return ResultsError(f"{self.name} cannot be {what} ({told}): check the address, then give the command again.")

    def _no_bucket(self) -> ResultsError:
        return ResultsError(f"{self.name}: there is no bucket '{self._bucket}': create it, or correct the address.")


Place: TypeAlias = Folder | Remote
"""Where results lie."""
