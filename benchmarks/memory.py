"""Measure how much memory Speech Commands takes: all 105,829 clips prepared, streamed and evaluated, stage by stage.

    python benchmarks/memory.py                         everything, in a temporary folder that is deleted (3 GB of disk)
    python benchmarks/memory.py --home DIR              keep the folder DIR, so that a later call finds it prepared
    python benchmarks/memory.py --bench my.toml         another benchmark, whose audio is there

The corpus is synthetic: every file name of Speech Commands v0.02, and behind them 560 short sounds (16 a class), linked
as often as it takes. So the real benchmark `sc2` runs, with its frozen splits: every file is read and hashed, and its
log-mel stored; equal sounds are decoded and transformed once (--decode: every file, in --workers processes, which takes
minutes more). The network is a small EAT with random weights (--dim, --depth, --frames), because what is measured here
grows with the corpus, not with the network.

Every stage is a process of its own. Its memory is looked at ten times a second, with the processes that it starts:

    RSS     resident memory, pages of memory-mapped files included: the system takes those back when it needs them
    anon    the part that belongs to the process alone (RssAnon)

Over several processes both are sums, so that shared pages of libraries count more than once. The exit code is 1 where
the RSS of a stage passes --limit (GB of 10^9 bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from tabulate import tabulate

STAGES = ("corpus", "prepare", "open")
METHODS = ("ncm", "ranpac", "finetune")
SETTINGS: Mapping[str, Mapping[str, Any]] = {"finetune": {"epochs": 1, "rank": 2, "batch_size": 64}}
SOUNDS = 16  # different sounds of a class
_INTERVAL = 0.1  # seconds; the high-water mark of a stage's own process misses nothing


@dataclass
class Peak:
    """The most that a process and its children had at one moment, in bytes."""

    rss: int = 0
    anon: int = 0
    processes: int = 0


@dataclass(frozen=True)
class Stage:
    """What one stage took.

    Attributes:
        name: of the stage.
        seconds: of its process, start included.
        peak: see `Peak`; `rss` is at least the exact high-water mark that the stage's own process reports.
        facts: what the stage says of itself: clips, bytes, accuracy ...
    """

    name: str
    seconds: float
    peak: Peak
    facts: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------- watch


def status_bytes(pid: int | str = "self") -> dict[str, int]:
    """Return the memory lines (VmHWM, VmRSS, RssAnon, RssFile ...) of a process in bytes; {} if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def watch(process: psutil.Process, over: threading.Event, peak: Peak) -> None:
    """Note the peak of a process and all its children until `over` is set."""
    family, looked = [process], 0.0
    while not over.wait(_INTERVAL):
        if time.monotonic() - looked > 1:  # going through all processes of a machine is no small work
            looked = time.monotonic()
            with suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
        now = [found for one in family if (found := status_bytes(one.pid))]
        peak.rss = max(peak.rss, sum(found.get("VmRSS", 0) for found in now))
        peak.anon = max(peak.anon, sum(found.get("RssAnon", 0) for found in now))
        peak.processes = max(peak.processes, len(now))


