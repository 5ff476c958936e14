"""How fast a machine is: measured here in a few seconds and kept, or read from a file that was written on another one.

    <home>/rates/<backbone>-<key12>.json     key: shape of the network, clip length, device, threads, libraries

A file for `--rates` (`audiocl estimate --device cuda --write-rates h100.toml` writes one on the machine itself):

    [machine]
    name = "one H100, 16 cores"
    device = "cuda"            # what the rates hold for
    threads = 16               # CPU threads of a run

    [rates]                    # all of them; units are in the names
    forward_gflops = 41000.0
    ...

Rates of a CPU on one thread are taken from the processor time, so that another program beside the measurement does not
change them much; `busy` says how much longer it took by the clock. They hold for a machine that is free.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audio, files, store
from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.errors import ConfigError, ResultsError
from audiocl_bench.estimate.hollow import Hollow
from audiocl_bench.estimate.phantom import Anatomy
from audiocl_bench.estimate.work import Meter
from audiocl_bench.memory import PeakMemory, give_back_freed
from audiocl_bench.results import library_versions, provenance

VERSION = 3
"""Raised whenever something else is measured; part of every key."""

_BUDGET = 0.3  # seconds for each measurement, beside its first run
_REPEATS = 100  # at most: the least of many short ones is the one that nothing disturbed
_WANTED_FLOPS = 4e9  # of a measured pass: a fraction of a second on a CPU
_MOST_CLIPS = 24
_STEPS, _DEPTH = 3, 6  # training steps through so many blocks, at most, that show what memory they take
_SHORT = 8  # tokens of the pass that shows what a call costs by itself
_SECONDS = 5.0  # of the sound that is decoded
_FILES = 16  # of it
_PACKED = "OPUS"  # the dearest to decode of what speech corpora come in
_BARE = """
import psutil
import audiocl_bench.cli, audiocl_bench.sweep, audiocl_bench.executors.unit
import torch
torch.nn.functional.linear(torch.zeros(256, 256), torch.zeros(256, 256))
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
print(psutil.Process().memory_info().rss)
from peft import LoraConfig, inject_adapter_in_model
inject_adapter_in_model(LoraConfig(target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(8, 8)))
print(psutil.Process().memory_info().rss)
"""
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Rates:
    """Speeds of one machine with one backbone and clip length.

    Attributes:
        forward_gflops: 10^9 operations a second of encoder blocks without a gradient.
        forward_call_us: microseconds that every call of a block takes beside them.
        train_gflops, train_call_us: the same with a gradient, backward pass included.
        bank_gflops: of the feature bank, which computes in chunks, one CPU thread each.
        mm64_gflops, cholesky_gflops, triangular_gflops: matrix algebra of heads, float64 on the CPU.
        eigh_gn3: 10^9 n^3 a second of eigendecompositions of n x n matrices, float64 on the CPU.
        mm32_gflops: matrix products in float32 on the device.
        copy_gbs: 10^9 bytes a second that other operations read and write.
        op_us: microseconds of any operation, with the Python code around it.
        read_gbs: 10^9 bytes a second of prepared log-mels (as float32) that are decoded and normalised.
        file_ms: milliseconds that an audio file takes by itself while a corpus is prepared (read, hashed, stored); and
            for every second of sound, decoded and made a log-mel,
        audio16_ms: at 16 kHz,
        audio44_ms: at 44.1 kHz, and
        packed_ms: beside them, where the file is Ogg or MP3 instead of WAV or FLAC.
        base_mb: memory of a process that is about to begin a run, in 10^6 bytes, and
        adapters_mb: what it needs beside that where a network wears layers of the `peft` library.
        heap: resident memory that activations of training steps take, over their bytes: the C library keeps blocks that
            were freed between them. 1 on CUDA.
        name: of the machine.
        device: "cpu" or "cuda".
        threads: CPU threads of a run.
        origin: where the rates come from, for people.
        busy: time by the clock over time it took, while they were measured; 1 on a machine that is free.
    """

    forward_gflops: float
    forward_call_us: float
    train_gflops: float
    train_call_us: float
    bank_gflops: float
    mm64_gflops: float
    cholesky_gflops: float
    triangular_gflops: float
    eigh_gn3: float
    mm32_gflops: float
    copy_gbs: float
    op_us: float
    read_gbs: float
    file_ms: float
    audio16_ms: float
    audio44_ms: float
    packed_ms: float
    base_mb: float
    adapters_mb: float
    heap: float
    name: str = ""
    device: str = "cpu"
    threads: int = 1
    origin: str = ""
    busy: float = 1.0

    @classmethod
    def speeds(cls) -> tuple[str, ...]:
        """Return the names of all speeds, which a file has to give."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.type == "float" and field.name != "busy")


