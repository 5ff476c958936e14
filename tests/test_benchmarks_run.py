"""benchmarks/: every plain reference computes what we do, table and chart say it, kept bytes are really kept."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from learners import NETWORKS, QUICK, network
from torch import Tensor

from audiocl_bench import audio, backbones, benchmarks, config, registry, store
from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones.base import Attention
from audiocl_bench.estimate import rates
from audiocl_bench.heads import RidgeHead
from audiocl_bench.report.tables import short_duration
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, Silent, execute, run_id

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import measure
    import memory
    import references
    import run
    import scale
finally:
    sys.path.remove(str(BENCHMARKS))

TINY = run.Sizes(
    repeats=1,
    wave_clips=2,
    attention=(2, 9, 8, 2),
    test_clips=2,
    long_stream=False,
    train_clips=12,
    epochs=2,
    width=96,
    dense_solves=3,
    rows=48,
    shown_width=64,
)


def waves(clips: int, samples: int) -> Tensor:
    noise = torch.randn(clips, samples, generator=torch.Generator().manual_seed(samples))
    tone = torch.sin(torch.arange(samples) * 0.3)
    return 0.05 * noise + 0.3 * tone + 0.01  # with an offset, which EAT removes


# ----------------------------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("samples", [400, 1_000, 16_000])
def test_log_mels_of_one_clip_are_ours(samples: int) -> None:
    """In natural logarithms to 1e-3 (kaldi), in decimal ones to 1e-4 (whisper)."""
    for wave in waves(2, samples):
        torch.testing.assert_close(
            references.kaldi_logmel(wave), audio.kaldi_fbank(audio.remove_mean(wave)), rtol=0, atol=1e-3
        )
        ours = audio.whisper_logmel(wave, window=480_000)
        plain = references.whisper_logmel(wave)
        assert plain.shape == (3_000, 80)
        torch.testing.assert_close(plain[: len(ours)], ours, rtol=0, atol=1e-4)
        assert bool((plain[len(ours) :] == -10).all()), "what we leave out is digital silence"


@pytest.mark.parametrize("samples", [400, 3_333, 16_000])
def test_log_mels_of_a_batch_are_those_of_its_clips_bit_for_bit(samples: int) -> None:
    """They are computed clip by clip on a CPU, because that fits in its cache."""
    batch = waves(3, samples)
    for work in (audio.kaldi_fbank, audio.whisper_logmel):
        if samples >= 1_600:  # a product of a single row may take another path through the linear algebra library
            assert torch.equal(work(batch), torch.stack([work(wave) for wave in batch]))
        torch.testing.assert_close(work(batch), torch.stack([work(wave) for wave in batch]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
def test_clips_read_again_are_those_of_the_store(kind: Any, tmp_path: Path) -> None:
    """Up to the float16 of the store: 2^-11 of the value."""
    front_end = FrontEnd(kind, 40, 48)
    paths = []
    for number, wave in enumerate(waves(3, 6_000)):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], wave.numpy(), 16_000, subtype="FLOAT")
    clips = store.pd.DataFrame({"clip_id": [path.stem for path in paths], "path": [str(path) for path in paths]})
    prepared = store.prepare(clips, front_end, name="few", workers=1, progress=False)
    plain = references.read_clips(paths, kind, 40, 48)
    torch.testing.assert_close(plain, prepared.batch(np.arange(3)), rtol=2**-11, atol=1e-3)


@pytest.mark.parametrize("key_bias", [True, False])
def test_attention_and_its_gradients_are_ours(key_bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Attention(24, 4, key_bias=key_bias), torch.randn(3, 11, 24)
    found = []
    for work in (layer, lambda x: references.attention(layer, x)):
        layer.zero_grad()
        out = work(x)
        out.square().sum().backward()
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([out.detach(), *(g.clone() for g in gradients)])
    assert len(found[0]) == len(list(layer.parameters())) + 1
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"layer": 1}, {"pool": "mean"}])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_ours_and_are_not_counted(name: str, options: dict[str, Any]) -> None:
    backbone = backbones.load(name, frames=64, **options)
    mel = torch.randn(3, 64, backbone.front_end.n_mels)
    want = backbone.features(mel)
    before = backbone.passes.block_runs
    torch.testing.assert_close(references.features(backbone, mel), want, rtol=0, atol=1e-5)
    assert backbone.passes.block_runs == before, "the plain way goes around our counters: they are part of what we cost"


def test_test_features_of_every_session_are_extracted_again() -> None:
    backbone = network()
    mel = torch.randn(9, 64, 128)
    read: list[int] = []

    def take(clips: Any) -> Tensor:
        read.extend(clips)
        return mel[list(clips)]

    found = references.features_by_session(backbone.features, take, [[0, 3], [5], [8, 1, 2]])
    order = [0, 3, 5, 8, 1, 2]
    assert [len(part) for part in found] == [2, 3, 6]
    assert read == [*order[:2], *order[:3], *order]
    for part in found:
        torch.testing.assert_close(part, backbone.features(mel[order[: len(part)]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["lora", "prompts"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bare_loop_trains_what_ours_trains(name: str, mode: str, tmp_path: Path) -> None:
    """The same weights to 1e-5 after four epochs, and far from where they began."""
    data = run.open_data("arabic_keywords", name, tmp_path, long=False, clips=12)
    task = run.Task.of(data, TINY)
    start, ours, bare = (run.learner(data.backbone, mode, task.classes) for _ in range(3))
    assert torch.equal(start.values(), ours.values())
    task.fit(task.session(), ours, ours.ours)
    mel, labels = data.mels(task.clips), torch.from_numpy(task.labels)
    references.train(
        bare.bare,
        bare.parameters,
        mel,
        labels,
        epochs=2,
        batch_size=24,
        lr=0.01,
        clip=1.0,
        generator=task.context.generator("clip order", "train", 0),
    )
    torch.testing.assert_close(bare.values(), ours.values(), rtol=0, atol=1e-5)
    assert float((ours.values() - start.values()).abs().max()) > 1e-3


@pytest.mark.parametrize("rows", [20, 90])
def test_ridge_solutions_are_ours(rows: int) -> None:
    """To 1e-10 in float64, fewer or more clips than features; the float32 of the paper's code is only so good."""
    H, labels = run.random_features(rows, 40, 5, 3)
    Y = torch.nn.functional.one_hot(labels, 5).double()
    head = RidgeHead(40)
    head.update(H, labels, 5)
    W = head.solve(10.0)
    assert measure.distance(references.refactorised(H, Y, 10.0), W) < 1e-10
    assert measure.distance(references.dense_solve(H.T @ H, H.T @ Y, 10.0), W) < 1e-10
    single = references.dense_solve(H.float().T @ H.float(), H.float().T @ Y.float(), 10.0)
    assert single.dtype == torch.float32
    assert 1e-8 < measure.distance(single, W) < 0.1


