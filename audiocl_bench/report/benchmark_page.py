"""The page about the benchmarks, `docs/benchmarks.md`: with every number computed from catalogue and splits.

`page()` returns the whole file. What the catalogue cannot know (what kind of sound a corpus holds, what in it belongs
together, and why that matters) stands here as text, once per corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from audiocl_bench import benchmarks, split_rules, splits
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.corpora.base import CorpusInfo
from audiocl_bench.streams import session_sizes

COMMAND = "audiocl list benchmarks --markdown > docs/benchmarks.md"
"""What writes the page."""

_MINI = "mini-"
_SHORT_HASH = 12
_MOST_LISTED = 50  # classes whose names are printed; 630 speakers are not
_PAPER = "PACE (ICLR 2026, arXiv 2602.03355)"


# --------------------------------------------------------------------------------------------- what belongs together


def recording_of_esc50(clip_id: str) -> str:
    """Return the Freesound recording of an ESC-50 clip: `1-100032-A-0` -> `100032`."""
    return clip_id.split("-")[1]


def recording_of_us8k(clip_id: str) -> str:
    """Return the Freesound recording of an UrbanSound8K slice: `fold5/100032-3-0-0` -> `100032`."""
    return clip_id.rpartition("/")[2].split("-")[0]


def speaker_of_sc2(clip_id: str) -> str:
    """Return the speaker of a Speech Commands clip: `backward/0165e0e8_nohash_0` -> `0165e0e8`."""
    return clip_id.rpartition("/")[2].partition("_nohash_")[0]


def sentence_of_timit(clip_id: str) -> str:
    """Return the sentence of a TIMIT clip: `FCJF0/SA1` -> `SA1`."""
    return clip_id.rpartition("/")[2]


def singer_of_vocalset(clip_id: str) -> str:
    """Return the singer of a VocalSet clip: `female1/arpeggios/belt/f1_arpeggios_belt_c_a` -> `female1`."""
    return clip_id.partition("/")[0]


@dataclass(frozen=True)
class Overlap:
    """What the test clips of a split share with its training clips.

    Attributes:
        test: test clips.
        related: test clips whose group (recording, speaker, ...) has training clips.
        same_class: test clips whose group has training clips of the same class.
    """

    test: int
    related: int
    same_class: int


def overlap(table: pd.DataFrame, group_of: Callable[[str], str]) -> Overlap:
    """Count the test clips that are related to training clips.

    Args:
        table: columns clip_id, label, part.
        group_of: the group of a clip id.
    """
    groups = table["clip_id"].map(group_of)
    both = groups + "\t" + table["label"]
    is_test = table["part"] == "test"
    return Overlap(
        test=int(is_test.sum()),
        related=int(groups[is_test].isin(set(groups[~is_test])).sum()),
        same_class=int(both[is_test].isin(set(both[~is_test])).sum()),
    )


# ------------------------------------------------------------------------------------------------------ text per corpus


@dataclass(frozen=True)
class _Told:
    """What the page says about a corpus besides numbers.

    Attributes:
        holds: what a clip and a class are.
        unit: what clips may share, in the singular.
        group_of: the unit of a clip id.
        paper: what an overlap under `paper` means for a result.
        grouped: what `grouped` measures instead.
    """

    holds: str
    unit: str
    group_of: Callable[[str], str]
    paper: str
    grouped: str


_TOLD: dict[str, _Told] = {
    "esc50": _Told(
        holds="Environmental sounds of 5 s cut from Freesound recordings: animals, nature, people, home, city. "
        "A class is a kind of sound.",
        unit="recording",
        group_of=recording_of_esc50,
        paper="A method can score on these by recognising the recording, its room and its background.",
        grouped="Sounds from recordings never heard in training.",
    ),
    "us8k": _Told(
        holds="Slices of up to 4 s of urban Freesound recordings; one recording can give many slices. "
        "A class is a source of noise.",
        unit="recording",
        group_of=recording_of_us8k,
        paper="Almost every test slice has a neighbour from its own recording in training, so a score under "
        "`paper` tells little about recordings that are new.",
        grouped="Sounds from recordings never heard in training, on the official folds.",
    ),
    "sc2": _Told(
        holds="Single spoken English words of about 1 s, crowd-sourced. A class is a word.",
        unit="speaker",
        group_of=speaker_of_sc2,
        paper="Nearly all test voices are known, most of them with the same word.",
        grouped="Words from voices never heard in training, on the official lists.",
    ),
    "timit": _Told(
        holds="Read American English, ten sentences by each speaker. A class is a speaker.",
        unit="sentence",
        group_of=sentence_of_timit,
        paper="The speaker is the class and is known by design. No speaker reads a sentence twice, so a sentence in "
        "training comes from other speakers and its text gives no class away.",
        grouped="Known speakers reading text that nobody reads in training. The two test sentences are read by all, "
        "so the text says nothing about the speaker.",
    ),
    "vocalset": _Told(
        holds="Singers performing scales, arpeggios and long tones. A class is a vocal technique.",
        unit="singer",
        group_of=singer_of_vocalset,
        paper="A method can rely on how a known singer does a technique.",
        grouped="Techniques by singers never heard in training; there are few of them, so scores vary more.",
    ),
}


# ----------------------------------------------------------------------------------------------------------- the page


def page() -> str:
    """Return the Markdown of `docs/benchmarks.md`. Equal catalogue and frozen files give equal text.

    Raises:
        StreamError: a frozen split file is missing or was changed.
    """
    _split.cache_clear()  # a frozen file is read and checked anew for every page
    _overlap.cache_clear()
    real = [benchmarks.get(name) for name in benchmarks.names() if not name.startswith(_MINI)]
    minis = [benchmarks.get(name) for name in _mini_names()]
    parts = [
        f"<!-- Generated: do not edit. Write it anew with `{COMMAND}`. -->",
        "# The benchmarks",
        _table(
            ("benchmark", "what", "classes", "sessions x classes", "clips", "E_0", "input"),
            [(_link(b.name), b.title, *_numbers(b)) for b in real],
        ),
        "E_0: epochs of adaptation to the first session, as in the paper. Input: how much of a clip is heard. `DATA` "
        "below is the folder that holds the corpora, as in `audiocl run --data DATA`.",
        *_common(real),
        *_protocols(real),
        *_orders(real),
    ]
    seen: dict[str, str] = {}
    for benchmark in real:
        parts += _section(benchmark, seen.get(benchmark.corpus.info.name))
        seen.setdefault(benchmark.corpus.info.name, benchmark.name)
    parts += _changed_copy()
    if minis:
        parts += _miniatures(minis)
    return "\n\n".join(parts) + "\n"


def _mini_names() -> list[str]:
    return [name for name in (*benchmarks.names(), *benchmarks.mini_names()) if name.startswith(_MINI)]


def _common(real: Sequence[Benchmark]) -> list[str]:
    frames = sorted({b.frames for b in real})
    heard = " or ".join(f"{n} rows of 10 ms ({n / 100:g} s)" for n in frames)
    return [
        "## What they have in common",
        "A stream of sessions. Every session brings classes that no other session has, with their training clips; a "
        "method keeps no clips of earlier sessions. It is tested on the test clips of all sessions so far, with no "
        "hint which session a clip is from. The score is the accuracy after the last session, averaged over sessions.",
        f"Audio is read as 16 kHz mono. The input is a log-mel of {heard}: longer clips are cut at the end, shorter "
        "ones are padded.",
        "Splits and orders are frozen clip by clip in [`splits/`](../splits/index.json), with the SHA-256 of every "
        "file, and are verified whenever they are read.",
    ]


def _protocols(real: Sequence[Benchmark]) -> list[str]:
    rows = []
    for corpus in _corpora(real):
        told = _TOLD[corpus]
        rows.append((_names_of(corpus, real), told.unit, *(_share(corpus, protocol) for protocol in splits.PROTOCOLS)))
    return [
        "## Two protocols",
        f"- `paper`: {split_rules.PAPER_RULE}. {_PAPER} splits 8:2, so **use it to compare with published numbers**. "
        "The paper names neither its clips nor a seed; these were drawn with ours.\n"
        "- `grouped`: nothing related lies on both sides. **Use it to say how well a method does on sound that is new "
        "to it**, and wherever no published number is needed.",
        "Every result names its protocol, and no table mixes the two. Share of test clips whose recording, speaker, "
        "sentence or singer is also in training:",
        _table(("benchmark", "related by", *(f"`{name}`" for name in splits.PROTOCOLS)), rows, right=2),
    ]


def _orders(real: Sequence[Benchmark]) -> list[str]:
    count = real[0].num_orders
    return [
        f"## {_word(count).capitalize()} class orders",
        f"`--orders 0-{count - 1}`. An order is a list of all class names in random order, drawn once; session t takes "
        "the next names of the list. Order 0 is the default. Both protocols use the same orders, and so do benchmarks "
        "on the same corpus. How much a score depends on the order is part of a result: report all orders.",
    ]


def _section(benchmark: Benchmark, earlier: str | None) -> list[str]:
    """Return a benchmark's section; what a benchmark told `earlier` about the same corpus is referred to."""
    info = benchmark.corpus.info
    told = _TOLD[info.name]
    facts = benchmark.describe()
    classes, _, clips, epochs, heard = _numbers(benchmark)
    numbers = (
        f"{classes} classes in {facts['sessions']} sessions of {facts['classes_per_session']}; {clips} clips; "
        f"E_0 = {epochs}; input {benchmark.frames} rows ({heard})."
    )
    parts = [f"## {benchmark.name}", f"**{benchmark.title}.** {numbers}"]
    if earlier is None:
        parts += [told.holds]
    else:
        parts += [f"The same clips, splits and class orders as [{earlier}](#{earlier}), in sessions of another size."]
    parts += [_split_table(benchmark)]
    if earlier is None:
        parts += [
            *_frozen(benchmark),
            *_related(info.name),
            *_left_out(info.name),
            *_class_list(benchmark),
            _card(info),
        ]
        parts += ["Please cite:", f"```bibtex\n{bibtex(info.citation)}\n```"]
    return parts


