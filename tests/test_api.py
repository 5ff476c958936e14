"""audiocl from Python: what is imported when, the catalogues, runs, stored results, and the sentences on bad input."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from audiocl_methods.ncm import NCM
from test_cli import QUICK, Call, call

import audiocl_bench as audiocl
from audiocl_bench import backbones, benchmarks, metrics, registry, request, results
from audiocl_bench.backbones import Row
from audiocl_bench.errors import AudioclError, ConfigError, ResultsError, UnknownNameError
from audiocl_bench.files import sha256_file
from audiocl_bench.method import Method
from audiocl_bench.results import ResultsDir

__all__ = ["call"]  # a fixture, used by name

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", dict(registry._added))


def python(code: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own in the clone."""
    return subprocess.run(
        [sys.executable, *map(str, arguments), *([] if arguments else ["-c", code])],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=540,
        stdin=subprocess.DEVNULL,
    )


# -------------------------------------------------------------------------------------------------------------- imports


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, audiocl_bench as audiocl\n"
        "from audiocl_bench.errors import ConfigError\n"
        "assert {'run', 'load_results', 'table', 'plot', 'methods', 'benchmarks', 'backbones'} <= set(dir(audiocl))\n"
        "assert not hasattr(audiocl, 'nothing')\n"
        "print({'torch', 'pandas', 'numpy', 'pyarrow', 'matplotlib', 'audiocl_bench.api'} & set(sys.modules))\n"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("set()\n", "")


ORDERS = {
    "package first": "import audiocl_bench as audiocl\nmodule = audiocl.benchmarks\nloaded = audiocl.backbones",
    "submodule first": "import audiocl_bench.benchmarks, audiocl_bench.backbones\nimport audiocl_bench as audiocl\n"
    "module, loaded = audiocl_bench.benchmarks, audiocl_bench.backbones",
    "names from the package": "from audiocl_bench import benchmarks as module, backbones as loaded\n"
    "import audiocl_bench as audiocl",
    "by others": "from audiocl_bench.api import run\nimport audiocl_bench as audiocl\n"
    "from audiocl_bench import benchmarks as module\nimport audiocl_bench.backbones as loaded",
    "from the module": "from audiocl_bench.benchmarks import get\nfrom audiocl_bench.backbones import load\n"
    "import audiocl_bench as audiocl\nimport sys\nmodule = sys.modules['audiocl_bench.benchmarks']\n"
    "loaded = audiocl.backbones",
}


@pytest.mark.parametrize("order", ORDERS)
def test_submodules_are_mappings_in_every_order_of_imports(order: str) -> None:
    code = (
        f"{ORDERS[order]}\n"
        "assert audiocl.benchmarks is module and audiocl.backbones is loaded\n"
        "assert audiocl.benchmarks['esc50'].name == module.get('esc50').name == module['esc50'].name == 'esc50'\n"
        "assert audiocl.backbones['eat-tiny'].stand_in and loaded.names()[0] == 'eat-base'\n"
        "from audiocl_bench.benchmarks import Benchmark\n"
        "assert isinstance(audiocl.benchmarks['us8k'], Benchmark)\n"
        "print('done')\n"
    )
    done = python(code)
    assert done.stdout == "done\n", done.stderr


# ----------------------------------------------------------------------------------------------------------- catalogues


def test_catalogues_hold_what_can_be_run() -> None:
    assert tuple(audiocl.benchmarks) == (*benchmarks.names(), *benchmarks.mini_names())
    assert tuple(audiocl.methods) == registry.names()
    assert tuple(audiocl.backbones) == backbones.names()
    for catalogue in (audiocl.benchmarks, audiocl.methods, audiocl.backbones):
        assert len(catalogue) == len(list(catalogue))
        assert all(name in catalogue for name in catalogue)
        assert "nothing" not in catalogue
        assert 3 not in catalogue
        assert set(catalogue.keys()) == set(catalogue)
        assert str(len(catalogue)) in repr(catalogue)
    assert audiocl.methods["pace"].name == "pace"
    assert {name: each.name for name, each in audiocl.benchmarks.items()} == {n: n for n in audiocl.benchmarks}
    assert [row.name for row in audiocl.backbones.values()] == list(backbones.names())
    facts = pd.DataFrame(each.describe() for each in audiocl.benchmarks.values())
    assert facts.set_index("name").loc["timit2", "sessions"] == 315