# --------------------------------------------------------------------------------------------------------------- files


def read(path: Path) -> Rates:
    """Read rates that were declared or measured elsewhere.

    Raises:
        ConfigError: the file is missing, no TOML, or lacks a rate, has one too many, or one that is not positive.
    """
    try:
        with path.open("rb") as handle:
            content = tomllib.load(handle)
    except OSError as cause:
        raise ConfigError(f"rates file {path} cannot be read ({cause.strerror}): check the path.") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"rates file {path} is not valid TOML: {cause}.") from cause
    machine, given = content.get("machine", {}), content.get("rates", {})
    known = Rates.speeds()
    missing, extra = [name for name in known if name not in given], sorted(set(given) - set(known))
    if missing or extra:
        what = f"[rates] lacks {', '.join(missing)}" if missing else f"[rates] has the unknown {', '.join(extra)}"
        raise ConfigError(f"rates file {path}: {what}. It needs {', '.join(known)}.")
    for name, value in given.items():
        zero = name.endswith(("_us", "_ms", "_mb"))
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and not zero):
            raise ConfigError(f"rates file {path}: {name} is {value!r}, but it must be a number above 0.")
    device, threads = machine.get("device"), machine.get("threads", 1)
    if device not in ("cpu", "cuda"):
        raise ConfigError(f'rates file {path}: [machine] device is {device!r}, but it must be "cpu" or "cuda".')
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"rates file {path}: [machine] threads is {threads!r}, but it must be 1 or more.")
    name = str(machine.get("name", path.stem))
    values = {key: float(value) for key, value in given.items()}
    return Rates(**values, name=name, device=device, threads=threads, origin=f"declared in {path}")


def write(path: Path, rates: Rates) -> None:
    """Write rates as `read` takes them.

    Raises:
        ResultsError: the file cannot be written.
    """
    lines = ["[machine]", f"name = {json.dumps(rates.name)}", f'device = "{rates.device}"']
    lines += [f"threads = {rates.threads}", f"# {rates.origin}", "", "[rates]"]
    lines += [f"{name} = {getattr(rates, name):.6g}" for name in Rates.speeds()]
    files.write_text(path, "\n".join(lines) + "\n", error=ResultsError)


# -------------------------------------------------------------------------------------------------------- measurements


def measured(network: Backbone, body: Anatomy, device: torch.device, *, again: bool = False) -> Rates:
    """Return the rates of this machine with a network, measured now or kept from before.

    Args:
        network: its first block and what makes tokens are run; its weights do not matter.
        body: its anatomy.
        device: where encoders run.
        again: measure even if there are kept rates.
    """
    key = _key(network, body, device)
    slug = _SLUG.sub("-", network.name).strip(".-") or "backbone"
    path = files.home() / "rates" / f"{slug}-{key[:12]}.json"
    if not again and (kept := _kept(path)) is not None:
        return kept
    rates = _measure(network, body, device)
    files.write_text(path, json.dumps(dataclasses.asdict(rates), indent=1) + "\n", error=ResultsError)
    return rates


def _key(network: Backbone, body: Anatomy, device: torch.device) -> str:
    machine = provenance(device)
    return files.sha256_json(
        {
            "version": VERSION,
            "network": [network.network, type(network).__name__, network.dim, network.num_heads],
            "body": [body.tokens, body.frames, body.n_mels, round(body.linear)],
            "front_end": network.front_end.kind,
            "device": machine["device"],
            "platform": machine["platform"],
            "threads": torch.get_num_threads(),
            "libraries": library_versions(),
        }
    )


