"""A miniature corpus on disk: made on first use under <cache>/mini, read like any other corpus.

The folder's name carries a hash of the synthesis code, so that changed code makes a new corpus and never mixes with an
old one. A corpus is rendered beside its place and moved there last, with a list of what every file must be: one that is
missing or damaged later is noticed, and the corpus is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from audiocl_bench.corpora.base import Clip, Corpus, CorpusInfo, audio_files, make_index
from audiocl_bench.errors import AudioError, CorpusError
from audiocl_bench.files import explain_os_error, home, sha256_file, sha256_json, write_text
from audiocl_bench.mini.catalogue import recipe
from audiocl_bench.mini.spec import RATE, ClipSpec, Recipe
from audiocl_bench.processes import cores, in_processes

_CHUNK = 24  # clips that a process renders at a time: enough to pay for a message, few enough for a smooth bar
_SUMS = "SHA256SUMS"  # beside the clips, one line each, as `sha256sum --check` reads it


class MiniCorpus(Corpus):
    """The synthetic miniature of a corpus; see `mini.catalogue` for their names.

    Args:
        name: such as `mini-esc50`.
        title: the real corpus' title.
    """

    def __init__(self, name: str, title: str) -> None:
        self._name, self._title = name, title

    @property
    def info(self) -> CorpusInfo:
        """The corpus' card."""
        return CorpusInfo(
            name=self._name,
            title=f"{self._title} miniature (synthetic)",
            folder=self._name,
            licence="synthetic, no rights reserved (CC0 1.0)",
            citation="",
            homepage="",
            how_to_get=f"It is synthesised on first use; delete {home() / 'mini'} to have it made again.",
            needs_registration=False,
        )

    def find(self, data: Path | None) -> Path:
        """Return the corpus' folder; the corpus is made first if it is not there. `data` does not matter.

        Raises:
            CorpusError: the synthesiser is not installed, or the cache directory cannot be written.
        """
        return make(recipe(self._name), home() / "mini")

    def index(self, root: Path) -> pd.DataFrame:
        """List the clips under `root` (see `Corpus.index`)."""
        files = audio_files(root)
        known = {spec.clip_id: spec for spec in recipe(self._name).specs()}
        if strange := sorted(files.keys() - known.keys()):
            raise CorpusError(f"{root / files[strange[0]]} is no clip of {self._name}: move it out of {root}.")
        found = [known[clip_id] for clip_id in files]
        return make_index(Clip(s.clip_id, files[s.clip_id], s.label, group=s.group, fold=s.fold) for s in found)


def folder_of(source: Recipe, place: Path) -> Path:
    """Return where the corpus of a recipe lies below `place`, whether it was made or not."""
    here = Path(__file__).resolve().parent
    code = {path.name: sha256_file(path) for path in sorted(here.glob("*.py"))}
    return place / f"{source.name}-{sha256_json(code)[:12]}"


def make(source: Recipe, place: Path, *, workers: int | None = None) -> Path:
    """Render a recipe's clips as 16-bit WAV files below `place`, unless all are there and whole; return their folder.

    Interrupted, it leaves no corpus behind and starts anew. Two processes never render the same corpus at once.

    Raises:
        CorpusError: the synthesiser is not installed, or `place` cannot be written.
    """
    folder = folder_of(source, place)
    try:
        if _is_whole(folder, len(source.specs())):
            return folder
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{source.name}.lock"):
            if not _is_whole(folder, len(source.specs())):
                _make(source, folder, workers or cores())
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, folder)) from cause
    return folder


def _is_whole(folder: Path, clips: int) -> bool:
    """Tell whether every clip is there, byte for byte as it was made."""
    try:
        listed = [line.partition("  ") for line in (folder / _SUMS).read_text(encoding="utf-8").splitlines()]
        return len(listed) == clips and all(sha256_file(folder / name) == digest for digest, _, name in listed)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
        return False


def _make(source: Recipe, folder: Path, workers: int) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if folder.is_dir():
        _say(f"{folder} is damaged: it is made again.")
    specs = source.specs()
    for label in {spec.label for spec in specs}:
        (part / label).mkdir(parents=True)
    try:
        with _progress(source.name, len(specs)) as advance:
            for done in _rendered(source.name, specs, part, workers):
                advance(done)
        names = [f"{spec.clip_id}.wav" for spec in specs]
        sums = "".join(f"{sha256_file(part / name)}  {name}\n" for name in names)
        write_text(part / _SUMS, sums, error=CorpusError)
        if folder.is_dir():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in folder.parent.glob(f"{source.name}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)  # made by other code: nothing reads it any more


def _rendered(name: str, specs: tuple[ClipSpec, ...], part: Path, workers: int) -> Iterator[int]:
    """Render in processes of their own and yield how many clips were done."""
    chunks = [specs[at : at + _CHUNK] for at in range(0, len(specs), _CHUNK)]
    _render(name, part, chunks[0][:1])  # here first: what is missing is told in one sentence
    with closing(in_processes(partial(_render, name, part), chunks, workers, say=_say)) as done:
        yield from (count for _, count in done)


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False)


def _render(name: str, part: Path, specs: tuple[ClipSpec, ...]) -> int:
    source = recipe(name)
    for spec in specs:
        wave = source.render(spec)
        if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
            raise AudioError(f"{name} rendered no sound for '{spec.clip_id}': report this as a fault of audiocl.")
        soundfile.write(part / f"{spec.clip_id}.wav", wave, RATE, subtype="PCM_16")
    return len(specs)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if not console.is_interactive:
        _say(f"making {name}: {total} clips")
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(f"making {name}", total=total)
        yield lambda count: bar.advance(task, count)
