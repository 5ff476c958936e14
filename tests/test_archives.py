"""Unpacking: benign trees come back as they were; hostile, damaged and swollen archives leave nothing behind."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiocl_bench.acquire import archives
from audiocl_bench.acquire.archives import extract, is_archive, member_names
from audiocl_bench.errors import CorpusError
from audiocl_bench.seeding import numpy_generator

ROOT = Path(__file__).resolve().parent.parent
TARS = {"tar": "", "tar.gz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}
KINDS = [*TARS, "zip"]
NOISE = numpy_generator(0, "archive test").bytes(200_000)
TREE = {"audio/a.wav": NOISE, "audio/deep/er/b.wav": b"b" * 512, "meta/käse.csv": b"x,y\n", "empty": b"", "c c": b"c"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the kind that the name's ending says."""
    ending = path.name.split(".", 1)[1]
    if ending == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            warnings.simplefilter("ignore", UserWarning)  # of names that come twice
            for name, data in files.items():
                bundle.writestr(name, data)
    else:
        with tarfile.open(path, f"w:{TARS[ending]}") as bundle:
            for name, data in files.items():
                add(bundle, name, data)
    return path


def add(bundle: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    bundle.addfile(info, io.BytesIO(data))


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder as {path: bytes}."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name != ".new.lock")


def refused(archive: Path, said: str, **limits: Any) -> str:
    """Extract `archive`, which must fail with `said` and leave nothing behind, inside the target's folder or out."""
    place = archive.parent / "place" / "deep"
    place.mkdir(parents=True, exist_ok=True)
    before = everything(archive.parent)
    with pytest.raises(CorpusError, match=said) as raised:
        extract(archive, place / "new", **limits)
    assert everything(archive.parent) == before
    message = str(raised.value)
    assert str(archive) in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------------ good days


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_comes_back(kind: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"x.{kind}", TREE)
    told: list[tuple[int, int | None]] = []
    extract(archive, tmp_path / "new" / "corpus", progress=lambda *now: told.append(now))
    assert tree(tmp_path / "new" / "corpus") == TREE
    assert [path.name for path in (tmp_path / "new").iterdir() if path.suffix != ".lock"] == ["corpus"]
    size = archive.stat().st_size
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert member_names(archive) == tuple(TREE)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_folder_is_taken_and_a_full_one_is_not(kind: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"x.{kind}", TREE)
    (tmp_path / "new").mkdir()
    extract(archive, tmp_path / "new")
    assert tree(tmp_path / "new") == TREE
    with pytest.raises(CorpusError, match="not empty"):
        extract(archive, tmp_path / "new")
    assert tree(tmp_path / "new") == TREE
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(CorpusError, match="is no folder"):
            extract(archive, tmp_path / name)


def test_modes_are_plain_whatever_the_archive_says(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as bundle:
        add(bundle, "d", type=tarfile.DIRTYPE, mode=0o7000, mtime=1)
        add(bundle, "d/f", b"x", mode=0o6777, mtime=1)
        add(bundle, "e/g/h", b"x", mode=0o000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name, mode in (("d/", 0o47000), ("d/f", 0o106777), ("e/g/h", 0o100000)):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, b"" if name.endswith("/") else b"x")
    old = os.umask(0o077)
    try:
        for kind in ("tar", "zip"):
            extract(tmp_path / f"x.{kind}", tmp_path / kind)
    finally:
        os.umask(old)
    for kind in ("tar", "zip"):
        for path in [tmp_path / kind, *(tmp_path / kind).rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
        assert (tmp_path / kind / "d" / "f").stat().st_mtime > 1e9


@pytest.mark.parametrize("kind", KINDS)
def test_what_macos_adds_is_left_out(kind: str, tmp_path: Path) -> None:
    extra = {"__MACOSX/audio/._a.wav": b"m", "audio/.DS_Store": b"m", "audio/._a.wav": b"m", ".hidden": b"h"}
    archive = pack(tmp_path / f"x.{kind}", {**extra, **TREE})
    extract(archive, tmp_path / "new")
    assert tree(tmp_path / "new") == {**TREE, ".hidden": b"h"}
    assert set(member_names(archive)) == {*TREE, ".hidden"}
    refused(pack(tmp_path / f"y.{kind}", {"__MACOSX/../../z": b"", "a": b"a"}), "'..' in its path")


def test_dots_and_doubled_strokes_in_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as bundle:
        add(bundle, "./", type=tarfile.DIRTYPE)
        add(bundle, "./a//b/./c..wav", b"c")
        add(bundle, "...", b"d")
        add(bundle, "d/" * 63 + "x", b"e")
    extract(tmp_path / "x.tar.gz", tmp_path / "new")
    assert tree(tmp_path / "new") == {"a/b/c..wav": b"c", "...": b"d", "d/" * 63 + "x": b"e"}


def test_names_of_zips_without_a_declared_encoding(tmp_path: Path) -> None:
    """As macOS writes them (UTF-8) and as DOS did (code page 437); Python alone would declare UTF-8."""
    for number, raw in enumerate((b"k\xc3\xa4se.wav", b"k\x84se.wav")):
        path = pack(tmp_path / f"{number}.zip", {"k__se.wav"[: len(raw)].ljust(len(raw), "v"): b"x"})
        placeholder = "k__se.wav"[: len(raw)].ljust(len(raw), "v").encode()
        path.write_bytes(path.read_bytes().replace(placeholder, raw))
        extract(path, tmp_path / f"new{number}")
        assert tree(tmp_path / f"new{number}") == {"käse.wav": b"x"}


def test_names_that_differ_by_letter_case(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    if (tmp_path / "PROBE").exists():
        refused(pack(tmp_path / "x.zip", {"a": b"1", "A": b"2"}), "would overwrite another member")
    else:
        extract(pack(tmp_path / "x.zip", {"a": b"1", "A": b"2"}), tmp_path / "new")
        assert tree(tmp_path / "new") == {"A": b"2", "a": b"1"}


def test_a_global_pax_header_as_git_writes_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "f" * 40}) as b:
        add(b, "a/" + "l" * 200, b"x")
    extract(tmp_path / "x.tar.gz", tmp_path / "new")
    assert tree(tmp_path / "new") == {"a/" + "l" * 200: b"x"}


PART = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda part: (
        part not in (".", "..", "__MACOSX", ".DS_Store")
        and not part.startswith("._")
        and not (len(part) > 1 and part[1] == ":")
    )
)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAME, st.binary(max_size=2000), min_size=1, max_size=6), st.sampled_from(["tar.gz", "zip"]))
def test_any_benign_tree_comes_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: str
) -> None:
    folders = {name[:at] for name in files for at, sign in enumerate(name) if sign == "/"}
    files = {name: data for name, data in files.items() if name not in folders}
    place = tmp_path_factory.mktemp("tree")
    extract(pack(place / f"x.{kind}", files), place / "new")
    assert tree(place / "new") == files