def run_stage(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Stage:
    """Run one stage in a process and watch it.

    Raises:
        SystemExit: the stage failed; its own message is on standard error.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", name, *arguments]
    begun = time.perf_counter()
    peak, over = Peak(), threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(environment)) as child:
        watcher = threading.Thread(target=watch, args=(psutil.Process(child.pid), over, peak), daemon=True)
        watcher.start()
        said, _ = child.communicate()
        over.set()
        watcher.join()
    if child.returncode:
        raise SystemExit(f"stage {name} failed with exit code {child.returncode}")
    facts: dict[str, Any] = json.loads(said.splitlines()[-1])
    peak.rss = max(peak.rss, facts.pop("high_water", 0))
    return Stage(name, time.perf_counter() - begun, peak, facts)


# --------------------------------------------------------------------------------------------------------------- stages


def corpus(given: argparse.Namespace) -> dict[str, Any]:
    """Lay out Speech Commands' file names over a few sounds; nothing happens where they are already there."""
    import numpy as np
    import soundfile

    from audiocl_bench import splits

    root = given.home / "data" / "speech_commands_v0.02"
    done = root / "testing_list.txt"
    clips = splits.frozen_clips("sc2")
    if given.bench != "sc2" or done.is_file():
        return {"clips": len(clips)}
    draws, times = np.random.default_rng(0), np.arange(16_000) / 16_000
    sounds = given.home / "sounds"
    sounds.mkdir(parents=True, exist_ok=True)
    originals: dict[str, list[Path]] = {}
    for number, word in enumerate(sorted(set(clips["label"]))):
        (root / word).mkdir(parents=True, exist_ok=True)
        for sound in range(SOUNDS):
            pitch = 110 * 1.08**number * draws.uniform(0.99, 1.01)
            wave = sum(0.2 * np.sin(2 * np.pi * pitch * part * times) / part for part in (1, 2, 3))
            path = sounds / f"{word}_{sound}.wav"
            soundfile.write(path, wave + 0.02 * draws.standard_normal(len(times)), 16_000, subtype="PCM_16")
            originals.setdefault(word, []).append(path)
    for number, (clip_id, word) in enumerate(zip(clips["clip_id"], clips["label"], strict=True)):
        link = root / f"{clip_id}.wav"
        if not link.exists():
            os.link(originals[word][number % SOUNDS], link)
    (root / "validation_list.txt").write_text("")
    done.write_text("")
    return {"clips": len(clips)}


def material(given: argparse.Namespace) -> Any:
    """Open the benchmark with its clips prepared, and the small network: what `runner.execute` works on."""
    from audiocl_bench import benchmarks, corpora, runner, store
    from audiocl_bench.backbones import eat, registry
    from audiocl_bench.backbones.base import Options

    benchmark = benchmarks.get(given.bench)
    stream, clips = benchmark.open(None, benchmark.protocols[0], 0)
    size = eat.EATConfig(dim=given.dim, depth=given.depth, num_heads=max(given.dim // 32, 1))
    frames = given.frames or benchmark.frames
    options = Options(f"eat-{given.dim}x{given.depth}", "random weights", frames=frames, stand_in=True)
    network = eat.build(size, eat.random_weights(size, registry.draw_weight), options)
    name = benchmark.corpus.info.name
    if given.bench == "sc2" and not given.decode:
        decode_once(store)
    workers = given.workers if given.decode else 1
    prepared = store.prepare(clips, network.front_end, name=name, workers=workers, progress=False)
    labels = [stream.classes[label] for label in stream.labels]
    index_hash = corpora.index_hash(clips[["clip_id"]].assign(label=labels))
    return runner.Material(benchmark, stream, prepared, network, index_hash)


def decode_once(store: Any) -> None:
    """Let the store transform files that are links to one sound once: the same bytes, without hours of equal work."""
    transform, known = store._mel, {}

    def once(path: Path, front_end: Any) -> Any:
        sound = path.stat().st_ino
        if sound not in known:
            known[sound] = transform(path, front_end)
        return known[sound]

    store._mel = once


def prepare(given: argparse.Namespace) -> dict[str, Any]:
    """Index the corpus and prepare whatever is missing, or open what is finished."""
    made = material(given)
    stored = sum(path.stat().st_size for path in made.store.path.iterdir())
    return {"clips": len(made.store), "stored_bytes": stored}


def learn(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Make a whole run of one method: every session learned and tested, audited, written."""
    from audiocl_bench import config, registry, runner
    from audiocl_bench.results import ResultsDir

    made = material(given)
    cls = registry.load(name)
    wanted = dict(SETTINGS.get(name, {}))
    if name == "ranpac":
        wanted |= {"fsa": False, "width": given.width}
    settings = config.build(cls.Config, made.benchmark.name, wanted, owner=name)
    results = ResultsDir(given.home / "results")
    plan = runner.Plan(cls, settings, 0)
    identity, _ = runner.execute(plan, made, results, existing="replace", fresh=True)
    row, sessions = results.run(identity), results.sessions(identity)
    return {
        "clips": int(sessions["train_clips"].sum()) + int((~made.stream.is_test == 0).sum()),
        "sessions": len(sessions),
        "final_accuracy": row["final_accuracy"],
        "audit_passed": bool(row["audit_passed"]),
        "kept_bytes": row["kept_bytes"],
        "session_peak_mb": sessions["peak_memory_mb"].round(0).tolist(),
    }


def perform(given: argparse.Namespace) -> None:
    """Do one stage in this process and print what it says, as one line of JSON."""
    import torch

    torch.set_num_threads(given.threads)
    work: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "corpus": corpus,
        "prepare": prepare,
        "open": prepare,
    }
    facts = work[given.stage](given) if given.stage in work else learn(given.stage, given)
    facts["high_water"] = status_bytes().get("VmHWM", 0)
    print(json.dumps(facts))


# ----------------------------------------------------------------------------------------------------------------- main


def table(stages: Sequence[Stage]) -> str:
    """One row per stage."""
    rows = []
    for stage in stages:
        facts = dict(stage.facts)
        told = []
        if "stored_bytes" in facts:
            told.append(f"{facts['stored_bytes'] / 1e9:.2f} GB stored")
        if "final_accuracy" in facts:
            told.append(f"{facts['sessions']} sessions, {facts['kept_bytes'] / 1e6:.2f} MB kept")
            told.append(f"audits {'passed' if facts['audit_passed'] else 'FAILED'}")
        rows.append(
            (
                stage.name,
                f"{facts['clips']:,}",
                f"{stage.seconds:.0f}",
                stage.peak.processes,
                f"{stage.peak.rss / 1e9:.2f}",
                f"{stage.peak.anon / 1e9:.2f}",
                ", ".join(told),
            )
        )
    headers = ("stage", "clips", "s", "processes", "peak RSS, GB", "peak anon, GB", "")
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 5, "left"))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bench", default="sc2")
    parser.add_argument("--home", type=Path, help="cache directory to use and keep")
    parser.add_argument("--width", type=int, default=1_000, help="random features of ranpac")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--frames", type=int, default=128, help="input length in 10 ms rows; 0: the benchmark's own")
    parser.add_argument("--decode", action="store_true", help="decode and transform every file")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=4.0, help="GB that no stage may pass")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages and print their peaks; 1 where one passes the limit, else 0."""
    given = parsed(arguments)
    if given.stage:
        perform(given)
        return 0
    if not Path("/proc/self/status").is_file():
        raise SystemExit("memory.py reads /proc: it needs Linux.")
    methods = [name.strip() for name in given.methods.split(",") if name.strip()]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) if given.home is None else given.home.resolve()
        passed = ["--home", str(home), "--bench", given.bench]
        for name in ("width", "dim", "depth", "frames", "workers", "threads"):
            passed += [f"--{name}", str(getattr(given, name))]
        passed += ["--decode"] if given.decode else []
        path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "AUDIOCL_HOME": str(home), "PYTHONPATH": path.rstrip(os.pathsep)}
        stages = []
        for name in (*STAGES, *methods):
            stages.append(run_stage(name, passed, environment))
            print(
                f"{name}: {stages[-1].seconds:.0f} s, {stages[-1].peak.rss / 1e9:.2f} GB", file=sys.stderr, flush=True
            )
    print(table(stages))
    print("RSS counts pages of memory-mapped files, which the system takes back when it needs them; anon does not.")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(stage) for stage in stages], indent=1) + "\n", encoding="utf-8")
    over = [stage.name for stage in stages if stage.peak.rss > given.limit * 1e9]
    print(f"limit {given.limit:g} GB: " + (f"PASSED OVER by {', '.join(over)}" if over else "kept by every stage"))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
