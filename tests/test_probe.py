"""Probes of a frozen backbone: what they compute, what they may see, and the command that prints them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from test_cli import ROOT, Call, assert_refused, call
from torch import Tensor

from audiocl_bench import backbones, probe
from audiocl_bench.errors import AudioclError, CheckpointError, ConfigError, CorpusError, UnknownNameError
from audiocl_bench.heads import LAMBDAS
from audiocl_bench.probe import Score
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material

__all__ = ["call"]  # a fixture, used by name


def clouds(seed: int = 0, width: int = 6, classes: int = 4, each: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping classes in a space whose first coordinate is a thousand times as large as the others."""
    draws = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    features = draws.standard_normal((classes, width))[labels] + 0.7 * draws.standard_normal((len(labels), width))
    features[:, 0] = 1000 * draws.standard_normal(len(labels)) + 500
    is_test = np.arange(len(labels)) % 3 == 0
    return torch.tensor(features), torch.tensor(labels), torch.tensor(is_test)


def accuracy_of(scores: tuple[Score, ...], name: str) -> float | None:
    return next(score.accuracy for score in scores if score.probe == name)


# ---------------------------------------------------------------------------------------------- features in, scores out


def test_class_means_against_plain_numpy() -> None:
    X, y, test = clouds()
    scores = probe.judge({"mean": X[:, None].float()}, y, test, 4)
    features, labels, held = X.float().double().numpy(), y.numpy(), test.numpy()
    for name, scaled in (
        ("ncm", features),
        ("ncm-z", (features - features[~held].mean(0)) / features[~held].std(0)),
    ):
        means = np.stack([scaled[~held & (labels == k)].mean(0) for k in range(4)])
        cosines = scaled[held] @ means.T / np.linalg.norm(means, axis=1)  # the clip's own length changes no order
        expected = 100 * np.mean(cosines.argmax(1) == labels[held])
        assert accuracy_of(scores, name) == pytest.approx(expected, abs=1e-9)
    # The large coordinate says nothing and rules the raw cosine.
    assert (accuracy_of(scores, "ncm") or 0) + 20 < (accuracy_of(scores, "ncm-z") or 0)


def test_the_linear_probe_against_the_normal_equations() -> None:
    X, y, test = clouds(1)
    (score,) = (s for s in probe.judge({"mean": X[:, None]}, y, test, 4) if s.probe == "ridge")
    features, labels, held = X.numpy(), y.numpy(), test.numpy()
    Z = (features - features[~held].mean(0)) / features[~held].std(0)
    H = np.c_[Z, np.ones(len(Z))]
    Y = np.eye(4)[labels]
    n = int((~held).sum())

    def gcv(lam: float) -> float:
        hat = H[~held] @ np.linalg.solve(H[~held].T @ H[~held] + lam * np.eye(H.shape[1]), H[~held].T)
        left = np.eye(n) - hat
        return float(np.square(left @ Y[~held]).sum() / n / (np.trace(left) / n) ** 2)

    errors = [gcv(lam) for lam in LAMBDAS]
    assert score.ridge is not None
    assert gcv(score.ridge) == pytest.approx(min(errors), rel=1e-9)
    W = np.linalg.solve(H[~held].T @ H[~held] + score.ridge * np.eye(H.shape[1]), H[~held].T @ Y[~held])
    expected = 100 * np.mean((H[held] @ W).argmax(1) == labels[held])
    assert score.accuracy == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    scale=arrays(np.float64, 6, elements=st.floats(0.01, 100)),
    shift=arrays(np.float64, 6, elements=st.floats(-100, 100)),
)
def test_units_of_the_features_change_no_standardised_probe(scale: np.ndarray, shift: np.ndarray) -> None:
    X, y, test = clouds(2)
    X[:, 0] /= 1000
    before = probe.judge({"mean": X[:, None]}, y, test, 4)
    after = probe.judge({"mean": (X * torch.tensor(scale) + torch.tensor(shift))[:, None]}, y, test, 4)
    for name in ("ncm-z", "ridge"):
        assert accuracy_of(after, name) == accuracy_of(before, name)


