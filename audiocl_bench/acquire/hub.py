"""Reading a corpus from the Hugging Face Hub and writing it in its official layout.

The rows are streamed, so the disk holds the corpus once and not three times. Audio is never decoded: the bytes of the
mirror are written as they are, and the metadata table is rebuilt from the columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import datasets

from audiocl_bench.acquire.catalogue import Mirror
from audiocl_bench.errors import CorpusError
from audiocl_bench.files import explain_os_error, write_text


def write(mirror: Mirror, folder: Path, *, progress: Callable[[int], None] | None = None) -> int:
    """Write a mirror below `folder` in the corpus' official layout; return the number of clips.

    Called again after an interruption, it writes only the clips that are not there in full length, and the table last:
    without the table the folder is no corpus.

    Args:
        mirror: the copy on the Hub; its `repo` may also be a local folder of Parquet files.
        folder: the corpus' root; made if needed.
        progress: called with the number of clips that are there.

    Raises:
        CorpusError: the Hub cannot be read, a column is missing, a name leads out of `folder` or comes twice, a row
            has no audio, or the disk cannot be written.
    """
    rows: list[list[str]] = []
    seen: set[str] = set()
    for row in _rows(mirror):
        path = _path(mirror, row)
        if path in seen:
            raise CorpusError(f"{mirror.repo} has {path} twice: it is no copy of the corpus, use the official archive.")
        seen.add(path)
        _write_clip(folder / path, _bytes(mirror, row, path))
        rows.append([_cell(row[column]) for column in mirror.columns])
        if progress is not None:
            progress(len(rows))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(mirror.columns)
    writer.writerows(rows)
    write_text(folder / mirror.table, table.getvalue(), error=CorpusError)
    return len(rows)


def _rows(mirror: Mirror) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all splits, with the audio as bytes."""
    needed = {mirror.audio, *mirror.columns, *(name for _, name, _, _ in Formatter().parse(mirror.file) if name)}
    for split in mirror.splits:
        # `datasets` lets through whatever HTTP, file system and Parquet libraries raise, which have no common base.
        try:
            stream = datasets.load_dataset(
                mirror.repo, mirror.config, split=split, revision=mirror.revision, streaming=True
            )
            # Not decoded: the original bytes, and no need for an audio decoder of `datasets`.
            rows = iter(stream.cast_column(mirror.audio, datasets.Audio(decode=False)))
        except Exception as cause:
            raise _unreadable(mirror, cause) from cause
        while True:
            try:
                row = next(rows, None)
            except Exception as cause:
                raise _unreadable(mirror, cause) from cause
            if row is None:
                break
            if absent := sorted(needed - row.keys()):
                raise CorpusError(
                    f"{mirror.repo} has no column '{absent[0]}' (it has: {', '.join(row)}): use the official archive."
                )
            yield row


def _unreadable(mirror: Mirror, cause: Exception) -> CorpusError:
    said = " ".join(str(cause).split())[:300] or type(cause).__name__
    return CorpusError(
        f"{mirror.repo} on the Hugging Face Hub cannot be read ({said}): check the connection and run the command "
        f"again, or leave --mirror out to use the official archive."
    )


def _path(mirror: Mirror, row: Mapping[str, Any]) -> str:
    """Return the official path of a row's clip; what stands in the row may name a file but no folder."""
    values = {key: _cell(row[key]) for _, key, _, _ in Formatter().parse(mirror.file) if key}
    for column, value in values.items():
        if not value or value.startswith(".") or any(sign in value for sign in "/\\\0"):
            raise CorpusError(
                f"{mirror.repo} has a {column} {value!r}, which is no file name: use the official archive."
            )
    return mirror.file.format(**values)


def _bytes(mirror: Mirror, row: Mapping[str, Any], path: str) -> bytes:
    audio = row[mirror.audio]
    data = audio.get("bytes") if isinstance(audio, Mapping) else None
    if not data:
        raise CorpusError(f"{mirror.repo} has no audio for {path}: use the official archive.")
    return bytes(data)


def _write_clip(path: Path, data: bytes) -> None:
    try:
        if path.is_file() and path.stat().st_size == len(data):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, path)) from cause


def _cell(value: Any) -> str:
    """Return a value as the official tables write it: 4 and not 4.0, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
