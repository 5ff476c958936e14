"""What a frozen backbone knows, layer by layer: nearest class mean and a linear probe on its pooled tokens.

    pools  = extract(backbone, store, rows)            one encoder pass per clip, all layers, all poolings
    scores = judge(pools, labels, is_test, classes)    test accuracy of every layer, pooling and probe

`probe_streams` does both for whole benchmarks, beside two references: statistics of the log-mel, which no network has
touched, and the same network with random weights. All classes are there at once: this judges backbones, not methods.

Three probes, none with a setting that test clips could tune:

* ncm: largest cosine to the raw class mean, as method `ncm` does;
* ncm-z: the same after every feature was given mean 0 and deviation 1 on the training clips. Few features of large
  scale rule the cosine of a residual stream (Whisper's has such); this asks all of them;
* ridge: ridge regression to one-hot targets on the features of ncm-z and a constant, its ridge by generalised
  cross-validation of the training clips.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor

from audiocl_bench import benchmarks, corpora, files, results, store
from audiocl_bench.backbones.base import Backbone, hash_weights
from audiocl_bench.backbones.registry import draw_weight
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.errors import CheckpointError, ConfigError, CorpusError, ResultsError
from audiocl_bench.heads import NCMHead, RidgeHead
from audiocl_bench.readout import Readout
from audiocl_bench.report.tables import listing, percent
from audiocl_bench.store import Store
from audiocl_bench.streams import Stream

Probe = Literal["ncm", "ncm-z", "ridge"]
Source = Literal["backbone", "random", "log-mel"]
Pools = Mapping[str, Tensor]
"""Features by pooling ("cls", "mean", "mean+std"): [n, layers, width], float32 on the CPU."""

PROBES: tuple[Probe, ...] = ("ncm", "ncm-z", "ridge")
EXAMPLES = ("esc50_fold4", "esc10", "arabic_keywords", "arabic_speakers")
"""What is probed unless other streams are named: files of `examples/`."""

SCHEMA = 1
_BATCH = 16  # all layers' tokens of a batch are held at once: 160 MB for an EAT base on 5 s clips
_CONSTANT = 1e-5  # a feature that varies by less than this share of its size varies by rounding only
_SUFFIXES = (".json", ".parquet")


@dataclass(frozen=True)
class Score:
    """Test accuracy of one probe.

    Attributes:
        pooling: "cls", "mean" or "mean+std".
        layer: 0 for what enters the first block, k for the output of block k; 0 for the log-mel.
        probe: "ncm", "ncm-z" or "ridge".
        accuracy: percent of the test clips; None where the feature is the same for every clip (a class token that has
            met no audio yet).
        ridge: the chosen ridge, for "ridge".
    """

    pooling: str
    layer: int
    probe: Probe
    accuracy: float | None
    ridge: float | None = None


@dataclass(frozen=True)
class Opened:
    """A stream with the files of its clips."""

    benchmark: Benchmark
    stream: Stream
    clips: pd.DataFrame


@dataclass(frozen=True)
class Probed:
    """What was read off one stream.

    Attributes:
        stream: name of the benchmark; title: its title; protocol: its split.
        classes, train_clips, test_clips: counts.
        frames: input length in 10 ms rows.
        split_hash: `Stream.hash`; index_hash: of clip ids and labels; audio_hash: of the prepared clips.
        scores: by source: the backbone and, with references, the random network and the log-mel statistics.
    """

    stream: str
    title: str
    protocol: str
    classes: int
    train_clips: int
    test_clips: int
    frames: int
    split_hash: str
    index_hash: str
    audio_hash: str
    scores: Mapping[Source, tuple[Score, ...]]


# ---------------------------------------------------------------------------------------------------------------------
# Features in, scores out


def judge(pools: Pools, labels: Tensor, is_test: Tensor, num_classes: int) -> tuple[Score, ...]:
    """Return the test accuracy of every pooling, layer and probe, in this order.

    Args:
        pools: features, [n, layers, width] per pooling.
        labels: int64 [n] in 0..num_classes - 1.
        is_test: bool [n]; the other rows are for training.
        num_classes: number of classes.

    Raises:
        ValueError: features are not finite or shapes disagree.
    """
    return tuple(
        score
        for pooling, features in pools.items()
        for layer in range(features.shape[1])
        for score in _judge_one(pooling, layer, features[:, layer].double(), labels, is_test, num_classes)
    )


def _judge_one(pooling: str, layer: int, X: Tensor, labels: Tensor, is_test: Tensor, classes: int) -> Iterator[Score]:
    """Yield the scores of one feature matrix [n, width], float64."""
    train, truth = labels[~is_test], labels[is_test]
    Z = standardised(X, ~is_test)
    if not bool(Z.any()):
        yield from (Score(pooling, layer, probe, None) for probe in PROBES)
        return
    inputs: tuple[tuple[Probe, Tensor], ...] = (("ncm", X), ("ncm-z", Z))
    for probe, features in inputs:
        means = NCMHead(features.shape[1])
        means.update(features[~is_test], train, classes)
        yield Score(pooling, layer, probe, _accuracy(means.predict(features[is_test]), truth))
    # Without the constant, unequal class sizes could not be expressed: standardised features have mean 0.
    features = torch.cat([Z, torch.ones(len(Z), 1, dtype=Z.dtype)], dim=1)
    head = RidgeHead(features.shape[1])
    head.update(features[~is_test], train, classes)
    lam = head.tune()
    yield Score(pooling, layer, "ridge", _accuracy(head.predict(features[is_test]), truth), lam)


def standardised(X: Tensor, rows: Tensor) -> Tensor:
    """Give every column of X [n, width] mean 0 and deviation 1 over the chosen rows (bool [n]).

    A column that is constant there up to float32 rounding becomes 0 in all rows.
    """
    mean = X[rows].mean(dim=0)
    deviation = X[rows].std(dim=0, correction=0)
    varies = deviation > _CONSTANT * X[rows].abs().amax(dim=0)
    return torch.where(varies, (X - mean) / torch.where(varies, deviation, 1.0), 0.0)


def _accuracy(predicted: Tensor, truth: Tensor) -> float:
    return 100.0 * int((predicted == truth).sum()) / len(truth)


def best(scores: Sequence[Score], probe: Probe, pooling: str | None = None) -> Score | None:
    """Return the best score of a probe (of one pooling, or of all); the first among equals, None where none has one.

    The best is chosen by the test clips themselves: it tells what can be read at some layer, not what a method that
    has to choose its layer in advance would score.
    """
    found = [s for s in scores if s.probe == probe and s.accuracy is not None and pooling in (None, s.pooling)]
    return max(found, key=lambda score: score.accuracy or 0.0, default=None)


# ---------------------------------------------------------------------------------------------------------------------
# Features


@torch.inference_mode()
def extract(
    backbone: Backbone,
    clips: Store,
    rows: np.ndarray,
    *,
    device: torch.device | None = None,
    tell: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Return the pooled tokens of every layer, from one encoder pass per clip.

    Args:
        backbone: on `device`.
        clips: prepared by the backbone's front end.
        rows: rows of `clips`.
        device: where the backbone is; None for the CPU.
        tell: called with the number of clips of every batch that is done.

    Returns:
        per pooling the features [n, layers, width]: "cls" where the network has a class token, "mean" and "mean+std"
        over its audio tokens, padding included, as methods pool. Layer 0 is what enters the first block.

    Raises:
        CheckpointError: a feature is not finite.
    """
    readout = Readout.of(backbone, "all", "cls+mean+std" if backbone.has_cls else "mean+std")
    shape = (len(readout.layers), len(readout.statistics), readout.dim)
    parts = []
    for chosen in _batches(rows):
        mel = backbone.front_end.normalise(clips.batch(chosen))
        parts.append(readout(backbone, mel.to(device)).cpu().unflatten(1, shape))
        if tell is not None:
            tell(len(chosen))
    features = torch.cat(parts)
    if not bool(features.isfinite().all()):
        clip = clips.clip_ids[rows[int((~features.flatten(1).isfinite().all(dim=1)).nonzero()[0])]]
        raise CheckpointError(
            f"backbone {backbone.name} gives features that are not finite for clip '{clip}': its weights are damaged, "
            "choose another file."
        )
    mean = readout.statistics.index("mean")  # std follows it: statistics keep one order
    pools = {"mean": features[:, :, mean], "mean+std": features[:, :, mean : mean + 2].flatten(2)}
    return {"cls": features[:, :, 0], **pools} if backbone.has_cls else pools


