"""Time and memory of runs before they start: what is counted (`rehearsal`), at the speed of a machine (`rates`)."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch

from audiocl_bench import backbones, benchmarks, config, files, store, sweep
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.config import MethodConfig
from audiocl_bench.errors import AudioclError, ConfigError
from audiocl_bench.estimate import phantom
from audiocl_bench.estimate import rates as rates_
from audiocl_bench.estimate.phantom import Anatomy
from audiocl_bench.estimate.rates import Rates
from audiocl_bench.estimate.rehearsal import LONG, Rehearsal, rehearse
from audiocl_bench.estimate.work import CannotCountError, Work
from audiocl_bench.method import Method
from audiocl_bench.processes import cores
from audiocl_bench.report import paper
from audiocl_bench.streams import Stream
from audiocl_bench.training import TrainingConfig

PAPER = "all-paper"
"""Given as a method: every row of the paper's table of all methods (Table 2)."""

_TABLE_OF_METHODS = 2
_FIRST = 4  # sessions by which it is told whether features decide what a long stream costs

# Mean seconds of a clip and kHz of the files, for preparation only. ESC-50 and Speech Commands: fixed lengths; US8K:
# its metadata; TIMIT: 5.4 h in 6,300 sentences; VocalSet: the 1,520 clips of our pool.
_SOUND: Mapping[str, tuple[float, float]] = {
    "esc50": (5.0, 44.1),
    "us8k": (3.61, 44.1),
    "sc2": (1.0, 16.0),
    "timit": (3.07, 16.0),
    "vocalset": (9.29, 44.1),
}
_SAMPLED_FILES = 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be estimated; the fields mean what they mean for `sweep.Sweep`.

    Attributes:
        methods: names, `METHOD@PRESET`, `file.py:Class`, or `all-paper`.
        benchmarks: names, .toml files, or "all".
        tables: tables of the paper ("table2"), whose runs are estimated beside these.
        orders: None for those of the benchmark.
        device: "auto", "cpu", "cuda" or "cuda:N".
        rates: a file of rates (see `rates`), instead of measuring.
        recalibrate: measure again.
        jobs: runs at once.
    """

    methods: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    backbone: str = "eat-base"
    protocol: str | None = None
    orders: tuple[int, ...] | None = (0,)
    seeds: tuple[int, ...] = (0,)
    data: Path | None = None
    settings: tuple[str, ...] = ()
    config: Path | None = None
    device: str = "auto"
    rates: Path | None = None
    recalibrate: bool = False
    jobs: int = 1


@dataclass(frozen=True)
class Span:
    """A number, or the range it lies in."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Span:
        """Return the range of some values."""
        return cls(min(values), max(values))

    @property
    def exact(self) -> bool:
        """Whether it is one number."""
        return self.low == self.high

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> Span:
        return Span(self.low * times, self.high * times)


