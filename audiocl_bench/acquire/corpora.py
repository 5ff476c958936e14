"""The corpora on this machine: what is here, getting what is not, taking over a copy one has, checking copies.

    rows = status(data)                    # one Status per corpus
    get("esc50", data)                     # download, check, unpack, compare with the frozen index, move into place
    add("timit", Path("~/TIMIT"), data)    # compare a copy with the frozen index, then link, copy or unpack it
    verify("all", data, decode=True)       # names, labels, empty files, and whether every file can be decoded

Nothing takes a corpus' official name in the data folder before all its clips and labels are those of the frozen index.
Unfinished work lies in `<data>/.downloads`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import soundfile
from filelock import FileLock

from audiocl_bench import corpora, splits
from audiocl_bench.acquire import catalogue
from audiocl_bench.acquire.archives import extract, is_archive
from audiocl_bench.acquire.download import amount, fetch
from audiocl_bench.benchmarks import frozen_differences
from audiocl_bench.corpora.base import OfficialCorpus, child, walk_files
from audiocl_bench.errors import ConfigError, CorpusError
from audiocl_bench.files import explain_os_error, home, sha256_json, write_text
from audiocl_bench.processes import cores

State = Literal["complete", "partial", "different", "missing"]
Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is (None: unknown).

The unit is bytes for "downloading", "unpacking" and "copying", clips for "reading" and "decoding".
"""

_SHOWN = 20  # differences listed in a message; the rest is in the written report
_DEEPEST = 6  # a corpus is looked for this far below a folder the user names
_MOST_FOLDERS = 20_000
_BLOCK = 1 << 18  # samples decoded at a time


@dataclass(frozen=True)
class Status:
    """Where a corpus stands.

    Attributes:
        corpus: its name.
        title: the name people use.
        where: its folder, None if it was not found.
        state: complete; partial (clips are missing, the others are right); different (clips relabelled, too many, or
            the layout is not the official one); missing.
        found: clips of the benchmark that are there with the right label.
        expected: clips that the benchmark uses.
        size: bytes on disk of everything below `where`.
        licence: its terms.
        split_hash: 12 digits that stand for all its frozen split files.
        command: what to type to get it, "" if it is complete.
        problems: what is wrong, one line each.
    """

    corpus: str
    title: str
    where: Path | None
    state: State
    found: int
    expected: int
    size: int
    licence: str
    split_hash: str
    command: str
    problems: tuple[str, ...] = ()

    @property
    def complete(self) -> str:
        """The state in words: "yes", "partial 12 of 2,000", "different", "no"."""
        words = {"complete": "yes", "missing": "no", "different": "different"}
        return words.get(self.state, f"partial {self.found:,} of {self.expected:,}")


@dataclass(frozen=True)
class Placed:
    """A corpus that is in place and complete.

    Attributes:
        corpus: its name.
        where: its folder.
        how: what was done for it.
        clips: clips that the benchmark uses.
    """

    corpus: str
    where: Path
    how: Literal["already there", "downloaded", "read from the Hub", "linked", "copied", "unpacked"]
    clips: int


@dataclass(frozen=True)
class Verified:
    """The outcome of checking one copy.

    Attributes:
        corpus: its name.
        where: its folder.
        clips: audio files that were looked at.
        decoded: whether each of them was decoded from beginning to end.
        problems: what is wrong, one line each; empty if nothing is.
    """

    corpus: str
    where: Path
    clips: int
    decoded: bool
    problems: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# What is here


def status(data: Path | None = None, names: Iterable[str] | None = None) -> list[Status]:
    """Return where each corpus stands. Names and tables are read, no audio.

    Args:
        data: the folder of the corpora; default `data` in the cache directory, which is searched in any case.
        names: corpora to look at; default all.

    Raises:
        UnknownNameError: no such corpus.
        StreamError: a frozen split file is missing or was changed.
    """
    return [_status(name, data) for name in (catalogue.names() if names is None else names)]