def logmel_statistics(backbone: Backbone, clips: Store, rows: np.ndarray) -> dict[str, Tensor]:
    """Return mean and deviation over time of the normalised log-mels, {"mean+std": [n, 1, 2 M]}; padding left out."""
    front_end, parts = backbone.front_end, []
    for chosen in _batches(rows):
        mels = front_end.normalise(clips.batch(chosen))
        for mel, frames in zip(mels, clips.frames[chosen].tolist(), strict=True):
            heard = mel[:frames]
            parts.append(torch.cat([heard.mean(dim=0), heard.std(dim=0, correction=0)]))
    return {"mean+std": torch.stack(parts)[:, None]}


def random_like(backbone: Backbone) -> Backbone:
    """Return the same network with random weights, drawn as the stand-ins of the catalogue are; positions are kept."""
    network = copy.deepcopy(backbone)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Draws go by name: the prefix keeps them apart from those of a stand-in that is probed itself.
            parameter.copy_(draw_weight(f"random.{name}", tuple(parameter.shape)))
    network.name, network.source, network.stand_in = f"random {backbone.network}", "random weights", True
    network.weights_hash = hash_weights({name: value.cpu() for name, value in network.named_parameters()})
    return network


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def example_streams() -> tuple[str, ...]:
    """Return the paths of the streams that are probed by default.

    Raises:
        ConfigError: this audiocl was installed without its examples.
    """
    folder = Path(__file__).resolve().parent.parent / "examples"
    paths = [folder / f"{name}.toml" for name in EXAMPLES]
    if not all(path.is_file() for path in paths):
        raise ConfigError("the example streams come with a clone of audiocl only: name your streams with --stream.")
    return tuple(map(str, paths))