def test_a_catalogue_takes_a_description_too(tiny_benchmark: Path) -> None:
    assert audiocl.benchmarks[str(tiny_benchmark)].name == audiocl.benchmarks[tiny_benchmark].name == "tiny"
    assert str(tiny_benchmark) not in audiocl.benchmarks


@pytest.mark.parametrize(("catalogue", "name", "near"), [("benchmarks", "esc5", "esc50"), ("methods", "pcae", "pace")])
def test_an_unknown_name_tells_near_ones(catalogue: str, name: str, near: str) -> None:
    for expected in (KeyError, UnknownNameError, AudioclError):
        with pytest.raises(expected) as told:
            getattr(audiocl, catalogue)[name]
        assert str(told.value).startswith(f"unknown {catalogue[:-1]} '{name}': did you mean {near}")
    with pytest.raises(KeyError, match="unknown backbone"):
        audiocl.backbones[3]  # type: ignore[index]
    assert audiocl.methods.get("nothing") is None


def test_a_module_that_is_a_mapping_stays_a_module() -> None:
    assert benchmarks == benchmarks
    assert benchmarks != backbones
    assert len({benchmarks, backbones, benchmarks}) == 2
    assert benchmarks.get("esc50").name == "esc50"  # the module's own function, not a mapping's
    assert copy.copy(audiocl.methods)["ncm"] is NCM


# ------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (0, (0,)),
        (range(3), (0, 1, 2)),
        ([2, 0, 2], (2, 0)),
        ("0-2,4", (0, 1, 2, 4)),
        (np.int64(3), (3,)),
        (np.arange(2), (0, 1)),
        (pd.Series([1, 2]), (1, 2)),
        ({4}, (4,)),
    ],
)
def test_numbers(given: Any, read: tuple[int, ...]) -> None:
    assert request.numbers(given, "orders") == read