ZERO = Span(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What one run costs.

    Attributes:
        method: as typed, presets and changed settings included.
        benchmark, protocol, orders, seeds, runs: which runs; `runs` of them cost the same.
        train_clips, test_clips, sessions: of the stream.
        train_passes, eval_passes: as a run will report them.
        blocks_needed: blocks x clips, bank included.
        prepare_seconds: decoding the corpus once, by all cores.
        bank_seconds: pretrained features, once for all runs that read the same.
        train_seconds, eval_seconds: of a later run, for which the bank is filled.
        audit_seconds: of the checks at its end.
        peak_memory_mb: of the process (CPU) or of the GPU; `host_memory_mb` is of the process either way.
        kept_bytes: of the state after the last session.
        trainable_parameters: trained at once, at most.
        problem: why nothing of this could be counted; "" where it could. All spans are zero then.
        reasons: why numbers are ranges, or hold only roughly.
    """

    method: str
    benchmark: str
    protocol: str
    orders: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: int
    train_clips: int
    test_clips: int
    sessions: int
    train_passes: Span = ZERO
    eval_passes: Span = ZERO
    blocks_needed: Span = ZERO
    prepare_seconds: float = 0.0
    bank_seconds: Span = ZERO
    train_seconds: Span = ZERO
    eval_seconds: Span = ZERO
    audit_seconds: Span = ZERO
    peak_memory_mb: Span = ZERO
    host_memory_mb: Span = ZERO
    kept_bytes: Span = ZERO
    trainable_parameters: int = 0
    problem: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def passes_per_clip(self) -> Span:
        """Encoder passes over clips of the stream, training and test together."""
        return (self.train_passes + self.eval_passes) * (1 / max(self.train_clips + self.test_clips, 1))

    @property
    def later_seconds(self) -> Span:
        """A run that finds its pretrained features in the bank."""
        return self.train_seconds + self.eval_seconds + self.audit_seconds

    @property
    def first_seconds(self) -> Span:
        """A run that fills the bank."""
        return self.later_seconds + self.bank_seconds


@dataclass(frozen=True)
class Estimate:
    """What all runs of a request cost.

    Attributes:
        runs: one entry per method, settings and benchmark, and shape of the stream.
        rates: clip length in frames -> what times were computed with.
        backbone, weights: its name, and "random" or "real" ones behind the rates.
        jobs: runs at once.
        prepare_seconds, bank_seconds: once each.
        run_seconds: all runs, one after the other, once the bank is filled.
        wall_seconds: everything with `jobs` runs at once, if these do not slow each other down.
        total_runs: number of runs.
        notes: what to know of the numbers.
    """

    runs: tuple[RunEstimate, ...]
    rates: Mapping[int, Rates]
    backbone: str
    weights: str
    jobs: int
    prepare_seconds: float
    bank_seconds: Span
    run_seconds: Span
    wall_seconds: Span
    total_runs: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        runs = []
        for run in self.runs:
            spans = {name: getattr(run, name) for name in ("passes_per_clip", "first_seconds", "later_seconds")}
            runs.append(_plain({**dataclasses.asdict(run), **{k: dataclasses.asdict(v) for k, v in spans.items()}}))
        whole = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("runs", "rates")}
        whole |= {k: dataclasses.asdict(v) for k, v in whole.items() if isinstance(v, Span)}
        return {
            **_plain(whole),
            "rates": {str(frames): rates_.describe(rates) for frames, rates in self.rates.items()},
            "runs": runs,
        }


def _plain(value: Any) -> Any:
    """Turn spans into [low, high] and tuples into lists."""
    if isinstance(value, dict):
        if set(value) == {"low", "high"}:
            return [value["low"], value["high"]]
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


@dataclass(frozen=True)
class _Planned:
    """One method with its settings on one benchmark, and the streams that are alike."""

    typed: str
    method: type[Method]
    config: MethodConfig
    benchmark: Benchmark
    protocol: str
    streams: tuple[Stream, ...]
    seeds: tuple[int, ...]


def estimate(request: Request, tell: Callable[[str], None] = lambda text: None) -> Estimate:
    """Count and time everything that is asked for; nothing is downloaded, and no corpus is needed but one's own data.

    Args:
        request: what to estimate.
        tell: told in one line what is being done.

    Raises:
        AudioclError: bad input; or the device is not here and no rates were given.
    """
    given = None if request.rates is None else rates_.read(request.rates)
    device = _device(request, given)
    planned = _plan(request)
    options = sweep._pool_and_layer(_backbone_options(request, planned))
    bodies: dict[int, tuple[Backbone, Anatomy, Rates]] = {}
    weights = "random"
    for frames in sorted({item.benchmark.frames for item in planned}):
        network, weights = phantom.architecture(request.backbone, pool=options[0], layer=options[1], frames=frames)
        body = phantom.anatomy(network)
        if given is None:
            tell(f"measuring this machine with {network.name} on clips of {frames / 100:g} s")
        rates = given or rates_.measured(network, body, device, again=request.recalibrate)
        bodies[frames] = network, body, rates
    found: list[RunEstimate] = []
    fills: dict[Any, Span] = {}
    prepared: dict[Any, float] = {}
    queue: list[Span] = []
    for number, item in enumerate(planned, 1):
        network, body, rates = bodies[item.benchmark.frames]
        stream = item.streams[0]
        tell(f"counting {number} of {len(planned)}: {item.typed} on {stream.benchmark}")
        processes = cores() if given is None else given.threads
        seconds = _prepare_seconds(item.benchmark, len(stream.clip_ids), rates, request.data) / processes
        run, worlds = _estimate_run(item, network, body, rates, seconds)
        found.append(run)
        prepared[_store_of(item)] = max(prepared.get(_store_of(item), 0.0), seconds)
        fill = _fill(item, worlds, body, rates, fills)
        for _ in range(run.runs):
            queue.append(run.later_seconds + fill)
            fill = ZERO
    bank = sum(fills.values(), ZERO)
    return Estimate(
        runs=tuple(found),
        rates={frames: rates for frames, (_, _, rates) in bodies.items()},
        backbone=next(iter(bodies.values()))[0].name,
        weights=weights,
        jobs=request.jobs,
        prepare_seconds=sum(prepared.values()),
        bank_seconds=bank,
        run_seconds=sum((run.later_seconds * run.runs for run in found), ZERO),
        wall_seconds=_makespan(queue, request.jobs) + Span(*[sum(prepared.values())] * 2),
        total_runs=sum(run.runs for run in found),
        notes=tuple(_notes(request, found, bodies, weights, given)),
    )


# ---------------------------------------------------------------------------------------------------- what is asked for


def _device(request: Request, given: Rates | None) -> torch.device:
    """Return the device; refuse one that is not here unless its rates are declared."""
    wanted = request.device.partition(":")[0]
    if given is not None:
        if wanted not in ("auto", given.device):
            raise ConfigError(
                f"--device {request.device} is asked for, but {request.rates} holds rates of '{given.device}': give "
                "the rates of that device."
            )
        return torch.device("cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {request.device} is not here, so its speed cannot be measured: run `audiocl estimate --device "
            "cuda --write-rates FILE` on a machine that has it, and give FILE here as --rates."
        )
    return sweep.device_of(request.device)


def _plan(request: Request) -> list[_Planned]:
    """Return everything to be counted, each once, streams of one shape together."""
    if not (request.tables or (request.methods and request.benchmarks)):
        raise ConfigError("there is nothing to estimate: give --method and --bench, or --table.")
    wanted: list[tuple[str, tuple[str, ...], str, tuple[int, ...] | None]] = []
    methods = []
    for name in request.methods:
        rows = paper.spec(_TABLE_OF_METHODS).rows if name == PAPER else ()
        methods += [row.typed for row in rows] if name == PAPER else [name]
    names = [one for name in request.benchmarks for one in (benchmarks.names() if name == "all" else (name,))]
    if request.data == sweep.MINI:
        names = [sweep._miniature(name) for name in names]
    wanted += [(m, request.settings, b, request.orders) for b in dict.fromkeys(names) for m in dict.fromkeys(methods)]
    for table in request.tables:
        for number in paper.NUMBERS if table == "all" else (paper.spec(table).number,):
            rows = paper.spec(number).rows
            wanted += [
                (r.typed, r.settings, b, request.orders) for b in paper.published(number).benchmarks for r in rows
            ]
    planned: dict[Any, _Planned] = {}
    for typed, settings, bench, orders in dict.fromkeys(wanted):
        for item in _planned(request, typed, settings, bench, orders, methods):
            key = item.method, files.sha256_json(item.config.as_dict()), item.benchmark.name, item.streams
            planned.setdefault(key, item)
    return list(planned.values())


def _planned(
    request: Request,
    typed: str,
    settings: tuple[str, ...],
    bench: str,
    orders: tuple[int, ...] | None,
    together: Sequence[str],
) -> list[_Planned]:
    """Build one method's settings on one benchmark, and group its streams by their shape."""
    method, preset = sweep._choice(typed)
    benchmark = benchmarks.get(bench)
    # A plain key may belong to another method of the same command.
    known = [sweep._choice(name)[0] for name in dict.fromkeys([*together, typed])]
    asked = sweep.Sweep(methods=(typed,), benchmarks=(bench,), backbone="", settings=settings, config=request.config)
    sorted_ = sweep._settings(asked, list(dict.fromkeys(known)))
    given = {**sorted_[method.name], **({"preset": preset} if preset else {})}
    built = config.build(method.Config, benchmark.name, given, owner=method.name)
    protocol = request.protocol or benchmark.protocols[0]
    shapes: dict[Any, list[Stream]] = {}
    for order in orders if orders is not None else range(benchmark.num_orders):
        stream = _stream(benchmark, protocol, order, request.data)
        shapes.setdefault(_shape(stream), []).append(stream)
    changed = [text for text in settings if text.partition("=")[0].rpartition(".")[2] in given]
    label = " ".join([typed, *changed])
    return [
        _Planned(label, method, built, benchmark, protocol, tuple(streams), request.seeds)
        for streams in shapes.values()
    ]


def _stream(benchmark: Benchmark, protocol: str, order: int, data: Path | None) -> Stream:
    if not benchmark.own_data:
        return benchmark.stream(protocol, order)
    index = benchmark.checked(benchmark.corpus.index(benchmark.find(data)))
    return benchmark.stream(protocol, order, index)


def _shape(stream: Stream) -> Any:
    """What of a stream decides its cost: classes and clips of every session, in order."""
    sessions = range(stream.num_sessions)
    counts = tuple((len(stream.rows(t, "train")), len(stream.rows(t, "test"))) for t in sessions)
    return stream.session_sizes, counts


def _backbone_options(request: Request, planned: Sequence[_Planned]) -> Mapping[str, Any]:
    """Return the settings of the backbone among those given."""
    methods = list(dict.fromkeys(item.method for item in planned))
    asked = sweep.Sweep(
        methods=(),
        benchmarks=(),
        backbone="",
        settings=request.settings if request.methods else (),
        config=request.config,
    )
    return sweep._settings(asked, methods)["backbone"]


# ------------------------------------------------------------------------------------------------------------- one run


def _estimate_run(
    item: _Planned, network: Backbone, body: Anatomy, rates: Rates, prepare: float
) -> tuple[RunEstimate, list[Rehearsal]]:
    stream = item.streams[0]
    train, test = int((~stream.is_test).sum()), int(stream.is_test.sum())
    bare = RunEstimate(
        method=item.typed,
        benchmark=item.benchmark.name,
        protocol=item.protocol,
        orders=tuple(each.order for each in item.streams),
        seeds=item.seeds,
        runs=len(item.streams) * len(item.seeds),
        train_clips=train,
        test_clips=test,
        sessions=1 if item.method.takes_whole_stream else stream.num_sessions,
        prepare_seconds=prepare,
    )
    try:
        worlds = _worlds(item, network, body)
    except CannotCountError as cause:
        return dataclasses.replace(bare, problem=f"{item.typed} cannot be counted: {cause}."), []
    parts = [seconds_of(world, rates, body) for world in worlds]
    host, device = zip(*(memory_of(world, rates, body) for world in worlds), strict=True)
    passes = [(world.train["passes"], world.test["passes"]) for world in worlds]
    needed = [world.train["needed"] + world.test["needed"] for world in worlds]
    run = dataclasses.replace(
        bare,
        train_passes=Span.over([round(p) for p, _ in passes]),
        eval_passes=Span.over([round(p) for _, p in passes]),
        blocks_needed=Span.over([round(n) for n in needed]),
        bank_seconds=Span.over([p["bank"] for p in parts]),
        train_seconds=Span.over([p["train"] for p in parts]),
        eval_seconds=Span.over([p["test"] for p in parts]),
        audit_seconds=Span.over([p["audit"] for p in parts]),
        peak_memory_mb=Span.over([size / 1e6 for size in device]),
        host_memory_mb=Span.over([size / 1e6 for size in host]),
        kept_bytes=Span.over([world.sessions[-1].kept_bytes for world in worlds]),
        trainable_parameters=max(session.trainable for world in worlds for session in world.sessions),
    )
    return dataclasses.replace(run, reasons=tuple(_reasons(item, run))), worlds


def _worlds(item: _Planned, network: Backbone, body: Anatomy) -> list[Rehearsal]:
    """Rehearse in both worlds; in one, where the first sessions of a long stream cost the same in both."""
    stream = item.streams[0]

    def go(world: phantom.World, sessions: int | None = None) -> Rehearsal:
        return rehearse(item.method, item.config, item.benchmark, stream, network, body, world=world, sessions=sessions)

    if stream.num_sessions > LONG and not item.method.takes_whole_stream:
        calm, restless = go("calm", _FIRST), go("restless", _FIRST)
        if _blocks(calm) == _blocks(restless):
            return [go("restless")]
    return [go("calm"), go("restless")]


def _blocks(rehearsal: Rehearsal) -> list[Any]:
    names = ("passes", "needed", "forward.flops", "train.flops", "bank.flops")
    return [[part[name] for name in names] for s in rehearsal.sessions for part in (s.train, s.test)]


def _reasons(item: _Planned, run: RunEstimate) -> list[str]:
    reasons = []
    if not (run.train_passes.exact and run.eval_passes.exact and run.blocks_needed.exact):
        reasons.append(
            f"{item.method.name}: what it runs depends on its features; the ends of the range are clips that are told "
            "apart at once and features that mean nothing."
        )
    if isinstance(item.config, TrainingConfig) and (item.config.compile or item.config.precision != "float32"):
        reasons.append(f"{item.method.name}: counted in float32 and not compiled, so it should take less time.")
    return reasons


def seconds(work: Work, rates: Rates, body: Anatomy) -> float:
    """Return how long some work takes, without what the feature bank computes."""
    total = work["forward.flops"] / rates.forward_gflops / 1e9 + work["train.flops"] / rates.train_gflops / 1e9
    total += 1e-6 * (work["forward.calls"] * rates.forward_call_us + work["train.calls"] * rates.train_call_us)
    total += work["read.clips"] * body.mel_bytes / rates.read_gbs / 1e9 + 1e-6 * work["ops"] * rates.op_us
    total += (work["bytes.float64"] + work["bytes.other"]) / rates.copy_gbs / 1e9
    total += work["mm.float64"] / rates.mm64_gflops / 1e9 + work["mm.other"] / rates.mm32_gflops / 1e9
    for kind, rate in (
        ("cholesky", rates.cholesky_gflops),
        ("triangular", rates.triangular_gflops),
        ("eigh", rates.eigh_gn3),
    ):
        total += (work[f"{kind}.float64"] + work[f"{kind}.other"]) / rate / 1e9
    return total


def bank_seconds(work: Mapping[str, float], rates: Rates, body: Anatomy) -> float:
    """Return how long the feature bank takes for what was asked of it."""
    computed = work.get("bank.flops", 0.0) / rates.bank_gflops / 1e9
    return computed + work.get("bank.clips", 0.0) * body.mel_bytes / rates.read_gbs / 1e9


def seconds_of(world: Rehearsal, rates: Rates, body: Anatomy) -> dict[str, float]:
    """Return the seconds of a rehearsed run by part: train, test, audit, bank (once for all runs that read alike)."""
    train, test = world.train, world.test
    return {
        "train": seconds(train, rates, body),
        "test": seconds(test, rates, body),
        "audit": seconds(world.audit, rates, body),
        "bank": bank_seconds(train, rates, body) + bank_seconds(test, rates, body),
    }


def memory_of(world: Rehearsal, rates: Rates, body: Anatomy) -> tuple[float, float]:
    """Return the most bytes that a rehearsed run takes: of its process, and of its device (on a CPU the same).

    Files are mapped, so what a run has read of them counts as its memory: prepared clips, and features of each bank, up
    to what is held on to.
    """
    cuda = rates.device == "cuda"
    on_device = max(session.device_bytes for session in world.sessions)
    spread = max(session.peak_bytes + (rates.heap - 1.0) * session.graph_bytes for session in world.sessions)
    clips = sum(world.clips)
    mapped = min(clips * body.mel_bytes / 2, store.HELD)
    mapped += sum(min(4.0 * readout.width * rows, store.HELD) for readout, rows in world.banked.items())
    base = 1e6 * (rates.base_mb + (rates.adapters_mb if world.adapters else 0.0))
    # Beside the run's own copy of the weights, which is counted, there are the loaded ones.
    host = base + body.weight_bytes + mapped + spread - (on_device if cuda else 0.0)
    return host, on_device + (body.weight_bytes if world.banked else 0.0) if cuda else host


# ---------------------------------------------------------------------------------------------------------- all of them


def _store_of(item: _Planned) -> Any:
    return item.benchmark.corpus.info.name, item.benchmark.frames


def _fill(item: _Planned, worlds: Sequence[Rehearsal], body: Anatomy, rates: Rates, fills: dict[Any, Span]) -> Span:
    """Note the feature banks that a run fills which no earlier one did, and return their time."""
    own = ZERO
    readouts = {readout: clips for world in worlds for readout, clips in world.banked.items()}
    for readout, clips in readouts.items():
        key = *_store_of(item), item.protocol, readout
        if key not in fills:
            work = {"bank.clips": clips, "bank.flops": clips * body.clip_flops(readout.layers[-1])}
            fills[key] = Span(*[bank_seconds(work, rates, body)] * 2)
            own = own + fills[key]
    return own


def _makespan(queue: Sequence[Span], jobs: int) -> Span:
    """Return when the last of several runs ends, `jobs` at once, the longest first."""

    def ends(lengths: list[float]) -> float:
        free = [0.0] * jobs
        for length in sorted(lengths, reverse=True):
            heapq.heapreplace(free, free[0] + length)
        return max(free)

    return Span(ends([item.low for item in queue]), ends([item.high for item in queue]))


def _prepare_seconds(benchmark: Benchmark, clips: int, rates: Rates, data: Path | None) -> float:
    """Return the time that one process takes to prepare a corpus: decode its files and store their log-mels."""
    length, kilohertz, packed = _sound_of(benchmark, data)
    per_second = (rates.audio44_ms if kilohertz > 16 else rates.audio16_ms) + packed * rates.packed_ms
    return clips * (rates.file_ms + length * per_second) / 1e3


def _sound_of(benchmark: Benchmark, data: Path | None) -> tuple[float, float, float]:
    """Return the mean seconds of a clip, the rate of its file in kHz, and the share of files that are Ogg or MP3."""
    known = _SOUND.get(benchmark.corpus.info.name)
    if known is not None:
        return *known, 0.0
    if benchmark.own_data:
        try:
            root = benchmark.find(data)
            paths = benchmark.corpus.index(root)["path"].tolist()
            step = max(len(paths) // _SAMPLED_FILES, 1)
            looked = [soundfile.info(str(root / path)) for path in paths[::step][:_SAMPLED_FILES]]
            packed = sum(i.format in ("OGG", "MP3") for i in looked) / len(looked)
            return sum(i.duration for i in looked) / len(looked), max(i.samplerate for i in looked) / 1e3, packed
        except (AudioclError, RuntimeError, OSError):
            pass
    return benchmark.frames / 100, 16.0, 0.0


def _notes(
    request: Request,
    runs: Sequence[RunEstimate],
    bodies: Mapping[int, tuple[Backbone, Anatomy, Rates]],
    weights: str,
    given: Rates | None,
) -> list[str]:
    rates = next(iter(bodies.values()))[2]
    notes = [f"Rates {rates.origin}."]
    if given is not None:
        notes = [f"Rates were not measured here: {rates.origin} ({rates.name}, {rates.threads} CPU threads)."]
    busy = max(item[2].busy for item in bodies.values())
    if busy > 1.3:
        notes.append(
            f"The machine was busy with something else while they were measured (by the clock everything took "
            f"{busy:.1f} times as long): times hold for a machine that is free."
        )
    if weights == "random" and given is None:
        notes.append("Rates were measured with random weights of the backbone's shape: the values do not matter.")
    for run in runs:
        notes += [reason for reason in (*run.reasons, run.problem) if reason and reason not in notes]
    notes.append(
        "Preparation, per corpus and clip length, and features of the pretrained backbone (the difference between a "
        "first and a later run) are needed once and then kept. Downloads and checkpoints (at most a twentieth) are "
        "left out."
    )
    if request.jobs > 1:
        notes.append(f"{request.jobs} runs at once: at best, if they do not slow each other down.")
    if any(backbone.stand_in for backbone, _, _ in bodies.values()) and request.backbone in backbones.names():
        notes.append(f"{request.backbone} is a stand-in with random weights.")
    return notes
