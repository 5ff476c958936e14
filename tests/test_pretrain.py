"""Pre-training as a whole: stop and continue, both objectives learned, the exported backbone, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from pretraining import MemoryPack, tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

from audiocl_bench import backbones, files, runner
from audiocl_bench.backbones import eat
from audiocl_bench.cli import app
from audiocl_bench.errors import CheckpointError, ConfigError, ResultsError
from audiocl_bench.pretrain import curve, objectives
from audiocl_bench.pretrain.export import config, export, published
from audiocl_bench.pretrain.recipe import ModelConfig, Recipe
from audiocl_bench.pretrain.trainer import Outcome, Silent, Trainer, read_checkpoint

HERE = Path(__file__).resolve().parent
BOTH = {"hide": 0.4, "hide_until": 0.5, "padding_seen": 0.5, "eat_share": 0.5, "distil_share": 0.75}


def both() -> Recipe:
    """12 steps with everything that draws: hiding, padding seen or not, both objectives, augmentation."""
    return tiny(objective=BOTH, log_every=5)


def same(one: Any, other: Any) -> bool:
    """Tell whether two checkpoints' parts are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def assert_same_run(one: Path, other: Path) -> None:
    left, right = (read_checkpoint(folder / "checkpoint.pt") for folder in (one, other))
    for part in ("settings", "pack", "step", "learner", "teacher", "optimiser", "sums"):
        assert same(left[part], right[part]), part
    told = [name for name in curve.COLUMNS if name not in ("clips_per_second", "seconds")]
    pd.testing.assert_frame_equal(curve.read(one / "curve.csv")[told], curve.read(other / "curve.csv")[told])


class Signals(Silent):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def stepped(self, step: int, clips_per_second: float, parts: dict[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert Trainer(both(), MemoryPack(), folder).run().end == "done"
    return folder


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, "terminate"), (signal.SIGINT, "interrupt")])
def test_a_run_stopped_by_a_signal_ends_with_the_same_bytes(
    tmp_path: Path, unbroken: Path, number: int, end: str
) -> None:
    before = signal.getsignal(number)
    first = Trainer(both(), MemoryPack(), tmp_path, watcher=Signals(7, number)).run()
    assert (first.step, first.end) == (7, end)
    assert signal.getsignal(number) == before
    second = Trainer(both(), MemoryPack(), tmp_path, watcher=Signals(11, number)).run()
    assert (second.step, second.end) == (11, end)
    assert Trainer(both(), MemoryPack(), tmp_path).run().end == "done"
    assert_same_run(unbroken, tmp_path)
    names = [export(both(), MemoryPack(), run, tmp_path / run.name).sha256 for run in (unbroken, tmp_path)]
    assert names[0] == names[1]


