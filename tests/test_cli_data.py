"""`audiocl data`: arguments, exit codes, tables that fit, and messages a person can act on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from rich.console import Console
from test_acquire import (
    FOLDER,
    GETTABLE,
    NAMES,
    TREES,
    Server,
    frozen,
    offer,
    official_archive,
    plant,
    tree_of,
    wav,
    zipped,
)
from typer.testing import CliRunner

from audiocl_bench.acquire import catalogue, corpora
from audiocl_bench.cli import BAD_INPUT, _Commands
from audiocl_bench.cli import data as cli

__all__ = ["frozen"]  # a fixture, used by name


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs `audiocl data ARGUMENTS` under the error handling of the real command."""
    monkeypatch.setenv("COLUMNS", "80")
    root = typer.Typer(cls=_Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
    root.add_typer(cli.app, name="data")

    def run(*arguments: str | Path) -> Outcome:
        result = CliRunner().invoke(root, ["data", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def offered(frozen: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in GETTABLE:
        offer(server, monkeypatch, name, official_archive(name))
    return server


def fits(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("command", [[], ["status"], ["get"], ["add"], ["verify"]])
def test_help_teaches_within_80_columns(command: list[str], call: Call) -> None:
    told = call(*command, "--help")
    assert told.code == 0
    assert fits(told.out)
    assert "--data" in told.out


def test_status_of_an_empty_machine_says_how_to_get_everything(call: Call, tmp_path: Path) -> None:
    told = call("status")
    assert told.code == 0
    assert fits(told.out)
    for name in GETTABLE:
        assert f"audiocl data get {name}" in told.out
    assert "audiocl data add timit PATH" in told.out
    for name in NAMES:
        assert corpora.split_hash(name) in told.out
    assert "105,829" in told.out


def test_status_of_all_states_fits(frozen: None, call: Call, tmp_path: Path) -> None:
    plant(tmp_path / "ESC-50", TREES["esc50"])
    plant(tmp_path / "UrbanSound8K", TREES["us8k"])
    (tmp_path / "UrbanSound8K/audio/fold5/100032-3-0-0.wav").unlink()
    plant(tmp_path / FOLDER["sc2"], {**TREES["sc2"], "maybe/x_nohash_0.wav": wav(1), "maybe/y_nohash_0.wav": wav(1)})
    told = call("status", "--data", tmp_path)
    assert fits(told.out)
    rows = {line.split()[0]: line for line in told.out.splitlines() if line[:1].isalnum()}
    table = {line.split()[0]: line.split() for line in told.out.splitlines()[:9] if line.split()[:1]}
    assert table["esc50"][1] == "yes"
    assert table["us8k"][1:5] == ["partial", "1", "of", "2"]
    assert table["sc2"][1] == "different"
    assert table["timit"][1] == "no"
    assert set(NAMES) <= rows.keys()
    joined = "".join(line.strip() for line in told.out.splitlines())
    assert str(tmp_path / "ESC-50") in joined
    assert "extra: maybe/x_nohash_0 (and 1 more)" in told.out


def test_get_several_and_go_on_after_a_failure(offered: Server, call: Call, tmp_path: Path) -> None:
    del offered.bodies["ESC-50-33c8ce9eb2cf.zip"]
    told = call("get", "all", "--data", tmp_path)
    assert told.code == BAD_INPUT
    assert [line for line in told.err.splitlines() if line.startswith("audiocl:") and "ESC-50" in line]
    assert not (tmp_path / "ESC-50").exists()
    for name in ("us8k", "sc2", "vocalset"):
        assert f"{name}: downloaded, " in told.out
        assert tree_of(tmp_path / FOLDER[name]) == TREES[name]
        assert f"downloading {name} (" in told.err
        assert f"unpacking {name}" in told.err
    again = call("get", "us8k", "--data", tmp_path, "--quiet")
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("us8k: already there")


def test_get_of_what_cannot_be_got(call: Call, frozen: None) -> None:
    timit = call("get", "timit")
    assert timit.code == BAD_INPUT
    assert "`audiocl data add timit PATH`" in timit.err
    unknown = call("get", "esc51")
    assert unknown.code == BAD_INPUT
    assert "did you mean esc50" in unknown.err
    assert "esc50, us8k" in call("get", "vocalset", "--mirror").err


def test_add_folder_and_archive(frozen: None, call: Call, tmp_path: Path) -> None:
    mine, data = plant(tmp_path / "LDC93S1" / "timit", TREES["timit"]), tmp_path / "data"
    told = call("add", "timit", tmp_path / "LDC93S1", "--data", data)
    assert told.code == 0
    assert told.out.startswith("timit: linked, 2 clips complete in ")
    assert (data / "TIMIT").resolve() in (mine.resolve(), mine.parent.resolve())
    assert "copied" in call("add", "timit", tmp_path / "LDC93S1", "--data", data, "--copy").out
    (tmp_path / "esc.zip").write_bytes(zipped(TREES["esc50"], "x/"))
    assert "unpacked" in call("add", "esc50", tmp_path / "esc.zip", "--data", data).out
    assert call("add", "us8k", tmp_path / "nowhere").code == BAD_INPUT


def test_a_linked_corpus_shows_where_it_really_is(frozen: None, call: Call, tmp_path: Path) -> None:
    call("add", "timit", plant(tmp_path / "t", TREES["timit"]), "--data", tmp_path / "d")
    out = call("status", "--data", tmp_path / "d").out
    assert "->" in out
    assert fits(out)


def test_verify_exits_2_and_lists_every_file(frozen: None, call: Call, tmp_path: Path) -> None:
    plant(tmp_path / "ESC-50", TREES["esc50"])
    plant(tmp_path / "TIMIT", TREES["timit"])
    good = call("verify", "--data", tmp_path, "--decode")
    assert good.code == 0
    assert "esc50: names, labels and audio of 2 clips are right" in good.out
    assert "decoding" in good.err

    (tmp_path / "ESC-50/audio/1-100032-A-0.wav").write_bytes(b"")
    (tmp_path / "ESC-50/audio/4-2-B-14.wav").write_bytes(b"no audio at all")
    bad = call("verify", "--data", tmp_path, "--decode", "--quiet")
    assert bad.code == BAD_INPUT
    assert "timit: names, labels and audio of 2 clips are right" in bad.out
    assert "  audio/1-100032-A-0.wav: empty file" in bad.err.splitlines()
    assert "  audio/4-2-B-14.wav: cannot be decoded" in bad.err
    assert call("verify", "esc50", "--data", tmp_path).err.count("empty file") == 1
    assert call("verify", "us8k", "--data", tmp_path).code == BAD_INPUT


def test_bars_show_amounts_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli._told("downloading", 3_200_000, 24_000_000, 1.1e6) == "3.2 MB of 24.0 MB, 1.1 MB/s"
    assert cli._told("downloading", 3_200_000, None, None) == "3.2 MB"
    assert cli._told("decoding", 3, 2_000, 12.5) == "3 of 2,000 clips, 12 clips/s"
    out = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=out, force_terminal=True, force_interactive=True, width=100)
    )
    with cli.bars("esc50") as progress:
        progress("downloading", 1, 24_000_000)
        progress("unpacking", 0, None)
        progress("decoding", 3, 10)
    assert "decoding esc50" in out.getvalue()
    assert "3 of 10 clips" in out.getvalue()


def test_every_corpus_named_in_the_help_exists(call: Call) -> None:
    told = " ".join(call("get", "--help").out.split())
    assert all(name in told for name in catalogue.downloadable())