def open_streams(names: Sequence[str], data: Path | None = None, protocol: str | None = None) -> tuple[Opened, ...]:
    """Open the streams of benchmarks; sessions play no part here, all classes come together.

    Args:
        names: of built-in benchmarks, or paths of .toml files.
        data: folder of the corpora, None for the default places.
        protocol: split; None takes every benchmark's default.

    Raises:
        AudioclError: a benchmark or protocol that does not exist.
        CorpusError: audio is missing; all of it is named.
    """
    opened: list[Opened] = []
    missing: dict[str, None] = {}
    for benchmark in [benchmarks.get(name) for name in dict.fromkeys(names)]:
        try:
            stream, clips = benchmark.open(data, protocol or benchmark.protocols[0], 0)
        except CorpusError as error:
            missing[str(error)] = None
        else:
            opened.append(Opened(benchmark, stream, clips))
    if missing:
        raise CorpusError("\n".join(missing))
    return tuple(opened)


def prepare(
    opened: Sequence[Opened], networks: Mapping[int, Backbone], *, workers: int | None = None, progress: bool = False
) -> tuple[Store, ...]:
    """Decode the clips of all streams.

    Args:
        opened: streams.
        networks: the backbone for every input length among them, by frames.
        workers: processes that decode; None for one per core.
        progress: show progress.

    Raises:
        StoreError: audio files cannot be used.
    """
    return tuple(
        store.prepare(
            item.clips,
            networks[item.benchmark.frames].front_end,
            name=item.benchmark.corpus.info.name,
            workers=workers,
            progress=progress,
        )
        for item in opened
    )