def test_a_run_cut_into_pieces_by_time_ends_with_the_same_bytes(tmp_path: Path, unbroken: Path) -> None:
    for piece in (1, 2, 3):
        outcome = Trainer(both(), MemoryPack(), tmp_path).run(minutes=0)
        assert (outcome.step, outcome.end) == (piece, "time")
    assert Trainer(both(), MemoryPack(), tmp_path).run(minutes=60).end == "done"
    assert_same_run(unbroken, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads({threads})  # as in the test's own process
from dataclasses import replace
from pretraining import MemoryPack
from test_pretrain import Signals, both
from audiocl_bench.pretrain.trainer import Trainer
recipe = both()
recipe = replace(recipe, run=replace(recipe.run, checkpoint_minutes=0.0))
Trainer(recipe, MemoryPack(), Path({folder!r}), watcher=Signals(8, signal.SIGKILL)).run()
"""


@pytest.mark.slow
def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path: Path, unbroken: Path) -> None:
    code = KILLED.format(tests=str(HERE), folder=str(tmp_path), threads=torch.get_num_threads())
    ended = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 7
    with (tmp_path / "curve.csv").open("a") as half_a_row:
        half_a_row.write("10,0,0.00")
    assert Trainer(both(), MemoryPack(), tmp_path).run().end == "done"
    assert_same_run(unbroken, tmp_path)


def test_rows_after_the_last_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    for step in (5, 10, 15):
        curve.append(path, {"step": step, "loss": 1.0 / step})
    with path.open("a") as handle:
        handle.write("20,0")
    curve.cut(path, 10)
    assert curve.read(path)["step"].tolist() == [5, 10]


def test_fresh_starts_anew(tmp_path: Path, unbroken: Path) -> None:
    Trainer(both(), MemoryPack(), tmp_path, watcher=Signals(3, signal.SIGTERM)).run()
    outcome = Trainer(both(), MemoryPack(), tmp_path).run(fresh=True)
    assert outcome.clips > 0
    assert len(curve.read(tmp_path / "curve.csv")) == 3
    assert_same_run(unbroken, tmp_path)


def test_a_finished_run_is_left_as_it_is(unbroken: Path) -> None:
    before = (unbroken / "checkpoint.pt").read_bytes()
    assert Trainer(both(), MemoryPack(), unbroken).run() == Outcome(12, 12, "done", 0, 0.0)
    assert (unbroken / "checkpoint.pt").read_bytes() == before


def test_other_settings_clips_and_broken_files_are_refused(tmp_path: Path, unbroken: Path) -> None:
    stored = (unbroken / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(stored)
    faster = replace(both(), optimiser=replace(both().optimiser, lr=0.5))
    with pytest.raises(CheckpointError, match=r"lr = 0\.003 in \[optimiser\], but 0\.5.*--fresh"):
        Trainer(faster, MemoryPack(), tmp_path).run()
    with pytest.raises(CheckpointError, match="other clips"):
        Trainer(both(), MemoryPack((98, 60, 98, 40)), tmp_path).run()
    often = replace(both(), run=replace(both().run, log_every=1, checkpoint_minutes=1.0, name="other"))
    assert Trainer(often, MemoryPack(), tmp_path).run().end == "done"
    (tmp_path / "checkpoint.pt").write_bytes(stored[: len(stored) // 2])
    with pytest.raises(CheckpointError, match="broken checkpoint"):
        Trainer(both(), MemoryPack(), tmp_path).run()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ResultsError, match="another process"):
        Trainer(both(), MemoryPack(), tmp_path).run()


def test_a_loss_that_is_not_finite_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(both(), MemoryPack(), tmp_path, watcher=Signals(3, signal.SIGTERM)).run()

    def broken(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, parts = objectives.distil_loss(*args)
        return loss * float("inf"), parts

    trainer = Trainer(both(), MemoryPack(), tmp_path)
    monkeypatch.setattr(trainer, "_distil_loss", broken)
    with pytest.raises(ConfigError, match=r"no longer finite at step 5.*lower lr"):
        trainer.run()
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3


def test_the_teacher_of_a_run_is_the_average_of_its_students(tmp_path: Path) -> None:
    asked = tiny(objective={"ema_decay": 0.8, "ema_end_decay": 0.8, "eat_share": 1.0, "distil_share": 0.0}, steps=4)
    trainer = Trainer(asked, MemoryPack(), tmp_path)
    name = "blocks.1.mlp.fc1.weight"
    average = trainer.learner.student.get_parameter(name).detach().clone()

    class Follows(Silent):
        def stepped(self, step: int, clips_per_second: float, parts: dict[str, float]) -> None:
            average.mul_(0.8).add_(0.2 * trainer.learner.student.get_parameter(name).detach())

    trainer.watcher = Follows()
    trainer.run()
    stored = read_checkpoint(tmp_path / "checkpoint.pt")["teacher"][name]
    torch.testing.assert_close(stored, average, atol=1e-6, rtol=1e-5)
    assert not torch.equal(stored, trainer.learner.student.get_parameter(name))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_objectives_are_learned_on_a_few_clips(tmp_path: Path, precision: str) -> None:
    quiet = {"gain_db": 0.0, "crop": 0.0, "time_mask": 0.0, "freq_mask": 0.0, "distil_share": 1.0, "eat_share": 1.0}
    asked = tiny(objective=quiet, model={"dim": 32}, steps=150, log_every=10, precision=precision, tokens=800)
    Trainer(asked, MemoryPack((98, 98, 60, 60)), tmp_path).run()
    table = curve.read(tmp_path / "curve.csv")
    first, last = table.iloc[0], table.iloc[-1]
    at_most = {"distil_frame": 0.6, "distil_cosine": 0.3, "distil_class": 0.6, "eat_frame": 0.8, "eat_class": 0.6}
    for name, share in at_most.items():
        assert last[name] < share * first[name], name
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_threads_share_a_steps_clips_and_change_nothing_but_rounding(tmp_path: Path) -> None:
    asked = replace(both(), run=replace(both().run, tokens=300, eat_tokens=300))
    with runner.threads(1):
        Trainer(asked, MemoryPack(), tmp_path / "one").run()
    with runner.threads(3):
        Trainer(asked, MemoryPack(), tmp_path / "three").run()
        Trainer(asked, MemoryPack(), tmp_path / "pieces", watcher=Signals(5, signal.SIGTERM)).run()
        Trainer(asked, MemoryPack(), tmp_path / "pieces").run()
        assert torch.get_num_threads() == 3
    assert_same_run(tmp_path / "three", tmp_path / "pieces")
    one, three = (curve.read(tmp_path / name / "curve.csv") for name in ("one", "three"))
    shown = ["loss", *curve.LOSSES, "gradient"]
    np.testing.assert_allclose(one[shown], three[shown], rtol=1e-4)
    assert not same(*(read_checkpoint(tmp_path / name / "checkpoint.pt")["learner"] for name in ("one", "three")))


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path a GPU takes, lists of equal length included, traced as torch.compile traces it."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kw: compiled(function, backend="eager", **kw))
    asked = tiny(objective=BOTH, steps=4)
    Trainer(asked, MemoryPack(), tmp_path / "plain").run()
    traced = replace(asked, run=replace(asked.run, compile="yes"))
    Trainer(traced, MemoryPack(), tmp_path / "traced").run()
    one, two = (curve.read(tmp_path / name / "curve.csv") for name in ("plain", "traced"))
    np.testing.assert_allclose(one[["loss", "gradient"]], two[["loss", "gradient"]], rtol=1e-3)


# --------------------------------------------------------------------------------------------------------------- export


def test_exported_weights_give_the_students_features(tmp_path: Path) -> None:
    trainer = Trainer(both(), MemoryPack(), tmp_path)
    trainer.run()
    done = export(both(), MemoryPack(), tmp_path, tmp_path / "export")
    weights = load_file(done.folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert done.sha256 == files.sha256_file(done.folder / "model.safetensors")
    assert done.size == (done.folder / "model.safetensors").stat().st_size
    assert done.parameters == sum(parameter.numel() for parameter in trainer.learner.student.parameters())

    loaded = backbones.load(str(done.folder), frames=112)
    assert (loaded.dim, loaded.depth, loaded.num_heads, loaded.stand_in) == (16, 2, 2, False)
    student = trainer.learner.student
    for frames in (112, 48, 1104):  # the last one reaches beyond the stored positions
        x = torch.randn(2, frames, 128, generator=torch.Generator().manual_seed(frames))
        with torch.no_grad():
            ours, theirs = student.run(student.tokens(x)), loaded.run(loaded.tokens(x))
        torch.testing.assert_close(theirs, ours, atol=1e-2, rtol=1e-2)
        assert not torch.equal(theirs, ours)  # float16 rounds: a comparison with itself would pass anything


def test_names_are_those_of_the_published_files(shared: Any) -> None:
    table = shared("oracles", "eat", "keys_base_hf_pretrain.tsv").read_text().splitlines()
    wanted = {name: json.loads(shape) for name, shape in (line.split("\t") for line in table if "\t" in line)}
    wanted["model.fixed_positional_encoder.positions"] = [1, 64 * 8, 768]
    model = ModelConfig(dim=768, depth=12, heads=12)
    with torch.device("meta"):
        options = eat.Options("x", "x")
        front_end = backbones.load("eat-tiny").front_end
        network = eat.EAT(model.network, options, front_end, time_patches=64)
    # Zeros without storage of their own: only names and shapes matter.
    zeros = {name: torch.zeros(1).expand(parameter.shape) for name, parameter in network.named_parameters()}
    assert {name: list(value.shape) for name, value in published(zeros, model).items()} == wanted
    theirs = json.loads(shared("oracles", "eat", "tiny_config_hf_pretrain.json").read_text())
    ours = config(ModelConfig(dim=theirs["embed_dim"], depth=theirs["depth"], heads=theirs["num_heads"]))
    differing = {key for key in theirs if key in ours and ours[key] != theirs[key]}
    assert differing <= {"max_length", "torch_dtype", "img_size", "num_classes"}


def test_the_card_says_what_it_is_made_of(tmp_path: Path) -> None:
    Trainer(both(), MemoryPack(), tmp_path, watcher=Signals(5, signal.SIGTERM)).run()
    done = export(both(), MemoryPack(), tmp_path, tmp_path / "export")
    card = (done.folder / "README.md").read_text()
    assert "**Unfinished: 5 of 12 steps.**" in card
    assert "| made-a | 4 | 0.00 |" in card
    assert "| none | CC0-1.0 | " in card
    assert "Apache License 2.0" in card
    assert "layers 0, 1, 4 of made" in card
    assert done.sha256 in card
    assert "Not measured" in card
    probe = tmp_path / "probe.csv"
    probe.write_text("stream,ncm\nesc50-fold4,41.5\n")
    export(both(), MemoryPack(), tmp_path, tmp_path / "export", probe=probe)
    card = (done.folder / "README.md").read_text()
    assert "| esc50-fold4 | 41.5 |" in card
    assert "Not measured" not in card
    with pytest.raises(ResultsError, match=r"none\.csv cannot be read"):
        export(both(), MemoryPack(), tmp_path, tmp_path / "export", probe=tmp_path / "none.csv")


def test_export_needs_a_checkpoint_of_this_network_that_float16_holds(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist: train first"):
        export(both(), MemoryPack(), tmp_path, tmp_path / "export")
    with pytest.raises(CheckpointError, match="another size"):
        export(tiny(model={"dim": 32}), MemoryPack(), unbroken, tmp_path / "export")
    student = {"cls_token": torch.full((1, 1, 16), 1e6)}
    with pytest.raises(CheckpointError, match=r"cls_token.*float16"):
        published(student, ModelConfig(dim=16, depth=2, heads=2))


# -------------------------------------------------------------------------------------------------------------- command

RECIPE = """
[model]
dim = 16
depth = 2
heads = 2

[objective]
eat_share = 0.5
clones = 2
student_layers = [1, 2, 2]
teacher_layers = [0, 1, 4]
decoder_layers = 1
decoder_dim = 16
decoder_groups = 4

[run]
name = "made"
steps = 4
buckets = [112, 160]
tokens = 160
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CliRunner, list[str]]:
    """`audiocl pretrain` on clips in memory instead of fetched ones."""
    (tmp_path / "r.toml").write_text(RECIPE)
    fake = types.ModuleType("audiocl_bench.pretrain.pack")
    fake.AudioConfig = types.SimpleNamespace(from_table=lambda table: table)  # type: ignore[attr-defined]
    fake.build = lambda audio, folder, *, workers, progress: MemoryPack()  # type: ignore[attr-defined]
    fake.Pack = types.SimpleNamespace(open=lambda folder: MemoryPack())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr("audiocl_bench.pretrain.pack", fake, raising=False)
    return CliRunner(), ["pretrain", "--config", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]