def _split_table(benchmark: Benchmark) -> str:
    corpus = benchmark.corpus.info.name
    rows = []
    for protocol in benchmark.protocols:
        table = _split(corpus, protocol)
        for part in ("train", "test"):
            counts = table[table["part"] == part]["label"].value_counts()
            sizes = _session_clips(benchmark, counts)
            rows.append((f"`{protocol}`", part, f"{counts.sum():,}", _range(counts), _range(sizes)))
    return _table(("protocol", "part", "clips", "clips of a class", "clips of a session"), rows)


def _frozen(benchmark: Benchmark) -> list[str]:
    """Return the rules of the protocols, and the frozen files with their hashes."""
    corpus, index = benchmark.corpus.info.name, splits.read_index()
    rules = (f"- `{name}`: {index['corpora'][corpus][name]['rule']}." for name in benchmark.protocols)
    files = (
        f"[`{name}`](../splits/{name}) `{index['files'][name][:_SHORT_HASH]}`"
        for name in sorted(index["files"])
        if name.startswith(f"{corpus}/")
    )
    return ["\n".join(rules), f"Frozen files and the start of their SHA-256: {', '.join(files)}."]


def _session_clips(benchmark: Benchmark, per_class: pd.Series) -> pd.Series:
    """Return the number of clips of every session of every order."""
    clips_of = per_class.to_dict()
    sizes = session_sizes(len(per_class), benchmark.classes_per_session)
    totals = []
    for order in splits.load_orders(benchmark.corpus.info.name):
        start = 0
        for size in sizes:
            totals.append(sum(clips_of[name] for name in order[start : start + size]))
            start += size
    return pd.Series(totals)