@pytest.mark.parametrize("given", [[], -1, [0, -2], 1.5, [0.5], None, "", "1-", "x", ["0"], range(0)])
def test_what_are_no_numbers(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^orders "):
        request.numbers(given, "orders")


# ----------------------------------------------------------------------------------------------------------------- runs


def test_run_gives_the_rows_of_what_it_made_or_reused(tiny_benchmark: Path, tmp_path: Path, call: Call) -> None:
    where: dict[str, Any] = {"backbone": "eat-tiny", "results": tmp_path / "r", "orders": range(2)}
    first = audiocl.run("ncm", tiny_benchmark, **where)
    assert first[["method", "order", "seed"]].values.tolist() == [["ncm", 0, 0], ["ncm", 1, 0]]
    assert first["final_accuracy"].between(100 / 6, 100).all()
    stored = ResultsDir(tmp_path / "r").runs()
    assert set(stored["run_id"]) == set(first["run_id"])

    again = audiocl.run(NCM, audiocl.benchmarks[tiny_benchmark], **where | {"orders": 1, "seeds": [0]})
    assert again["run_id"].tolist() == [first["run_id"][1]]
    assert again["finished_at"][0] == first["finished_at"][1]  # the class of a name is what its name gives
    outcome = call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--orders", "0-1", "--results", tmp_path / "r")
    assert "0 runs made, 2 reused" in outcome.out
    with pytest.raises(AudioclError, match="already has a result"):
        audiocl.run("ncm", tiny_benchmark, **where, existing="fail")


def test_settings_are_those_of_the_command(tiny_benchmark: Path, tmp_path: Path, call: Call) -> None:
    settings = {"width": 64, "joint-closed.ridge": 2, "backbone.pool": "mean"}
    row = Row("eat-tiny", "", backbones.row("eat-tiny").config)
    runs = audiocl.run(
        ["joint-closed", "pace@no-fsa,ncm"],
        [str(tiny_benchmark)],
        backbone=row,
        settings=settings,
        results=str(tmp_path),
        seeds="3",
        threads=1,
    )
    assert runs[["method", "variant", "seed"]].values.tolist() == [
        ["joint-closed", "", 3],
        ["pace", "no-fsa", 3],
        ["ncm", "", 3],
    ]
    config = json.loads(runs["method_config"][0])
    assert (config["width"], config["ridge"]) == (64, 2.0)
    assert json.loads(runs["notes"][0])["backbone"]["pool"] == "mean"
    texts = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    given = ("-m", "joint-closed,pace@no-fsa,ncm", "-b", tiny_benchmark, *QUICK, "--seeds", "3", "--results", tmp_path)
    assert "0 runs made, 3 reused" in call("run", *given, *texts).out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"method": "rampac"}, "unknown method 'rampac': did you mean ranpac"),
        ({"method": "ncm@x"}, "ncm has no presets"),
        ({"method": []}, "method names nothing"),
        ({"method": " , "}, "method names nothing"),
        ({"method": 3}, "method is 3, but a name is needed"),
        ({"method": [["ncm"]]}, "method is .'ncm'., but a name is needed"),
        ({"method": dict}, "'dict' is not a method: it must be a class derived from"),
        ({"method": Method}, "method 'Method' is incomplete: it lacks"),
        ({"bench": "esc5"}, "unknown benchmark 'esc5': did you mean esc50"),
        ({"bench": []}, "bench names nothing"),
        ({"bench": Path("nowhere.toml")}, "nowhere.toml"),
        ({"bench": None}, "bench is None, but a name is needed"),
        ({"backbone": "eat-bass"}, "unknown backbone 'eat-bass': did you mean eat-base"),
        ({"orders": 7}, "no order 7"),
        ({"orders": []}, "orders .* must be whole numbers"),
        ({"seeds": "x"}, "seeds 'x' must look like"),
        ({"settings": {"metrix": "cosine"}}, "unknown setting of ncm 'metrix': did you mean metric"),
        ({"settings": {"metric": 3}}, "setting 'metric' is 3, but it must be one of cosine, euclidean"),
        ({"settings": {3: 4}}, "settings has the key 3"),
        ({"config": "nowhere.toml"}, "nowhere.toml cannot be read"),
        ({"protocol": "gruped"}, "unknown protocol of tiny 'gruped'"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"threads": 0}, "threads is 0, but at least 1 is needed"),
        ({"workers": 0}, "at least 1 process is needed"),
        ({"existing": "maybe"}, "existing is 'maybe', but it must be"),
        ({"data": "mini"}, "no miniature"),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    tiny_benchmark: Path, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    given = {"method": "ncm", "bench": tiny_benchmark, "backbone": "eat-tiny", "results": tmp_path, **changed}
    with pytest.raises(AudioclError, match=told) as error:
        audiocl.run(**given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("runs/*"))