def test_the_command_trains_in_pieces_and_exports(tmp_path: Path, command: tuple[CliRunner, list[str]]) -> None:
    cli, words = command
    first = cli.invoke(app, [*words, "--minutes", "0", "--device", "cpu"])
    assert first.exit_code == 0, first.output
    assert "step 1 of 4 is kept" in first.output
    assert not (tmp_path / "run" / "export").exists()
    second = cli.invoke(app, words)
    assert second.exit_code == 0, second.output
    assert "continuing after step 1 of 4" in second.output
    assert files.sha256_file(tmp_path / "run" / "export" / "model.safetensors") in second.output
    assert backbones.load(str(tmp_path / "run" / "export")).dim == 16
    third = cli.invoke(app, [*words, "--export-only"])
    assert third.exit_code == 0, third.output


def test_a_run_lies_under_its_recipes_name(
    tmp_path: Path, command: tuple[CliRunner, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli, words = command
    monkeypatch.chdir(tmp_path)
    told = cli.invoke(app, [*words[: words.index("--out")], "--minutes", "0", "--device", "cpu"])
    assert told.exit_code == 0, told.output
    assert "step 1 of 4 is kept in runs/r:" in told.output
    assert read_checkpoint(tmp_path / "runs" / "r" / "checkpoint.pt")["step"] == 1


def test_the_command_refuses_in_one_sentence(tmp_path: Path, command: tuple[CliRunner, list[str]]) -> None:
    cli, words = command
    (tmp_path / "r.toml").write_text("[model]\ndmi = 3\n")
    told = cli.invoke(app, words)
    assert told.exit_code == 2
    assert "did you mean dim" in told.output
    assert "Traceback" not in told.output
    (tmp_path / "r.toml").write_text(RECIPE)
    assert cli.invoke(app, [*words, "--export-only"]).exit_code == 2
    assert cli.invoke(app, [*words, "--device", "tpu"]).exit_code == 2