def _related(corpus: str) -> list[str]:
    told = _TOLD[corpus]
    found = _overlap(corpus, "paper")
    same = (
        f"{found.same_class:,} ({_percent(found.same_class, found.test)}) with some of their own class"
        if found.same_class
        else "none with one of its own class"
    )
    return [
        f"**Related under `paper`:** {found.related:,} of {found.test:,} test clips "
        f"({_percent(found.related, found.test)}) share their {told.unit} with training clips, {same}. {told.paper}",
        f"**What `grouped` measures:** {told.grouped}",
    ]


def _left_out(corpus: str) -> list[str]:
    """Say which clips of the corpus `grouped`, or every split, leaves out."""
    told = _TOLD[corpus]
    paper, grouped = _split(corpus, "paper"), _split(corpus, "grouped")
    missing = paper[~paper["clip_id"].isin(grouped["clip_id"])]
    parts = []
    if len(missing):
        cases = []
        test = grouped[grouped["part"] == "test"]
        for unit, clips in missing.groupby(missing["clip_id"].map(told.group_of)):
            kept = test[test["clip_id"].map(told.group_of) == unit]
            cases.append(f"{told.unit} {unit}: {_by_class(clips['label'])} left out, {_by_class(kept['label'])} tested")
        parts += [
            f"**Left out by `grouped`:** {_clips(len(missing))}. The official folds are not quite clean: some "
            f"{told.unit}s lie in a training fold and in a test fold. The test folds stay whole, so that numbers can "
            f"be compared, and the training clips are left out ({'; '.join(cases)})."
        ]
    unused = splits.unused_clips(corpus)
    if len(unused):
        per_class = sorted(set(paper["label"].value_counts()))
        reasons = ", ".join(_reason(str(reason), clips, paper) for reason, clips in unused.groupby("reason"))
        parts += [
            f"**Left out by both:** {len(unused):,} of the {len(unused) + len(paper):,} official clips: {reasons}. "
            f"{_range(pd.Series(per_class))} clips of each class, drawn once, fit the scores that the paper "
            f"reports; its own draw is not known. Your copy may hold the others or not "
            f"([list](../splits/{corpus}/unused.csv))."
        ]
    return parts


