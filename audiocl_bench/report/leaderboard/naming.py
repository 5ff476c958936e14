"""How settings, and files named after them, are written."""

from __future__ import annotations

import re
from typing import Any

from audiocl_bench.files import canonical_json

HASH = 6  # characters of a hash that name settings, as in the terminal tables
_SLUG = 80


def slug(text: str) -> str:
    """Return `text` as a safe part of a file name: letters, digits, ".", "-" and "_", at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)[:_SLUG].strip("._-") or "x"


def setting_text(value: Any) -> str:
    """Return a setting as `--set` reads it: true, none, 0.5, a,b."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(setting_text(item) for item in value)
    return canonical_json(value) if isinstance(value, dict) else str(value)
