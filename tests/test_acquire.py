"""Getting corpora: miniatures of every official layout from a real server, copies one has, mirrors, checks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile

from audiocl_bench import corpora as readers
from audiocl_bench import files, splits
from audiocl_bench.acquire import catalogue, corpora, hub
from audiocl_bench.errors import ConfigError, CorpusError, UnknownNameError

Shared = Callable[..., Path]
NAMES = ("esc50", "us8k", "sc2", "timit", "vocalset")
GETTABLE = ("esc50", "us8k", "sc2", "vocalset")

ESC_TABLE = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
4-2-B-14.wav,4,14,chirping_birds,False,2,B
"""
US_TABLE = """slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0,0.317551,1,5,3,dog_bark
9-2-0-1.wav,9,0,4,1,10,2,children_playing
"""


def wav(seed: int, samples: int = 400) -> bytes:
    """A short 16-bit WAV file, another one for every seed."""
    out = io.BytesIO()
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    soundfile.write(out, wave, 16_000, subtype="PCM_16", format="WAV")
    return out.getvalue()


# Two to four clips of each corpus: the files, and the clips and labels that the frozen splits would list.
TREES: dict[str, dict[str, bytes]] = {
    "esc50": {
        "meta/esc50.csv": ESC_TABLE.encode(),
        "audio/1-100032-A-0.wav": wav(1),
        "audio/4-2-B-14.wav": wav(2),
        "README.md": b"ESC-50",
    },
    "us8k": {
        "metadata/UrbanSound8K.csv": US_TABLE.encode(),
        "audio/fold5/100032-3-0-0.wav": wav(3),
        "audio/fold10/9-2-0-1.wav": wav(4),
    },
    "sc2": {
        "testing_list.txt": b"yes/b_nohash_0.wav\n",
        "validation_list.txt": b"no/c_nohash_0.wav\n",
        "yes/a_nohash_0.wav": wav(5),
        "yes/b_nohash_0.wav": wav(6),
        "no/c_nohash_0.wav": wav(7),
        "_background_noise_/pink_noise.wav": wav(8),
    },
    "timit": {
        "TRAIN/DR1/FCJF0/SA1.WAV": wav(9),
        "TEST/DR2/MABW0/SX44.WAV": wav(10),
    },
    "vocalset": {
        "FULL/female1/arpeggios/belt/f1_belt_a.wav": wav(11),
        "FULL/male1/scales/vibrado/m1 (1).wav": wav(12),
        "FULL/male2/excerpts/spoken/m2_row.wav": wav(13),
        "readme-anon.txt": b"VocalSet",
    },
}
FROZEN = {
    "esc50": {"1-100032-A-0": "dog", "4-2-B-14": "chirping_birds"},
    "us8k": {"fold5/100032-3-0-0": "dog_bark", "fold10/9-2-0-1": "children_playing"},
    "sc2": {"yes/a_nohash_0": "yes", "yes/b_nohash_0": "yes", "no/c_nohash_0": "no"},
    "timit": {"FCJF0/SA1": "FCJF0", "MABW0/SX44": "MABW0"},
    "vocalset": {"female1/arpeggios/belt/f1_belt_a": "belt", "male1/scales/vibrado/m1 (1)": "vibrato"},
}
UNUSED = {"vocalset": {"male2/excerpts/spoken/m2_row": "spoken"}}
FOLDER = {name: readers.get(name).info.folder for name in NAMES}


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the few clips above be all that the frozen splits know."""

    def table(clips: dict[str, str]) -> pd.DataFrame:
        return pd.DataFrame({"clip_id": list(clips), "label": list(clips.values()), "reason": "not drawn"}, dtype=str)

    monkeypatch.setattr(splits, "frozen_clips", lambda name, folder=None: table(FROZEN[name])[["clip_id", "label"]])
    monkeypatch.setattr(splits, "unused_clips", lambda name, folder=None: table(UNUSED.get(name, {})))


def plant(root: Path, tree: dict[str, bytes]) -> Path:
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def tree_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def zipped(tree: dict[str, bytes], top: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path, content in tree.items():
            bundle.writestr(f"{top}{path}", content)
    return out.getvalue()


def tarred(tree: dict[str, bytes], top: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as bundle:
        for path, content in tree.items():
            info = tarfile.TarInfo(f"{top}{path}")
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return out.getvalue()


def official_archive(name: str) -> bytes:
    """The corpus packed as its publisher packs it."""
    tree = TREES[name]
    if name == "esc50":
        return zipped(tree, "ESC-50-33c8ce9/")
    if name == "us8k":
        return tarred(tree, "UrbanSound8K/")
    if name == "sc2":
        return tarred(tree, "./")
    return zipped({**tree, "__MACOSX/FULL/._female1": b"fork", "FULL/.DS_Store": b"macOS"})


class Server:
    """An HTTP server with ranges; `cut` makes the next answers end early."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                if name not in outer.bodies:
                    self.send_error(404)
                    return
                body, asked = outer.bodies[name], self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(body) - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.end_headers()
                self.wfile.write(body[start : start + outer.cut.get(name, len(body))])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def offered(frozen: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Let the catalogue name the server's miniatures, with their true sizes and checksums."""
    for name in GETTABLE:
        offer(server, monkeypatch, name, official_archive(name))
    return server


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes, checksum: str | None = "") -> None:
    real = catalogue.source(name)
    assert real.archive is not None
    server.bodies[real.archive.name] = body
    stated = f"md5:{hashlib.md5(body).hexdigest()}" if checksum == "" else checksum
    archive = dataclasses.replace(
        real.archive,
        url=f"{server.url}/{real.archive.name}",
        about=len(body),
        size=len(body) if stated else None,
        checksum=stated,
    )
    source = dataclasses.replace(real, archive=archive, unpacked=100_000)
    monkeypatch.setitem(catalogue._SOURCES, name, source)


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue


def test_the_catalogue_names_every_corpus_and_its_numbers_are_well_formed() -> None:
    assert set(catalogue.names()) == set(readers.names())
    assert set(catalogue.downloadable()) == set(GETTABLE)
    for name in catalogue.names():
        source = catalogue.source(name)
        assert source.corpus == name
        assert (source.archive is None) == bool(source.instead)
        if source.archive is not None:
            assert source.archive.url.startswith("https://")
            assert source.archive.size in (None, source.archive.about)
            assert source.archive.about < source.unpacked
            kind, _, digest = (source.archive.checksum or "md5:" + "0" * 32).partition(":")
            assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[kind]
        if source.mirror is not None:
            assert len(bytes.fromhex(source.mirror.revision or "")) == 20
    with pytest.raises(UnknownNameError, match="esc50"):
        catalogue.source("esc5")


def test_a_mirror_rebuilds_the_official_header(shared: Shared) -> None:
    for name in ("esc50", "us8k"):
        with shared("manifests", f"{name}.csv").open(encoding="utf-8") as handle:
            mirror = catalogue.source(name).mirror
            assert mirror is not None
            assert list(mirror.columns) == next(csv.reader(handle))


# ---------------------------------------------------------------------------------------------------------------------
# get


@pytest.mark.parametrize("name", GETTABLE)
def test_get_places_the_official_tree(name: str, offered: Server, tmp_path: Path) -> None:
    data = tmp_path / "audio"
    calls: list[tuple[str, int, int | None]] = []
    placed = corpora.get(name, data, progress=lambda *call: calls.append(call))

    assert placed == corpora.Placed(name, data / FOLDER[name], "downloaded", len(FROZEN[name]))
    assert tree_of(placed.where) == TREES[name]
    assert {stage for stage, _, _ in calls} == {"downloading", "unpacking"}
    archive = catalogue.source(name).archive
    assert archive is not None
    assert ("downloading", archive.about, archive.about) in calls
    left = [path for path in (data / ".downloads").iterdir() if not path.name.endswith(".lock")]
    assert left == []
    (row,) = corpora.status(data, [name])
    assert (row.state, row.complete, row.found, row.command, row.problems) == (
        "complete", "yes", len(FROZEN[name]), "", ()
    )  # fmt: skip
    assert row.size == sum(map(len, TREES[name].values()))