def probe_streams(
    opened: Sequence[Opened],
    stores: Sequence[Store],
    networks: Mapping[int, Backbone],
    *,
    references: bool = True,
    device: torch.device | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> Iterator[Probed]:
    """Probe a backbone on streams, one after another.

    Neighbouring streams on the same recordings encode them once; features are kept in memory only.

    Args:
        opened: streams.
        stores: the prepared clips of each.
        networks: the backbone for every input length among them, by frames.
        references: probe log-mel statistics and a random network too.
        device: where to encode; None for the CPU.
        tell: called as f(what, done, of how many) while encoding and fitting.

    Raises:
        CheckpointError: the backbone gives features that are not finite.
    """
    known: tuple[Any, dict[Source, dict[str, Tensor]]] = (None, {})
    for item, clips in zip(opened, stores, strict=True):
        frames, stream = item.benchmark.frames, item.stream
        network = networks[frames]
        if known[0] != (clips.key, frames):
            known = ((clips.key, frames), _features(item, network, clips, references, device, tell))
        labels, is_test = torch.from_numpy(stream.labels.copy()), torch.from_numpy(stream.is_test.copy())
        scores: dict[Source, tuple[Score, ...]] = {}
        for number, (source, pools) in enumerate(known[1].items()):
            if tell is not None:
                tell(f"{stream.benchmark}: fitting probes", number, len(known[1]))
            scores[source] = judge(pools, labels, is_test, stream.num_classes)
        index = pd.DataFrame({"clip_id": stream.clip_ids, "label": [stream.classes[label] for label in stream.labels]})
        yield Probed(
            stream=stream.benchmark,
            title=item.benchmark.title,
            protocol=stream.protocol,
            classes=stream.num_classes,
            train_clips=int((~is_test).sum()),
            test_clips=int(is_test.sum()),
            frames=frames,
            split_hash=stream.hash,
            index_hash=corpora.index_hash(index),
            audio_hash=clips.key,
            scores=scores,
        )


def _features(
    item: Opened,
    network: Backbone,
    clips: Store,
    references: bool,
    device: torch.device | None,
    tell: Callable[[str, int, int], None] | None,
) -> dict[Source, dict[str, Tensor]]:
    """Encode all clips of a stream, in the order of its clip ids."""
    rows = clips.rows(item.stream.clip_ids)

    def encode(backbone: Backbone, what: str) -> dict[str, Tensor]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if tell is not None:
                tell(f"{item.stream.benchmark}: {what}", done, len(rows))

        return extract(backbone.to(device), clips, rows, device=device, tell=advance)

    found: dict[Source, dict[str, Tensor]] = {"backbone": encode(network, "encoding")}
    if references:
        found["random"] = encode(random_like(network), "encoding with random weights")
        found["log-mel"] = logmel_statistics(network, clips, rows)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Tables

_REFERENCES: Mapping[Source, str] = {"random": "random", "log-mel": "logmel"}  # at most 6 letters: 80 columns
LEGEND = (
    "Accuracy (%) on the test clips. Layer 0: what enters the first block. *: best layer of its column, chosen on the "
    "test clips themselves. ncm: cosine to raw class means; ncm-z: features standardised first; ridge: linear probe. "
    "random: the same network with random weights, its best layer; logmel: mean and deviation over time, no network."
)


def layer_table(probed: Probed) -> RenderableType:
    """Return one stream's table: a line per layer, a column per pooling and probe; references below."""
    scores = probed.scores["backbone"]
    poolings = tuple(dict.fromkeys(score.pooling for score in scores))
    columns = [(pooling, probe) for pooling in poolings for probe in PROBES]
    tops = {column: best(scores, column[1], column[0]) for column in columns}
    by_place = {(score.pooling, score.probe, score.layer): score for score in scores}

    def cell(column: tuple[str, Probe], layer: int) -> str:
        score = by_place[*column, layer]
        return _cell(score.accuracy, mark=score is tops[column])

    rows: list[list[str]] = [
        [str(layer), *(cell(column, layer) for column in columns)]
        for layer in sorted({score.layer for score in scores})
    ]
    for source, name in _REFERENCES.items():
        if source in probed.scores:
            found = [best(probed.scores[source], probe, pooling) for pooling, probe in columns]
            rows.append([name, *("" if score is None else _cell(score.accuracy) for score in found)])
    title = (
        f"{probed.stream} · {probed.protocol} split · {probed.classes} classes, {probed.train_clips:,} training and "
        f"{probed.test_clips:,} test clips"
    )
    lines = max(pooling.count("+") for pooling in poolings)
    headings = ["layer", *(_heading(pooling, probe, lines) for pooling, probe in columns)]
    return listing(rows, headings, title)


def _heading(pooling: str, probe: str, lines: int) -> str:
    """Write "mean+std" in two lines, and "mean" in as many."""
    return "\n" * (lines - pooling.count("+")) + pooling.replace("+", "\n+") + f"\n{probe}"


def _cell(accuracy: float | None, *, mark: bool = False) -> str:
    return f"{percent(accuracy):>5}{'*' if mark else ''}"


def summary_table(probed: Sequence[Probed], backbone: str) -> RenderableType:
    """Return the best layer of every stream and probe, over all poolings, beside the references."""
    sources = list(dict.fromkeys(source for each in probed for source in each.scores))
    rows = []
    for each in probed:
        for number, probe in enumerate(PROBES):
            found = [best(each.scores.get(source, ()), probe) for source in sources]
            rows.append([each.stream if number == 0 else "", probe, *map(_best_cell, sources, found)])
    names: dict[Source, str] = {"backbone": backbone, **_REFERENCES}
    title = "Best layer and pooling"
    return Group(listing(rows, ("stream", "probe", *(names[source] for source in sources)), title), Text())


def _best_cell(source: Source, score: Score | None) -> str:
    if score is None:
        return percent(None)
    where = "" if source == "log-mel" else f" layer {score.layer}, {score.pooling}"
    return f"{percent(score.accuracy):>5}{where}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def check_out(path: Path) -> None:
    """Refuse a file name that does not say a format.

    Raises:
        ConfigError: it ends in neither .json nor .parquet.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"--out {path} does not tell a format: end it in {' or '.join(_SUFFIXES)}.")


def provenance(backbone: Backbone, device: torch.device | None, *, references: bool) -> dict[str, Any]:
    """Return what decides the numbers beside the streams: network, hashes of its weights, machine and versions."""
    described = backbone.describe()
    front_end = {key: value for key, value in described["front_end"].items() if key != "frames"}
    kept = ("name", "network", "source", "weights_hash", "stand_in", "depth", "dim")
    return {
        "schema": SCHEMA,
        "backbone": {key: described[key] for key in kept} | {"front_end": front_end},
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "random_weights_hash": random_like(backbone).weights_hash if references else None,
        **results.provenance(device or torch.device("cpu")),
    }


def table_rows(probed: Sequence[Probed], backbone: str, weights_hash: str) -> list[dict[str, Any]]:
    """Return one row per stream, source, pooling, layer and probe, as plain values."""
    facts = ("protocol", "classes", "train_clips", "test_clips", "frames", "split_hash", "index_hash", "audio_hash")
    return [
        {
            "backbone": backbone,
            "weights_hash": weights_hash,
            "stream": each.stream,
            "source": source,
            "pooling": score.pooling,
            "layer": score.layer,
            "probe": score.probe,
            "accuracy": score.accuracy,
            "best_layer": score is best(scores, score.probe, score.pooling),
            "ridge": score.ridge,
            **{fact: getattr(each, fact) for fact in facts},
        }
        for each in probed
        for source, scores in each.scores.items()
        for score in scores
    ]


_TABLE = pa.schema(
    [
        *((name, pa.string()) for name in ("backbone", "weights_hash", "stream", "source", "pooling")),
        ("layer", pa.int32()),
        ("probe", pa.string()),
        ("accuracy", pa.float64()),
        ("best_layer", pa.bool_()),
        ("ridge", pa.float64()),
        ("protocol", pa.string()),
        *((name, pa.int32()) for name in ("classes", "train_clips", "test_clips", "frames")),
        *((name, pa.string()) for name in ("split_hash", "index_hash", "audio_hash")),
    ]
)


def write(path: Path, probed: Sequence[Probed], origin: Mapping[str, Any]) -> None:
    """Write all scores with their provenance, as JSON or as Parquet by the suffix (there under the key "audiocl").

    Raises:
        ConfigError: another suffix.
        ResultsError: the file cannot be written.
    """
    check_out(path)
    rows = table_rows(probed, origin["backbone"]["name"], origin["backbone"]["weights_hash"])
    if path.suffix == ".json":
        text = json.dumps({**origin, "rows": rows}, indent=1, ensure_ascii=False, allow_nan=False)
        files.write_text(path, f"{text}\n", error=ResultsError)
        return
    table = pa.Table.from_pylist(rows, schema=_TABLE)
    table = table.replace_schema_metadata({"audiocl": files.canonical_json(dict(origin))})
    with files.atomic_path(path, error=ResultsError) as temporary:
        pq.write_table(table, temporary)