def test_nothing_is_fitted_to_test_clips() -> None:
    X, y, test = clouds(3)
    before = probe.judge({"mean": X[:, None]}, y, test, 4)
    # One test clip more, far away: every other prediction and the ridge stay.
    far, labels, held = (
        torch.cat([X, torch.full((1, 6), 1e6)]),
        torch.cat([y, torch.tensor([0])]),
        torch.cat([test, torch.tensor([True])]),
    )
    after = probe.judge({"mean": far[:, None]}, labels, held, 4)
    tested = int(test.sum())
    for old, new in zip(before, after, strict=True):
        assert new.ridge == old.ridge
        right = (old.accuracy or 0) * tested / 100
        possible = [100 * (right + more) / (tested + 1) for more in (0, 1)]
        assert any(new.accuracy == pytest.approx(value) for value in possible)


def test_unequal_classes_have_a_constant_to_lean_on() -> None:
    """Features that say nothing: the best guess is the larger class, which takes a constant to express."""
    draws = np.random.default_rng(4)
    X = torch.tensor(draws.standard_normal((200, 3)))
    y = torch.tensor((np.arange(200) % 10 == 0).astype(np.int64))
    test = torch.tensor(np.arange(200) % 2 == 1) | (torch.arange(200) >= 180)
    assert accuracy_of(probe.judge({"mean": X[:, None]}, y, test, 2), "ridge") == pytest.approx(
        100 * float((y[test] == 0).double().mean())
    )


def test_a_feature_that_never_varies_is_no_feature() -> None:
    X, y, test = clouds(5)
    constant = torch.tensor([[3.0, -1.0, 0.0]]).expand(len(y), 3)
    noisy = constant * (1 + 1e-7 * torch.randn(len(y), 3, generator=torch.Generator().manual_seed(0)))
    for features in (constant, noisy):
        scores = probe.judge({"cls": features[:, None].float()}, y, test, 4)
        assert [score.accuracy for score in scores] == [None, None, None]
    joined = probe.judge({"cls": torch.cat([X, noisy], dim=1)[:, None].float()}, y, test, 4)
    alone = probe.judge({"cls": X[:, None].float()}, y, test, 4)
    for name in ("ncm-z", "ridge"):
        assert accuracy_of(joined, name) == accuracy_of(alone, name)


def test_order_of_scores_and_the_best_layer() -> None:
    X, y, test = clouds(6)
    pools = {"cls": torch.stack([X, X[:, [0, 0, 0, 0, 0, 0]]], 1), "mean": torch.stack([X, X], 1)}
    scores = probe.judge(pools, y, test, 4)
    assert [(s.pooling, s.layer, s.probe) for s in scores] == [
        (pooling, layer, name) for pooling in ("cls", "mean") for layer in (0, 1) for name in probe.PROBES
    ]
    top = probe.best(scores, "ridge")
    assert top is not None
    assert (top.pooling, top.layer) == ("cls", 0)  # the first among equals
    assert top.accuracy == max(s.accuracy for s in scores if s.probe == "ridge" and s.accuracy is not None)
    only = probe.best(scores, "ridge", "mean")
    assert only is not None
    assert only.pooling == "mean"
    assert probe.best(scores, "ridge", "mean+std") is None
    assert probe.best([Score("cls", 0, "ncm", None)], "ncm") is None


# ------------------------------------------------------------------------------------------------------------- features


def test_extract_pools_every_layer_in_one_pass(tiny_material: Material) -> None:
    clips = tiny_material.store
    rows = np.array([5, 0, 17, 46, 3, 1, 2, 9, 8, 7, 6, 30, 31, 32, 33, 34, 35, 36])
    network = backbones.load("eat-tiny", frames=tiny_material.benchmark.frames)
    told: list[int] = []
    pools = probe.extract(network, clips, rows, tell=told.append)
    assert network.passes.clips == len(rows)
    assert network.passes.block_runs == len(rows) * network.depth
    assert sum(told) == len(rows)
    assert set(pools) == {"cls", "mean", "mean+std"}
    assert pools["mean+std"].shape == (18, 4, 192)

    mel = network.front_end.normalise(clips.batch(rows))
    for pool in ("cls", "mean"):
        reader = backbones.load("eat-tiny", frames=tiny_material.benchmark.frames, pool=pool)
        with torch.no_grad():
            expected = torch.cat([reader.pooled(reader.tokens(mel))[:, None], reader.layer_features(mel)], dim=1)
        torch.testing.assert_close(pools[pool], expected, atol=1e-5, rtol=1e-5)
    tokens = network.run(network.tokens(mel), stop=2)[:, 1:].detach().numpy()
    np.testing.assert_allclose(pools["mean+std"][:, 2, 96:], tokens.std(1), atol=1e-5)
    np.testing.assert_allclose(pools["mean+std"][:, 2, :96], tokens.mean(1), atol=1e-5)


