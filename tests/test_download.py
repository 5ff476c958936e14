"""Downloads from a real server on this machine that stalls, breaks off, lies, changes its mind and refuses."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiocl_bench import __version__
from audiocl_bench.acquire import download
from audiocl_bench.acquire.download import fetch
from audiocl_bench.errors import CorpusError
from audiocl_bench.seeding import numpy_generator

ROOT = Path(__file__).resolve().parent.parent
BODY = numpy_generator(0, "download test").bytes(300_000)
OTHER = numpy_generator(1, "download test").bytes(300_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@dataclass
class Site:
    """A server whose answer to each request is the next of a list of functions; the last one answers for ever."""

    url: str = ""
    answers: list[Callable[[Handler], None]] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def starts(self) -> list[int | None]:
        """The first byte that each request asked for, None if it asked for all."""
        ranges = [headers.get("range") for headers in self.seen]
        return [int(text.removeprefix("bytes=").removesuffix("-")) if text else None for text in ranges]


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        number = len(self.site.seen)
        self.site.seen.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
        self.site.answers[min(number, len(self.site.answers) - 1)](self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


def serve(
    body: bytes = BODY,
    *,
    etag: str | None = '"v1"',
    modified: str | None = None,
    ranges: bool = True,
    conditions: bool = True,
    only: int | None = None,
    then: Callable[[Handler], None] | None = None,
    length: int | None = None,
    total: int | str | None = None,
) -> Callable[[Handler], None]:
    """Return an answer as a good server gives it, or one spoilt on purpose.

    Args:
        body: the file.
        etag: its ETag.
        modified: its Last-Modified.
        ranges: whether Range is honoured.
        conditions: whether If-Range is honoured.
        only: send that many bytes and no more, though all are announced.
        then: done after the bytes.
        length: the Content-Length announced, if not the true one.
        total: the total in Content-Range, if not the true one.
    """

    def answer(handler: Handler) -> None:
        asked = handler.headers["Range"] if ranges else None
        condition = handler.headers["If-Range"]
        if conditions and condition is not None and condition not in (etag, modified):
            asked = None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        whole = len(body) if total is None else total
        marks = {"ETag": etag, "Last_Modified": modified}
        if asked and start >= len(body):
            handler.head(416, Content_Range=f"bytes */{whole}", **marks)
            return
        rest = body[start:]
        announced = len(rest) if length is None else length
        if asked:
            handler.head(206, Content_Range=f"bytes {start}-{len(body) - 1}/{whole}", Content_Length=announced, **marks)
        else:
            handler.head(200, Content_Length=announced, **marks)
        handler.send(rest if only is None else rest[:only])
        if then is not None:
            then(handler)

    return answer


def status(number: int, **headers: object) -> Callable[[Handler], None]:
    return lambda handler: handler.head(number, Content_Length=0, **headers)


def stall(handler: Handler) -> None:
    handler.site.over.wait(30)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    with opened_site() as one:
        yield one


class opened_site:  # noqa: N801 - used like a function
    def __enter__(self) -> Site:
        site = Site()
        handler = type("ThisHandler", (Handler,), {"site": site})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        site.url = f"http://127.0.0.1:{self.server.server_address[1]}/corpus.zip"
        self.site = site
        return site

    def __exit__(self, *error: object) -> None:
        self.site.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Pauses(list[float]):
    """Stands in for `time.sleep` and notes what it was asked for."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def names(folder: Path) -> list[str]:
    """The files of a folder, without locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


class Stopped(Exception):  # noqa: N818 - no error
    """Ends a call where it would wait for its next try."""


def stop(seconds: float) -> None:
    raise Stopped


def leave_part(site: Site, target: Path, answer: Callable[[Handler], None], *, checksum: str | None = SHA) -> int:
    """Let a first call break off; return how much of the file it kept."""
    site.answers = [answer]
    with pytest.raises(Stopped):
        fetch(site.url, target, checksum=checksum, sleep=stop)
    site.seen.clear()
    return target.with_name(f"{target.name}.part").stat().st_size


# ------------------------------------------------------------------------------------------------------------ good days


def test_a_file_comes_whole(site: Site, tmp_path: Path) -> None:
    site.answers = [serve()]
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "folder" / "corpus.zip"
    done = fetch(site.url, target, size=len(BODY), checksum=SHA, progress=lambda *now: told.append(now))
    assert done == target
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["corpus.zip"]
    assert len(site.seen) == 1
    assert site.starts == [None]
    assert site.seen[0]["user-agent"] == f"audiocl/{__version__}"
    assert site.seen[0]["accept-encoding"] == "identity"
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


@pytest.mark.parametrize("checksum", [MD5, SHA, SHA.upper(), None])
def test_a_finished_file_needs_no_network(checksum: str | None, tmp_path: Path) -> None:
    (tmp_path / "corpus.zip").write_bytes(BODY)
    nowhere = "http://127.0.0.1:9/corpus.zip"
    fetch(nowhere, tmp_path / "corpus.zip", size=len(BODY), checksum=checksum, retries=1)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.zip"], "not even a lock"


@pytest.mark.parametrize("old", [BODY[:-1], OTHER])
def test_another_file_in_its_place_is_replaced_at_the_end(old: bytes, site: Site, tmp_path: Path) -> None:
    target = tmp_path / "corpus.zip"
    target.write_bytes(old)
    site.answers = [serve(OTHER[::-1]), serve()]
    with pytest.raises(CorpusError, match="sha256"):
        fetch(site.url, target, size=len(BODY), checksum=SHA)
    assert target.read_bytes() == old, "what failed replaces nothing"
    fetch(site.url, target, size=len(BODY), checksum=SHA)
    assert target.read_bytes() == BODY


def test_an_empty_file(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(b"")]
    fetch(site.url, tmp_path / "empty", size=0)
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_length_nobody_states(site: Site, tmp_path: Path) -> None:
    def unframed(handler: Handler) -> None:
        handler.head(200)
        handler.send(BODY)

    site.answers = [unframed]
    told: list[tuple[int, int | None]] = []
    fetch(site.url, tmp_path / "a", progress=lambda *now: told.append(now))
    fetch(site.url, tmp_path / "b", size=len(BODY))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == BODY
    assert told[-1] == (len(BODY), None)


def test_a_connection_that_stays_open_after_the_last_byte(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(then=stall)]
    fetch(site.url, tmp_path / "x", timeout=0.5, sleep=Pauses())
    assert len(site.seen) == 1


def test_names_with_spaces_and_accents_in_the_address(site: Site, tmp_path: Path) -> None:
    site.answers = [serve()]
    fetch(f"{site.url}/käse%20a b?x=1&y=[2]", tmp_path / "x")
    assert site.seen[0]["path"] == "/corpus.zip/k%C3%A4se%20a%20b?x=1&y=[2]"


# ------------------------------------------------------------------------------------------ stalls, breaks and resuming


def test_a_stall_is_given_up_and_resumed(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(only=100_000, then=stall), serve()]
    pauses = Pauses()
    fetch(site.url, tmp_path / "x", size=len(BODY), checksum=SHA, timeout=0.3, sleep=pauses)
    assert (tmp_path / "x").read_bytes() == BODY
    assert site.starts == [None, 100_000]
    assert site.seen[1]["if-range"] == '"v1"'
    assert pauses == [0.5]
    assert names(tmp_path) == ["x"]


def test_a_server_that_accepts_and_says_nothing(site: Site, tmp_path: Path) -> None:
    site.answers = [stall, serve()]
    fetch(site.url, tmp_path / "x", timeout=0.3, sleep=Pauses())
    assert (tmp_path / "x").read_bytes() == BODY
    site.answers = [stall]
    with pytest.raises(
        CorpusError, match=r"could not be downloaded, 1 try brought nothing new \(last: no answer for 0.3"
    ):
        fetch(site.url, tmp_path / "y", timeout=0.3, retries=1, sleep=Pauses())


def test_progress_resets_the_count_of_tries(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(only=25_000)]
    pauses = Pauses()
    fetch(site.url, tmp_path / "x", size=len(BODY), checksum=SHA, retries=1, sleep=pauses)
    assert (tmp_path / "x").read_bytes() == BODY
    assert site.starts == [None, *range(25_000, 300_000, 25_000)]
    assert pauses == [0.5] * 11


def test_no_progress_ends_after_the_tries_with_growing_pauses(site: Site, tmp_path: Path) -> None:
    """A server that ignores Range and always breaks off sends bytes each time, but never a new one."""
    site.answers = [serve(ranges=False, only=10_000)]
    pauses = Pauses()
    with pytest.raises(CorpusError) as raised:
        fetch(site.url, tmp_path / "x", size=len(BODY), retries=4, sleep=pauses)
    assert str(raised.value) == (
        f"{site.url} could not be downloaded, 4 tries in a row brought nothing new (last: the connection ended after "
        f"10,000 bytes of 300,000 bytes): 10,000 bytes are kept in {tmp_path / 'x.part'}, so run the command again to "
        f"go on."
    )
    assert len(site.seen) == 5, "one that brought something, four that did not"
    assert pauses == [0.5, 0.5, 1.0, 2.0]


def test_a_part_of_an_earlier_call_is_no_progress_of_this_one(site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [status(503)]
    with pytest.raises(CorpusError, match="2 tries in a row"):
        fetch(site.url, tmp_path / "x", checksum=SHA, retries=2, sleep=Pauses())
    assert len(site.seen) == 2


def test_range_ignored_starts_from_zero(site: Site, tmp_path: Path) -> None:
    kept = leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [serve(ranges=False)]
    told: list[int] = []
    fetch(site.url, tmp_path / "x", checksum=SHA, progress=lambda done, total: told.append(done))
    assert site.starts == [kept]
    assert told[0] == 0
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_broken_chunked_body_is_resumed(site: Site, tmp_path: Path) -> None:
    def chunked(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked", ETag='"v1"', Connection="close")
        handler.send(b"%x\r\n" % 5000 + BODY[:5000] + b"\r\n")
        handler.send(b"%x\r\n" % 5000 + BODY[5000:7000])
        handler.close_connection = True

    site.answers = [chunked, serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert site.starts == [None, 7000]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_reset_connection_is_resumed(site: Site, tmp_path: Path) -> None:
    def reset(handler: Handler) -> None:
        # A zero linger time makes close() send a reset instead of an orderly end.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        handler.connection.shutdown(socket.SHUT_RD)
        handler.connection.close()

    site.answers = [lambda handler: reset(handler), serve(only=100_000), serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert (tmp_path / "x").read_bytes() == BODY
    assert site.starts == [None, None, 100_000]


def test_an_answer_that_is_no_http(site: Site, tmp_path: Path) -> None:
    site.answers = [lambda handler: handler.send(b"SSH-2.0-OpenSSH\r\n\r\n"), serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_range_in_several_pieces(site: Site, tmp_path: Path) -> None:
    """A server may answer a range with a shorter one, which is no end of the file."""

    def piece(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        part = BODY[start : start + 150_000]
        said = f"bytes {start}-{start + len(part) - 1}/300000"
        handler.head(206, Content_Range=said, Content_Length=len(part), ETag='"v1"')
        handler.send(part)

    leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [piece]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert site.starts == [100_000, 250_000]
    assert (tmp_path / "x").read_bytes() == BODY


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=3000), st.lists(st.integers(0, 1500), max_size=5), st.booleans())
def test_any_sequence_of_breaks_gives_the_file(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, breaks: list[int], honest: bool
) -> None:
    folder = tmp_path_factory.mktemp("breaks")
    with opened_site() as site:
        site.answers = [*(serve(body, only=count, ranges=honest) for count in breaks), serve(body, ranges=honest)]
        fetch(site.url, folder / "x", size=len(body), retries=10, sleep=Pauses())
    assert (folder / "x").read_bytes() == body
    assert names(folder) == ["x"]
    if honest:
        held, expected = 0, []
        for count in [*breaks, len(body)]:
            expected.append(held or None)
            held += count
            if held >= len(body):
                break
        assert site.starts == expected


# --------------------------------------------------------------------------------------------------- killed and stopped


def test_ctrl_c_keeps_the_part(site: Site, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        if done >= 50_000:
            raise KeyboardInterrupt

    site.answers = [serve(only=60_000, then=stall), serve()]
    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, tmp_path / "x", checksum=SHA, progress=stop)
    kept = (tmp_path / "x.part").stat().st_size
    assert 50_000 <= kept <= 60_000
    assert names(tmp_path) == ["x.part", "x.part.json"]
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert site.starts == [None, kept]
    assert (tmp_path / "x").read_bytes() == BODY
    assert names(tmp_path) == ["x"]


CALL = "import sys; from pathlib import Path; from audiocl_bench.acquire.download import fetch\n" + (
    "fetch(sys.argv[1], Path(sys.argv[2]), checksum=sys.argv[3])\n"
)


def start_process(site: Site, target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CALL, site.url, str(target), SHA], cwd=ROOT)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.01)


def test_a_killed_process_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(only=1_234, then=stall), serve()]
    part = tmp_path / "x.part"
    process = start_process(site, tmp_path / "x")
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 1_234)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "x").exists()
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert site.starts == [None, 1_234]
    assert (tmp_path / "x").read_bytes() == BODY
    assert names(tmp_path) == ["x"]


def test_of_two_processes_one_downloads(site: Site, tmp_path: Path) -> None:
    gate = threading.Event()

    def slowly(handler: Handler) -> None:
        handler.head(200, Content_Length=len(BODY))
        handler.send(BODY[:1000])
        gate.wait(60)
        handler.send(BODY[1000:])

    site.answers = [slowly]
    process = start_process(site, tmp_path / "x")
    try:
        wait_until(lambda: bool(site.seen))
        results: list[Path] = []
        second = threading.Thread(target=lambda: results.append(fetch(site.url, tmp_path / "x", checksum=SHA)))
        second.start()
        second.join(0.3)
        assert second.is_alive(), "it waits"
        gate.set()
        second.join(60)
        assert process.wait(60) == 0
    finally:
        gate.set()
        process.kill()
        process.wait()
    assert results == [tmp_path / "x"]
    assert len(site.seen) == 1
    assert (tmp_path / "x").read_bytes() == BODY


# ------------------------------------------------------------------------------------------------ parts that do not fit


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"v1"'}, {"etag": '"v2"'}),
        ({"etag": '"v1"'}, {"etag": '"v2"', "conditions": False}),
        ({"etag": 'W/"v1"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"etag": 'W/"v2"', "conditions": False}),
        (
            {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": None, "modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
        (
            {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": None, "modified": "Tue, 02 Jan 2024 00:00:00 GMT", "conditions": False},
        ),
        ({"body": BODY + b"more"}, {"conditions": False}),
    ],
)
def test_a_file_that_changed_is_not_spliced(
    before: dict[str, Any], after: dict[str, Any], site: Site, tmp_path: Path
) -> None:
    """Whether the server heeds If-Range or not, and without the help of a checksum."""
    assert leave_part(site, tmp_path / "x", serve(**({"body": BODY} | before), only=100_000), checksum=None) == 100_000
    site.answers = [serve(**({"body": OTHER} | after))]
    fetch(site.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER
    assert site.starts[0] == 100_000
    assert site.starts[1:] in ([], [None])


def test_a_weak_tag_is_no_condition_for_a_range(site: Site, tmp_path: Path) -> None:
    day = "Mon, 01 Jan 2024 00:00:00 GMT"
    leave_part(site, tmp_path / "x", serve(etag='W/"v1"', modified=day, only=100_000))
    site.answers = [serve(etag='W/"v1"', modified=day)]
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert site.starts == [100_000]
    assert site.seen[0]["if-range"] == day


def test_without_any_mark_only_a_checksum_allows_to_resume(site: Site, tmp_path: Path) -> None:
    for name, checksum, expected in (("a", None, [None]), ("b", SHA, [100_000])):
        leave_part(site, tmp_path / name, serve(etag=None, only=100_000), checksum=checksum)
        site.answers = [serve(etag=None)]
        fetch(site.url, tmp_path / name, checksum=checksum)
        assert site.starts == expected
        assert (tmp_path / name).read_bytes() == BODY
        site.seen.clear()


@pytest.mark.parametrize("note", [None, b"", b"\xff", b"[]", b"{}", b'{"url": "x"}', b'{"url":', b"null"])
def test_a_part_without_a_readable_note_is_not_trusted(note: bytes | None, site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(OTHER[:1000])
    if note is not None:
        (tmp_path / "x.part.json").write_bytes(note)
    site.answers = [serve()]
    fetch(site.url, tmp_path / "x")
    assert site.starts == [None]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_part_of_another_address_is_not_trusted(site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "x", serve(OTHER, only=1000), checksum=None)
    site.answers = [serve()]
    fetch(f"{site.url}/other", tmp_path / "x")
    assert site.starts == [None]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_part_longer_than_the_catalogue_says_is_not_asked_about(site: Site, tmp_path: Path) -> None:
    whole_part(site, tmp_path / "x", BODY + b"!", None)
    site.answers = [serve()]
    fetch(site.url, tmp_path / "x", size=len(BODY))
    assert site.starts == [None]
    assert (tmp_path / "x").read_bytes() == BODY


def test_marks_that_a_later_answer_leaves_out_are_remembered(site: Site, tmp_path: Path) -> None:
    silent = serve(etag=None, conditions=False, only=50_000)
    site.answers = [serve(only=100_000), silent, serve(OTHER, etag='"v2"')]
    fetch(site.url, tmp_path / "x", sleep=Pauses())
    assert site.starts == [None, 100_000, 150_000]
    assert site.seen[2]["if-range"] == '"v1"'
    assert (tmp_path / "x").read_bytes() == OTHER


def test_the_note_says_what_the_part_is(site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "x", serve(only=1000))
    note = json.loads((tmp_path / "x.part.json").read_text())
    assert note == {"url": site.url, "etag": '"v1"', "modified": None, "total": len(BODY)}


def whole_part(site: Site, target: Path, body: bytes, total: int | None) -> None:
    """Put a part in place as a process leaves it that is killed before the last step."""
    target.with_name(f"{target.name}.part").write_bytes(body)
    note = {"url": site.url, "etag": '"v1"', "modified": None, "total": total}
    target.with_name(f"{target.name}.part.json").write_text(json.dumps(note))


@pytest.mark.parametrize("total", [len(BODY), None])
def test_416_for_a_complete_part(total: int | None, site: Site, tmp_path: Path) -> None:
    whole_part(site, tmp_path / "x", BODY, total)
    site.answers = [serve()]
    fetch(site.url, tmp_path / "x")
    assert site.starts == [300_000], "asked once, answered with 416"
    assert (tmp_path / "x").read_bytes() == BODY
    assert names(tmp_path) == ["x"]


def test_a_complete_part_with_its_checksum_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    whole_part(site, tmp_path / "x", BODY, len(BODY))
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert site.seen == []
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(
    ("kept", "etag"), [(OTHER + b"too long", '"v1"'), (OTHER + b"too long", '"v2"'), (OTHER, '"v2"')]
)
def test_416_for_a_part_of_something_else(kept: bytes, etag: str, site: Site, tmp_path: Path) -> None:
    whole_part(site, tmp_path / "x", kept, None)
    site.answers = [serve(etag=etag, conditions=False)]
    fetch(site.url, tmp_path / "x")
    assert site.starts == [len(kept), None]
    assert (tmp_path / "x").read_bytes() == BODY


def test_416_that_contradicts_the_catalogue(site: Site, tmp_path: Path) -> None:
    whole_part(site, tmp_path / "x", BODY, None)
    site.answers = [serve()]
    with pytest.raises(CorpusError, match=r"has 300,000 bytes but the catalogue states 300,001"):
        fetch(site.url, tmp_path / "x", size=300_001, sleep=Pauses())


def test_416_to_a_request_for_all(site: Site, tmp_path: Path) -> None:
    site.answers = [status(416)]
    with pytest.raises(CorpusError, match="HTTP 416"):
        fetch(site.url, tmp_path / "x", sleep=Pauses())
    assert len(site.seen) == 1


# ----------------------------------------------------------------------------------------------------------------- lies


def test_another_length_than_the_catalogue_is_refused_before_the_first_byte(site: Site, tmp_path: Path) -> None:
    site.answers = [serve()]
    with pytest.raises(CorpusError) as raised:
        fetch(site.url, tmp_path / "x", size=299_999, checksum=SHA, sleep=Pauses())
    assert str(raised.value) == (
        f"{site.url} has 300,000 bytes but the catalogue states 299,999: the file on the server was changed, or a "
        f"login page answers in its place; open the address in a browser to see which."
    )
    assert len(site.seen) == 1
    assert names(tmp_path) == []


def test_a_lied_total_of_a_range_is_refused(site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [serve(total=400_000)]
    with pytest.raises(CorpusError, match="has 400,000 bytes but the catalogue states 300,000"):
        fetch(site.url, tmp_path / "x", size=300_000, checksum=SHA, sleep=Pauses())
    assert (tmp_path / "x.part").stat().st_size == 100_000, "what was right is kept"


@pytest.mark.parametrize(("total", "length"), [("300000", 100_000), ("299999", None), ("*", 300_000)])
def test_contradicting_lengths_are_refused(total: str, length: int | None, site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [serve(total=total, length=length)]
    with pytest.raises(CorpusError, match=r"contradicting lengths .*the part is kept"):
        fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert (tmp_path / "x.part").read_bytes() == BODY[:100_000]


@pytest.mark.parametrize("said", ["bytes 0-299999/300000", "bytes 5-299999/300000", "pieces 1-2/3", None])
def test_a_range_that_was_not_asked_for_is_not_appended(said: str | None, site: Site, tmp_path: Path) -> None:
    def wrong(handler: Handler) -> None:
        handler.head(206, Content_Range=said)
        handler.send(b"x" * 200_000)

    leave_part(site, tmp_path / "x", serve(only=100_000))
    site.answers = [wrong, serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert site.starts == [100_000, None]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_length_that_promises_too_much(site: Site, tmp_path: Path) -> None:
    """Content-Length states 100 bytes that never come: retried, then said."""
    site.answers = [serve(length=300_100)]
    with pytest.raises(CorpusError, match=r"nothing new|300,000"):
        fetch(site.url, tmp_path / "x", retries=2, sleep=Pauses())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("chunked", [True, False])
def test_more_bytes_than_announced_are_refused(chunked: bool, site: Site, tmp_path: Path) -> None:
    def more(handler: Handler) -> None:
        if chunked:
            handler.protocol_version = "HTTP/1.1"
            handler.head(200, Transfer_Encoding="chunked", Connection="close")
            handler.send(b"%x\r\n" % 300_001 + BODY + b"!" + b"\r\n0\r\n\r\n")
            handler.close_connection = True
        else:
            handler.head(200)
            handler.send(BODY + b"!")

    site.answers = [more]
    with pytest.raises(CorpusError, match=r"sends more than the 300,000 bytes that were announced: .* was deleted"):
        fetch(site.url, tmp_path / "x", size=300_000, sleep=Pauses())
    assert len(site.seen) == 1
    assert names(tmp_path) == []


def test_an_endless_body_is_cut_at_the_stated_size(site: Site, tmp_path: Path) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.head(200)
        try:
            while sent < 1 << 28:
                handler.send(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            pass

    site.answers = [endless]
    with pytest.raises(CorpusError, match="sends more than the 300,000 bytes"):
        fetch(site.url, tmp_path / "x", size=300_000)
    assert names(tmp_path) == []


def test_bytes_after_the_content_length_are_no_part_of_the_file(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(then=lambda handler: handler.send(b"trailing"))]
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(("kind", "right"), [("md5", MD5), ("sha256", SHA)])
def test_a_wrong_checksum_deletes_the_part(kind: str, right: str, site: Site, tmp_path: Path) -> None:
    site.answers = [serve(OTHER)]
    with pytest.raises(CorpusError) as raised:
        fetch(site.url, tmp_path / "x", size=len(BODY), checksum=right)
    seen = hashlib.new(kind, OTHER).hexdigest()
    assert str(raised.value) == (
        f"{site.url} has the {kind} {seen} but the catalogue states {right.partition(':')[2]}: the part was deleted, "
        f"so run the command again; if it happens twice, the file on the server was changed."
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["md5:12", "sha1:" + "0" * 40, "0" * 64, "sha256:", "sha256:" + "g" * 64, "x:"])
def test_a_checksum_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not md5:<32 digits> or sha256:<64 digits>"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", checksum=text)


# ---------------------------------------------------------------------------------------------------- refusals, retries


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (404, "no longer there; look for it on the corpus' home page"),
        (410, "no longer there"),
        (403, "does not give it to everyone"),
        (401, "does not give it to everyone"),
        (400, "open the address in a browser"),
        (300, "open the address in a browser"),
    ],
)
def test_a_refusal_is_final(code: int, said: str, site: Site, tmp_path: Path) -> None:
    site.answers = [status(code)]
    pauses = Pauses()
    with pytest.raises(CorpusError, match=rf"^{site.url} cannot be downloaded \(HTTP {code} .*\): .*{said}") as raised:
        fetch(site.url, tmp_path / "x", sleep=pauses)
    assert "\n" not in str(raised.value)
    assert len(site.seen) == 1
    assert pauses == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [200, 202, 204, 206])
def test_a_success_without_the_file(code: int, site: Site, tmp_path: Path) -> None:
    site.answers = [status(code)]
    with pytest.raises(CorpusError, match=f"status {code} and no file|has 0 bytes but the catalogue states 300,000"):
        fetch(site.url, tmp_path / "x", size=len(BODY), sleep=Pauses())
    assert len(site.seen) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_a_busy_server_is_asked_again(code: int, site: Site, tmp_path: Path) -> None:
    site.answers = [status(code), status(code), serve()]
    pauses = Pauses()
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=pauses)
    assert (tmp_path / "x").read_bytes() == BODY
    assert pauses == [0.5, 1.0]


def test_a_busy_server_in_the_middle_loses_nothing(site: Site, tmp_path: Path) -> None:
    site.answers = [serve(only=100_000), status(503), status(503), serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses(), retries=3)
    assert site.starts == [None, 100_000, 100_000, 100_000]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_server_that_stays_busy(site: Site, tmp_path: Path) -> None:
    site.answers = [status(503)]
    pauses = Pauses()
    with pytest.raises(CorpusError, match=r"3 tries in a row .*503 Service Unavailable\): check the connection"):
        fetch(site.url, tmp_path / "x", retries=3, sleep=pauses)
    assert len(site.seen) == 3
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "0"}, 0.0),
        ({"Retry_After": "86400"}, 120.0),
        ({"Retry_After": "soon"}, 0.5),
        ({"Retry_After": "-3"}, 0.5),
        ({"Retry_After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry_After": "Fri, 31 Dec 2100 00:00:00 GMT"}, 120.0),
    ],
)
def test_retry_after(headers: dict[str, str], pause: float, site: Site, tmp_path: Path) -> None:
    site.answers = [status(429, **headers), serve()]
    pauses = Pauses()
    fetch(site.url, tmp_path / "x", sleep=pauses)
    assert pauses == [pause]


def test_a_date_to_retry_after_is_read_by_the_servers_clock() -> None:
    headers = HTTPMessage()
    headers["Retry-After"] = "Mon, 01 Jan 2001 00:00:42 GMT"
    headers["Date"] = "Mon, 01 Jan 2001 00:00:00 GMT"
    assert download._retry_after(headers) == 42.0


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        pauses = Pauses()
        with pytest.raises(CorpusError, match=r"2 tries in a row .*the server cannot be reached \(.*refused\)"):
            fetch(url, tmp_path / "x", retries=2, sleep=pauses)
    assert pauses == [0.5]


def test_pauses_stop_growing(site: Site, tmp_path: Path) -> None:
    site.answers = [status(500)]
    pauses = Pauses()
    with pytest.raises(CorpusError, match="10 tries"):
        fetch(site.url, tmp_path / "x", retries=10, sleep=pauses)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


# ------------------------------------------------------------------------------------------------- addresses, redirects


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/x", "data:,x", "x.zip", "", "http:///x", "https:", "file://elsewhere/x", "http://[::1/x", "://"],
)
def test_only_http_https_and_file(url: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"is not an address|names a file on another machine"):
        fetch(url, tmp_path / "x")
    assert names(tmp_path) == []


def test_an_address_with_an_impossible_port(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a web address"):
        fetch("http://127.0.0.1:port/x", tmp_path / "x", sleep=Pauses())


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_keep_the_range(code: int, site: Site, tmp_path: Path) -> None:
    elsewhere = serve(only=100_000)
    site.answers = [status(code, Location="/elsewhere"), elsewhere, status(code, Location="/elsewhere"), serve()]
    fetch(site.url, tmp_path / "x", checksum=SHA, sleep=Pauses())
    assert [headers["path"] for headers in site.seen] == ["/corpus.zip", "/elsewhere"] * 2
    assert site.starts == [None, None, 100_000, 100_000]
    assert (tmp_path / "x").read_bytes() == BODY


def test_redirects_in_a_circle(site: Site, tmp_path: Path) -> None:
    site.answers = [status(302, Location="/corpus.zip")]
    with pytest.raises(CorpusError, match=r"cannot be downloaded \(HTTP 302") as raised:
        fetch(site.url, tmp_path / "x", sleep=Pauses())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_out_of_the_web_are_refused(to: str, site: Site, tmp_path: Path) -> None:
    site.answers = [status(302, Location=to)]
    with pytest.raises(CorpusError, match=r"redirects to ftp|Redirection to url .* is not allowed"):
        fetch(site.url, tmp_path / "x", sleep=Pauses())
    assert names(tmp_path) == []


def test_https_is_never_left() -> None:
    def follow(before: str, after: str) -> urllib.request.Request | None:
        request = urllib.request.Request(before)
        return download._CarefulRedirects().redirect_request(request, BytesIO(), 302, "Found", HTTPMessage(), after)

    with pytest.raises(CorpusError, match="from https to http: this is not followed"):
        follow("https://127.0.0.1/a", "http://127.0.0.1/a")
    for before, after in (("https", "https"), ("http", "https"), ("http", "http")):
        followed = follow(f"{before}://127.0.0.1/a", f"{after}://127.0.0.1/b")
        assert followed is not None
        assert followed.full_url == f"{after}://127.0.0.1/b"


# ---------------------------------------------------------------------------------------------------------- local files


def test_a_file_address(tmp_path: Path) -> None:
    source = tmp_path / "käse a.zip"
    source.write_bytes(BODY)
    fetch(source.as_uri(), tmp_path / "x", size=len(BODY), checksum=SHA)
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_file_address_is_resumed_unless_the_file_changed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY)

    def stop_at_once(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    def begin(target: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "_CHUNK", 1000)
            fetch(source.as_uri(), target, progress=stop_at_once)

    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / name)
        assert (tmp_path / f"{name}.part").stat().st_size == 1000
    told: list[int] = []
    fetch(source.as_uri(), tmp_path / "a", progress=lambda done, total: told.append(done))
    assert told[0] == 1000
    assert (tmp_path / "a").read_bytes() == BODY
    source.write_bytes(OTHER)
    os.utime(source, ns=(1, 1))
    fetch(source.as_uri(), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == OTHER


def test_a_file_address_without_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CorpusError, match=r"^file://.* cannot be read \(.*\): check the address\.$"):
            fetch(path.as_uri(), tmp_path / "x", sleep=Pauses())


# ----------------------------------------------------------------------------------------------------------------- disk

Usage = namedtuple("Usage", "total used free")


def test_space_is_checked_before_anything_is_asked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 299_999))
    site.answers = [serve()]
    with pytest.raises(CorpusError) as raised:
        fetch(site.url, tmp_path / "x", size=300_000)
    assert str(raised.value) == (
        f"x needs 300,000 bytes more in {tmp_path} but only 299,999 bytes are free: free some space or point "
        f"AUDIOCL_HOME at another disk."
    )
    assert site.seen == []
    with pytest.raises(CorpusError, match="needs 300,000 bytes more"):
        fetch(site.url, tmp_path / "x")
    assert len(site.seen) == 1, "the server had to say how long it is"


def test_what_is_there_needs_no_space(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_part(site, tmp_path / "x", serve(only=100_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 200_000))
    site.answers = [serve()]
    fetch(site.url, tmp_path / "x", size=300_000, checksum=SHA)
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_disk_that_fills_up_keeps_the_part(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(done: int, total: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    site.answers = [serve()]
    with pytest.raises(CorpusError, match=r"^no space left to write .*x: free some space"):
        fetch(site.url, tmp_path / "x", checksum=SHA, progress=full)
    assert (tmp_path / "x.part").stat().st_size > 0
    fetch(site.url, tmp_path / "x", checksum=SHA)
    assert (tmp_path / "x").read_bytes() == BODY
    assert site.starts[1] is None or site.starts[1] > 0


def test_a_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"file/x cannot be (read|written)"):
        fetch("http://127.0.0.1:9/x", tmp_path / "file" / "x")
    with pytest.raises(CorpusError, match="is a folder"):
        fetch("http://127.0.0.1:9/x", tmp_path)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (999_999, "999,999 bytes"), (1_000_000, "1.0 MB"), (2_400_000_000, "2.4 GB")]
)
def test_amounts(count: int, said: str) -> None:
    assert download.amount(count) == said
