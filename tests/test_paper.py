"""The paper's tables: the published numbers, which of our runs is which row, and what is said where they differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from test_sheets import store

from audiocl_bench import benchmarks, config, registry
from audiocl_bench.errors import ConfigError, ResultsError, UnknownNameError
from audiocl_bench.files import paper_dir
from audiocl_bench.report import paper, sheets
from audiocl_bench.results import ResultsDir

ROWS = [(number, row) for number in paper.NUMBERS for row in paper.spec(number).rows]


def table(folder: Path, number: int | str = 3, **options: object) -> sheets.Sheet:
    return paper.table(number, ResultsDir(folder), **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- published numbers


def test_the_csv_files_are_the_shared_ones(shared: Callable[..., Path]) -> None:
    for number in (2, 3, 4, 12):
        name = f"table{number}.csv"
        assert (paper_dir() / name).read_bytes() == shared("paper", name).read_bytes()


def test_table_1_is_as_the_notes_tell_it(shared: Callable[..., Path]) -> None:
    text = shared("spec", "pace.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("w/o FSA 75.87 / 61.51;")]
    told = re.findall(r"([\d.]+) / ([\d.]+)", line)
    numbers = paper.published(1)
    found = [tuple(f"{numbers.accuracy[row.key, b]:.2f}" for b in numbers.benchmarks) for row in paper.spec(1).rows]
    assert found == told
    assert numbers.benchmarks == ("timit2", "vocalset")


def test_the_tables_agree_with_each_other() -> None:
    """What several tables print is equal: the rows are matched rightly."""
    one, two, three, four, twelve = (paper.published(number).accuracy for number in paper.NUMBERS)
    for benchmark in ("esc50", "us8k", "sc2"):
        assert two["pace", benchmark] == three["improved FSA", benchmark]
        assert two["ranpac-no-fsa", benchmark] == three["no FSA", benchmark]
        assert twelve["none", benchmark] == three["naive FSA", benchmark]
    for benchmark in ("timit2", "timit3", "vocalset"):
        assert two["pace", benchmark] == four["full", benchmark]
        assert two["ranpac-no-fsa", benchmark] == four["no FSA", benchmark]
        assert two["ranpac", benchmark] == four["no MSA", benchmark]
    for benchmark in ("timit2", "vocalset"):
        assert one["no FSA", benchmark] == two["ranpac-no-fsa", benchmark]
        assert one["joint", benchmark] == two["joint", benchmark]


def test_rows_are_those_of_the_files_in_their_order() -> None:
    for number in paper.NUMBERS:
        numbers = paper.published(number)
        assert tuple(numbers.trust) == tuple(row.key for row in paper.spec(number).rows)
        assert set(numbers.benchmarks) <= set(benchmarks.names())
        assert len(numbers.accuracy) == len(numbers.trust) * len(numbers.benchmarks)
        assert set(numbers.trust.values()) <= {"high", "medium", "inferred"}
        notes = paper.spec(number).notes
        assert all(row in {*numbers.trust, ""} and benchmark in numbers.benchmarks for row, benchmark in notes)


def test_every_row_can_be_run_and_no_two_rows_are_the_same_run() -> None:
    for number in paper.NUMBERS:
        seen = set()
        for row in paper.spec(number).rows:
            method = registry.load(row.method)
            for benchmark in paper.published(number).benchmarks:
                settings = sheets.method_settings(method, row.preset, benchmark, row.settings).as_dict()
                settings.pop("preset", None)
                seen.add((row.method, benchmark, repr(settings)))
        assert len(seen) == len(paper.spec(number).rows) * len(paper.published(number).benchmarks)


def test_table_12_is_naive_adaptation_with_a_layer_probe() -> None:
    pace = registry.load("pace")
    naive = sheets.method_settings(pace, "naive-fsa", "sc2").as_dict()
    rows = {
        row.key: sheets.method_settings(pace, row.preset, "sc2", row.settings).as_dict() for row in paper.spec(12).rows
    }
    assert rows["none"] == naive
    assert naive["freeze_blocks"] == 0
    for rho in (0.90, 0.92, 0.94, 0.96, 0.99):
        assert rows[f"{rho:.2f}"] == {**naive, "freeze_blocks": None, "rho_layer": rho}


@pytest.mark.parametrize("given", [2, "2", "table2", "Table 2", " 2 "])
def test_a_table_is_found_by_its_number(given: int | str) -> None:
    assert paper.spec(given).number == 2


def test_other_tables_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="known: 1, 12, 2, 3, 4"):
        paper.spec("table5")


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "paper_dir", lambda: tmp_path)
    paper.published.cache_clear()
    try:
        for text in (None, "method,esc50\npace,much\n", "method,esc50\npace\n", ""):
            if text is not None:
                (tmp_path / "table2.csv").write_text(text)
            with pytest.raises(ResultsError, match=r"table2\.csv cannot be read"):
                paper.published(2)
    finally:
        paper.published.cache_clear()


# -------------------------------------------------------------------------------------------------- ours beside theirs


def test_without_runs_the_paper_stands_alone(tmp_path: Path) -> None:
    sheet = paper.table(2)  # the default directory, which does not exist
    assert len(sheet.cells) == 9 * 6
    assert all(cell.mean is None and cell.paper is not None for cell in sheet.cells)
    [command] = sheet.commands()
    assert command.runs == 9 * 6 * 5
    assert command.text() == (
        "audiocl run -m joint,l2p,dualprompt,sprompt++,hide-prompt,lora-drs,ranpac@no-fsa,ranpac,pace "
        "-b all --orders 0-4"
    )
    text = sheets.render(sheet)
    assert command.text() in text
    assert "ours - paper" not in text


def test_ours_minus_the_papers(tmp_path: Path) -> None:
    for order, points in enumerate((90, 92, 94)):
        store(tmp_path, "pace", "us8k", points=points, order=order)
    cell = table(tmp_path).cell("improved FSA", "us8k")
    assert (cell.mean, cell.paper) == (pytest.approx(92.0), 97.49)
    assert cell.difference == pytest.approx(92 - 97.49)
    assert cell.half_width == pytest.approx(4.302653 * 2 / 3**0.5, abs=1e-5)
    assert "| -5.49" in sheets.render(table(tmp_path)).replace("  ", "").replace("|-", "| -")
    assert "3 of 5 runs so far (without orders 3-4)." in cell.notes
    assert [c.text() for c in table(tmp_path, benchmarks=["us8k"]).commands() if "pace" in c.methods] == [
        "audiocl run -m pace -b us8k --orders 3-4"
    ]


@pytest.mark.parametrize(("number", "row"), ROWS, ids=lambda value: getattr(value, "key", value))
def test_every_row_takes_its_own_runs_and_no_others(tmp_path: Path, number: int, row: paper.Row) -> None:
    benchmark = paper.published(number).benchmarks[-1]
    settings = sheets.method_settings(registry.load(row.method), row.preset, benchmark, row.settings).as_dict()
    store(
        tmp_path, row.method, benchmark, points=64, settings=settings, variant=row.preset, joint=row.method == "joint"
    )
    sheet = table(tmp_path, number)
    assert [(cell.row, cell.column) for cell in sheet.cells if cell.mean is not None] == [(row.title, benchmark)]
    assert sheet.cell(row.title, benchmark).mean == pytest.approx(64.0)


def test_settings_decide_not_the_name_of_the_preset(tmp_path: Path) -> None:
    method = registry.load("pace").Config
    set_by_hand = config.build(method, "us8k", {"fsa": "false"}, owner="pace").as_dict()
    store(tmp_path, "pace", "us8k", points=60, settings=set_by_hand)
    assert table(tmp_path).cell("no FSA", "us8k").mean == pytest.approx(60.0)
    # A preset with one setting changed is no row; it is counted, not lost.
    other = config.build(method, "us8k", {"preset": "naive-fsa", "rank": 4}, owner="pace").as_dict()
    store(tmp_path, "pace", "us8k", points=70, settings=other, variant="naive-fsa")
    sheet = table(tmp_path)
    assert sheet.cell("naive FSA", "us8k").mean is None
    assert any(hint.startswith("1 more run of these methods here have settings of no row") for hint in sheet.hints)


def test_a_class_called_like_a_method_is_not_its_row(tmp_path: Path) -> None:
    store(tmp_path, "pace", "us8k", points=99, notes={"method_source_sha256": "ab"})
    assert table(tmp_path).cell("improved FSA", "us8k").mean is None


def test_only_the_asked_orders_count(tmp_path: Path) -> None:
    for order, points in enumerate((60, 70, 80)):
        store(tmp_path, "pace", "us8k", points=points, order=order)
    cell = table(tmp_path, orders="0-1").cell("improved FSA", "us8k")
    assert cell.mean == pytest.approx(65.0)
    assert not any("so far" in note for note in cell.notes)
    cell = table(tmp_path, orders=[2, 3], seeds=range(2)).cell("improved FSA", "us8k")
    assert cell.mean == pytest.approx(80.0)
    assert "1 of 4 runs so far (without orders 2-3 of seeds 0-1)." in cell.notes
    assert cell.wanted is not None
    assert cell.wanted.streams == {(2, 1), (3, 0), (3, 1)}


def test_a_failed_audit_is_not_run_again(tmp_path: Path) -> None:
    store(tmp_path, "pace", "us8k", run_id="bad", audit_passed=False, audit={"repeatability": {"passed": False}})
    cell = table(tmp_path, orders=0).cell("improved FSA", "us8k")
    assert (cell.mean, cell.wanted) == (None, None)
    assert cell.notes == ("1 run with a failed audit left out: bad.",)


def test_trust_is_a_footnote_to_the_papers_number(tmp_path: Path) -> None:
    sheet = table(tmp_path, 2)
    medium, inferred = sheet.cell("DualPrompt", "us8k"), sheet.cell("RanPAC without FSA", "us8k")
    assert "one digest" in medium.paper_notes[0]
    assert "inferred" in inferred.paper_notes[0]
    assert sheet.cell("PACE", "us8k").paper_notes == ()
    assert "mislabelled" in table(tmp_path, 1).cell("naive FSA", "timit2").paper_notes[0]
    assert "TIMIT-3" in table(tmp_path, 12).cell("0.92", "timit2").paper_notes[0]


@pytest.mark.parametrize(
    ("change", "options", "note"),
    [
        ({"protocol": "grouped"}, {"protocol": "grouped"}, "grouped split instead of"),
        ({"backbone": "sslam-base"}, {"backbone": "sslam-base"}, "backbone sslam-base instead of EAT base"),
    ],
)
def test_real_data_in_another_setting_has_a_footnote(
    tmp_path: Path, change: dict[str, str], options: dict[str, str], note: str
) -> None:
    store(tmp_path, "pace", "us8k", points=90, **change)
    cell = table(tmp_path, **options).cell("improved FSA", "us8k")
    assert cell.difference == pytest.approx(90 - 97.49)
    assert note in cell.notes[0]
    # The default table shows the paper's setting, and says where the others are.
    default = table(tmp_path)
    assert default.cell("improved FSA", "us8k").mean is None
    option = " ".join(f"--{name} {value}" for name, value in options.items())
    assert default.hints == (f"Runs of these methods that are not shown: 1 with `{option}`.",)


def test_miniatures_and_stand_ins_stand_beside_no_published_number(tmp_path: Path) -> None:
    store(tmp_path, "pace", "mini-us8k", points=90, mini=True, stand_in=True, backbone="eat-tiny")
    store(tmp_path, "pace", "us8k", points=80, stand_in=True, backbone="eat-tiny", run_id="random")
    sheet = table(tmp_path, mini=True, backbone="eat-tiny")
    assert sheet.columns == ("mini-esc50", "mini-us8k", "mini-sc2")
    assert sheet.warning == "mini (synthetic data), stand-in backbone"
    assert not sheet.has_paper
    cell = sheet.cell("improved FSA", "mini-us8k")
    assert cell.mean == pytest.approx(90.0)
    assert cell.notes[0] == "Unlike the paper: mini (synthetic data), stand-in backbone."
    assert all("--data mini --backbone eat-tiny" in command.text() for command in sheet.commands())
    real = table(tmp_path, backbone="eat-tiny")
    assert (real.warning, real.has_paper) == ("stand-in backbone", False)
    assert real.cell("improved FSA", "us8k").mean == pytest.approx(80.0)
    # Nor do they enter the paper's own table.
    assert all(cell.mean is None for cell in table(tmp_path).cells)


def test_own_data_is_a_table_of_its_own(tmp_path: Path) -> None:
    own = {"own_data": True, "protocol": "own", "backbone": "mine"}
    store(tmp_path, "pace", "cats", points=90, **own)
    store(tmp_path, "pace", "us8k", points=90, run_id="named-alike", **own)
    sheet = table(tmp_path, benchmarks=["cats"], backbone="mine")
    assert (sheet.warning, sheet.columns, sheet.has_paper) == ("own data", ("cats",), False)
    assert sheet.cell("improved FSA", "cats").mean == pytest.approx(90.0)
    # Own data named like a benchmark is not that benchmark.
    assert all(cell.mean is None for cell in table(tmp_path, backbone="mine").cells)
    for names in (["cats", "us8k"], ["us8k", "mini-us8k"]):
        with pytest.raises(ConfigError, match="may not share a table"):
            table(tmp_path, benchmarks=names, backbone="mine")


def test_a_toml_file_is_a_column(tmp_path: Path, tiny_benchmark: Path) -> None:
    store(tmp_path, "pace", "tiny", points=90, own_data=True, protocol="own")
    sheet = table(tmp_path, benchmarks=[str(tiny_benchmark)])
    assert sheet.cell("improved FSA", "tiny").mean == pytest.approx(90.0)
    assert {command.benchmarks for command in sheet.commands()} == {(str(tiny_benchmark),)}
    assert {order for command in sheet.commands() for order in command.orders} == {0, 1}  # it has two


def test_another_score_has_no_published_numbers(tmp_path: Path) -> None:
    store(tmp_path, "pace", "us8k", forgotten=3)
    sheet = table(tmp_path, score="forgetting")
    assert not sheet.has_paper
    assert sheet.cell("improved FSA", "us8k").mean == pytest.approx(6.0)


def test_the_best_of_ours_is_bold(tmp_path: Path) -> None:
    for preset, points in (("", 80), ("no-fsa", 70), ("naive-fsa", 80)):
        store(tmp_path, "pace", "us8k", points=points, variant=preset)
    sheet = table(tmp_path)
    assert {cell.row for cell in sheet.cells if cell.best} == {"improved FSA", "naive FSA"}
    assert "**80.00**" in sheets.render(sheet)


def test_several_collections_are_one(tmp_path: Path) -> None:
    for order, folder in product((0, 1), ("a",)):
        store(tmp_path / f"{folder}{order}", "pace", "us8k", points=60 + 10 * order, order=order)
    for given in (tmp_path, [tmp_path / "a0", ResultsDir(tmp_path / "a1")]):
        assert paper.table(3, given).cell("improved FSA", "us8k").mean == pytest.approx(65.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backbone": "eat-bas"}, "unknown backbone 'eat-bas': did you mean eat-base"),
        ({"benchmarks": ["us8"]}, "unknown benchmark 'us8': did you mean us8k"),
        ({"protocol": "group"}, "unknown split protocol 'group': did you mean grouped"),
        ({"score": "final"}, "unknown score 'final'"),
    ],
)
def test_misspelt_names_are_refused(tmp_path: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(told)):
        table(tmp_path, **options)


def test_a_notebook_shows_the_table(tmp_path: Path) -> None:
    sheet = table(tmp_path)
    assert sheet._repr_markdown_() == sheets.render(sheet)