def test_a_network_without_class_token_has_no_such_pooling(tiny_benchmark: Path, tiny_home: Path) -> None:
    opened = probe.open_streams([str(tiny_benchmark)])
    network = backbones.load("whisper-tiny-random", frames=opened[0].benchmark.frames)
    (clips,) = probe.prepare(opened, {opened[0].benchmark.frames: network}, workers=1)
    pools = probe.extract(network, clips, np.arange(4))
    assert set(pools) == {"mean", "mean+std"}
    assert pools["mean"].shape == (4, 3, 64)


def test_logmel_statistics_leave_padding_out(tiny_material: Material) -> None:
    clips, front_end = tiny_material.store, tiny_material.backbone.front_end
    rows = np.arange(20)
    found = probe.logmel_statistics(tiny_material.backbone, clips, rows)["mean+std"]
    assert clips.frames[rows].min() < front_end.frames  # so that padding exists
    for number, raw in enumerate(clips.mels(rows)):
        mel = ((raw[: front_end.frames] - front_end.mean) / (2 * front_end.std)).numpy()
        np.testing.assert_allclose(found[number, 0], np.r_[mel.mean(0), mel.std(0)], atol=1e-4)


@pytest.mark.parametrize("name", ["eat-tiny", "whisper-tiny-random"])
def test_random_network_has_other_weights_and_the_same_positions(name: str) -> None:
    network = backbones.load(name, frames=48)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made, again = probe.random_like(network), probe.random_like(network)
    assert made.stand_in
    assert made.weights_hash == again.weights_hash != network.weights_hash
    for key, value in network.named_parameters():
        assert torch.equal(value, before[key])
        other = dict(made.named_parameters())[key]
        assert other.shape == value.shape
        assert other.requires_grad == value.requires_grad
        if "blocks" in key and key.endswith("weight"):
            assert not torch.equal(other, value)
        if key.endswith("fc1.weight"):  # variance 1 / inputs: signals keep their size from layer to layer
            assert float(other.std()) == pytest.approx(value.shape[1] ** -0.5, rel=0.05)
    assert torch.equal(made.state_dict()["pos_embed"], before["pos_embed"])


def test_features_that_are_not_finite_are_refused(tiny_material: Material) -> None:
    network = backbones.load("eat-tiny", frames=tiny_material.benchmark.frames)
    dict(network.named_parameters())["blocks.1.mlp.fc1.bias"].data[0] = float("inf")
    with pytest.raises(CheckpointError, match="not finite for clip 'bell/bell_3'"):
        probe.extract(network, tiny_material.store, tiny_material.store.rows(["bell/bell_3"]))


# -------------------------------------------------------------------------------------------------------------- streams


def probed_of(tiny_benchmark: Path, *, references: bool = True) -> probe.Probed:
    opened = probe.open_streams([str(tiny_benchmark)])
    networks = {opened[0].benchmark.frames: backbones.load("eat-tiny", frames=opened[0].benchmark.frames)}
    stores = probe.prepare(opened, networks, workers=1)
    (found,) = probe.probe_streams(opened, stores, networks, references=references)
    return found


def test_a_stream_with_its_references(tiny_benchmark: Path, tiny_material: Material) -> None:
    found = probed_of(tiny_benchmark)
    assert (found.stream, found.classes, found.train_clips, found.test_clips) == ("tiny", 6, 36, 12)
    assert found.split_hash == tiny_material.stream.hash
    assert found.index_hash == tiny_material.index_hash
    assert found.audio_hash == tiny_material.store.key
    assert {source: len(scores) for source, scores in found.scores.items()} == {
        "backbone": 36,  # 4 layers, 3 poolings, 3 probes
        "random": 36,
        "log-mel": 3,
    }
    chords = probe.best(found.scores["log-mel"], "ridge")
    assert chords is not None
    assert (chords.accuracy or 0) > 50  # chance is 17
    constant = [s for s in found.scores["backbone"] if s.accuracy is None]
    assert {(s.pooling, s.layer) for s in constant} == {("cls", 0)}