# ---------------------------------------------------------------------------------------------------------- bad members

BAD_NAMES = [
    ("/etc/x", "an absolute path"),
    ("//x", "an absolute path"),
    ("../x", "'..' in its path"),
    ("a/../../x", "'..' in its path"),
    ("a/..", "'..' in its path"),
    ("..", "'..' in its path"),
    ("C:/x", "a drive letter"),
    ("c:x", "a drive letter"),
    ("..\\x", "a backslash"),
    ("a\\..\\..\\x", "a backslash"),
    ("a/" + "n" * 256, "too long a name"),
    ("ä" * 128, "too long a name"),
    ("/".join(["n" * 250] * 9), "too long a name"),
    ("d/" * 64 + "x", "more than 64 folders deep"),
    (".", "no name"),
    ("./", "no name"),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize(("name", "said"), BAD_NAMES)
def test_names_that_lead_out_are_refused(name: str, said: str, kind: str, tmp_path: Path) -> None:
    if name == "./" and kind == "zip":
        return  # a folder, and the target itself
    message = refused(pack(tmp_path / f"x.{kind}", {"good": b"g", name: b"bad", "last": b"l"}), said)
    assert repr(name)[:80] in message or repr(name.rstrip("/")) in message
    with pytest.raises(CorpusError, match=said):
        member_names(tmp_path / f"x.{kind}")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    message = refused(pack(tmp_path / "x.zip", {"../\x1b[2J\n": b""}), "'..' in its path")
    assert r"'../\x1b[2J\n'" in message


def test_nul_in_names(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"good_evil": b"x"})
    path.write_bytes(path.read_bytes().replace(b"good_evil", b"good\0evil"))
    refused(path, "a NUL in its name")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as bundle:
        add(bundle, "x", b"x", pax_headers={"path": "good\0evil"})
    refused(tmp_path / "x.tar", "a NUL in its name")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc"}, "a symbolic link"),
        ({"type": tarfile.SYMTYPE, "linkname": "good"}, "a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "../../x"}, "a hard link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good"}, "a hard link"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device, a pipe"),
        ({"type": tarfile.BLKTYPE}, "a device, a pipe"),
        ({"type": tarfile.FIFOTYPE}, "a device, a pipe"),
        ({"type": b"Z"}, "of an unknown kind"),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "tar.xz"])
