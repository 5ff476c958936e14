"""Read Parquet files of unknown origin in a process of its own, within limits. Run as a script by `bounded.read_all`.

Reads one JSON object from standard input, {"memory": bytes, "seconds": CPU seconds, "files": [[path, limits], ...]},
and answers each file with two lines: its number before it is touched, then "" if it can be read or the reason why not.
So even if the reader itself crashes, it is known at which file. It imports nothing but pyarrow, and no table leaves it.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def refusal(path: str, limits: dict[str, int]) -> str:
    """Return why a file is not to be read, or "": first by what its metadata say, then by reading it.

    Args:
        path: the Parquet file.
        limits: the most "rows", "columns", "row_groups", "values" of one column and "bytes" unpacked.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False) as handle:
            told = _too_much(handle.metadata, limits)
            if told:
                return told
            for field in handle.schema_arrow:
                if _extended(field):
                    return f"has an extension type in column {field.name!r}: write it anew with `audiocl run`"
            for batch in handle.iter_batches(batch_size=65_536, use_threads=False):
                batch.validate(full=True)
                if told := _odd(batch):
                    return told
    except (MemoryError, pa.ArrowMemoryError):
        return "unpacks to more than the memory allowed for a results file: write it anew with `audiocl run`"
    except Exception as cause:  # whatever a damaged file makes the reader say, it is damaged
        first = " ".join(str(cause).split())[:120]
        return f"is damaged or no Parquet file ({type(cause).__name__}: {first}): get another copy, or run again"
    return ""


def _too_much(metadata: Any, limits: dict[str, int]) -> str:
    groups = [metadata.row_group(i) for i in range(min(metadata.num_row_groups, limits["row_groups"]))]
    columns = min(metadata.num_columns, limits["columns"])
    chunks = [group.column(i) for group in groups for i in range(columns)]
    found = {
        "columns": metadata.num_columns,
        "row_groups": metadata.num_row_groups,
        "rows": max([metadata.num_rows, *(group.num_rows for group in groups)]),
        "values": max((chunk.num_values for chunk in chunks), default=0),
        "bytes": sum(chunk.total_uncompressed_size for chunk in chunks),
    }
    for name, count in found.items():
        if count > limits[name]:
            what = {"values": "values in one column", "bytes": "bytes unpacked"}.get(name, name.replace("_", " "))
            return f"states {count:,} {what}, but at most {limits[name]:,} are read: it is no table of one run"
        if count < 0:
            return f"states a negative number of {name}: it is damaged, get another copy"
    return ""


def _extended(field: pa.Field) -> bool:
    """Whether a field, or one inside of it, has a type that pyarrow builds from bytes in the file."""
    kind = field.type
    return (
        isinstance(kind, pa.BaseExtensionType)
        or any(key.startswith(b"ARROW:extension") for key in field.metadata or {})
        or any(_extended(kind.field(i)) for i in range(kind.num_fields))
    )


def _odd(batch: pa.RecordBatch) -> str:
    """Say what later readers would stumble over: a dictionary that lists a value twice, or nothing for a value."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            words = column.dictionary
            if words.null_count or len(words.unique()) != len(words):
                return f"lists a word twice or an empty one in column {name!r}: write it anew with `audiocl run`"
    return ""


def main() -> None:
    """Answer for every file."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_DATA, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"], asked["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, (path, limits) in enumerate(asked["files"]):
        print(number, flush=True)
        print(refusal(path, limits), flush=True)


if __name__ == "__main__":
    main()
