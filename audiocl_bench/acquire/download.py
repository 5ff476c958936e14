"""Downloads that survive stalls, kills and lying servers: resumed where they stopped, checked, moved into place whole.

While a download runs, its bytes lie in `<target>.part` and a note in `<target>.part.json` says which version of which
file they are the beginning of (address, ETag, Last-Modified, length). Later bytes are only ever appended to a part of
the same version (RFC 9110, sections 13.1.5 and 14: If-Range, Range, Content-Range), and `target` itself appears only
when length and checksum are right.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, Any, Protocol

from filelock import FileLock

from audiocl_bench import __version__
from audiocl_bench.errors import CorpusError
from audiocl_bench.files import canonical_json, explain_os_error, write_text

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be (None: the server does not say)."""

_CHUNK = 1 << 20
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 120.0  # a server that asks for an hour is better asked again by the user
_DIGITS = {"md5": 32, "sha256": 64}
_TRY_AGAIN = {408, 425, 429}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    retries: int = 5,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `target`, going on with what an earlier call left behind; return `target`.

    A `target` that already has this size and checksum is returned without a look at the network. Interrupted, whether
    by Ctrl-C, a kill or a lost connection, the part stays and the next call goes on from there. Of two processes with
    one target, one downloads and the other waits for it.

    Args:
        url: a http, https or file address. Redirects are followed, but never from https to http.
        target: the file to make; its folder is made too.
        size: the length in bytes that the catalogue states.
        checksum: "md5:<hex>" or "sha256:<hex>" of the whole file.
        progress: see `Progress`.
        timeout: seconds without a single byte after which the connection is given up and opened anew.
        retries: tries in a row without a new byte after which the download is given up.
        sleep: waits that many seconds between two tries.

    Raises:
        CorpusError: the file is not there, is not the one the catalogue describes, does not come, or does not fit on
            the disk; the message says what is kept and what to do.
    """
    _check_url(url)
    job = _Job(url, Path(target), size, _Checksum.parse(checksum, url) if checksum else None)
    # Without the lock, so that a finished file in a read-only folder is found too: it appears whole or not at all.
    if job.is_finished():
        return job.target
    lock = FileLock(job.target.with_name(f".{job.target.name}.lock"))
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, job.target)) from cause
    try:
        if not job.is_finished():
            _Download(job, progress, timeout, max(1, retries), sleep).run()
    except OSError as cause:  # the network's own errors never come this far
        raise CorpusError(explain_os_error(cause, job.target)) from cause
    finally:
        lock.release()
    return job.target


@dataclass(frozen=True)
class _Checksum:
    kind: str
    digest: str

    @staticmethod
    def parse(text: str, url: str) -> _Checksum:
        kind, _, digest = text.lower().partition(":")
        if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS.get(kind, 0)}}}", digest) or not digest:
            raise CorpusError(
                f"the checksum '{text}' of {url} is not md5:<32 digits> or sha256:<64 digits>: correct it."
            )
        return _Checksum(kind, digest)

    def of(self, path: Path) -> str:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.new(self.kind, usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class _Job:
    """What is wanted."""

    url: str
    target: Path
    size: int | None
    checksum: _Checksum | None

    def is_finished(self) -> bool:
        """Whether the target is there and is the file wanted (any file, if neither size nor checksum is known)."""
        try:
            if self.target.is_dir():
                raise CorpusError(
                    f"{self.target} is a folder, so {self.url} cannot be stored there: name another file."
                )
            if not self.target.is_file():
                return False
            if self.size is not None and self.target.stat().st_size != self.size:
                return False
            return self.checksum is None or self.checksum.of(self.target) == self.checksum.digest
        except OSError as cause:
            raise CorpusError(f"{self.target} cannot be read ({cause.strerror or cause}): check it.") from cause


@dataclass(frozen=True)
class _Version:
    """Which version of which file a part is the beginning of.

    Attributes:
        url: the address asked for.
        etag: the server's tag, as sent.
        modified: its Last-Modified, as sent.
        total: the whole length in bytes, if the server said so.
    """

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def condition(self) -> str | None:
        """The value for If-Range; a weak tag does not promise equal bytes and may not stand there."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def differs(self, other: _Version) -> bool:
        """Whether both say something about themselves that cannot be true of one file."""
        if self.etag and other.etag:
            tags_differ = self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        else:
            tags_differ = bool(self.modified and other.modified and self.modified != other.modified)
        return tags_differ or (None not in (self.total, other.total) and self.total != other.total)