def test_the_table_of_errors_shows_where_float32_fails() -> None:
    lines = run.wrong_float32(TINY, clips=48, classes=4).splitlines()[3:]
    rows = [line.split() for line in lines]
    assert [float(row[0]) for row in rows] == list(run.LAMBDAS[::2])
    assert all(float(row[1]) < 1e-9 for row in rows), "ours, whatever the ridge"
    assert rows[0][2] == "singular" or float(rows[0][2]) > 1e-2
    assert float(rows[-1][2]) < 1e-4


# ------------------------------------------------------------------------------------------------------ table and chart


def test_alternate_takes_turns_and_leaves_out_the_first() -> None:
    now, log = [0.0], []

    def work(name: str, seconds: list[float]) -> Callable[[], Callable[[], str]]:
        def setup() -> Callable[[], str]:
            now[0] += 1000  # getting ready is not timed

            def do() -> str:
                log.append(name)
                now[0] += seconds.pop(0)
                return f"{name}{len(log)}"

            return do

        return setup

    found = measure.alternate(
        work("a", [50, 3, 1, 2]), work("b", [70, 10, 30, 20]), repeats=3, clock=lambda: now[0], patience=1e9
    )
    assert found == (2, 20, 3, "a1", "b2")
    assert "".join(log) == "abbaabba"


def test_alternate_stops_when_patience_ends() -> None:
    calls = itertools.count()
    *_, turns, _, _ = measure.alternate(lambda: lambda: next(calls), lambda: lambda: 0, repeats=9, patience=-1)
    assert turns == 1
    assert next(calls) == 2, "one turn to get warm and one that counts"