def _status(name: str, data: Path | None) -> Status:
    corpus = _corpus(name)
    where = locate(name, data)
    expected = splits.frozen_clips(name)
    state: State = "missing"
    found, problems = 0, tuple[str, ...]()
    if where is not None:
        state, found, problems = _judge(corpus, where, expected)
    return Status(
        corpus=name,
        title=corpus.info.title,
        where=where,
        state=state,
        found=found,
        expected=len(expected),
        size=0 if where is None else _size(where),
        licence=corpus.info.licence,
        split_hash=split_hash(name),
        command="" if state == "complete" else command(name, data),
        problems=problems,
    )


def _judge(corpus: OfficialCorpus, where: Path, expected: pd.DataFrame) -> tuple[State, int, tuple[str, ...]]:
    try:
        index = corpus.index(where)
    except CorpusError as error:
        return "different", 0, (str(error),)
    wrong = frozen_differences(corpus.info.name, index, expected)
    labels = dict(zip(index["clip_id"], index["label"], strict=True))
    pairs = zip(expected["clip_id"], expected["label"], strict=True)
    found = sum(labels.get(clip_id) == label for clip_id, label in pairs)
    if not wrong:
        return "complete", found, ()
    return ("partial" if all(line.startswith("missing: ") for line in wrong) else "different"), found, tuple(wrong)


def split_hash(name: str) -> str:
    """Return 12 hexadecimal digits that stand for all frozen split files of a corpus (of `splits/index.json`)."""
    files = splits.read_index()["files"]
    return sha256_json({file: digest for file, digest in files.items() if file.startswith(f"{name}/")})[:12]


def locate(name: str, data: Path | None = None) -> Path | None:
    """Return the folder of a corpus, whole or not, in `data` or the default place; None if there is none."""
    corpus = _corpus(name)
    given = data.expanduser() if data is not None else None
    places = [place for place in (given, home() / "data") if place is not None and place.is_dir()]
    try:
        return corpus.find(given if given in places else None)
    except CorpusError:
        named = (child(place, corpus.info.folder, *corpus.info.aliases) for place in places)
        return next((folder for folder in named if folder is not None), None)


def command(name: str, data: Path | None = None) -> str:
    """Return what to type to get a corpus."""
    how = f"get {name}" if catalogue.source(name).archive is not None else f"add {name} PATH"
    return f"audiocl data {how}{data_option(data)}"


def missing(names: Iterable[str], data: Path | None = None) -> tuple[str, ...]:
    """Return which of the named corpora have no folder in the official layout; names outside the catalogue are skipped.

    Only the layout is looked at: whether every clip is there is checked where the clips are opened.
    """
    wanted = [name for name in dict.fromkeys(names) if name in catalogue.names()]
    return tuple(name for name in wanted if (where := locate(name, data)) is None or _corpus(name).lacks(where))


def missing_message(names: Iterable[str], data: Path | None = None) -> str:
    """Say which of the named corpora are missing and what to type for each, one line per corpus; "" if none is."""
    lines = []
    for name in missing(names, data):
        source, title = catalogue.source(name), _corpus(name).info.title
        if source.archive is None:
            told = f"{source.instead}; then run"
        else:
            told = f"{amount(source.archive.about)} to download, {amount(source.unpacked)} on disk; get it with"
        lines.append(f"{title} is not here: {told} `{command(name, data)}`.")
    return "\n".join(lines)


def get_missing(names: Iterable[str], data: Path | None = None, *, progress: Progress | None = None) -> list[Placed]:
    """Download those of the named corpora that are missing; for `audiocl run --get-data`.

    Raises:
        CorpusError: one of them cannot be downloaded. Those that have no archive are told before anything is fetched.
    """
    absent = missing(names, data)
    if barred := [name for name in absent if catalogue.source(name).archive is None]:
        raise CorpusError(missing_message(barred, data))
    return [get(name, data, progress=progress) for name in absent]


# ---------------------------------------------------------------------------------------------------------------------
# Getting