class _Bytes(Protocol):
    """A body that can be read as it arrives."""

    def read1(self, n: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Reply:
    """Bytes `start` to `end` of a version; `end` is None if only the end of the connection will tell."""

    body: _Bytes
    version: _Version
    start: int
    end: int | None
    framed: bool
    """Whether the body stops at `end` by itself, so that nothing beyond it can be part of it."""


class _TransientError(Exception):
    """What may go better next time."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _StaleError(Exception):
    """The part is no beginning of what the server has now."""


class _NothingLeftError(Exception):
    """The part already has every byte."""


class _Download:
    """One download under the target's lock."""

    def __init__(
        self, job: _Job, progress: Progress | None, timeout: float, retries: int, sleep: Callable[[float], None]
    ) -> None:
        self._job = job
        self._tell: Progress = progress or (lambda done, total: None)
        self._timeout = timeout
        self._retries = retries
        self._sleep = sleep
        self._part = job.target.with_name(f"{job.target.name}.part")
        self._note = job.target.with_name(f"{job.target.name}.part.json")
        self._most: int | None = None  # the longest the part has been since the first answer

    def run(self) -> None:
        """Try until the file is whole, then check it and move it into place."""
        if self._job.size is not None:
            self._check_space(self._job.size - self._held())
        fruitless = 0
        while True:
            try:
                self._try()
                break
            except _TransientError as trouble:
                # Measured against the longest part so far: else a server that always starts anew and always breaks off
                # would be asked for ever.
                held = self._held()
                fruitless += 1
                if self._most is not None and held > self._most:
                    fruitless, self._most = 0, held
                if fruitless >= self._retries:
                    raise self._given_up(trouble, held) from trouble
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** max(0, fruitless - 1))
                self._sleep(pause if trouble.wait is None else trouble.wait)
        self._verify()
        self._publish()

    def _try(self) -> None:
        known = self._known()
        held = self._held() if known else 0
        total = self._job.size
        if total is None and known is not None:
            total = known.total
        if held and held == total and self._job.checksum:
            return  # the checksum decides; there is nothing to ask for
        try:
            try:
                reply = self._ask(held, known)
            except _StaleError:
                reply = self._ask(0, None)
        except _NothingLeftError:
            return
        try:
            self._receive(reply)
        finally:
            reply.body.close()

    def _known(self) -> _Version | None:
        """Return what the part is a beginning of, or None if there is no part that could be gone on with."""
        if not self._held():
            return None
        try:
            fields = json.loads(self._note.read_text(encoding="utf-8"))
            known = _Version(**fields)
        except (OSError, ValueError, TypeError):
            return None
        if known.url != self._job.url or (self._job.size is not None and self._held() > self._job.size):
            return None
        # Without a condition the server cannot tell whether the file changed; only a checksum would notice.
        return known if known.condition or self._job.checksum else None

    def _held(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    # ---------------------------------------------------------------------------------------------------------- asking

    def _ask(self, held: int, known: _Version | None) -> _Reply:
        """Open the connection and ask for everything from byte `held` on.

        Raises:
            _TransientError, _StaleError, _NothingLeftError: see there; _StaleError only if `held` is not 0.
            CorpusError: asking again would not help.
        """
        local = urllib.parse.urlsplit(self._job.url).scheme.lower() == "file"
        reply = self._open_file(held) if local else self._open_http(held, known)
        try:
            size, total = self._job.size, reply.version.total
            if size is not None and total is not None and size != total:
                raise self._wrong_size(total)
            if held and reply.start == held and known is not None and known.differs(reply.version):
                raise _StaleError
        except BaseException:
            reply.body.close()
            raise
        if reply.start == 0 or known is None:
            return reply
        new = reply.version  # a server may leave out of a later part what it said with the first
        merged = replace(
            new, etag=new.etag or known.etag, modified=new.modified or known.modified, total=new.total or known.total
        )
        return replace(reply, version=merged)

    def _open_file(self, held: int) -> _Reply:
        url = self._job.url
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        try:
            handle = path.open("rb")
            status = os.fstat(handle.fileno())
            start = held if held < status.st_size else 0
            handle.seek(start)
        except OSError as cause:
            raise CorpusError(f"{url} cannot be read ({cause.strerror or cause}): check the address.") from cause
        version = _Version(url, f'"{status.st_mtime_ns}-{status.st_size}"', None, status.st_size)
        return _Reply(handle, version, start, status.st_size, framed=False)

    def _open_http(self, held: int, known: _Version | None) -> _Reply:
        # A body compressed for the way would have another length and other ranges than the file.
        headers = {"User-Agent": f"audiocl/{__version__}", "Accept-Encoding": "identity"}
        if held and known is not None:
            headers["Range"] = f"bytes={held}-"
            if known.condition:
                headers["If-Range"] = known.condition
        request = urllib.request.Request(_quoted(self._job.url), headers=headers)
        try:
            response = _opener().open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, error.headers, str(error.reason), held, known) from error
        except (InvalidURL, UnicodeError) as error:
            raise CorpusError(f"{self._job.url} is not a web address ({error}): correct it.") from error
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from error
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        try:
            return self._understood(response, held)
        except BaseException:
            response.close()
            raise

    def _understood(self, response: HTTPResponse, held: int) -> _Reply:
        url, headers, length = self._job.url, response.headers, response.length
        if response.status == 200:
            version = _Version(url, headers["ETag"], headers["Last-Modified"], length)
            end = self._job.size if length is None else length
            return _Reply(response, version, 0, end, framed=length is not None)
        found = _CONTENT_RANGE.fullmatch((headers["Content-Range"] or "").strip())
        if response.status != 206 or not held:
            raise CorpusError(
                f"{url} was answered with status {response.status} and no file: open the address in a browser."
            )
        if found is None or int(found[1]) != held:
            raise _StaleError  # not the range that was asked for: take the whole file instead
        end = int(found[2]) + 1
        total = None if found[3] == "*" else int(found[3])
        if (length is not None and length != end - held) or end <= held or (total is not None and end > total):
            raise CorpusError(
                f"{url} was answered with contradicting lengths (Content-Range '{found[0]}', Content-Length {length}): "
                f"the server is faulty, try again later or from another address; the part is kept."
            )
        version = _Version(url, headers["ETag"], headers["Last-Modified"], total)
        return _Reply(response, version, held, end, framed=length is not None)

    def _refused(self, status: int, headers: Message, reason: str, held: int, known: _Version | None) -> Exception:
        """Return what to raise for an HTTP error status."""
        url = self._job.url
        if status == 416 and held and known is not None:
            return self._beyond(headers, held, known)
        if status in _TRY_AGAIN or status >= 500:
            return _TransientError(f"the server answered {status} {reason}", _retry_after(headers))
        if status in (404, 410):
            fix = "the file is no longer there; look for it on the corpus' home page and add that copy"
        elif status in (401, 403):
            fix = (
                "the server does not give it to everyone; get it in a browser, after logging in if need be, and add it"
            )
        else:
            fix = "open the address in a browser to see why"
        return CorpusError(f"{url} cannot be downloaded (HTTP {status} {' '.join(reason.split())}): {fix}.")

    def _beyond(self, headers: Message, held: int, known: _Version) -> Exception:
        """Return what to raise for 416: the part is as long as the file, or longer than it."""
        found = _UNSATISFIED.fullmatch((headers["Content-Range"] or "").strip())
        total = int(found[1]) if found else None
        expected = total if total is not None else self._job.size if self._job.size is not None else known.total
        now = _Version(self._job.url, headers["ETag"], headers["Last-Modified"], total)
        return _NothingLeftError() if held == expected and not known.differs(now) else _StaleError()

    def _unreachable(self, why: object) -> Exception:
        """Return what to raise if there is no answer."""
        if isinstance(why, ssl.SSLCertVerificationError):
            return CorpusError(
                f"the certificate of {self._job.url} is not valid ({why.verify_message}): check this machine's clock "
                f"and certificates."
            )
        if isinstance(why, TimeoutError):
            return _TransientError(f"no answer for {self._timeout:g} s")
        if isinstance(why, socket.gaierror):
            return _TransientError("the server's name cannot be resolved; is this machine online?")
        return _TransientError(f"the server cannot be reached ({_words(why)})")

    # ------------------------------------------------------------------------------------------------------- receiving

    def _receive(self, reply: _Reply) -> None:
        """Append the reply's body to the part.

        Raises:
            _TransientError: the body stopped early.
            CorpusError: it is longer than announced, or does not fit on the disk.
        """
        done, size = reply.start, self._job.size
        total = reply.version.total if reply.version.total is not None else size
        if self._most is None:
            self._most = done
        if done == 0:
            # Note first: a part without a note is never gone on with, a part with the wrong one would be.
            self._note.unlink(missing_ok=True)
            self._part.write_bytes(b"")
        if total is not None:
            self._check_space(total - done)
        write_text(self._note, canonical_json(asdict(reply.version)), error=CorpusError)
        with self._part.open("r+b") as sink:
            sink.seek(done)
            self._tell(done, total)
            while not (reply.framed and done == reply.end):
                chunk = self._next(reply.body)
                if not chunk:
                    break
                if reply.end is not None and done + len(chunk) > reply.end:
                    sink.close()
                    self._drop()
                    raise CorpusError(
                        f"{self._job.url} sends more than the {amount(reply.end)} that were announced: it is not the "
                        f"file of the catalogue; the part was deleted, open the address in a browser to see what it is."
                    )
                sink.write(chunk)
                sink.flush()  # whatever kills this process, what arrived is kept
                done += len(chunk)
                self._tell(done, total)
        if done < (reply.end or 0) or (total is not None and done < total):
            expected = total if total is not None else reply.end or 0
            raise _TransientError(f"the connection ended after {amount(done)} of {amount(expected)}")

    def _next(self, body: _Bytes) -> bytes:
        try:
            return body.read1(_CHUNK)
        except TimeoutError as error:
            raise _TransientError(f"no byte came for {self._timeout:g} s") from error
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk length that is no number
            raise _TransientError(f"the connection broke ({_words(error)})") from error

    def _check_space(self, need: int) -> None:
        folder = self._job.target.parent
        free = shutil.disk_usage(folder).free
        if need > free:
            raise CorpusError(
                f"{self._job.target.name} needs {amount(need)} more in {folder} but only {amount(free)} are free: "
                f"free some space or point AUDIOCL_HOME at another disk."
            )

    # ------------------------------------------------------------------------------------------------------- finishing

    def _verify(self) -> None:
        size, checksum = self._job.size, self._job.checksum
        if size is not None and self._held() != size:
            raise self._wrong_size(self._held())
        if checksum is None:
            return
        seen = checksum.of(self._part)
        if seen != checksum.digest:
            self._drop()
            raise CorpusError(
                f"{self._job.url} has the {checksum.kind} {seen} but the catalogue states {checksum.digest}: the part "
                f"was deleted, so run the command again; if it happens twice, the file on the server was changed."
            )

    def _publish(self) -> None:
        with self._part.open("rb+") as whole:
            os.fsync(whole.fileno())
        self._part.replace(self._job.target)
        self._note.unlink(missing_ok=True)
        folder = os.open(self._job.target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _drop(self) -> None:
        self._note.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def _wrong_size(self, seen: int) -> CorpusError:
        return CorpusError(
            f"{self._job.url} has {seen:,} bytes but the catalogue states {self._job.size:,}: the file on the server "
            f"was changed, or a login page answers in its place; open the address in a browser to see which."
        )

    def _given_up(self, trouble: _TransientError, held: int) -> CorpusError:
        tries = "1 try" if self._retries == 1 else f"{self._retries} tries in a row"
        kept = f"{amount(held)} are kept in {self._part}, so run the command again to go on" if held else ""
        return CorpusError(
            f"{self._job.url} could not be downloaded, {tries} brought nothing new (last: {trouble}): "
            f"{kept or 'check the connection and run the command again'}."
        )


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not to where the bytes could be changed on the way or come from somewhere else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the next request (see the base class)."""
        before, after = (urllib.parse.urlsplit(address).scheme.lower() for address in (req.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise CorpusError(
                f"{req.full_url} redirects to {newurl}, from {before} to {after}: this is not followed; get the file "
                f"in a browser and add it."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that speaks HTTP alone, through the proxies that the environment names."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _CarefulRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise CorpusError(f"{url!r} is not an address ({error}): correct it.") from error
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https", "file") or (scheme != "file" and not parts.netloc):
        raise CorpusError(
            f"{url!r} is not an address that can be downloaded: it must begin with https://, http:// or file://."
        )
    if scheme == "file" and parts.netloc not in ("", "localhost"):
        raise CorpusError(f"{url!r} names a file on another machine: write file:/// and an absolute path.")


def _quoted(url: str) -> str:
    """Escape what may not stand in a request line; what is escaped stays so."""
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _retry_after(headers: Message) -> float | None:
    """Return the seconds that a server asks to wait, at most `_LONGEST_RETRY_AFTER`."""
    text = (headers["Retry-After"] or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), _LONGEST_RETRY_AFTER)
    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    try:  # by the server's own clock if it says what time it is
        now = email.utils.parsedate_to_datetime(headers["Date"] or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        now = time.time()
    return min(max(0.0, then - now), _LONGEST_RETRY_AFTER)


def _words(why: object) -> str:
    """Return an error's text on one line, or its name if it has none."""
    text = getattr(why, "strerror", None) or str(why)
    return " ".join(str(text).split()) or type(why).__name__


def amount(count: int) -> str:
    """Say a number of bytes for people: "1,234 bytes", "5.0 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} bytes"