def row(**changes: Any) -> measure.Row:
    values = {"part": "x", "what": "thing", "reference": "plain", "ours_s": 0.002, "reference_s": 0.5, "repeats": 3}
    return measure.Row(**{**values, "error": 1e-6, "tolerance": 1e-4, **changes})


def test_a_row_says_how_many_times_faster_and_whether_it_may() -> None:
    assert row().ratio == pytest.approx(250)
    assert row().same
    assert not row(error=1e-3).same
    assert not row(error=float("nan")).same
    text = measure.table([row(), row(what="other", error=0.5, note="scaled from 2")])
    assert "2 ms" in text
    assert "500 ms" in text
    assert "250 x" in text
    assert "NO (5e-01 > 1e-04)" in text
    assert "scaled from 2" in text


@pytest.mark.parametrize("seconds", [[1.0], [0.5, 0.99, 1.0], [2e-4, 1.0, 30.0, 4e3]])
def test_chart_is_drawn_whatever_the_ratios(seconds: list[float], tmp_path: Path) -> None:
    rows = [row(part=str(i // 2), what=f"thing {i}", ours_s=1.0, reference_s=s) for i, s in enumerate(seconds)]
    measure.chart(rows, tmp_path / "chart.png", "a machine\nsome data")
    measure.chart(rows, tmp_path / "chart.svg", "a machine\nsome data")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "chart.png").stat().st_size > 5_000


def test_everything_runs_on_a_clone_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No prepared audio, no weights: made-up sounds and a random network; every answer is the same."""
    monkeypatch.setattr(run, "QUICK", TINY)
    out, drawn = tmp_path / "rows.json", tmp_path / "chart.png"
    threads = torch.get_num_threads()
    try:
        given = ["--quick", "--backbone", "whisper-tiny-random", "--json", str(out), "--chart", str(drawn)]
        assert run.main([*given, "--clock", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert {row["part"] for row in content["rows"]} == set(run.PARTS)
    assert all(row["same"] and row["ratio"] > 0 for row in content["rows"])
    assert "made-up chords" in told
    assert "torch" in content["header"][0]
    assert "scaled from 3" in told
    assert "dense float32" in told
    assert drawn.is_file()


def test_a_different_answer_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK", TINY)
    plain = references.attention
    monkeypatch.setattr(references, "attention", lambda module, x: 1.01 * plain(module, x))
    assert run.main(["--quick", "--parts", "attention", "--threads", str(torch.get_num_threads())]) == 1
    assert "DIFFERENT ANSWERS: attention" in capsys.readouterr().out


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--parts", "ridge,frontent"])
    assert "not frontent" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- kept bytes

FILE_BYTES, TENSOR_BYTES = 4_096, 512
"""What a file of PyTorch adds at most: its index, and per tensor a header, alignment, and an entry in the index."""


class Checkpoints(Silent):
    """Reads the state in the checkpoint that a run has just written, after every session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: list[Any] = []

    def session_done(self, session: int, accuracy: float) -> None:
        self.states.append(torch.load(self.path, map_location="cpu", weights_only=True)["state"])


def saved(state: Any) -> tuple[int, int, int]:
    """Bytes of a state's tensors in a file of its own, their number, and the size of the file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
    return sum(sizes), len(sizes), len(buffer.getvalue())


def plain_bytes(state: Any) -> int:
    """What plain values count: 8 bytes a number, text by its length."""
    if isinstance(state, dict):
        return sum(map(plain_bytes, state.values()))
    if isinstance(state, (list, tuple, set)):
        return sum(map(plain_bytes, state))
    if state is None or isinstance(state, Tensor):
        return 0
    return len(state) if isinstance(state, (str, bytes)) else 8


@pytest.mark.parametrize("name", sorted(QUICK))
def test_kept_bytes_of_a_run_are_those_of_the_state_on_disk(name: str, tiny_material: Material, tmp_path: Path) -> None:
    """After every session: the bytes of all tensors in a file of the state, and of its plain values, exactly."""
    cls = registry.load(name)
    settings = config.build(cls.Config, "tiny", QUICK[name], owner=name)
    plan, results = Plan(cls, settings, 0), ResultsDir(tmp_path)
    watcher = Checkpoints(results.work / run_id(plan, tiny_material) / "checkpoint.pt")
    identity, status = execute(plan, tiny_material, results, monitor=watcher)
    assert status == "done"
    reported = results.sessions(identity)["kept_bytes"].tolist()
    assert len(reported) == len(watcher.states)
    for kept, state in zip(reported, watcher.states, strict=True):
        tensors, count, file = saved(state)
        assert kept == tensors + plain_bytes(state)
        assert 0 <= file - tensors <= FILE_BYTES + TENSOR_BYTES * count
    assert results.run(identity)["kept_bytes"] == reported[-1]


def test_every_built_in_method_is_looked_at() -> None:
    assert set(registry.names()) == set(QUICK)


# --------------------------------------------------------------------------------------------------------------- memory


def test_status_of_this_process_in_bytes() -> None:
    now = memory.status_bytes()
    assert now["VmHWM"] >= now["VmRSS"] >= now["RssAnon"] > 10_000_000
    assert memory.status_bytes(2**22 + 1) == {}


def test_links_to_one_sound_are_transformed_once_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "0.wav", waves(1, 6_000)[0].numpy(), 16_000)
    soundfile.write(tmp_path / "1.wav", waves(1, 7_000)[0].numpy(), 16_000)
    for number in range(2, 8):
        os.link(tmp_path / f"{number % 2}.wav", tmp_path / f"{number}.wav")
    paths = [str(tmp_path / f"{number}.wav") for number in range(8)]
    clips = store.pd.DataFrame({"clip_id": [f"clip{number}" for number in range(8)], "path": paths})
    front_end, shards, calls = FrontEnd("kaldi", 40, 48), [], []
    transform = store._mel

    def counted(path: Path, front_end: FrontEnd) -> np.ndarray:
        calls.append(path)
        return transform(path, front_end)

    for home, once in (("a", False), ("b", True)):
        monkeypatch.setattr(store, "_mel", counted)
        if once:
            memory.decode_once(store)
        made = store.prepare(clips, front_end, name="x", home=tmp_path / home, workers=1, progress=False)
        shards.append([path.read_bytes() for path in sorted(made.path.glob("*.arrow"))])
    assert shards[0] == shards[1]
    assert len(calls) == 8 + 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_memory_of_a_small_benchmark_is_measured(
    tiny_benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--bench", str(tiny_benchmark), "--frames", "48", "--methods", "ncm,finetune", "--home", str(tmp_path)]
    assert memory.main([*given, "--json", str(tmp_path / "stages.json")]) == 0
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [stage["name"] for stage in stages] == ["corpus", "prepare", "open", "ncm", "finetune"]
    assert all(stage["peak"]["rss"] > stage["peak"]["anon"] > 10_000_000 for stage in stages)
    assert "kept by every stage" in capsys.readouterr().out
    assert memory.main([*given, "--methods", "", "--limit", "0.01"]) == 1
    assert "PASSED OVER by corpus, prepare, open" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ the whole paper


def test_the_cost_of_the_whole_paper_adds_up() -> None:
    """Fourteen methods, five orders: every run of a benchmark takes 1 + 2 + 3 s, its features 100 s once."""
    parts = {"train": 1.0, "test": 2.0, "audit": 3.0, "bank": 0.0}
    told = {"cpu": parts, "gpu": {**parts, "audit": 0.0}, "passes": 2.5, "memory": 3e9, "kept": 4e6}
    costs = {(method, bench): told for method in scale.METHODS for bench in benchmarks.names()}
    for bench in benchmarks.names():
        costs["ncm", bench] = {**told, "cpu": {**parts, "bank": 100.0}}
    text = scale.tables(costs)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    [last] = [row for row in cells if row[0] == "all six"]
    on_cpu = 6 * (5 * 14 * 6.0 + 100.0) / 32
    assert last[1:] == [short_duration(s) for s in (on_cpu, 6 * 5 * 14 * 3.0, 6 * 5 * 14 * 3.0 / 8)]
    assert ["`pace`", *["6.0 s"] * 6] in cells
    assert ["`pace`", *["3.0, 4.0"] * 6] in cells


def test_the_assumed_gpu_is_declared_in_full() -> None:
    assumed = rates.read(scale.ASSUMED)
    assert (assumed.device, "assumed" in assumed.name) == ("cuda", True)