def test_run_is_silent_unless_told(tiny_benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"method": "ncm", "bench": tiny_benchmark, "backbone": "eat-tiny", "results": tmp_path}
    [run] = audiocl.run(**given).to_dict("records")
    assert capsys.readouterr() == ("", "")
    audiocl.run(**given, fresh=True, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{run['run_id']}: {run['final_accuracy']:.2f} %" in shown.err


# ---------------------------------------------------------------------------------------------------- one's own methods


class Halved(NCM):
    """A method of this file."""

    def encode(self, batch: Any) -> Any:
        return super().encode(batch) / 2


class Broken(NCM):
    """A method with a bug."""

    def encode(self, batch: Any) -> Any:
        raise ZeroDivisionError("nothing to divide by")


def test_a_class_of_a_file_is_the_method_of_the_file(tiny_benchmark: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"backbone": "eat-tiny", "results": tmp_path}
    runs = audiocl.run([Halved, NCM], tiny_benchmark, **where)
    assert runs["method"].tolist() == ["halved", "ncm"]
    notes = [json.loads(text) for text in runs["notes"]]
    assert notes[0]["method_source_sha256"] == sha256_file(Path(__file__))
    assert "method_source_sha256" not in notes[1]
    assert runs["final_accuracy"][0] == runs["final_accuracy"][1]  # cosine does not see the half


def test_a_class_may_not_take_the_name_of_another_method(tiny_benchmark: Path, tmp_path: Path) -> None:
    false = type("PACE", (NCM,), {"__module__": __name__})
    with pytest.raises(ConfigError, match=r"PACE has the name 'pace' of another method.*@register"):
        audiocl.run(false, tiny_benchmark, backbone="eat-tiny", results=tmp_path)
    registry.add("ncm", Halved)
    Halved.name = "ncm"
    try:
        with pytest.raises(ConfigError, match="'ncm' of another method"):
            audiocl.run("ncm", tiny_benchmark, backbone="eat-tiny", results=tmp_path)
    finally:
        del Halved.name


def test_a_bug_is_the_cause_of_the_error_and_other_runs_are_kept(tiny_benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioclError, match=r"broken on tiny.*ZeroDivisionError: nothing to divide by") as error:
        audiocl.run([Broken, NCM], tiny_benchmark, backbone="eat-tiny", results=tmp_path)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert len(audiocl.load_results(tmp_path)) == 1


def test_an_import_in_another_process_makes_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(AudioclError, match="if __name__ == '__main__'"):
        audiocl.run("ncm", "esc50")


UNGUARDED = """
import audiocl_bench as audiocl
from probes import Honest

print("once")

class Mine(Honest):
    name = "mine"

"""


def script_of(folder: Path, code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that has no `if __name__ == "__main__":`."""
    script = folder / "script.py"
    script.write_text(UNGUARDED + code)
    return python("", script, AUDIOCL_HOME=str(home), PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


@pytest.mark.slow
def test_a_script_without_a_guard_is_run_once(tmp_path: Path) -> None:
    """Rendering and decoding take other processes, runs with `jobs` too; none of them imports the script again."""
    code = """
runs = audiocl.run("ncm", "us8k", data="mini", backbone="eat-tiny", workers=2, seeds="0-1", jobs=2)
print(len(runs), runs["mini"].all())
"""
    done = script_of(tmp_path, code, tmp_path / "home")
    assert done.stdout == "once\n2 True\n", done.stderr
    assert "Traceback" not in done.stderr
    assert "died" not in done.stderr


def test_a_method_of_a_script_without_a_guard_is_refused_elsewhere(
    tiny_benchmark: Path, tiny_home: Path, tmp_path: Path
) -> None:
    given = f"{str(tiny_benchmark)!r}, backbone='eat-tiny', seeds='0-1', results={str(tmp_path / 'r')!r}, jobs=2"
    done = script_of(tmp_path, f"audiocl.run(Mine, {given})\nprint('not reached')", tiny_home)
    assert "not reached" not in done.stdout
    assert "runs cannot be made on import: put the call under `if __name__ == '__main__':`." in done.stderr


# ------------------------------------------------------------------------------------------------------- stored results


@pytest.fixture(scope="module")
def stored(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two collections of runs of the tiny benchmark."""
    root = tmp_path_factory.mktemp("collections")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCL_HOME", str(tmp_path_factory.mktemp("api-home")))
        audiocl.run("ncm", tiny_benchmark, backbone="eat-tiny", orders="0-1", results=root / "one")
        audiocl.run("joint-closed", tiny_benchmark, backbone="eat-tiny", settings={"width": 64}, results=root / "two")
    return root


def test_results_are_tables(stored: Path) -> None:
    for given in (stored, [stored / "one", str(stored / "two")], [ResultsDir(stored / "two"), stored]):
        found = audiocl.load_results(given)
        assert len(found) == len(found.runs) == 3
        assert len(found.sessions) == 2 * 3 + 1
    ncm = found.sessions[found.sessions["method"] == "ncm"]
    assert set(ncm["order"]) == {0, 1}
    last = ncm[ncm["session"] == 2].set_index("run_id")["accuracy"]
    finals = found.runs.set_index("run_id")["final_accuracy"]
    assert all(last[run_id] == pytest.approx(finals[run_id]) for run_id in last.index)
    run_id = ncm["run_id"].iloc[0]
    for name in (run_id, run_id.removeprefix("ncm-")):
        matrix = metrics.accuracy_matrix(found.predictions(name))
        assert 100 * matrix[-1].mean() == pytest.approx(finals[run_id])
    assert repr(found).startswith("<3 runs")


def test_runs_are_chosen_by_their_rows(stored: Path) -> None:
    found = audiocl.load_results(stored)
    chosen = found.of(found.runs.query("method == 'ncm' and order == 1")["run_id"])
    assert len(chosen.sessions) == 3
    assert set(chosen.sessions["order"]) == {1}
    with pytest.raises(UnknownNameError, match="unknown run 'ncm'"):
        found.of(["ncm"])
    with pytest.raises(ResultsError, match="'ncm' matches 2 runs"):
        found.predictions("ncm")
    with pytest.raises(UnknownNameError, match="unknown run 'pace'"):
        found.predictions("pace")


def test_a_run_in_two_places_counts_once_and_must_be_the_same(stored: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(stored / "one", tmp_path / "copied")
    assert len(audiocl.load_results([stored, copied])) == 3
    file = next((copied / "runs").glob("*.parquet"))
    other = next(each for each in (copied / "runs").glob("*.parquet") if each != file)
    changed = results.pq.read_table(file)
    place = changed.schema.get_field_index("forgetting")
    changed = changed.set_column(place, changed.schema.field(place), [[99.0]])
    results.pq.write_table(changed, file)
    other.unlink()
    with pytest.raises(ResultsError, match=f"different results of run {file.stem}"):
        audiocl.load_results([stored, copied])


def test_no_results(tmp_path: Path) -> None:
    empty = audiocl.load_results()
    assert (len(empty), len(empty.sessions), list(empty.runs.columns)) == (0, 0, results.RUNS_SCHEMA.names)
    with pytest.raises(ResultsError, match="there are no runs in"):
        audiocl.load_results(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="is a file"):
        audiocl.load_results(tmp_path / "file")


def test_figures_and_tables_come_from_stored_runs(stored: Path) -> None:
    found = audiocl.load_results(stored)
    ncm = found.runs[found.runs["method"] == "ncm"]
    drawing = audiocl.plot("curves", found, runs=ncm)
    by_session = found.sessions[found.sessions["method"] == "ncm"].groupby("session")["accuracy"].mean()
    assert drawing.data["mean"].tolist() == pytest.approx(by_session.tolist())
    assert len(audiocl.plot("matrix", stored / "one").data) == 6
    assert set(audiocl.plot("cost", found).data["label"]) == {"ncm", "joint-closed"}
    with pytest.raises(UnknownNameError, match="unknown figure 'curve': did you mean curves"):
        audiocl.plot("curve", found)
    sheet = audiocl.table(2, [ResultsDir(stored / "one")])
    frame = sheet.frame()
    assert {"row", "column", "ours", "paper"} <= set(frame.columns)
    assert frame["ours"].isna().all()  # own data stands in no table of the paper
    assert frame["paper"].notna().any()