def _reason(reason: str, clips: pd.DataFrame, used: pd.DataFrame) -> str:
    """Say why clips are left out, naming the classes of which no clip is used."""
    unknown = sorted(set(clips["label"]) - set(used["label"]))
    names = f": {', '.join(f'`{name}`' for name in unknown)}" if unknown else ""
    return f"{len(clips):,} ({reason}{names})"


def _class_list(benchmark: Benchmark) -> list[str]:
    order = splits.load_orders(benchmark.corpus.info.name)[0]
    if len(order) > _MOST_LISTED:
        return []
    lines, start = [], 0
    for number, size in enumerate(session_sizes(len(order), benchmark.classes_per_session)):
        lines.append(f"{number}. {', '.join(f'`{name}`' for name in order[start : start + size])}")
        start += size
    # GitHub reads Markdown inside <details> only after an empty line.
    summary = "<summary>The classes, session by session, in order 0</summary>"
    return [f"<details>{summary}\n\n" + "\n".join(lines) + "\n\n</details>"]


def _card(info: CorpusInfo) -> str:
    by_hand = info.how_to_get.replace("DIR", "DATA")
    if info.needs_registration:
        get = f"{by_hand} Or `audiocl data add {info.name} PATH`, with the folder or archive that you have."
    else:
        get = f"`audiocl data get {info.name}`, or by hand: {by_hand[0].lower()}{by_hand[1:]}"
    return "\n".join((f"- Licence: {info.licence}", f"- Homepage: <{info.homepage}>", f"- {get}"))


def _changed_copy() -> list[str]:
    return [
        "## What a changed copy means",
        "A clip is known by its name and label, not by its bytes: a copy re-encoded as FLAC, Ogg Vorbis or Opus with "
        "the same file names counts as the corpus. Lossy coding changes what is heard, though, so name it beside your "
        "numbers.",
        "A copy with missing, extra or relabelled clips is refused, and every difference is listed in a file. Restore "
        "the official copy, or describe yours in a TOML file: it is then a benchmark of your own, and its results "
        "never share a table with these.",
    ]


