"""Results elsewhere: the same files on S3 (moto's server) and on fsspec's systems as on the disk, and how it fails."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import json
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from probes import Honest, Log, plan_of
from test_cli import QUICK, Call, assert_refused, call, finished
from test_results import make_result

import audiocl_bench as audiocl
from audiocl_bench import files, places, runner
from audiocl_bench.errors import ResultsError, UnknownNameError
from audiocl_bench.method import Session
from audiocl_bench.places import Folder, Remote, place
from audiocl_bench.report.leaderboard.site import build as build_site
from audiocl_bench.results import SCHEMAS, ResultsDir, read_each, result_dirs, results_at
from audiocl_bench.runner import Material, execute, run_id
from audiocl_bench.submission import collection

__all__ = ["call", "finished"]  # fixtures, used by name

fsspec = pytest.importorskip("fsspec")
REGISTRY = importlib.import_module("fsspec.registry")  # `fsspec.registry` is a mapping in it
KEY, SECRET = "AKIAEXAMPLE7", "s3cr3t+of/mine"


# ------------------------------------------------------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """HOST:PORT of a server that speaks S3 and keeps everything in memory."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


class Bucket:
    """A bucket of its own for every test, looked at without pyarrow."""

    def __init__(self, server: str, name: str) -> None:
        self.server, self.name = server, name
        self._ask("PUT", "")

    def url(self, folder: str = "results") -> str:
        return f"s3://{self.name}/{folder}"

    def names(self) -> list[str]:
        """Names of the objects, without the empty ones that stand for folders."""
        told = self._ask("GET", "?list-type=2").decode()
        return sorted(key for key in re.findall("<Key>(.*?)</Key>", told) if not key.endswith("/"))

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/{key}")

    def put(self, key: str, data: bytes) -> None:
        self._ask("PUT", f"/{key}", data)

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        headers = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request",
            "Content-Type": "application/octet-stream",
        }
        request = urllib.request.Request(
            f"http://{self.server}/{self.name}{path}", data=data, method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


@pytest.fixture
def bucket(moto: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, with the environment that leads to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{moto}")
    return Bucket(moto, f"bucket-{files.sha256_text(request.node.nodeid)[:16]}")


class Refusal(http.server.BaseHTTPRequestHandler):
    """Answers every request as S3 does for a key that it does not know."""

    def answer(self) -> None:
        text = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key here.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - the names http.server asks for

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def refusing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let AWS_ENDPOINT_URL name a server that knows nobody."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


class Memory(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """fsspec's file system in memory, as one on which a file that is being written is there already."""

    protocol = "drawer"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class it comes from
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    gate: threading.Barrier | None = None
    refuse = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("drawer://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and self.gate is not None:
            self.gate.wait(30)
        if mode == "wb" and self.refuse and self.refuse in path:
            raise OSError("the drawer is stuck")
        return super()._open(path, mode, **options)


@pytest.fixture
def drawer(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """Make drawer:// known, and empty."""
    monkeypatch.setitem(REGISTRY._registry, "drawer", Memory)
    Memory.store.clear()
    Memory.pseudo_dirs[:] = [""]
    monkeypatch.setattr(Memory, "gate", None)
    monkeypatch.setattr(Memory, "refuse", "")
    return Memory


@pytest.fixture(params=["folder", "memory", "drawer", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for results of every kind."""
    if request.param == "folder":
        return str(tmp_path / "elsewhere")
    if request.param == "s3":
        return str(request.getfixturevalue("bucket").url("some/where"))
    if request.param == "drawer":
        request.getfixturevalue("drawer")
    return f"{request.param}://{files.sha256_text(request.node.nodeid)[:12]}/where"


# --------------------------------------------------------------------------------------------------- addresses, secrets


@pytest.mark.parametrize(
    ("given", "name", "typed"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://key:secret@bucket/a", "s3://bucket/a", "s3://bucket/a"),
        (
            "s3://k:s@bucket/a?endpoint_override=127.0.0.1:5000&scheme=http&session=abc",
            "s3://bucket/a",
            "s3://bucket/a?endpoint_override=127.0.0.1:5000&scheme=http",
        ),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("gs://anonymous@bucket/a", "gs://anonymous@bucket/a", "gs://anonymous@bucket/a"),
        ("abfs://box:pw@host.net/a?client_secret=x", "abfs://box@host.net/a", "abfs://box@host.net/a"),
        ("sftp://me:pw@host:22/a", "sftp://me@host:22/a", "sftp://me@host:22/a"),
        ("oss://key:secret@host/a", "oss://host/a", "oss://host/a"),
        ("memory://a/b", "memory://a/b", "memory://a/b"),
        ("simplecache::s3://k:s@bucket/a", "simplecache::s3://bucket/a", "simplecache::s3://bucket/a"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(given: str, name: str, typed: str) -> None:
    found = place(given)
    assert isinstance(found, Remote)
    assert (found.name, found.typed, found.address) == (name, typed, given)


@pytest.mark.parametrize("given", ["here", "a/b", "/a:b/c", "s3", "s3:bucket", "a::b", "C:/x"])
def test_whatever_has_no_scheme_is_a_folder(given: str) -> None:
    assert isinstance(place(given), Folder)
    assert place(given).name == str(Path(given))
    assert not places.is_url(given)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    found = place(f"file://{tmp_path}/a%20b")
    assert isinstance(found, Folder)
    assert found.path == tmp_path / "a b"
    assert found.work == tmp_path / "a b" / "work"
    with pytest.raises(ResultsError, match="three slashes"):
        place("file://server/a")


def test_one_place_has_one_folder_for_work_whatever_the_credentials(private_home: Path) -> None:
    plain, other = place("s3://bucket/a"), place("s3://bucket/b")
    for same in ("s3://bucket/a/", "s3://key:secret@bucket/a", "s3://bucket//a?scheme=http", "s3://bucket/a?region=x"):
        assert place(same).work == plain.work
        assert place(same).identity == plain.identity
    assert other.work != plain.work
    assert place("s3://bucket/a?endpoint_override=h:1").work != plain.work
    assert plain.work.is_relative_to(private_home)
    assert re.fullmatch(r"bucket-a-[0-9a-f]{16}/work", plain.work.relative_to(private_home / "remote").as_posix())


@pytest.mark.parametrize("given", ["s3://", "s3://AKIA:12/34@bucket/a", "s3://AKIA:se/cret@bucket/a", "gs:///a"])
def test_what_names_no_bucket_is_not_repeated(given: str) -> None:
    with pytest.raises(ResultsError, match=r"names no bucket: write (s3|gs)://BUCKET/FOLDER") as told:
        place(given)
    assert "cret" not in str(told.value)
    assert "AKIA" not in str(told.value)


def test_a_path_object_is_no_url() -> None:
    with pytest.raises(ResultsError, match=r"a path cannot name s3://.*give it as text"):
        place(Path("s3://bucket/a"))


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ResultsError, match=r"s33://bucket/a: nothing knows the scheme 's33': did you mean s3://"):
        ResultsDir("s33://bucket/a").run_ids()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"class": "no_such_package_for_files.System", "err": "Install no-such-package to access cupboards"}
    monkeypatch.setitem(REGISTRY.known_implementations, "cupboard", absent)
    with pytest.raises(ResultsError, match=r"cupboard://a/b cannot be opened.*: pip install no-such-package\.$"):
        ResultsDir("cupboard://k:secret@a/b").run_ids()


def test_a_parameter_that_nobody_knows_is_named() -> None:
    with pytest.raises(
        ResultsError, match=r"s3://bucket/a cannot be opened \(.*'colour'\): correct the address"
    ) as told:
        ResultsDir("s3://key:s3cret@bucket/a?endpoint_override=127.0.0.1:1&colour=blue").run_ids()
    assert "s3cret" not in str(told.value)


def test_an_address_that_cannot_be_parsed_is_not_repeated() -> None:
    with pytest.raises(ResultsError, match="s3://bucket/a cannot be opened") as told:
        ResultsDir("s3://key:a b@bucket/a").run_ids()
    assert "a b" not in str(told.value)
    assert "key:" not in str(told.value)


# ----------------------------------------------------------------------------------------- one contract for every place


def test_results_anywhere_are_those_of_a_folder(anywhere: str, tmp_path: Path) -> None:
    here, there = ResultsDir(tmp_path / "here"), ResultsDir(anywhere)
    assert there.run_ids() == ()
    assert len(there.runs()) == 0
    assert result_dirs(there) == ()
    assert not there.has("ncm-esc50-0")
    with pytest.raises(UnknownNameError):
        there.run("ncm-esc50-0")
    for results in (here, there):
        assert results.write(make_result()) == "ncm-esc50-0"
        results.write(make_result("pace@x-esc50+1", seed=1))
    assert there.has("ncm-esc50-0")
    assert there.run_ids() == here.run_ids() == ("ncm-esc50-0", "pace@x-esc50+1")
    pd.testing.assert_frame_equal(there.runs(), here.runs())
    pd.testing.assert_frame_equal(there.sessions(), here.sessions())
    for identity in here.run_ids():
        assert there.run(identity) == here.run(identity)
        pd.testing.assert_frame_equal(there.predictions(identity), here.predictions(identity))
        assert there.recompute(identity) == {}
    assert there.find("pace") == "pace@x-esc50+1"
    with there.on_disk() as copy:
        for path in here.path.rglob("*.parquet"):
            assert (copy.path / path.relative_to(here.path)).read_bytes() == path.read_bytes()
        assert len(list(copy.path.rglob("*.parquet"))) == 6
    with there.on_disk(["ncm-esc50-0"]) as copy:
        assert copy.predictions("ncm-esc50-0").equals(here.predictions("ncm-esc50-0"))
    tables = read_each("predictions", dict.fromkeys(reversed(here.run_ids()), there))
    assert list(tables) == ["pace@x-esc50+1", "ncm-esc50-0"]
    assert tables["ncm-esc50-0"].equals(here.predictions("ncm-esc50-0"))
    assert [found.name for found in result_dirs(there)] == [there.name]
    there.place.check()
    there.tidy("ncm-esc50-0")
    assert len(there.run_ids()) == 2


def test_a_run_is_replaced_only_when_asked(anywhere: str) -> None:
    results = ResultsDir(anywhere)
    results.write(make_result(seed=0))
    with pytest.raises(ResultsError, match=rf"already in {re.escape(results.name)}"):
        results.write(make_result(seed=1))
    assert results.run("ncm-esc50-0")["seed"] == 0
    results.write(make_result(seed=1), replace=True)
    assert results.run("ncm-esc50-0")["seed"] == 1
    assert results.recompute("ncm-esc50-0") == {}


def test_collections_below_a_place_are_found(anywhere: str) -> None:
    for name in ("second", "first"):
        ResultsDir(f"{anywhere}/{name}").write(make_result(f"run-{name}"))
    found = result_dirs(anywhere)
    assert [results.name for results in found] == [f"{anywhere}/first", f"{anywhere}/second"]
    assert [results.run_ids() for results in found] == [("run-first",), ("run-second",)]
    assert [results_at(results.place.address).run_ids() for results in found] == [("run-first",), ("run-second",)]
    assert set(audiocl.load_results(anywhere).runs["run_id"]) == {"run-first", "run-second"}


def test_a_damaged_file_is_named_by_its_url(bucket: Bucket) -> None:
    results = ResultsDir(bucket.url())
    results.write(make_result())
    bucket.put("results/runs/ncm-esc50-0.parquet", b"PAR1 no more")
    with pytest.raises(ResultsError, match=r"^s3://\S+/results/runs/ncm-esc50-0\.parquet is damaged"):
        results.runs()
    with pytest.raises(ResultsError, match=r"^s3://\S+/results/runs/ncm-esc50-0\.parquet is damaged"):
        build_site([results], Path("nowhere"))
    assert not Path("nowhere").exists()


def test_many_files_are_read_at_once(drawer: type[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultsDir("drawer://many/runs")
    for number in range(4):
        results.write(make_result(f"run-{number}"))
    monkeypatch.setattr(drawer, "gate", threading.Barrier(4))  # nobody reads before four do
    assert len(results.runs()) == 4
    assert len(read_each("predictions", dict.fromkeys(results.run_ids(), results))) == 4


@pytest.mark.parametrize("failing", ["predictions", "sessions", "runs"])
def test_a_run_whose_writing_fails_is_no_run(
    failing: str, drawer: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ResultsDir("drawer://a/b")
    monkeypatch.setattr(drawer, "refuse", f"/{failing}/")
    with pytest.raises(ResultsError, match=r"drawer://a/b cannot be written \(the drawer is stuck\)"):
        results.write(make_result())
    assert results.run_ids() == ()
    monkeypatch.setattr(drawer, "refuse", "")
    results.write(make_result())
    assert results.recompute("ncm-esc50-0") == {}
    assert not [path for path in drawer.store if path.endswith(".part")]


def test_parts_that_a_kill_left_are_removed(drawer: type[Memory]) -> None:
    results = ResultsDir("drawer://a/b")
    results.write(make_result())
    system = drawer()
    for table in SCHEMAS:
        system.pipe_file(f"/a/b/{table}/.ncm-esc50-0.parquet.abc.part", b"half")
        system.pipe_file(f"/a/b/{table}/.other.parquet.abc.part", b"half")
    assert results.run_ids() == ("ncm-esc50-0",)
    results.tidy("ncm-esc50-0")
    left = [path for path in drawer.store if path.endswith(".part")]
    assert sorted(left) == [f"/a/b/{table}/.other.parquet.abc.part" for table in sorted(SCHEMAS)]


def test_a_copy_holds_names_and_sizes_of_what_is_not_wanted(bucket: Bucket) -> None:
    results = ResultsDir(bucket.url())
    results.write(make_result())
    bucket.put("results/README.md", b"# read me\n")
    bucket.put("results/video.mp4", b"x" * 1000)
    with results.on_disk(most=20_000) as copy:
        assert copy.name == bucket.url()
        assert (copy.path / "README.md").read_bytes() == b"# read me\n"
        assert (copy.path / "video.mp4").read_bytes() == bytes(1000)
        row = copy.path / "runs" / "ncm-esc50-0.parquet"
        assert row.stat().st_size == len(bucket.get("results/runs/ncm-esc50-0.parquet"))
    with results.on_disk(most=100) as copy:
        assert not any((copy.path / "runs" / "ncm-esc50-0.parquet").read_bytes())
    assert not copy.path.exists()


def test_a_name_that_would_leave_the_copy_is_refused(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultsDir(bucket.url())
    results.write(make_result())
    listed = Remote._list

    def hostile(self: Remote, folder: str, *, recursive: bool = False) -> Any:
        found = listed(self, folder, recursive=recursive)
        if not recursive:
            return found
        base = self._opened[1]
        return [*found, places.arrow.FileInfo(f"{base}/runs/../../../out.parquet", places.arrow.FileType.File, size=1)]

    monkeypatch.setattr(Remote, "_list", hostile)
    with pytest.raises(ResultsError, match=r"which is no name of a file"), results.on_disk():
        pass


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_a_missing_bucket_is_said(bucket: Bucket) -> None:
    results = ResultsDir("s3://no-such-bucket-here/results")
    for attempt in (results.run_ids, results.runs, lambda: results.write(make_result()), results.place.check):
        with pytest.raises(ResultsError, match=r"there is no bucket 'no-such-bucket-here': create it"):
            attempt()


@pytest.mark.parametrize("told", ["Bucket 'bucket' not found", "AWS Error NO_SUCH_BUCKET during HeadBucket operation"])
def test_a_bucket_that_is_missing_when_its_region_is_asked_for_is_said(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FileSystem:
        @staticmethod
        def from_uri(address: str) -> Any:
            raise OSError(told)

    monkeypatch.setattr(places.arrow, "FileSystem", FileSystem)
    with pytest.raises(ResultsError, match=r"s3://bucket/a: there is no bucket 'bucket'"):
        ResultsDir("s3://key:secret@bucket/a").run_ids()


def test_wrong_credentials_are_said_and_not_repeated(refusing: None) -> None:
    results = ResultsDir("s3://WRONGKEY1:wrong%2Fsecret@bucket/results")
    for attempt in (results.run_ids, lambda: results.has("a"), lambda: results.run("a"), results.place.check):
        with pytest.raises(ResultsError, match=r"with these credentials \(.*\): set AWS_ACCESS_KEY_ID") as told:
            attempt()
        for secret in ("WRONGKEY1", "wrong/secret", "wrong%2Fsecret"):
            assert secret not in str(told.value)
        assert "\n" not in str(told.value)


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.mark.slow  # the client asks three times
def test_a_server_that_does_not_answer_is_said(call: Call, nobody: int, tiny_benchmark: Path) -> None:
    url = f"s3://{KEY}:secret@bucket/results?endpoint_override=127.0.0.1:{nobody}&scheme=http"
    outcome = call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", url)
    assert_refused(outcome, "s3://bucket/results cannot be listed", "does not answer", "endpoint_override=HOST:PORT")
    assert KEY not in outcome.err


@pytest.mark.slow
def test_a_google_server_that_does_not_answer_is_said(nobody: int) -> None:
    url = f"gs://anonymous@bucket/a?endpoint_override=127.0.0.1:{nobody}&scheme=http&retry_limit_seconds=1"
    with pytest.raises(ResultsError, match=r"gs://anonymous@bucket/a cannot be listed.*does not answer"):
        ResultsDir(url).run_ids()


def test_memory_is_of_one_process_alone(call: Call, tiny_benchmark: Path) -> None:
    outcome = call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", "memory://m/r", "--jobs", "2")
    assert_refused(outcome, "memory://m/r lies in the memory of this process", "--jobs")


# ----------------------------------------------------------------------------------------------------------------- runs


class Stops(Honest):
    """Raises in the second session until it is mended."""

    name = "stops"
    mended = False

    def learn(self, session: Session) -> None:
        if session.index == 1 and not type(self).mended:
            raise ZeroDivisionError
        super().learn(session)


def test_a_run_continues_on_the_machine_that_began_it(
    tiny_material: Material, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    results, plan = ResultsDir(bucket.url()), plan_of(Stops)
    with pytest.raises(ZeroDivisionError):
        execute(plan, tiny_material, results)
    assert bucket.names() == []
    identity = run_id(plan, tiny_material)
    checkpoint = results.work / identity / "checkpoint.pt"
    assert checkpoint.is_file()
    assert checkpoint.is_relative_to(private_home / "remote")
    monkeypatch.setattr(Stops, "mended", True)
    log = Log()
    # The same place, differently written.
    assert execute(plan, tiny_material, ResultsDir(f"s3://k:s@{bucket.name}/results/"), monitor=log)[1] == "done"
    assert log.started == [(3, 1)]
    assert bucket.names() == sorted(f"results/{table}/{identity}.parquet" for table in SCHEMAS)
    assert [path.name for path in results.work.iterdir()] == [f"{identity}.lock"]
    assert execute(plan, tiny_material, results)[1] == "reused"
    before = bucket.get(f"results/predictions/{identity}.parquet")
    assert execute(plan, tiny_material, results, existing="replace")[1] == "done"
    assert bucket.get(f"results/predictions/{identity}.parquet") == before


class Line:
    """A line to a server that can be cut: a relay of TCP connections."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self.cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def break_off(self) -> None:
        self.cut = True
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.break_off()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.cut:
                    near.close()
                    continue
                far = socket.create_connection(self._server)
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow  # the client asks three times
def test_a_line_that_breaks_at_the_end_loses_nothing(
    call: Call, bucket: Bucket, tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = Line(bucket.server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{line.port}")
    write = runner._Run._write

    def write_on_a_broken_line(self: Any, *given: Any) -> None:
        line.break_off()
        write(self, *given)

    monkeypatch.setattr(runner._Run, "_write", write_on_a_broken_line)
    command = ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results")
    outcome = call(*command, bucket.url())
    assert_refused(outcome, f"{bucket.url()} cannot be", "does not answer", "give the same command again")
    assert bucket.names() == []
    [checkpoint] = place(bucket.url()).work.rglob("checkpoint.pt")
    monkeypatch.setattr(runner._Run, "_write", write)
    line.cut = False
    learned: list[int] = []
    session = runner._Run._session
    monkeypatch.setattr(runner._Run, "_session", lambda self, t: (learned.append(t), session(self, t))[1])
    outcome = call(*command, bucket.url())
    assert outcome.code == 0, outcome.err
    assert learned == [], "every session was in the checkpoint"
    assert not checkpoint.exists()
    assert call(*command, tmp_path).code == 0
    [predictions] = (tmp_path / "predictions").iterdir()
    assert bucket.get(f"results/predictions/{predictions.name}") == predictions.read_bytes()
    line.close()


# ------------------------------------------------------------------------------------------------------ from end to end


def everything_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


@pytest.mark.slow
def test_every_command_takes_a_bucket_for_a_folder(
    call: Call, finished: Path, bucket: Bucket, tiny_benchmark: Path, tmp_path: Path, private_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    published = collection.published  # what the clone publishes is no matter here
    monkeypatch.setattr(collection, "published", lambda root=None: published(root) if root is not None else ())
    secret = "s3cr3tOfMine"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    shown = f"s3://{bucket.name}/results?endpoint_override={bucket.server}&scheme=http"
    url = shown.replace("s3://", f"s3://{KEY}:{secret}@")
    told: list[str] = []

    def done(*arguments: str | Path) -> str:
        outcome = call(*arguments)
        assert outcome.code == 0, outcome.err
        told.append(outcome.out + outcome.err)
        return outcome.out

    run = ("run", "-b", tiny_benchmark, *QUICK, "--results", url)
    made = done(*run, "-m", "ncm", "--orders", "0-1")
    assert f"2 runs made, 0 reused. Results: s3://{bucket.name}/results" in made
    assert f"--results '{shown}'" in made
    assert "1 run made" in done(*run, "-m", "joint-closed")
    assert "0 runs made, 2 reused" in done(*run, "-m", "ncm", "--orders", "0-1")

    here, there = ResultsDir(finished), ResultsDir(url)
    assert there.run_ids() == here.run_ids()
    for identity in here.run_ids():
        stored = bucket.get(f"results/predictions/{identity}.parquet")
        assert stored == here.file("predictions", identity).read_bytes()
    wanted = [f"results/{table}/{identity}.parquet" for table in sorted(SCHEMAS) for identity in here.run_ids()]
    assert bucket.names() == wanted

    for command in (("table",), ("show",), ("table", "2", "-b", "tiny", "--backbone", "eat-tiny")):
        mine, same = (re.sub(r" +[0-9.]+ s\b", " -", done(*command, "--results", where)) for where in (url, finished))
        assert mine.replace(f"'{shown}'", str(finished)) == same, command
    assert "accuracy" in done("show", "joint_closed", "--results", url)
    done("plot", "curves", "-m", "ncm", "--results", url, "--out", "curves", "--format", "svg")
    done("plot", "bars", "-m", "ncm", "--results", url, "--out", "bars", "--format", "svg")
    assert "3 runs lie there" in " ".join(call("doctor", "--results", url).out.split())
    built = done("leaderboard", "build", "--results", url, "--out", "site-there")
    assert "from 3 runs" in built
    copied = Path("site-there/data/predictions")
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in (finished / "predictions").iterdir()
    }
    assert "all right" in done("verify", url)
    assert "2 runs" in done("submit", "ncm", "--results", url, "--out", "pack.zip")
    added = url.replace("/results?", "/published/mine?")
    assert f"added to s3://{bucket.name}/published/mine, which now has 2 runs" in done(
        "verify", "pack.zip", "--add", added
    )
    assert "published/mine/README.md" in bucket.names()
    assert "all right" in done("verify", url.replace("/results?", "/published?"))
    again = call("verify", "pack.zip", "--against", url.replace("/results?", "/published?"))
    assert again.code == 2
    assert f"the run is in s3://{bucket.name}/published/mine already" in again.err
    told.append(again.err)
    asked = done("reproduce", "table2", "-b", tiny_benchmark, "--backbone", "eat-tiny", "--results", url)
    assert f"--results '{shown}'" in asked

    frame = audiocl.run("ncm", tiny_benchmark, backbone="eat-tiny", orders=[0, 1], results=url)
    assert set(frame["run_id"]) == {identity for identity in here.run_ids() if identity.startswith("ncm")}
    loaded = audiocl.load_results(url)
    assert len(loaded) == 3
    assert len(loaded.sessions) == len(audiocl.load_results(finished).sessions)
    assert audiocl.table(2, url, backbone="eat-tiny").frame() is not None
    assert audiocl.plot("bars", loaded, runs=frame).data is not None

    assert not [text for text in told if secret in text or KEY in text]
    for folder in (private_home, tmp_path):
        leaks = [path for path, data in everything_below(folder) if secret.encode() in data or KEY.encode() in data]
        assert leaks == []
        assert not [path for path in folder.rglob("*") if KEY in path.name]
    assert not [key for key in bucket.names() if secret.encode() in bucket.get(key) or KEY.encode() in bucket.get(key)]
    assert not re.search(f"{KEY}|{secret}", json.dumps(there.runs().to_dict("records")))


def _spelt(executor: str) -> tuple[str, ...]:
    return {
        "local": ("--executor", "local", "--jobs", "2"),
        "slurm": ("--executor", "slurm", "--slurm", "cluster=local", "--jobs", "1"),
        "ray": ("--executor", "ray", "--jobs", "2"),
    }[executor]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm", "ray"])
def test_workers_write_into_a_bucket(
    executor: str, call: Call, bucket: Bucket, tiny_benchmark: Path, tmp_path: Path
) -> None:
    if executor != "local":
        pytest.importorskip({"slurm": "submitit", "ray": "ray"}[executor])
    run = ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--threads", "1", "--seeds", "0-1", "--results")
    outcome = call(*run, bucket.url(), *_spelt(executor))
    assert outcome.code == 0, outcome.err
    assert "2 runs made, 0 reused" in outcome.out
    assert call(*run, tmp_path / "here").code == 0
    here = ResultsDir(tmp_path / "here")
    assert ResultsDir(bucket.url()).run_ids() == here.run_ids()
    for identity in here.run_ids():
        stored = bucket.get(f"results/predictions/{identity}.parquet")
        assert stored == here.file("predictions", identity).read_bytes()
    again = call(*run, bucket.url(), *_spelt(executor))
    assert "0 runs made, 2 reused" in again.out
    assert len(bucket.names()) == 6
