"""Submission packs: chosen runs in one file. Writing one, and taking one apart without trusting it.

A pack is a zip whose members are stored, not compressed: `manifest.json`, then `runs/`, `sessions/` and `predictions/`
with one Parquet file per run, byte for byte as the run wrote them. The same runs and texts give the same bytes: member
dates are constant and the manifest names no machine but those the runs were made on.

    {"format": "audiocl-submission", "version": 1, "results_schema": 2, "audiocl_version": "...", "licence": "CC0-1.0",
     "description": "", "contact": "", "url": "",
     "runs": [{"run_id": "...", "method": ..., "config": {...}, "environment": {...},
               "files": {"runs": {"sha256": "...", "bytes": n}, "sessions": ..., "predictions": ...}}]}
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from audiocl_bench import __version__
from audiocl_bench.acquire import archives
from audiocl_bench.acquire.download import amount
from audiocl_bench.errors import CorpusError, ResultsError
from audiocl_bench.files import atomic_path, canonical_json, sha256_file
from audiocl_bench.results import SCHEMA_VERSION, SCHEMAS, ResultsDir, read_table
from audiocl_bench.submission.bounded import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_PACK_BYTES,
    MAX_RUNS,
    parse_json,
    shown,
)

FORMAT, VERSION = "audiocl-submission", 1
LICENCE = "CC0-1.0"
MANIFEST = "manifest.json"
TEXTS = ("description", "contact", "url")
"""What a submitter may add in their own words; each may be empty."""
MAX_TEXT = 2_000
_HEAD = ("format", "version", "results_schema", "audiocl_version", "licence", *TEXTS, "runs")
_FACTS = ("method", "variant", "benchmark", "protocol", "backbone", "order", "seed", "config_hash")
_ENVIRONMENT = ("audiocl_version", "git_commit", "device", "threads", "python_version", "platform")
_MEMBER = re.compile(r"(runs|sessions|predictions)/[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}\.parquet")
_END = struct.Struct("<4s4H2LH")
_LONGEST_ENTRY = 400  # bytes of a zip's directory per member: 46 and our longest names


def choose(results: ResultsDir, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of the runs that are meant, sorted: each of `wanted` is a method (`METHOD`, `METHOD@PRESET`: all
    its runs), a run id, or an unambiguous part of one.

    Raises:
        UnknownNameError: nothing answers to a name.
        ResultsError: a part is ambiguous, or there are no runs.
    """
    runs = results.runs()
    names = runs["method"] + ("@" + runs["variant"]).where(runs["variant"] != "", "")
    chosen: set[str] = set()
    for name in wanted:
        mine = runs["run_id"][(names == name) | (runs["method"] == name)].tolist()
        chosen.update(mine or [results.find(name)])
    return tuple(sorted(chosen))