def _miniatures(minis: Sequence[Benchmark]) -> list[str]:
    frozen = splits.read_index()["corpora"]
    rows = []
    for benchmark in minis:
        counts = frozen.get(benchmark.corpus.info.name)
        parts = [
            f"{counts[protocol]['train']:,} / {counts[protocol]['test']:,}" if counts else "-"
            for protocol in splits.PROTOCOLS
        ]
        rule = counts["grouped"]["rule"] if counts else "-"
        rows.append(
            (f"`{benchmark.name}`", _link(benchmark.name.removeprefix(_MINI)), *_numbers(benchmark), *parts, rule)
        )
    numbers = ("classes", "sessions x classes", "clips", "E_0", "input")
    parts_of = (f"`{protocol}` train / test" for protocol in splits.PROTOCOLS)
    return [
        "## Miniatures",
        "`--data mini` runs a small synthetic stand-in instead of each benchmark, for machines that have no corpora. "
        "The sounds are made on first use, not downloaded. They have the same kinds of classes, groups, protocols "
        "and orders, and can show that a method runs and learns. **Their numbers are not comparable** with those of "
        "the real benchmarks; every table marks them and keeps them apart.",
        _table(("miniature", "of", *numbers, *parts_of, "`grouped`"), rows),
    ]


# -------------------------------------------------------------------------------------------------------------- helpers


@lru_cache(maxsize=2 * len(_TOLD))
def _split(corpus: str, protocol: str) -> pd.DataFrame:
    return splits.load(corpus, protocol)


@lru_cache(maxsize=2 * len(_TOLD))
def _overlap(corpus: str, protocol: str) -> Overlap:
    return overlap(_split(corpus, protocol), _TOLD[corpus].group_of)


def _numbers(benchmark: Benchmark) -> tuple[str, str, str, str, str]:
    """Return classes, sessions x classes, clips, E_0 and the input's seconds, as text."""
    facts = benchmark.describe()
    stream = f"{facts['sessions']} x {facts['classes_per_session']}"
    seconds = f"{benchmark.frames / 100:.2f} s"
    return str(facts["classes"]), stream, f"{facts['clips']:,}", str(benchmark.first_session_epochs), seconds


def _corpora(real: Sequence[Benchmark]) -> list[str]:
    return list(dict.fromkeys(b.corpus.info.name for b in real))


def _names_of(corpus: str, real: Sequence[Benchmark]) -> str:
    return ", ".join(_link(b.name) for b in real if b.corpus.info.name == corpus)


def _share(corpus: str, protocol: str) -> str:
    found = _overlap(corpus, protocol)
    return _percent(found.related, found.test)


def _percent(part: int, whole: int) -> str:
    """Return a share in percent with one decimal; only all is "100 %" and only none is "0 %"."""
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _by_class(labels: pd.Series) -> str:
    return " and ".join(f"{_clips(count)} of `{label}`" for label, count in labels.value_counts().sort_index().items())


def _clips(count: int) -> str:
    return f"{count:,} clip{'' if count == 1 else 's'}"


def _word(count: int) -> str:
    return dict(enumerate(("no", "one", "two", "three", "four", "five", "six"))).get(count, str(count))


def _link(name: str) -> str:
    return f"[{name}](#{name})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 2) -> str:
    """Return a Markdown table; columns from number `right` on are right-aligned where they hold numbers."""
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    numeric = [
        column >= right and all(row[column][:1].isdigit() or row[column] == "-" for row in cells)
        for column in range(len(head))
    ]
    rule = ["---:" if number else "---" for number in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in (tuple(head), tuple(rule), *cells))


def bibtex(entry: str) -> str:
    """Return a one-line BibTeX entry with one field per line."""
    lines, depth, start = [], 0, 0
    for place, sign in enumerate(entry):
        depth += (sign == "{") - (sign == "}")
        if sign == "," and depth == 1:
            lines.append(entry[start : place + 1].strip())
            start = place + 1
    last = entry[start:].strip()
    lines.append(last.removesuffix("}").rstrip() if len(lines) else last)
    return lines[0] if len(lines) == 1 else "\n".join((lines[0], *(f"  {line}" for line in lines[1:]), "}"))