def test_streams_on_the_same_recordings_encode_them_once(
    tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.toml"
    text = tiny_benchmark.read_text().replace('name = "tiny"', 'name = "other"')
    other.write_text(text.replace("fraction = 0.25", "fraction = 0.5"), encoding="utf-8")
    opened = probe.open_streams([str(tiny_benchmark), str(other), str(tiny_benchmark)])
    assert [item.benchmark.name for item in opened] == ["tiny", "other"]
    network = backbones.load("eat-tiny", frames=opened[0].benchmark.frames)
    networks = {opened[0].benchmark.frames: network}
    told: list[str] = []
    first, second = probe.probe_streams(
        opened,
        probe.prepare(opened, networks, workers=1),
        networks,
        references=False,
        tell=lambda what, done, total: told.append(what),
    )
    assert network.passes.clips == 48
    assert told[-1] == "other: fitting probes"
    assert (first.test_clips, second.test_clips) == (12, 24)
    assert first.audio_hash == second.audio_hash
    assert first.scores != second.scores
    alone = probed_of(other, references=False)
    assert alone.scores["backbone"] == second.scores["backbone"]


def test_every_missing_corpus_is_named(tiny_benchmark: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        text = tiny_benchmark.read_text().replace('name = "tiny"', f'name = "{name}"')
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(text.replace("/sounds", f"/{name}"), encoding="utf-8")
    with pytest.raises(CorpusError) as refused:
        probe.open_streams([str(tiny_benchmark), *map(str, paths)])
    assert "one.toml" in str(refused.value)
    assert "two.toml" in str(refused.value)
    with pytest.raises(UnknownNameError, match="unknown benchmark"):
        probe.open_streams(["esc-50"])
    with pytest.raises(UnknownNameError, match="unknown protocol"):
        probe.open_streams([str(tiny_benchmark)], protocol="grouped")


def test_example_streams_lie_in_the_clone() -> None:
    paths = [Path(path) for path in probe.example_streams()]
    assert [path.parent for path in paths] == [ROOT / "examples"] * 4


def test_esc10_is_tested_on_fold_5(shared: Callable[..., Path]) -> None:
    shared("data", "ESC-50")
    (item,) = probe.open_streams([str(ROOT / "examples" / "esc10.toml")])
    stream = item.stream
    assert (stream.num_classes, len(stream.clip_ids), int(stream.is_test.sum())) == (10, 400, 80)
    tested = {clip.rpartition("/")[2] for clip, test in zip(stream.clip_ids, stream.is_test, strict=True) if test}
    assert all(name.startswith("5-") for name in tested)
    table = pd.read_csv(shared("data", "ESC-50", "meta", "esc50.csv"))
    table["test"] = table["filename"].str.removesuffix(".wav").isin(tested)
    ours = table[table["esc10"]]
    assert (ours.groupby("src_file")["test"].nunique() == 1).all()  # no recording on both sides


# ----------------------------------------------------------------------------------------------------- tables and files


def shown(table: object, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def made(stream: str = "tiny") -> probe.Probed:
    """Return scores of a network of two layers whose best layers are known."""
    values = {"cls": (None, 40.0), "mean": (100.0, 50.0), "mean+std": (30.0, 30.0)}
    network = tuple(
        Score(pooling, layer, name, value)
        for pooling, per_layer in values.items()
        for layer, value in enumerate(per_layer)
        for name in probe.PROBES
    )
    mel = tuple(Score("mean+std", 0, name, 12.5) for name in probe.PROBES)
    return probe.Probed(
        stream, "", "own", 6, 36, 12, 48, "split", "index", "audio", {"backbone": network, "log-mel": mel}
    )


def test_the_table_marks_the_best_layer_of_every_column_in_text() -> None:
    text = shown(probe.layer_table(made()))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["0"] == ["-"] * 3 + ["100.0*"] * 3 + ["30.0*"] * 3
    assert rows["1"] == ["40.0*"] * 3 + ["50.0"] * 3 + ["30.0"] * 3
    assert rows["logmel"] == ["12.5"] * 3
    assert "random" not in rows
    assert "6 classes, 36 training and 12 test clips" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "ncm-z" in text  # no heading was broken


def test_the_summary_names_layer_and_pooling() -> None:
    lines = shown(probe.summary_table([made(), made("second")], "mine")).splitlines()
    row = next(line for line in lines if line.startswith("second"))
    assert row.split() == ["second", "ncm", "100.0", "layer", "0,", "mean", "12.5"]


def test_files_hold_every_number_with_its_origin(tmp_path: Path, tiny_benchmark: Path) -> None:
    found = probed_of(tiny_benchmark)
    network = backbones.load("eat-tiny", frames=48)
    origin = probe.provenance(network, None, references=True)
    for suffix in ("json", "parquet"):
        probe.write(tmp_path / f"a.{suffix}", [found], origin)
        probe.write(tmp_path / f"b.{suffix}", [found], origin)
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["backbone"]["weights_hash"] == network.weights_hash
    assert told["random_weights_hash"] == probe.random_like(network).weights_hash
    assert told["backbone"]["front_end"]["kind"] == "kaldi"
    assert {"audiocl_version", "library_versions", "device", "python_version"} <= set(told)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.to_pylist() == told["rows"]
    assert json.loads(table.schema.metadata[b"audiocl"]) == {k: v for k, v in told.items() if k != "rows"}
    frame = table.to_pandas()
    assert len(frame) == 75
    assert set(frame["index_hash"]) == {found.index_hash}
    marked = frame[frame["best_layer"]].set_index(["source", "pooling", "probe"])["accuracy"]
    highest = frame.groupby(["source", "pooling", "probe"])["accuracy"].max()
    pd.testing.assert_series_equal(marked.sort_index(), highest.sort_index())


# -------------------------------------------------------------------------------------------------------------- command


def test_the_command_prints_tables_and_writes_files(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    options = ("--backbone", "eat-tiny", "--stream", tiny_benchmark, "--quiet", "--device", "cpu")
    outcome = call("probe", *options, "--out", tmp_path / "probe.json")
    assert outcome.code == 0, outcome.err
    assert "tiny · own split" in outcome.out
    assert "best" in outcome.out
    assert outcome.err == ""
    rows = json.loads((tmp_path / "probe.json").read_text())["rows"]
    assert f"{len(rows)} numbers of 1 stream." in outcome.out
    # What the method of the same name scores after its last session, with the network's own pooling and last layer.
    assert call("run", "-m", "ncm", "-b", tiny_benchmark, *options[:2], "-q", "--results", tmp_path / "r").code == 0
    (run,) = ResultsDir(tmp_path / "r").runs().to_dict("records")
    place = {"source": "backbone", "pooling": "cls", "layer": 3, "probe": "ncm"}
    (mine,) = [row for row in rows if place.items() <= row.items()]
    assert mine["accuracy"] == pytest.approx(run["micro_accuracy"])
    assert mine["weights_hash"] == run["weights_hash"]
    assert mine["index_hash"] == run["index_hash"]
    assert mine["split_hash"] == run["split_hash"]


def test_several_streams_end_in_a_summary(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.toml"
    second.write_text(tiny_benchmark.read_text().replace('name = "tiny"', 'name = "second"'), encoding="utf-8")
    streams = ("--stream", f"{tiny_benchmark},{second}")
    outcome = call("probe", "--backbone", "whisper-tiny-random", *streams, "--no-references", "-q")
    assert outcome.code == 0, outcome.err
    assert "Best layer and pooling" in outcome.out
    assert "logmel" not in outcome.out.partition("Accuracy (%)")[0]
    assert outcome.out.index("tiny ·") < outcome.out.index("second ·")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--backbone", "eat-tiny", "--out", "probe.csv"), "end it in .json or .parquet"),
        (("--backbone", "eat-tinny", "--stream", "TINY"), "did you mean eat-tiny"),
        (("--backbone", "eat-tiny", "--stream", "TINY", "--device", "tpu"), "is no device"),
        (("--backbone", "eat-tiny", "--stream", "nothing.toml"), "no benchmark file nothing.toml"),
        (("--backbone", "eat-tiny", "--stream", "TINY", "--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(call: Call, tiny_benchmark: Path, arguments: tuple[str, ...], told: str) -> None:
    given = [str(tiny_benchmark) if argument == "TINY" else argument for argument in arguments]
    assert_refused(call("probe", *given, "--quiet"), told)


def test_an_installation_without_examples_asks_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "EXAMPLES", ("not_there",))
    with pytest.raises(ConfigError, match="name your streams with --stream"):
        probe.example_streams()
    assert issubclass(ConfigError, AudioclError)


@pytest.mark.slow
def test_whisper_hears_what_it_is_known_to_hear(shared: Callable[..., Path]) -> None:
    """The best layer for environmental sounds is a middle one, far above chance (2 %) and the log-mel (about 24 %)."""
    shared("data", "ESC-50")
    opened = probe.open_streams([str(ROOT / "examples" / "esc50_fold4.toml")])
    networks = {512: backbones.load(str(shared("weights", "whisper-tiny.en-encoder")), frames=512)}
    (found,) = probe.probe_streams(opened, probe.prepare(opened, networks), networks, references=False)
    top = probe.best(found.scores["backbone"], "ncm-z", "mean")
    assert top is not None
    assert 52 <= (top.accuracy or 0) <= 60
    assert top.layer in (1, 2, 3)