def test_links_and_devices_in_tars(fields: dict[str, Any], said: str, kind: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / f"x.{kind}", f"w:{TARS[kind]}") as bundle:
        add(bundle, "good", b"g")
        add(bundle, "bad", **fields)
        add(bundle, "bad/x", b"outside")
    assert "'bad'" in refused(tmp_path / f"x.{kind}", said)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (stat.S_IFLNK, "a symbolic link"),
        (stat.S_IFCHR, "a device"),
        (stat.S_IFBLK, "a device"),
        (stat.S_IFIFO, "a device"),
        (stat.S_IFSOCK, "a device"),
    ],
)
@pytest.mark.parametrize("system", [0, 3])
def test_links_and_devices_in_zips(mode: int, said: str, system: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("good", b"g")
        info = zipfile.ZipInfo("bad")
        info.create_system = system
        info.external_attr = (mode | 0o777) << 16
        bundle.writestr(info, b"/etc/passwd")
    assert "'bad'" in refused(tmp_path / "x.zip", said)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a"), "would overwrite another member"),
        (("a", "./a"), "would overwrite another member"),
        (("d/a", "d//a"), "would overwrite another member"),
        (("d/a", "d"), "would overwrite another member"),
        (("d", "d/a"), "a folder and a file at once"),
    ],
)
def test_members_in_each_others_way(names: tuple[str, str], said: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as packed:
            warnings.simplefilter("ignore", UserWarning)
            for name in names:
                packed.writestr(name, name)
    else:
        with tarfile.open(path, f"w:{TARS[kind]}") as bundle:
            for name in names:
                add(bundle, name, b"x")
    refused(path, said)


def test_encrypted_zips(tmp_path: Path) -> None:
    """The flag of the first header and of the directory's, set by hand; the standard library cannot encrypt."""
    path = pack(tmp_path / "x.zip", {"secret": b"x" * 100})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    assert "with its password" in refused(path, "'secret' is encrypted")


def test_a_folder_with_contents(tmp_path: Path) -> None:
    refused(pack(tmp_path / "x.zip", {"good": b"g", "d/": b"hidden"}), "'d/' is a folder with contents of its own")


def test_an_unknown_compression(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a": b"x" * 100})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.index(mark) + offset
        data[at : at + 2] = struct.pack("<H", 97)
    path.write_bytes(data)
    refused(path, "cannot be unpacked .*compression.*another tool")


def test_a_zip_whose_two_directories_disagree(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"good": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"good") : data.index(b"good") + 4] = b"../e"
    path.write_bytes(data)
    refused(path, "truncated or damaged")


# ------------------------------------------------------------------------------------------------------ bombs and space


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_bombs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros pack 1000:1 and better; the default limit is 100:1 once the archive is not tiny."""
    path = pack(tmp_path / f"x.{kind}", {"good": b"g", "zeros": bytes(30_000_000)})
    assert path.stat().st_size < 60_000
    refused(path, "unpacks to more than the 20.0 MB allowed", max_bytes=20_000_000)
    monkeypatch.setattr(archives, "_SMALLEST_LIMIT", 1000)
    refused(path, "unpacks to more than")
    extract(path, tmp_path / "allowed", max_bytes=30_000_001)
    assert (tmp_path / "allowed" / "zeros").stat().st_size == 30_000_000


def test_the_default_limit(tmp_path: Path) -> None:
    for size, limit in ((10, 200_000_000), (2_000_000, 200_000_000), (2_000_001, 200_000_100)):
        with (tmp_path / "x").open("wb") as handle:
            handle.truncate(size)
        assert archives._limit(tmp_path / "x", None) == limit
    assert archives._limit(tmp_path / "x", 5) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_many_small_members_count_together(kind: str, tmp_path: Path) -> None:
    path = pack(tmp_path / f"x.{kind}", {str(number): bytes(1000) for number in range(100)})
    refused(path, "unpacks to more than the 99,999 bytes", max_bytes=99_999)
    extract(path, tmp_path / "new", max_bytes=100_000)
    assert len(tree(tmp_path / "new")) == 100


def test_a_zip_that_lies_about_its_lengths(tmp_path: Path) -> None:
    """1 MB of zeros stated as 10 bytes in both directories: what counts is what comes out."""
    path = pack(tmp_path / "x.zip", {"zeros": bytes(1_000_000)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 10)))
    with zipfile.ZipFile(path) as bundle:
        assert bundle.infolist()[0].file_size == 10
    refused(path, "truncated or damaged|unpacks to more", max_bytes=1000)


def test_bytes_are_counted_whatever_a_reader_hands_out(tmp_path: Path) -> None:
    """Today's readers cut a member at its stated length; the limit does not rest on that."""
    archive, root = pack(tmp_path / "x.zip", {"a": b"a"}), tmp_path / "root"
    root.mkdir()
    member = archives._Member("zeros", ("zeros",), False, 10, lambda: io.BytesIO(bytes(5_000_000)), lambda: 0)
    with pytest.raises(CorpusError, match="unpacks to more than the 1,000 bytes allowed"):
        archives._Writer(archive, root, 1000, None).write(iter([member]))
    assert (root / "zeros").stat().st_size == 0, "counted before it is written"
    (root / "zeros").unlink()
    with pytest.raises(CorpusError, match="'zeros' has 5,000,000 of 10 bytes"):
        archives._Writer(archive, root, 10**9, None).write(iter([member]))


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    """Overlapping members blow a zip up without a high ratio of any one of them."""
    path = pack(tmp_path / "x.zip", {"a": NOISE, "b": b"b"})
    with zipfile.ZipFile(path) as bundle:
        first, second = bundle.infolist()
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    struct.pack_into("<III", data, entry + 16, first.CRC, first.compress_size, first.file_size)
    struct.pack_into("<I", data, entry + 42, first.header_offset)
    path.write_bytes(data)
    assert second.header_offset > 0
    refused(path, "truncated or damaged|unpacks to more", max_bytes=300_000)


def test_a_giant_header_is_not_read(tmp_path: Path) -> None:
    """A tar's extended header may state any length; the bytes behind it are zeros that pack well."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with lzma.open(tmp_path / "x.tar.xz", "wb") as handle:
        handle.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    refused(tmp_path / "x.tar.xz", "a header of 8,589,934,592 bytes")


def test_endless_padding_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros behind a compressed tar's end, read only for the checksum that follows."""
    monkeypatch.setattr(archives, "_SLACK", 1 << 20)
    with lzma.open(tmp_path / "x.tar.xz", "wb") as handle:
        handle.write((pack(tmp_path / "y.tar", {"a": b"a"})).read_bytes() + bytes(4 << 20))
    refused(tmp_path / "x.tar.xz", "unpacks to more", max_bytes=1000)


def test_headers_are_no_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many empty members make a long stream within any limit."""
    monkeypatch.setattr(archives, "_SLACK", 10_240)
    path = pack(tmp_path / "x.tar.gz", {str(number): b"" for number in range(100)})
    extract(path, tmp_path / "new", max_bytes=0)
    assert len(tree(tmp_path / "new")) == 100


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for kind in KINDS:
        extract(pack(tmp_path / f"x.{kind}", dict.fromkeys("abc", b"")), tmp_path / f"new-{kind}")
        refused(pack(tmp_path / f"y.{kind}", dict.fromkeys("abcd", b"")), "more than 3 members")


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("kind", KINDS)
def test_space_is_checked_first(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / f"x.{kind}", {"zeros": bytes(1_000_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 999_999))
    refused(path, r"needs 1\.0 MB in .* but only 999,999 bytes are free: free some space")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 2_000_000))
    extract(path, tmp_path / "new")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_an_archive_declares_is_checked_before_the_first_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member would fit, all of them do not."""
    path = pack(tmp_path / f"x.{kind}", {str(number): bytes(1000) for number in range(100)})
    told: list[int] = []
    if kind == "zip":
        refused(path, "100,000 bytes by its own account", max_bytes=99_999, progress=lambda *now: told.append(now[0]))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 99_999))
    refused(path, "but only 99,999 bytes are free", progress=lambda *now: told.append(now[0]))
    assert told == []


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_archives(kind: str, share: float, tmp_path: Path) -> None:
    files = {f"{number}.wav": NOISE[number : number + 20_000] for number in range(5)}
    path = pack(tmp_path / f"x.{kind}", files)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert is_archive(path)
    if kind == "tar" and share > 0.9:  # only padding behind the end is missing
        extract(path, tmp_path / "new")
        assert tree(tmp_path / "new") == files
    else:
        refused(path, "is truncated or damaged .*: delete it and download it again")