def get(
    name: str,
    data: Path | None = None,
    *,
    mirror: bool = False,
    progress: Progress | None = None,
    keep_archive: bool = False,
) -> Placed:
    """Download a corpus, unpack it, compare it with the frozen index and move it into place.

    A complete copy that is already there is left alone. Interrupted, the next call goes on; a step that fails leaves
    what was downloaded.

    Args:
        name: the corpus.
        data: the folder of the corpora; default `data` in the cache directory.
        mirror: read the mirror on the Hugging Face Hub instead of the official archive.
        progress: see `Progress`.
        keep_archive: leave the archive in `<data>/.downloads` at the end.

    Raises:
        UnknownNameError: no such corpus.
        CorpusError: it has no archive (or mirror), does not fit on the disk, cannot be downloaded or unpacked, is not
            the corpus of the frozen index, or its place is taken.
    """
    source = catalogue.source(name)
    if mirror and source.mirror is None:
        having = ", ".join(each for each in catalogue.names() if catalogue.source(each).mirror)
        raise CorpusError(
            f"{name} has no mirror on the Hub that gives back its official files (those that have one: {having}): "
            f"leave --mirror out."
        )
    if not mirror and source.archive is None:
        raise CorpusError(f"{source.instead}; then run `{command(name, data)}`.")
    if (present := _complete(name, data)) is not None:
        return present
    place = _place(data)
    with _staging(name, place) as work:
        if (present := _complete(name, data)) is not None:  # another process was faster
            return present
        _check_free(_corpus(name), place)
        if mirror:
            return _get_mirror(source, place, work, progress)
        return _get_archive(source, place, work, progress, keep_archive)


def _get_archive(
    source: catalogue.Source, place: Path, work: Path, progress: Progress | None, keep_archive: bool
) -> Placed:
    archive = source.archive
    assert archive is not None
    target = work / archive.name
    have = sum(path.stat().st_size for path in (target, target.with_name(f"{target.name}.part")) if path.is_file())
    _check_space(source.corpus, place, max(0, archive.about - have) + source.unpacked)
    fetch(archive.url, target, size=archive.size, checksum=archive.checksum, progress=_stage(progress, "downloading"))
    try:
        placed = _install(source.corpus, target, place, work, "downloaded", progress)
    except CorpusError as error:
        told, line_break, listed = str(error).partition("\n")
        kept = f"The download is kept in {target}: delete it to have it fetched anew."
        raise CorpusError(f"{told} {kept}{line_break}{listed}") from error
    if not keep_archive:
        target.unlink(missing_ok=True)
    return placed


def _get_mirror(source: catalogue.Source, place: Path, work: Path, progress: Progress | None) -> Placed:
    from audiocl_bench.acquire import hub  # here: `datasets` takes a second to import

    copy = source.mirror
    assert copy is not None
    unpacked = work / f"{source.corpus}.mirror"
    _check_space(source.corpus, place, max(0, source.unpacked - (_size(unpacked) if unpacked.is_dir() else 0)))
    total = len(splits.frozen_clips(source.corpus))
    tell = None if progress is None else lambda done: progress("reading", done, total)
    hub.write(copy, unpacked, progress=tell)
    where = _move(_corpus(source.corpus), unpacked, unpacked, place)
    return Placed(source.corpus, where, "read from the Hub", total)


# ---------------------------------------------------------------------------------------------------------------------
# Taking over a copy