def write(results: ResultsDir, run_ids: Sequence[str], out: Path, **texts: str) -> None:
    """Write the pack of these runs to `out`, atomically.

    Args:
        results: where the runs are.
        run_ids: the runs; their order does not matter.
        out: the file to write.
        texts: description, contact, url; each may be left out.

    Raises:
        ResultsError: a run's file is missing or damaged, a text is too long, or `out` cannot be written or holds
            something else.
    """
    ids = sorted(set(run_ids))
    if not 1 <= len(ids) <= MAX_RUNS:
        raise ResultsError(f"a pack holds 1 to {MAX_RUNS:,} runs, not {len(ids):,}: choose others with RUN.")
    for name, text in texts.items():
        if name not in TEXTS or len(text) > MAX_TEXT:
            raise ResultsError(
                f"--{name} has {len(text):,} characters, but at most {MAX_TEXT:,} are taken: shorten it."
            )
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "results_schema": SCHEMA_VERSION,
        "audiocl_version": __version__,
        "licence": LICENCE,
        **{name: texts.get(name, "") for name in TEXTS},
        "runs": [entry(results, run_id) for run_id in ids],
    }
    members = {f"{table}/{run_id}.parquet": results.file(table, run_id) for table in SCHEMAS for run_id in ids}
    with atomic_path(out, error=ResultsError) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as bundle:
            bundle.writestr(_member(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
            for name, file in members.items():
                bundle.writestr(_member(name), file.read_bytes())
        if out.exists() and out.read_bytes() != temporary.read_bytes():
            raise ResultsError(f"{out} exists and holds something else: name another file with --out, or remove it.")


def entry(results: ResultsDir, run_id: str) -> dict[str, Any]:
    """Return what a manifest says of one run: its facts, settings and environment, and its files' sizes and hashes."""
    row = read_table(results.file("runs", run_id), "runs").to_pylist()[0]
    files = {}
    for table in SCHEMAS:
        path = results.file(table, run_id)
        if not path.is_file():
            raise ResultsError(f"{path} is missing: run {run_id} again.")
        files[table] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    return {
        "run_id": run_id,
        **{name: row[name] for name in _FACTS},
        "config": parse_json(row["method_config"], f"method_config of run {run_id}"),
        "environment": {
            **{name: row[name] for name in _ENVIRONMENT},
            "libraries": parse_json(row["library_versions"], f"library_versions of run {run_id}"),
        },
        "files": files,
    }


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Unpack a pack into a temporary folder and yield the folder and the manifest, whose files all agree with it.

    Only plain, stored members with the names of this format are taken, and sizes are checked before anything is
    written. The tables are not read.

    Raises:
        ResultsError: it is no pack, is truncated or damaged, too large, holds a foreign member, or its manifest is
            newer than this audiocl, incomplete or untrue.
    """
    names = _checked_members(path)
    with TemporaryDirectory(prefix="audiocl-pack-") as place:
        folder = Path(place) / "pack"
        try:
            archives.extract(path, folder, max_bytes=MAX_PACK_BYTES)
        except CorpusError as cause:
            raise ResultsError(str(cause)) from cause
        manifest = _manifest(path, folder / MANIFEST)
        _check_files(path, folder, manifest, names)
        yield folder, manifest


def _member(name: str) -> zipfile.ZipInfo:
    """A member without a date, so that equal contents give equal packs."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info


def _checked_members(path: Path) -> set[str]:
    """Check the directory of the zip, and that directory's own size before it is read; return the members' names."""
    _check_end(path)
    try:
        names = archives.member_names(path, max_bytes=MAX_PACK_BYTES)
        with zipfile.ZipFile(path) as bundle:
            infos = bundle.infolist()
    except CorpusError as cause:
        raise ResultsError(str(cause)) from cause
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as cause:
        raise ResultsError(f"{path} is truncated or damaged ({shown(cause)}): pack the runs again.") from cause
    for info in infos:
        _check_member(path, info)
    if len(set(names)) != len(infos):
        raise ResultsError(f"{path} holds a member twice or a foreign one: pack the runs with `audiocl submit`.")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise ResultsError(f"{path} has members that overlap: it is no pack, make one with `audiocl submit`.")
    if MANIFEST not in names:
        raise ResultsError(f"{path} has no {MANIFEST}: it is no pack, make one with `audiocl submit`.")
    return set(names)


def _check_end(path: Path) -> None:
    """Check the kind of file, its size and the number of members, before anything trusts it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as raw:
            head = raw.read(4)
            raw.seek(-min(size, 20 + _END.size), 2)
            tail = raw.read()
    except OSError as cause:
        raise ResultsError(f"{path} cannot be read ({cause.strerror or cause}): check the path.") from cause
    if size > MAX_PACK_BYTES:
        raise ResultsError(f"{path} has {amount(size)}, but a pack has at most {amount(MAX_PACK_BYTES)}: split it.")
    if head not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise ResultsError(f"{path} is no submission pack: make one with `audiocl submit RUN`.")
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise ResultsError(f"{path} is truncated, or no pack written by audiocl: copy it again, or pack it again.")
    _, _, _, _, count, directory, _, comment = _END.unpack(tail[-_END.size :])
    most = 3 * MAX_RUNS + 1
    if tail[:4] == b"PK\x06\x07" or count > most or directory > most * _LONGEST_ENTRY or comment:
        raise ResultsError(f"{path} has more than {most:,} members, or a comment: it is no pack written by audiocl.")


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    if name != MANIFEST and not _MEMBER.fullmatch(name):
        raise ResultsError(
            f"{path} holds '{shown(name)}', which belongs in no pack (only {MANIFEST} and Parquet files in runs/, "
            "sessions/ and predictions/ do): pack the runs with `audiocl submit`."
        )
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ResultsError(f"{path}: member {name} is compressed, but packs are stored as they are: pack it again.")
    limit = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_FILE_BYTES[name.partition("/")[0]]
    if info.file_size > limit:
        raise ResultsError(
            f"{path}: {name} has {amount(info.file_size)}, but at most {amount(limit)} are read: it is no file of one "
            "run, leave it out."
        )


def _manifest(path: Path, file: Path) -> dict[str, Any]:
    """Read the manifest and check its form; what it says is checked against the files and tables elsewhere."""
    where = f"{path}: {MANIFEST}"
    content = parse_json(file.read_bytes(), where)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultsError(f"{where} does not say format '{FORMAT}': pack the runs with `audiocl submit`.")
    for field, known in (("version", VERSION), ("results_schema", SCHEMA_VERSION)):
        value = content.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ResultsError(f"{where}: field '{field}' is no whole number from 1: pack the runs again.")
        if value > known:
            raise ResultsError(
                f"{where}: field '{field}' is {shown(value, 20)}, but this audiocl ({__version__}) reads up to "
                f"{known}: upgrade audiocl."
            )
    if set(content) != set(_HEAD):
        odd = ", ".join(sorted(map(shown, set(content) ^ set(_HEAD)))[:5])
        raise ResultsError(f"{where} lacks fields, or has unknown ones ({odd}): pack the runs with `audiocl submit`.")
    for field in ("audiocl_version", "licence", *TEXTS):
        if not isinstance(content[field], str) or len(content[field]) > MAX_TEXT:
            raise ResultsError(f"{where}: field '{field}' is no text of at most {MAX_TEXT:,} characters: shorten it.")
    if content["licence"] != LICENCE:
        raise ResultsError(f"{where}: field 'licence' is not {LICENCE}, under which results are given: pack again.")
    runs = content["runs"]
    if not isinstance(runs, list) or not 1 <= len(runs) <= MAX_RUNS:
        raise ResultsError(f"{where}: field 'runs' lists no runs, or over {MAX_RUNS:,}: pack the runs again.")
    for number, run in enumerate(runs):
        if not _is_entry(run):
            raise ResultsError(f"{where}: entry {number} of 'runs' is not complete: pack the runs again.")
    if len({run["run_id"] for run in runs}) != len(runs):
        raise ResultsError(f"{where}: field 'runs' lists a run twice: pack the runs again.")
    return content


def _is_entry(run: Any) -> bool:
    fields = {"run_id", *_FACTS, "config", "environment", "files"}
    if not isinstance(run, dict) or set(run) != fields or not isinstance(run["run_id"], str):
        return False
    files = run["files"]
    return (
        _MEMBER.fullmatch(f"runs/{run['run_id']}.parquet") is not None
        and isinstance(files, dict)
        and set(files) == set(SCHEMAS)
        and all(isinstance(file, dict) and set(file) == {"sha256", "bytes"} for file in files.values())
    )


def _check_files(path: Path, folder: Path, manifest: Mapping[str, Any], names: set[str]) -> None:
    """Hold every file against the manifest: the same files, the same sizes, the same bytes."""
    listed = {
        f"{table}/{run['run_id']}.parquet": file for run in manifest["runs"] for table, file in run["files"].items()
    }
    if missing := sorted(set(listed) - names):
        raise ResultsError(f"{path} lacks {missing[0]}, which {MANIFEST} lists: pack the runs again.")
    if extra := sorted(names - set(listed) - {MANIFEST}):
        raise ResultsError(f"{path} holds {extra[0]}, which {MANIFEST} does not list: pack the runs again.")
    for name, said in sorted(listed.items()):
        data = (folder / name).read_bytes()
        if len(data) != said["bytes"] or hashlib.sha256(data).hexdigest() != said["sha256"]:
            raise ResultsError(
                f"{path}: {name} is not the file that {MANIFEST} describes (field 'sha256' or 'bytes'): it was changed "
                "after packing, pack the runs again."
            )


def untrue(entry_said: Mapping[str, Any], results: ResultsDir) -> str:
    """Return the first field of a manifest's entry that the run's own row does not bear out, or ""."""
    fresh = entry(results, entry_said["run_id"])
    for field, value in fresh.items():
        if canonical_json(value) != canonical_json(entry_said[field]):
            return field
    return ""
