"""Limits for what is read of a submission, and readers that keep them: nothing here trusts a file or executes it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audiocl_bench.errors import ResultsError

MAX_RUNS = 2_000
"""Runs in one pack or collection: thirteen methods on the six benchmarks, five orders and five seeds make 1,950."""
MAX_PACK_BYTES = 1_000_000_000
MAX_MANIFEST_BYTES = 32_000_000
MAX_SESSIONS = 2_000
"""Sessions of a stream; the longest benchmark has 315. Accuracy matrices grow with its square."""
MAX_NAME = 500
"""Characters in the name of a clip or class."""
MAX_JSON_BYTES = 2_000_000
"""Bytes of one JSON value inside a table."""
MAX_FILE_BYTES: Mapping[str, int] = {"runs": 10_000_000, "sessions": 64_000_000, "predictions": 128_000_000}
"""Size of one run's file on disk; the largest real ones have half a megabyte."""
LIMITS: Mapping[str, Mapping[str, int]] = {
    "runs": {"rows": 1, "columns": 100, "row_groups": 1, "values": 1, "bytes": 20_000_000},
    "sessions": {
        "rows": MAX_SESSIONS,
        "columns": 50,
        "row_groups": 16,
        "values": 1_000_000,
        "bytes": 200_000_000,
    },
    "predictions": {
        "rows": 10_000_000,
        "columns": 20,
        "row_groups": 64,
        "values": 10_000_000,
        "bytes": 500_000_000,
    },
}
"""What one file may state about itself; TIMIT's 315 sessions make 200,000 prediction rows."""

PROBE_MEMORY = 2_000_000_000
PROBE_SECONDS = 600

_PROBE = Path(__file__).with_name("probe.py")


def refusals(files: Sequence[tuple[Path, str]]) -> dict[int, str]:
    """Try to read Parquet files within limits, in a process of its own, so that a bomb or a crash harms nobody.

    Args:
        files: path and table ("runs", "sessions", "predictions") of each.

    Returns:
        {position: why the file is not to be read}. After a file that killed the reader the rest was not looked at, and
        each of them has an entry that says so.
    """
    asked = {
        "memory": PROBE_MEMORY,
        "seconds": PROBE_SECONDS,
        "files": [[str(path.absolute()), dict(LIMITS[table])] for path, table in files],
    }
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", str(_PROBE)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        encoding="utf-8",
        errors="replace",
    )
    answers = done.stdout.split("\n")[:-1]
    found = {number: told for number, told in enumerate(answers[1::2]) if told}
    read = len(answers) // 2
    if read < len(files):
        if not answers:  # it did not even begin: an installation without pyarrow, not a file
            told = shown(done.stderr.strip()[-100:])
            raise ResultsError(f"the process that reads results could not start ({told}): reinstall audiocl.")
        found[read] = "made the Parquet reader crash or run without end: get another copy, or run again"
        found.update(dict.fromkeys(range(read + 1, len(files)), "was not read, because an earlier file is harmful"))
    return found


def parse_json(text: str | bytes, what: str) -> Any:
    """Read JSON strictly: no NaN or infinity, no key twice, no nesting without end.

    Raises:
        ResultsError: one sentence beginning with `what`.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError as cause:
        raise ResultsError(f"{what} is nested too deeply: write plain JSON.") from cause
    except (ValueError, UnicodeDecodeError) as cause:
        raise ResultsError(f"{what} is not valid JSON ({shown(str(cause))}): restore it.") from cause


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands there twice")
    return content


def shown(value: object, longest: int = 120) -> str:
    """Return text from a stranger on one line, without what a terminal could take for a command, not too long."""
    text = " ".join(str(value).split())
    text = re.sub(r"[^ -~\u00a1-\ud7ff\ue000-\uffef]", "?", text)
    text = re.sub("[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", "?", text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
