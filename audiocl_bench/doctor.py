"""What this machine is ready for: versions, devices, backbones, corpora, free space. Looks; changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audiocl_bench import __version__
from audiocl_bench.errors import AudioclError
from audiocl_bench.files import home
from audiocl_bench.processes import cores

State = Literal["ready", "missing", "problem", "fact"]

_LIBRARIES = ("torch", "peft", "datasets", "numpy", "pyarrow", "soundfile")
_LITTLE_SPACE = 2 * 10**9  # bytes; less than any corpus needs


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        area: heading: "versions", "devices", "backbones", "corpora", "miniatures" or "space".
        what: the thing looked at.
        state: "ready", "missing" (can be got), "problem" (has to be mended), or "fact".
        told: what there is to say, with the command that helps where one does.
    """

    area: str
    what: str
    state: State
    told: str


def examine(data: Path | None = None, results: str | Path | None = None) -> Iterator[Finding]:
    """Yield all findings, area by area.

    Args:
        data: folder of the corpora; default `data` in the cache directory.
        results: where results would go, by path or URL; default `results` in the cache directory.
    """
    yield from _versions()
    yield from _devices()
    yield from _backbones()
    yield from _told("corpora", _corpora(data))
    yield from _told("miniatures", _miniatures())
    yield _space("cache", home())
    yield _results(results or home() / "results")


def _told(area: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on; what cannot be read or is damaged ends its area, not the report."""
    try:
        yield from findings
    except OSError as error:
        yield Finding(area, area, "problem", f"{error.filename} cannot be read ({error.strerror or error})")
    except AudioclError as error:
        yield Finding(area, area, "problem", str(error).rstrip("."))


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "audiocl", "fact", __version__)
    yield Finding("versions", "python", "fact", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Finding(
        "versions", "libraries", "fact", ", ".join(f"{n} {importlib.metadata.version(n)}" for n in _LIBRARIES)
    )


def _devices() -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    told = f"{cores()} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free"
    yield Finding("devices", "cpu", "ready", told)
    if not torch.cuda.is_available():
        yield Finding("devices", "cuda", "fact", "no CUDA device that this torch can use; runs go to the CPU")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        told = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Finding("devices", f"cuda:{number}", "ready", told)


def _backbones() -> Iterator[Finding]:
    from audiocl_bench import backbones

    for row in backbones.list_rows():
        if row.problem:
            yield Finding("backbones", row.name, "problem", row.problem.rstrip("."))
        elif row.stand_in:
            yield Finding("backbones", row.name, "ready", "random weights, a stand-in for trying things")
        elif row.shipped:
            yield Finding("backbones", row.name, "ready", f"came with audiocl, {row.parameters / 1e6:.1f} M parameters")
        elif backbones.cached(row.name):
            yield Finding("backbones", row.name, "ready", "weights are in the Hugging Face cache")
        elif row.hub:
            told = f"{4 * row.parameters / 1e6:.0f} MB, fetched on first use from {row.hub}"
            yield Finding("backbones", row.name, "missing", told)
        else:
            yield Finding("backbones", row.name, "missing", f"get it from {row.page} and pass --backbone PATH")


def _corpora(data: Path | None) -> Iterator[Finding]:
    from audiocl_bench.acquire import corpora

    for row in corpora.status(data):
        if row.state == "complete":
            yield Finding("corpora", row.corpus, "ready", f"{row.found:,} clips in {row.where}")
        elif row.state == "missing":
            yield Finding("corpora", row.corpus, "missing", row.command)
        else:
            told = f"{row.complete} in {row.where}; audiocl data verify {row.corpus}{corpora.data_option(data)}"
            yield Finding("corpora", row.corpus, "problem", told)


def _miniatures() -> Iterator[Finding]:
    from audiocl_bench.mini import catalogue
    from audiocl_bench.mini.corpus import folder_of

    speaks = importlib.util.find_spec("espeakng_loader") is not None
    for name in catalogue.names():
        source = catalogue.recipe(name)
        if folder_of(source, home() / "mini").is_dir():
            yield Finding("miniatures", name, "ready", f"{len(source.specs())} clips")
        elif name in catalogue.SPOKEN and not speaks:
            yield Finding("miniatures", name, "missing", "needs speech synthesis: pip install 'audiocl[mini]'")
        else:
            yield Finding("miniatures", name, "ready", f"{len(source.specs())} clips, made on first use")


def _results(where: str | Path) -> Finding:
    from audiocl_bench.places import Folder, place

    try:
        found = place(where)
        if isinstance(found, Folder):
            return _space("results", found.path)
        return Finding("space", "results", "ready", f"{found.name} answers; {len(found.listed('runs'))} runs lie there")
    except AudioclError as error:
        return Finding("space", "results", "problem", str(error).rstrip("."))


def _space(what: str, folder: Path) -> Finding:
    # `os.access`, because what lies in a folder that one may not enter does not "exist" either, without an error.
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.access(place, os.F_OK))
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return Finding("space", what, "problem", f"{folder} cannot be written: set AUDIOCL_HOME or --results")
    free = shutil.disk_usage(place).free
    state: State = "problem" if free < _LITTLE_SPACE else "ready"
    return Finding("space", what, state, f"{free / 1e9:.1f} GB free for {folder}")