def add(
    name: str, path: Path, data: Path | None = None, *, copy: bool = False, progress: Progress | None = None
) -> Placed:
    """Take over a copy of a corpus: compare it with the frozen index, then link it (or copy it, or unpack it).

    Args:
        name: the corpus.
        path: its folder, a folder that holds it, or an archive of it. A folder stays where it is and a link with the
            official name is made; an archive is unpacked and stays too.
        data: the folder of the corpora; default `data` in the cache directory.
        copy: copy a folder instead of linking to it.
        progress: see `Progress`.

    Raises:
        UnknownNameError: no such corpus.
        CorpusError: there is nothing at `path`, it is not the corpus of the frozen index (all differences are written
            to a report), it does not fit on the disk, or its place is taken.
    """
    corpus = _corpus(name)
    path = path.expanduser()
    if not path.exists():
        raise CorpusError(f"{path} does not exist: give the folder or the archive of {corpus.info.title}.")
    place = _place(data)
    if path.is_dir():
        root = _root_below(corpus, path)
        _check(corpus, root)
        with _staging(name, place) as work:
            return _take_folder(corpus, root, place, work, copy, progress)
    if not is_archive(path):
        raise CorpusError(f"{path} is neither a folder nor a zip or tar archive: give one of {corpus.info.title}.")
    if (present := _complete(name, place)) is not None and present.where.parent == place:
        return present
    with _staging(name, place) as work:
        _check_free(corpus, place)
        return _install(name, path, place, work, "unpacked", progress)


def _take_folder(
    corpus: OfficialCorpus, root: Path, place: Path, work: Path, copy: bool, progress: Progress | None
) -> Placed:
    name, target = corpus.info.name, place / corpus.info.folder
    clips = len(splits.frozen_clips(name))
    present = child(place, corpus.info.folder, *corpus.info.aliases)
    if present is not None and present.resolve() == root.resolve() and not (copy and present.is_symlink()):
        return Placed(name, present, "already there", clips)
    if copy and target.is_symlink() and target.resolve() == root.resolve():
        target.unlink()  # the link that an earlier call without --copy made
    _check_free(corpus, place)
    try:
        if not copy:
            target.symlink_to(root.resolve(), target_is_directory=True)
            return Placed(name, target, "linked", clips)
        _check_space(name, place, _size(root))
        part = work / f"{name}.copy"
        shutil.rmtree(part, ignore_errors=True)
        _copy(root, part, progress)
        part.rename(target)
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, target)) from cause
    return Placed(name, target, "copied", clips)


def _copy(root: Path, target: Path, progress: Progress | None) -> None:
    total, done = _size(root), 0
    for path in walk_files(root):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target / path)
        done += (target / path).stat().st_size
        if progress is not None:
            progress("copying", done, total)


def _install(
    name: str,
    archive: Path,
    place: Path,
    work: Path,
    how: Literal["downloaded", "unpacked"],
    progress: Progress | None,
) -> Placed:
    """Unpack an archive beside its place, compare what comes out with the frozen index, and move it there."""
    corpus = _corpus(name)
    unpacked = work / f"{name}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of an earlier call that was killed
    try:
        extract(archive, unpacked, progress=_stage(progress, "unpacking"))
        where = _move(corpus, unpacked, _root_below(corpus, unpacked, shown=archive), place)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return Placed(name, where, how, len(splits.frozen_clips(name)))


def _move(corpus: OfficialCorpus, unpacked: Path, root: Path, place: Path) -> Path:
    _check(corpus, root)
    target = place / corpus.info.folder
    try:
        if target.is_dir() and not target.is_symlink():
            target.rmdir()  # an empty one: `_check_free` has refused any other
        root.rename(target)
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, target)) from cause
    if root != unpacked:
        shutil.rmtree(unpacked, ignore_errors=True)
    return target


def _root_below(corpus: OfficialCorpus, top: Path, *, shown: Path | None = None) -> Path:
    """Return the first folder in the official layout at or below `top`, the nearest first."""
    waiting = deque([(top, 0)])
    looked = 0
    while waiting and looked < _MOST_FOLDERS:
        folder, depth = waiting.popleft()
        looked += 1
        if not corpus.lacks(folder):
            return folder
        if depth < _DEEPEST:
            waiting += [(inner, depth + 1) for inner in _folders(folder)]
    lacking = " and ".join(corpus.lacks(top))
    raise CorpusError(
        f"{shown or top} is not {corpus.info.title} in its official layout: {lacking} was found neither there nor "
        f"below. {corpus.info.homepage} describes the layout."
    )


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            inner = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # a folder one may not read holds no corpus one could use
        return []
    return [folder / name for name in sorted(inner)]