def test_a_tar_cut_between_two_members(tmp_path: Path) -> None:
    """Python's own reader takes this for a shorter archive."""
    path = pack(tmp_path / "x.tar", {"a": b"a" * 512, "b": b"b" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    with tarfile.open(path) as bundle:
        assert bundle.getnames() == ["a"]
    refused(path, "it breaks off, or a header in it is unreadable")


def test_a_tar_with_one_broken_header(tmp_path: Path) -> None:
    """Python's own reader takes this for the end, too."""
    path = pack(tmp_path / "x.tar", {"a": b"a" * 512, "b": b"b" * 512, "c": b"c"})
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as bundle:
        assert bundle.getnames() == ["a"]
    refused(path, "it breaks off, or a header in it is unreadable")


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_flipped_bit_in_the_contents(kind: str, tmp_path: Path) -> None:
    path = pack(tmp_path / f"x.{kind}", {"a.wav": NOISE})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    refused(path, "is truncated or damaged")


def test_a_wrong_checksum_at_the_end_of_gzip(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar.gz", {"a.wav": NOISE})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    refused(path, "is truncated or damaged .*CRC")


@pytest.mark.parametrize("size", [-512, -1, -(1 << 40)])
def test_a_negative_length(size: int, tmp_path: Path) -> None:
    """Followed backwards, it would never end."""
    for name, kind, said in (
        ("a", tarfile.REGTYPE, "'a' has a negative length"),
        ("././@LongLink", tarfile.GNUTYPE_LONGNAME, "a header of -" if size <= -512 else ""),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        first = tarfile.TarInfo("first").tobuf()
        (tmp_path / "x.tar").write_bytes(first + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        refused(tmp_path / "x.tar", rf"is truncated or damaged \(.*{said}")


def test_sparse_files(tmp_path: Path) -> None:
    """A sparse member's length says nothing about the archive's; no corpus has one."""
    info = tarfile.TarInfo("sparse")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"00000000000\0"
    header[398:410] = b"00000000000\0"
    header[483:495] = b"77777777777\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "x.tar").write_bytes(header + bytes(1024))
    refused(tmp_path / "x.tar", "is a sparse file")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_damage_is_said_in_one_sentence_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, kind: str, flips: list[tuple[float, int]]
) -> None:
    place = tmp_path_factory.mktemp("flips")
    path = pack(place / f"x.{kind}", {"audio/a": NOISE[:600], "b": b"b" * 100, "c/d": b""})
    data = bytearray(path.read_bytes())
    for at, mask in flips:
        data[min(len(data) - 1, int(at * len(data)))] ^= mask
    path.write_bytes(data)
    (place / "in").mkdir()
    try:
        extract(path, place / "in" / "new")
        said = ""
    except CorpusError as error:
        said = str(error)
    assert "\n" not in said
    assert (place / "in" / "new").exists() == (not said)
    assert {entry.name for entry in place.iterdir()} == {path.name, "in"}
    assert {entry.name for entry in (place / "in").iterdir()} <= {"new", ".new.lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_without_files(kind: str, tmp_path: Path) -> None:
    refused(pack(tmp_path / f"x.{kind}", {"__MACOSX/x": b"x"}), "holds no files")


# ---------------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("no")])
def test_an_interruption_leaves_nothing(failure: BaseException, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise failure

    archive = pack(tmp_path / "x.zip", TREE)
    with pytest.raises(type(failure)):
        extract(archive, tmp_path / "in" / "new", progress=stop)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [".new.lock"]


def test_a_killed_process_leaves_no_target_and_is_cleared_away(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", TREE)
    code = (
        "import os, signal, sys; from pathlib import Path; from audiocl_bench.acquire.archives import extract\n"
        "def kill(done, total): os.kill(os.getpid(), signal.SIGKILL)\n"
        "extract(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(archive), str(tmp_path / "new")], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    assert (tmp_path / ".new.part").exists()
    extract(archive, tmp_path / "new")
    assert tree(tmp_path / "new") == TREE
    assert not (tmp_path / ".new.part").exists()


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    archive = pack(tmp_path / "x.zip", TREE)
    monkeypatch.setattr(archives.os, "open", full)
    with pytest.raises(CorpusError, match="no space left to write"):
        extract(archive, tmp_path / "in" / "new")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "in").iterdir() if path.suffix != ".lock"] == []


# --------------------------------------------------------------------------------------------------- what an archive is


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_known_by_their_bytes(kind: str, tmp_path: Path) -> None:
    path = pack(tmp_path / f"x.{kind}", TREE)
    assert is_archive(path)
    assert is_archive(path.rename(tmp_path / "noname"))
    extract(tmp_path / "noname", tmp_path / "new")
    assert tree(tmp_path / "new") == TREE


@pytest.mark.parametrize(
    "data",
    [b"", b"RIFF\x24\0\0\0WAVEfmt ", b"x" * 600, bytes(1024), b"\x1f\x8b", b"PK", b"BZh9 no", lzma.compress(b"text")],
)
def test_what_is_no_archive(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(data)
    assert not is_archive(tmp_path / "x.wav")
    refused(tmp_path / "x.wav", r"is no archive that can be unpacked \(zip, tar, tar\.gz, tar\.bz2, tar\.xz\)")


def test_what_is_no_file(tmp_path: Path) -> None:
    calls: list[Callable[[Path], object]] = [lambda path: extract(path, tmp_path / "new"), member_names]
    for path in (tmp_path / "none.zip", tmp_path):
        assert not is_archive(path)
        for call in calls:
            with pytest.raises(CorpusError, match="cannot be read"):
                call(path)
