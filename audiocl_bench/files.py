"""Places and small file operations everything shares: cache home, package data, atomic writes, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiocl_bench.errors import AudioclError

_PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """Return audiocl's cache directory: `AUDIOCL_HOME`, else the platform's user cache directory."""
    override = os.environ.get("AUDIOCL_HOME")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("audiocl")


def splits_dir() -> Path:
    """Return the folder of frozen splits: inside an installed wheel, or at the top of a clone."""
    return _packaged("_splits", "splits")


def paper_dir() -> Path:
    """Return the folder of the paper's published numbers (CSV)."""
    return _packaged("_paper", "results/paper")


def _packaged(installed: str, in_clone: str) -> Path:
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _PACKAGE.parent / in_clone


def explain_os_error(error: OSError, path: Path) -> str:
    """Say in one sentence why `path` could not be written, with the fix."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to write {path}: free some space or point --results / AUDIOCL_HOME at another disk."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path} cannot be written (read-only or no permission): choose another directory."
    return f"{path} cannot be written ({error.strerror or error}): choose another directory."


@contextmanager
def atomic_path(target: Path, *, error: type[AudioclError] = AudioclError) -> Iterator[Path]:
    """Yield a temporary path beside `target`; move it into place when the block ends well, delete it otherwise.

    A reader therefore sees the old file or the new one, never a part. The data is flushed to disk before the move.

    Raises:
        error: the directory cannot be written or has no space left (one sentence, see `explain_os_error`).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as cause:
        raise error(explain_os_error(cause, target)) from cause
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as cause:
        raise error(explain_os_error(cause, target)) from cause
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str, *, error: type[AudioclError] = AudioclError) -> None:
    """Write UTF-8 `text` to `target` atomically, with LF line ends on every platform."""
    with atomic_path(target, error=error) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of UTF-8 `text`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of `canonical_json(value)`."""
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