def _check(corpus: OfficialCorpus, root: Path) -> None:
    """Compare a copy with the frozen index.

    Raises:
        CorpusError: it differs; the first differences are listed, all are written to a report.
    """
    name = corpus.info.name
    wrong = frozen_differences(name, corpus.index(root), splits.frozen_clips(name))
    if wrong:
        raise CorpusError(
            f"{root} differs from the frozen index of {corpus.info.title} in {len(wrong):,} clips, so a result on it "
            f"would not be the benchmark: get the official copy, or describe this one as a benchmark of your own in a "
            f"TOML file. {_listed(name, wrong, 'differences')}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def verify(
    names: str | Iterable[str] = "all",
    data: Path | None = None,
    *,
    decode: bool = False,
    progress: Progress | None = None,
) -> list[Verified]:
    """Check copies: clips and labels against the frozen index, empty files, and with `decode` every file's audio.

    What decoding cannot show is a WAV file that ends early in its samples: it reads as a shorter sound. The checksum of
    the archive, compared by `get`, is what proves the bytes.

    Args:
        names: a corpus, several, or "all" for those that are here.
        data: the folder of the corpora; default `data` in the cache directory, which is searched in any case.
        decode: decode every file from beginning to end.
        progress: see `Progress`.

    Raises:
        UnknownNameError: no such corpus.
        CorpusError: a named corpus, or every corpus, is missing. What is wrong with a copy is returned, not raised.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    everything = "all" in chosen
    chosen = list(catalogue.names()) if everything else list(dict.fromkeys(chosen))
    places = {name: locate(name, data) for name in chosen}
    absent = [name for name, where in places.items() if where is None]
    if absent and (not everything or len(absent) == len(chosen)):
        raise CorpusError(missing_message(absent, data))
    return [_verify(name, where, decode, progress) for name, where in places.items() if where is not None]


def _verify(name: str, where: Path, decode: bool, progress: Progress | None) -> Verified:
    corpus = _corpus(name)
    try:
        index = corpus.index(where)
    except CorpusError as error:
        return Verified(name, where, 0, decode, (str(error),))
    problems = frozen_differences(name, index, splits.frozen_clips(name))
    paths = index["path"].tolist()
    sound = []
    for path in paths:
        trouble = _empty(where / path)
        problems += [f"{path}: {trouble}"] if trouble else []
        sound += [] if trouble else [path]
    if decode:
        pool = ThreadPoolExecutor(cores())  # threads: libsndfile decodes without Python's lock
        try:
            troubles = pool.map(lambda path: _undecodable(where / path), sound)
            for done, (path, trouble) in enumerate(zip(sound, troubles, strict=True), start=1):
                problems += [f"{path}: {trouble}"] if trouble else []
                if progress is not None:
                    progress("decoding", done, len(sound))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in hand only
    return Verified(name, where, len(paths), decode, tuple(problems))


def _empty(path: Path) -> str:
    try:
        return "" if path.stat().st_size else "empty file"
    except OSError as cause:
        return f"cannot be read ({cause.strerror or cause})"


def _undecodable(path: Path) -> str:
    """Say why the audio of a file cannot be decoded; "" if it can."""
    try:
        with soundfile.SoundFile(path) as sound:
            stated, read = sound.frames, 0
            while len(block := sound.read(_BLOCK, dtype="float32")):
                read += len(block)
    except (soundfile.SoundFileError, OSError, ValueError) as cause:
        return f"cannot be decoded ({' '.join(str(cause).split())})"
    if not read:
        return "holds no samples"
    return "" if read == stated else f"holds {read:,} of {stated:,} samples"


def problems_message(outcome: Verified, data: Path | None = None) -> str:
    """Say what is wrong with a copy, the first lines in full and all of them in a report; "" if nothing is."""
    if not outcome.problems:
        return ""
    count = len(outcome.problems)
    return (
        f"{_corpus(outcome.corpus).info.title} in {outcome.where} has {count:,} "
        f"{'problem' if count == 1 else 'problems'}: restore the files, or move the folder away and run "
        f"`{command(outcome.corpus, data)}`. {_listed(outcome.corpus, outcome.problems, 'problems')}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Shared


def _corpus(name: str) -> OfficialCorpus:
    catalogue.source(name)  # raises for names that are no corpus of the catalogue
    corpus = corpora.get(name)
    assert isinstance(corpus, OfficialCorpus)
    return corpus


def _place(data: Path | None) -> Path:
    """Return the folder that corpora are put into."""
    place = home() / "data" if data is None else data.expanduser()
    if place.exists() and not place.is_dir():
        raise CorpusError(f"{place} is not a directory: --data takes the directory that holds the corpora.")
    return place.absolute()


def data_option(data: Path | None) -> str:
    """Return the `--data` part of a command; "" for the default folder."""
    return "" if data is None else f" --data {shlex.quote(str(data))}"


def _complete(name: str, data: Path | None) -> Placed | None:
    """Return the complete copy that is already there, if there is one."""
    where = locate(name, data)
    if where is None:
        return None
    expected = splits.frozen_clips(name)
    state, found, _ = _judge(_corpus(name), where, expected)
    return Placed(name, where, "already there", found) if state == "complete" else None


@contextmanager
def _staging(name: str, place: Path) -> Iterator[Path]:
    """Yield the folder of unfinished work; of two processes that work on one corpus, the second waits."""
    work = place / ".downloads"
    lock = FileLock(work / f".{name}.lock")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as cause:
        raise CorpusError(explain_os_error(cause, work)) from cause
    try:
        yield work
    finally:
        lock.release()


def _check_free(corpus: OfficialCorpus, place: Path) -> None:
    """Refuse to touch what stands where the corpus would go, unless it is an empty folder."""
    taken = child(place, corpus.info.folder, *corpus.info.aliases)
    if taken is None:
        return
    if taken.is_symlink():
        raise CorpusError(f"{taken} is a link to {taken.readlink()}: remove the link and run the command again.")
    if not taken.is_dir() or any(taken.iterdir()) or taken.name != corpus.info.folder:
        raise CorpusError(
            f"{taken} stands where {corpus.info.title} would go, and nothing of yours is overwritten: move it away, "
            f"or choose another folder with --data."
        )


def _check_space(name: str, place: Path, need: int) -> None:
    free = shutil.disk_usage(place).free
    if need > free:
        raise CorpusError(
            f"{name} needs {amount(need)} in {place} but only {amount(free)} are free: free some space or choose "
            f"another folder with --data."
        )


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder; what cannot be looked at counts nothing."""
    total = 0
    for where, _, files in os.walk(folder, followlinks=False):
        for file in files:
            try:
                total += (Path(where) / file).stat().st_size
            except OSError:
                continue
    return total


def _listed(name: str, lines: Sequence[str], kind: str) -> str:
    """Write all lines to a report and return where it is and the first of them."""
    report = home() / "reports" / f"{name}-{kind}.txt"
    write_text(report, "".join(f"{line}\n" for line in lines), error=CorpusError)
    shown = "\n".join(f"  {line}" for line in lines[:_SHOWN])
    more = f"\n  and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    return f"All are listed in {report}.\n{shown}{more}"


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int | None], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(stage, done, total)


def names_of(given: Iterable[str]) -> tuple[str, ...]:
    """Return the corpora a user named for `get`; "all" stands for those that have an archive.

    Raises:
        UnknownNameError: no such corpus.
        ConfigError: none is named.
    """
    found: dict[str, None] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        if part == "all":
            found |= dict.fromkeys(catalogue.downloadable())
        elif part:
            found[catalogue.source(part).corpus] = None
    if not found:
        raise ConfigError(f"no corpus is named: give one or more of {', '.join(catalogue.names())}, or all.")
    return tuple(found)