def _kept(path: Path) -> Rates | None:
    try:
        return Rates(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class _Clock:
    """Times work: by processor time on one CPU thread, else by the clock; keeps account of both."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._by_processor = device.type == "cpu" and torch.get_num_threads() == 1
        self._wall = self._cpu = 0.0

    @property
    def busy(self) -> float:
        """Time by the clock over processor time, at least 1; only CPU work on one thread can tell."""
        return max(self._wall / self._cpu, 1.0) if self._by_processor and self._cpu > 0 else 1.0

    def __call__(self, work: Callable[[], object]) -> float:
        """Return the least seconds of several runs of `work`, after a first one that does not count."""
        self._once(work)
        best, spent = math.inf, 0.0
        for _ in range(_REPEATS):
            took = self._once(work)
            best, spent = min(best, took), spent + took
            if spent > _BUDGET:
                break
        return max(best, 1e-9)

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self._wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._wall, self._cpu = self._wall + wall, self._cpu + cpu
        return cpu if self._by_processor else wall

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _measure(network: Backbone, body: Anatomy, device: torch.device) -> Rates:
    clock, generator = _Clock(device), torch.Generator().manual_seed(0)
    block = network.blocks[0].to(device)
    clips = min(max(round(_WANTED_FLOPS / body.block_flops(body.tokens)), 1), _MOST_CLIPS)
    tokens = torch.randn(clips, body.tokens, network.dim, generator=generator).to(device)
    short = tokens[:1, :_SHORT].contiguous()
    speeds: dict[str, float] = {}
    for kind, run, factor in (("forward", _forward, 1.0), ("train", _train, 2.0)):
        rate = factor * clips * body.block_flops(body.tokens) / clock(partial(run, block, tokens))
        alone = clock(partial(run, block, short)) / factor - body.block_flops(short.shape[1]) / rate
        speeds |= {f"{kind}_gflops": rate / 1e9, f"{kind}_call_us": 1e6 * max(alone, 0.0)}
    speeds["heap"] = _heap(block, tokens, body) if device.type == "cpu" else 1.0
    speeds["bank_gflops"] = _bank(block, tokens, clock, body, speeds["forward_gflops"])
    block.to("cpu")
    speeds |= _algebra(clock, device, generator)
    speeds |= _sound(network, clock)
    speeds |= _memory()
    where = provenance(device)
    name = f"{where['device']}, {where['platform'].rpartition('glibc')[2].partition(', ')[2] or where['platform']}"
    return Rates(
        **speeds,
        name=name,
        device=device.type,
        threads=torch.get_num_threads(),
        origin=f"measured here on {name}, {torch.get_num_threads()} CPU thread(s)",
        busy=clock.busy,
    )


def _forward(block: nn.Module, tokens: Tensor) -> None:
    with torch.no_grad():
        block(tokens)


def _train(block: nn.Module, tokens: Tensor) -> None:
    block(tokens.detach().requires_grad_()).sum().backward()


def _heap(block: nn.Module, tokens: Tensor, body: Anatomy) -> float:
    """Measure how much more memory a process takes for training steps than their tensors have bytes."""
    give_back_freed()
    meter, before = Meter(PassCounter(), math.inf), psutil.Process().memory_info().rss
    watch = PeakMemory(tokens.device)
    with Hollow(meter, real=True):
        for _ in range(_STEPS):
            inner = tokens.detach().requires_grad_()
            for _ in range(min(body.depth, _DEPTH)):
                inner = block(inner)
            inner.mean().backward()
            del inner
    give_back_freed()
    return max((1e6 * watch.peak_mb() - before) / meter.peak, 1.0)


def _memory() -> dict[str, float]:
    """Measure what processes need before they hold any data, in fresh ones."""
    told = subprocess.run([sys.executable, "-c", _BARE], capture_output=True, text=True, check=True).stdout
    base, adapters = (float(size) / 1e6 for size in told.split())
    return {"base_mb": base, "adapters_mb": max(adapters - base, 0.0)}


def _bank(block: nn.Module, tokens: Tensor, clock: _Clock, body: Anatomy, forward: float) -> float:
    """Measure several chunks at once, a thread each, as the bank computes them on a CPU."""
    threads = min(torch.get_num_threads(), 8)
    if tokens.device.type != "cpu" or threads == 1:
        return forward

    def work() -> None:
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(lambda part: _forward(block, part), [tokens] * threads))
        finally:
            torch.set_num_threads(before)

    before = torch.get_num_threads()
    return threads * len(tokens) * body.block_flops(body.tokens) / clock(work) / 1e9


def _algebra(clock: _Clock, device: torch.device, generator: torch.Generator) -> dict[str, float]:
    """Measure what heads do: float64 on the CPU; small steps and float32 products on the device."""
    A = torch.randn(512, 2048, generator=generator, dtype=torch.float64)
    here = torch.randn(512, 2048, generator=generator).to(device)
    half = torch.randn(1024, 1024, generator=generator, dtype=torch.float64)
    S = half @ half.T + 1024 * torch.eye(1024, dtype=torch.float64)
    L, B, E = torch.linalg.cholesky(S), half[:, :256].contiguous(), S[:384, :384].contiguous()
    large = torch.randn(1 << 21, generator=generator, dtype=torch.float64)
    return {
        "mm64_gflops": 2 * 512**2 * 2048 / clock(lambda: A @ A.T) / 1e9,
        "cholesky_gflops": 1024**3 / 3 / clock(lambda: torch.linalg.cholesky(S)) / 1e9,
        "triangular_gflops": 1024**2 * 256 / clock(lambda: torch.linalg.solve_triangular(L, B, upper=False)) / 1e9,
        "eigh_gn3": 384**3 / clock(lambda: torch.linalg.eigh(E)) / 1e9,
        "mm32_gflops": 2 * 512**2 * 2048 / clock(lambda: here @ here.T) / 1e9,
        "copy_gbs": 2 * 8 * len(large) / clock(lambda: large + 1.0) / 1e9,
        "op_us": 1e6 * _seconds_per_operation(clock, device),
    }


def _seconds_per_operation(clock: _Clock, device: torch.device) -> float:
    """Measure steps of a tiny classifier, in which nothing but the number of operations matters."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(4, 8, generator=generator).to(device), torch.tensor([0, 1, 2, 3]).to(device)
    layer = nn.utils.skip_init(nn.Linear, 8, 4).to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(F.normalize(layer(x), dim=-1), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
        float(loss.detach())

    step()
    meter = Meter(PassCounter(), math.inf)
    with Hollow(meter, real=True):
        step()

    def steps() -> None:
        for _ in range(20):
            step()

    return clock(steps) / 20 / max(meter.counts["ops"], 1.0)


def _sound(network: Backbone, clock: _Clock) -> dict[str, float]:
    """Measure the preparation of a small corpus of noise, and the reading of prepared clips."""
    front = network.front_end
    draws = np.random.default_rng(0)
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, rate, seconds in (("one", 16_000, 1.0), ("five", 16_000, _SECONDS), ("wide", 44_100, _SECONDS)):
            paths = [Path(folder) / f"{kind}{number}.wav" for number in range(_FILES)]
            for path in paths:
                soundfile.write(path, 0.1 * draws.standard_normal(int(rate * seconds)), rate, subtype="PCM_16")
            clips = pd.DataFrame({"clip_id": [path.stem for path in paths], "path": [str(path) for path in paths]})
            times[kind] = clock(partial(_prepare, clips, front, Path(folder))) / _FILES
        plain, packed = Path(folder) / "five0.wav", Path(folder) / "five0.ogg"
        sound, rate = soundfile.read(plain)
        soundfile.write(packed, sound, rate, subtype=_PACKED)
        unpacking = clock(partial(audio.load, packed)) - clock(partial(audio.load, plain))
    mel = front.extract(torch.from_numpy(0.1 * draws.standard_normal(16_000 * 5)).float()).numpy().astype(np.float16)
    stored = [mel] * 16
    read = clock(lambda: front.normalise(front.fit([torch.from_numpy(each.astype(np.float32)) for each in stored])))
    # Rows past the input's length are not computed: what a second costs comes from the sound that is.
    per_second = max((times["five"] - times["one"]) / (_SECONDS - 1.0), 1e-6)
    opening = max(times["one"] - per_second, 0.0)
    return {
        "read_gbs": 4 * len(stored) * front.frames * front.n_mels / read / 1e9,
        "file_ms": 1e3 * opening,
        "audio16_ms": 1e3 * per_second,
        "audio44_ms": 1e3 * max((times["wide"] - opening) / _SECONDS, per_second),
        "packed_ms": 1e3 * max(unpacking / _SECONDS, 0.0),
    }


def _prepare(clips: pd.DataFrame, front_end: FrontEnd, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as home:
        store.prepare(clips, front_end, name="noise", home=Path(home), workers=1, progress=False)


def describe(rates: Rates) -> dict[str, Any]:
    """Return rates as plain values."""
    return dataclasses.asdict(rates)