def test_get_leaves_a_complete_corpus_alone_and_keeps_the_archive_if_asked(offered: Server, tmp_path: Path) -> None:
    first = corpora.get("esc50", tmp_path, keep_archive=True)
    archive = catalogue.source("esc50").archive
    assert archive is not None
    assert (tmp_path / ".downloads" / archive.name).read_bytes() == official_archive("esc50")
    asked = len(offered.ranges)
    again = corpora.get("esc50", tmp_path)
    assert again == dataclasses.replace(first, how="already there")
    assert len(offered.ranges) == asked


def test_get_uses_the_cache_directory_by_default(offered: Server) -> None:
    assert corpora.get("us8k").where == files.home() / "data" / "UrbanSound8K"
    assert corpora.missing(["us8k", "sc2"]) == ("sc2",)


def test_get_goes_on_after_a_broken_download(offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "UrbanSound8K.tar.gz"
    offered.cut[name] = 100
    real = corpora.fetch
    monkeypatch.setattr(corpora, "fetch", lambda *a, **k: real(*a, **k, retries=1, sleep=lambda _: None))
    # Cut to nothing after the first 100 bytes, so that one call cannot finish by itself.
    monkeypatch.setattr(offered, "ranges", Cutting(offered, name))
    with pytest.raises(CorpusError, match="run the command again"):
        corpora.get("us8k", tmp_path)
    assert (tmp_path / ".downloads" / f"{name}.part").stat().st_size == 100
    assert not (tmp_path / "UrbanSound8K").exists()

    offered.ranges = []
    offered.cut.clear()
    assert tree_of(corpora.get("us8k", tmp_path).where) == TREES["us8k"]
    assert offered.ranges == ["bytes=100-"]


class Cutting(list[str | None]):
    """A log of requests that lets all but the first one end at once."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__()
        self._server, self._name = server, name

    def append(self, asked: str | None) -> None:
        if self:
            self._server.cut[self._name] = 0
        super().append(asked)


def test_a_wrong_checksum_leaves_nothing(offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(offered, monkeypatch, "vocalset", official_archive("vocalset"), checksum=f"md5:{'0' * 32}")
    with pytest.raises(CorpusError, match="md5"):
        corpora.get("vocalset", tmp_path)
    assert not (tmp_path / "VocalSet").exists()
    assert [path.name for path in (tmp_path / ".downloads").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("member", ["../escaped.wav", "/escaped.wav", "audio/../../escaped.wav"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(
    member: str, offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(offered, monkeypatch, "esc50", zipped({**TREES["esc50"], member: wav(1)}))
    data = tmp_path / "data"
    with pytest.raises(CorpusError, match="escaped") as caught:
        corpora.get("esc50", data)
    assert "delete it to have it fetched anew" in str(caught.value)
    assert not (data / "ESC-50").exists()
    assert not list(tmp_path.rglob("escaped.wav"))


def test_an_archive_of_something_else_is_kept_but_not_placed(
    offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {path: content for path, content in TREES["us8k"].items() if "fold10" not in path}
    offer(offered, monkeypatch, "us8k", tarred(tree, "UrbanSound8K/"))
    with pytest.raises(CorpusError, match="missing: fold10/9-2-0-1"):
        corpora.get("us8k", tmp_path)
    assert (tmp_path / ".downloads" / "UrbanSound8K.tar.gz").is_file()
    assert not (tmp_path / "UrbanSound8K").exists()
    assert not (tmp_path / ".downloads" / "us8k.unpacked").exists()
    report = files.home() / "reports" / "us8k-differences.txt"
    assert report.read_text() == "missing: fold10/9-2-0-1\n"

    offer(offered, monkeypatch, "us8k", zipped({"notes.txt": b"nothing"}))
    (tmp_path / ".downloads" / "UrbanSound8K.tar.gz").unlink()
    with pytest.raises(CorpusError, match=r"audio/ and metadata/UrbanSound8K.csv was found neither"):
        corpora.get("us8k", tmp_path)


def test_get_overwrites_nothing(offered: Server, tmp_path: Path) -> None:
    mine = plant(tmp_path / "ESC-50", {"mine.txt": b"keep"})
    with pytest.raises(CorpusError, match="nothing of yours is overwritten"):
        corpora.get("esc50", tmp_path)
    assert tree_of(mine) == {"mine.txt": b"keep"}
    assert offered.ranges == []

    (tmp_path / "UrbanSound8K").mkdir()  # an empty folder is no loss
    assert tree_of(corpora.get("us8k", tmp_path).where) == TREES["us8k"]


def test_get_checks_the_space_for_archive_and_corpus_first(
    offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = catalogue.source("sc2")
    assert source.archive is not None
    usage = shutil.disk_usage(tmp_path)
    need = source.archive.about + source.unpacked
    monkeypatch.setattr(corpora.shutil, "disk_usage", lambda _: usage._replace(free=need - 1))
    with pytest.raises(CorpusError, match=r"needs .* but only .* are free"):
        corpora.get("sc2", tmp_path)
    assert offered.ranges == []
    monkeypatch.setattr(corpora.shutil, "disk_usage", lambda _: usage._replace(free=need))
    assert corpora.get("sc2", tmp_path).how == "downloaded"


def test_what_cannot_be_downloaded_says_what_to_do(offered: Server, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"LDC93S1.*`audiocl data add timit PATH --data "):
        corpora.get("timit", tmp_path)
    with pytest.raises(CorpusError, match=r"sc2 has no mirror .*esc50, us8k"):
        corpora.get("sc2", tmp_path, mirror=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="is not a directory"):
        corpora.get("esc50", tmp_path / "file")


# ---------------------------------------------------------------------------------------------------------------------
# What run needs


def test_missing_corpora_are_listed_with_the_exact_command_and_got_on_request(offered: Server, tmp_path: Path) -> None:
    data = tmp_path / "my audio"
    told = corpora.missing_message(["esc50", "timit", "esc50", "mini-us8k"], data).splitlines()
    assert len(told) == 2
    assert told[0].startswith("ESC-50 is not here:")
    assert told[0].endswith(f"`audiocl data get esc50 --data '{data}'`.")
    assert told[1].endswith(f"`audiocl data add timit PATH --data '{data}'`.")
    with pytest.raises(CorpusError, match="LDC93S1"):
        corpora.get_missing(["esc50", "timit"], data)
    assert offered.ranges == []  # nothing is fetched for a run that cannot start

    assert [placed.corpus for placed in corpora.get_missing(["esc50", "us8k", "mini-us8k"], data)] == ["esc50", "us8k"]
    assert corpora.get_missing(["esc50", "us8k"], data) == []
    assert corpora.missing_message(["esc50", "us8k"], data) == ""


def test_names_of_a_request() -> None:
    assert corpora.names_of(["us8k,esc50", "us8k"]) == ("us8k", "esc50")
    assert set(corpora.names_of(["all"])) == set(GETTABLE)
    with pytest.raises(UnknownNameError):
        corpora.names_of(["esc51"])
    with pytest.raises(ConfigError):
        corpora.names_of([" , "])


# ---------------------------------------------------------------------------------------------------------------------
# add


@pytest.mark.parametrize("name", NAMES)
def test_add_links_a_folder_where_it_is(name: str, frozen: None, tmp_path: Path) -> None:
    mine = plant(tmp_path / "elsewhere" / "copy", TREES[name])
    data = tmp_path / "data"
    placed = corpora.add(name, tmp_path / "elsewhere", data)  # a folder that holds it
    assert placed == corpora.Placed(name, data / FOLDER[name], "linked", len(FROZEN[name]))
    assert placed.where.is_symlink()
    assert placed.where.resolve() == mine.resolve()
    assert readers.get(name).find(data) == placed.where
    assert corpora.status(data, [name])[0].state == "complete"
    assert corpora.add(name, mine, data).how == "already there"
    assert tree_of(mine) == TREES[name]


@pytest.mark.parametrize("name", NAMES)
def test_add_copies_a_folder_if_asked(name: str, frozen: None, tmp_path: Path) -> None:
    mine = plant(tmp_path / "copy", TREES[name])
    data = tmp_path / "data"
    corpora.add(name, mine, data)
    placed = corpora.add(name, mine, data, copy=True)  # takes the place of the link
    assert placed.how == "copied"
    assert not placed.where.is_symlink()
    shutil.rmtree(mine)
    assert tree_of(placed.where) == TREES[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_add_unpacks_an_archive_and_leaves_it(
    name: str, pack: Callable[[dict[str, bytes], str], bytes], frozen: None, tmp_path: Path
) -> None:
    archive = tmp_path / "download"  # the name does not matter
    archive.write_bytes(pack(TREES[name], "some/folder/"))
    data = tmp_path / "data"
    assert corpora.add(name, archive, data) == corpora.Placed(name, data / FOLDER[name], "unpacked", len(FROZEN[name]))
    assert tree_of(data / FOLDER[name]) == TREES[name]
    assert archive.is_file()
    assert corpora.add(name, archive, data).how == "already there"


@pytest.mark.parametrize("half", [("data", "TIMIT"), ("timit", "data", "timit"), ("data", "lisa", "data", "raw")])
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_timit_in_any_nest_and_letter_case(
    half: tuple[str, ...], case: Callable[[str], str], frozen: None, tmp_path: Path
) -> None:
    plant(tmp_path.joinpath("ldc", *half), {case(path): content for path, content in TREES["timit"].items()})
    data = tmp_path / "data"
    assert corpora.add("timit", tmp_path / "ldc", data).how == "linked"
    index = readers.get("timit").index(data / "TIMIT")
    assert index["clip_id"].tolist() == sorted(FROZEN["timit"])


def test_timit_as_sphere_is_taken_and_decoded(frozen: None, tmp_path: Path) -> None:
    tree = {}
    for path in TREES["timit"]:
        out = io.BytesIO()
        soundfile.write(out, np.linspace(-0.5, 0.5, 500), 16_000, subtype="PCM_16", format="NIST")
        tree[path] = out.getvalue()
        assert tree[path][:4] == b"NIST"
    plant(tmp_path / "TIMIT", tree)
    corpora.add("timit", tmp_path / "TIMIT", tmp_path / "data")
    (outcome,) = corpora.verify("timit", tmp_path / "data", decode=True)
    assert (outcome.clips, outcome.problems) == (2, ())


def test_add_refuses_another_corpus_with_the_list(frozen: None, tmp_path: Path) -> None:
    tree = {**TREES["sc2"], "yes/d_nohash_0.wav": wav(1)}
    del tree["no/c_nohash_0.wav"]
    mine, data = plant(tmp_path / "sc", tree), tmp_path / "data"
    archive = tmp_path / "sc.zip"
    archive.write_bytes(zipped(tree))
    for path in (mine, archive):
        with pytest.raises(CorpusError) as caught:
            corpora.add("sc2", path, data)
        assert "in 2 clips" in str(caught.value)
        assert "missing: no/c_nohash_0" in str(caught.value)
        assert "extra: yes/d_nohash_0" in str(caught.value)
        assert not (data / FOLDER["sc2"]).exists()


def test_add_says_what_it_cannot_take(frozen: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(CorpusError, match="does not exist"):
        corpora.add("timit", tmp_path / "nowhere", data)
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(CorpusError, match="neither a folder nor a zip or tar"):
        corpora.add("timit", tmp_path / "notes.txt", data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"TRAIN/ and TEST/ was found neither there nor below"):
        corpora.add("timit", tmp_path / "empty", data)
    with pytest.raises(UnknownNameError):
        corpora.add("timid", tmp_path, data)

    plant(data / "TIMIT", {"mine.txt": b"keep"})
    with pytest.raises(CorpusError, match="nothing of yours is overwritten"):
        corpora.add("timit", plant(tmp_path / "copy", TREES["timit"]), data)
    assert tree_of(data / "TIMIT") == {"mine.txt": b"keep"}


def test_a_link_whose_target_is_gone_is_told(frozen: None, tmp_path: Path) -> None:
    mine, data = plant(tmp_path / "copy", TREES["timit"]), tmp_path / "data"
    corpora.add("timit", mine, data)
    shutil.rmtree(mine)
    (row,) = corpora.status(data, ["timit"])
    assert row.state == "different"
    assert "not a directory" in row.problems[0]
    assert corpora.missing(["timit"], data) == ("timit",)
    with pytest.raises(CorpusError, match="remove the link"):
        corpora.add("timit", plant(tmp_path / "other", TREES["timit"]), data)


# ---------------------------------------------------------------------------------------------------------------------
# status


def test_status_of_complete_partial_different_and_missing(frozen: None, tmp_path: Path) -> None:
    plant(tmp_path / "ESC-50-master", TREES["esc50"])  # an alias
    plant(tmp_path / "UrbanSound8K", TREES["us8k"])
    (tmp_path / "UrbanSound8K/audio/fold5/100032-3-0-0.wav").unlink()
    plant(tmp_path / FOLDER["sc2"], {**TREES["sc2"], "maybe/x_nohash_0.wav": wav(1)})
    plant(tmp_path / "TIMIT", {"TRAIN/SA1.WAV": wav(1)})
    rows = {row.corpus: row for row in corpora.status(tmp_path)}
    assert {name: (row.state, row.complete, row.found, row.expected) for name, row in rows.items()} == {
        "esc50": ("complete", "yes", 2, 2),
        "us8k": ("partial", "partial 1 of 2", 1, 2),
        "sc2": ("different", "different", 3, 3),
        "timit": ("different", "different", 0, 2),
        "vocalset": ("missing", "no", 0, 2),
    }
    assert rows["esc50"].where == tmp_path / "ESC-50-master"
    assert rows["us8k"].problems == ("missing: fold5/100032-3-0-0",)
    assert rows["sc2"].problems == ("extra: maybe/x_nohash_0",)
    assert "does not fit the official layout" in rows["timit"].problems[0]
    assert rows["vocalset"].where is None
    assert rows["vocalset"].command == f"audiocl data get vocalset --data {tmp_path}"
    assert rows["timit"].command == f"audiocl data add timit PATH --data {tmp_path}"


def test_clips_that_no_split_uses_may_be_there_or_not(frozen: None, tmp_path: Path) -> None:
    root = plant(tmp_path / "VocalSet", TREES["vocalset"])
    assert corpora.status(tmp_path, ["vocalset"])[0].state == "complete"
    (root / "FULL/male2/excerpts/spoken/m2_row.wav").unlink()
    assert corpora.status(tmp_path, ["vocalset"])[0].state == "complete"


def test_the_split_hash_changes_with_the_frozen_files_of_its_corpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    index = splits.read_index()
    before = {name: corpora.split_hash(name) for name in NAMES}
    assert all(len(bytes.fromhex(digest)) == 6 for digest in before.values())
    assert len(set(before.values())) == len(NAMES)
    changed = {**index, "files": {**index["files"], "esc50/paper.csv": "0" * 64}}
    monkeypatch.setattr(splits, "read_index", lambda folder=None: changed)
    assert {name for name in NAMES if corpora.split_hash(name) != before[name]} == {"esc50"}


def test_all_2000_names_of_esc50_make_a_complete_copy(shared: Shared, tmp_path: Path) -> None:
    manifest = shared("manifests", "esc50.csv")
    root = plant(tmp_path / "ESC-50", {"meta/esc50.csv": manifest.read_bytes()})
    (root / "audio").mkdir()
    with manifest.open(encoding="utf-8") as handle:
        names = [row["filename"] for row in csv.DictReader(handle)]
    for name in names:
        (root / "audio" / name).touch()
    (row,) = corpora.status(tmp_path, ["esc50"])
    assert (row.state, row.found, row.expected) == ("complete", 2000, 2000)
    (root / "audio" / names[7]).unlink()
    (row,) = corpora.status(tmp_path, ["esc50"])
    assert (row.complete, row.problems) == ("partial 1,999 of 2,000", (f"missing: {names[7].removesuffix('.wav')}",))
    (outcome,) = corpora.verify("esc50", tmp_path)
    assert len(outcome.problems) == 1 + 1999  # and every other file is empty


# ---------------------------------------------------------------------------------------------------------------------
# verify


def test_verify_reports_every_bad_file(frozen: None, tmp_path: Path) -> None:
    root = plant(tmp_path / FOLDER["sc2"], TREES["sc2"])
    assert corpora.verify("all", tmp_path, decode=True) == [corpora.Verified("sc2", root, 3, True, ())]
    (root / "yes/a_nohash_0.wav").write_bytes(b"")
    (root / "no/c_nohash_0.wav").write_bytes(b"RIFF but no audio")
    (root / "yes/b_nohash_0.wav").write_bytes(wav(1, samples=0))

    (quick,) = corpora.verify(["sc2"], tmp_path)
    assert quick.problems == ("yes/a_nohash_0.wav: empty file",)
    calls: list[tuple[str, int, int | None]] = []
    (full,) = corpora.verify("sc2", tmp_path, decode=True, progress=lambda *call: calls.append(call))
    assert calls == [("decoding", 1, 2), ("decoding", 2, 2)]
    assert full.problems[0] == quick.problems[0]
    assert full.problems[1].startswith("no/c_nohash_0.wav: cannot be decoded (")
    assert full.problems[2] == "yes/b_nohash_0.wav: holds no samples"
    message = corpora.problems_message(full)
    assert "3 problems" in message
    report = files.home() / "reports" / "sc2-problems.txt"
    assert report.read_text().splitlines() == list(full.problems)
    assert str(report) in message


def test_verify_finds_a_flac_file_that_breaks_off(frozen: None, tmp_path: Path) -> None:
    tree = dict(TREES["esc50"])
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(0).uniform(-0.5, 0.5, 60_000), 16_000, format="FLAC")
    del tree["audio/4-2-B-14.wav"]
    plant(tmp_path / "ESC-50", {**tree, "audio/4-2-B-14.flac": out.getvalue()})
    assert corpora.verify("esc50", tmp_path, decode=True)[0].problems == ()
    (tmp_path / "ESC-50/audio/4-2-B-14.flac").write_bytes(out.getvalue()[:50_000])
    (problem,) = corpora.verify("esc50", tmp_path, decode=True)[0].problems
    assert problem.startswith("audio/4-2-B-14.flac: ")


def test_verify_needs_something_to_look_at(frozen: None, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="ESC-50 is not here"):
        corpora.verify("all", tmp_path)
    plant(tmp_path / "TIMIT", TREES["timit"])
    assert [outcome.corpus for outcome in corpora.verify("all", tmp_path)] == ["timit"]
    with pytest.raises(CorpusError, match="ESC-50 is not here"):
        corpora.verify(["timit", "esc50"], tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Mirrors


@pytest.fixture
def mirrored(
    frozen: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., catalogue.Mirror]:
    """Return a function that makes a local data set in a mirror's schema and names it in the catalogue."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))

    def make(name: str, edit: Callable[[list[dict[str, object]]], None] = lambda rows: None) -> catalogue.Mirror:
        source = catalogue.source(name)
        assert source.mirror is not None
        integers = {"fold", "target", "src_file", "fsID", "salience", "classID"}
        rows: list[dict[str, object]] = []
        for row in csv.DictReader(io.StringIO({"esc50": ESC_TABLE, "us8k": US_TABLE}[name])):
            typed: dict[str, object] = {key: int(value) if key in integers else value for key, value in row.items()}
            typed |= {key: float(row[key]) for key in ("start", "end") if key in row}
            typed |= {"esc10": row["esc10"] == "True"} if "esc10" in row else {}
            path = source.mirror.file.format(**row)
            rows.append({**typed, "audio": {"bytes": TREES[name][path], "path": Path(path).name}})
        edit(rows)
        repo = tmp_path_factory.mktemp("repo")
        (repo / "data").mkdir()
        table = datasets.Dataset.from_list(rows)
        table = table.cast_column("audio", datasets.Audio(decode=False)).cast_column("audio", datasets.Audio())
        table.to_parquet(repo / "data" / "train-00000-of-00001.parquet")
        mirror = dataclasses.replace(source.mirror, repo=str(repo), revision=None)
        monkeypatch.setitem(catalogue._SOURCES, name, dataclasses.replace(source, mirror=mirror, unpacked=100_000))
        return mirror

    return make


@pytest.mark.parametrize("name", ["esc50", "us8k"])
def test_a_mirror_gives_back_the_official_files_byte_for_byte(
    name: str, mirrored: Callable[..., catalogue.Mirror], tmp_path: Path
) -> None:
    mirrored(name)
    calls: list[tuple[str, int, int | None]] = []
    placed = corpora.get(name, tmp_path, mirror=True, progress=lambda *call: calls.append(call))
    assert placed == corpora.Placed(name, tmp_path / FOLDER[name], "read from the Hub", 2)
    assert tree_of(placed.where) == {path: data for path, data in TREES[name].items() if path != "README.md"}
    assert calls == [("reading", 1, 2), ("reading", 2, 2)]


def test_a_mirror_goes_on_with_the_clips_that_are_missing(
    mirrored: Callable[..., catalogue.Mirror], tmp_path: Path
) -> None:
    mirror = mirrored("us8k")
    whole, torn = tmp_path / "audio/fold5/100032-3-0-0.wav", tmp_path / "audio/fold10/9-2-0-1.wav"
    data = TREES["us8k"]
    plant(
        tmp_path,
        {"audio/fold5/100032-3-0-0.wav": data["audio/fold5/100032-3-0-0.wav"], "audio/fold10/9-2-0-1.wav": b"RI"},
    )
    os.utime(whole, ns=(1, 1))
    assert hub.write(mirror, tmp_path) == 2
    assert whole.stat().st_mtime_ns == 1  # not written again
    assert torn.read_bytes() == data["audio/fold10/9-2-0-1.wav"]


def test_a_mirror_with_wrong_labels_is_refused(mirrored: Callable[..., catalogue.Mirror], tmp_path: Path) -> None:
    mirrored("esc50", lambda rows: rows[0].update(category="cat"))
    with pytest.raises(CorpusError, match=r"relabelled: 1-100032-A-0 \(is cat, should be dog\)"):
        corpora.get("esc50", tmp_path, mirror=True)
    assert not (tmp_path / "ESC-50").exists()


@pytest.mark.parametrize("name", ["../../evil.wav", "/evil.wav", "..", "", "a\\b.wav"])
def test_names_in_a_mirror_cannot_lead_out(
    name: str, mirrored: Callable[..., catalogue.Mirror], tmp_path: Path
) -> None:
    mirror = mirrored("esc50", lambda rows: rows[1].update(filename=name))
    with pytest.raises(CorpusError, match="is no file name"):
        hub.write(mirror, tmp_path / "deep" / "down")
    assert not list(tmp_path.rglob("evil*"))


def test_a_mirror_that_changed_is_told(mirrored: Callable[..., catalogue.Mirror], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no column 'take' \(it has: filename"):
        hub.write(mirrored("esc50", lambda rows: [row.pop("take") for row in rows] and None), tmp_path / "a")
    with pytest.raises(CorpusError, match="twice"):
        hub.write(mirrored("esc50", lambda rows: rows.append(rows[0])), tmp_path / "b")
    with pytest.raises(CorpusError, match=r"no audio for audio/4-2-B-14\.wav"):
        hub.write(mirrored("esc50", lambda rows: rows[1].update(audio={"bytes": b"", "path": "x.wav"})), tmp_path / "c")
    gone = dataclasses.replace(mirrored("esc50"), repo=str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match="leave --mirror out"):
        hub.write(gone, tmp_path / "d")
    for folder in "abcd":
        assert not (tmp_path / folder / "meta").exists()
