"""The page about the benchmarks: equal to the file, its numbers counted anew from the frozen files, its links alive."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from audiocl_bench import benchmarks, corpora, splits
from audiocl_bench.errors import StreamError
from audiocl_bench.report import benchmark_page
from audiocl_bench.report.benchmark_page import COMMAND, Overlap, bibtex, overlap, page

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def text() -> str:
    return page()


def section(text: str, name: str) -> str:
    """Return what stands below the heading `## name`."""
    return text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table rows in `text`, head and rule left out."""
    lines = [line for line in text.splitlines() if line[:1] == "|"]
    rules = {number for number, line in enumerate(lines) if set(line) <= set("|-: ")}
    kept = (line for number, line in enumerate(lines) if not {number, number + 1} & rules)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in kept]


def clips_of(corpus: str, protocol: str) -> list[dict[str, str]]:
    """Read a frozen file without the package."""
    with (ROOT / "splits" / corpus / f"{protocol}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def related_by(corpus: str, clip_id: str) -> str:
    """Return what a clip shares, by patterns of the official names."""
    pattern = {
        "esc50": r"^\d-(\d+)-[A-Z]-\d+$",
        "us8k": r"^fold\d+/(\d+)-\d+-\d+-\d+$",
        "sc2": r"/([0-9a-f]+)_nohash_\d+$",
        "timit": r"/(S[AXI]\d+)$",
        "vocalset": r"^((?:fe)?male\d+)/",
    }[corpus]
    return re.search(pattern, clip_id)[1]


def test_the_file_is_what_the_page_says(text: str) -> None:
    assert FILE.read_bytes() == text.encode("utf-8"), f"docs/benchmarks.md is out of date: run `{COMMAND}`"


def test_a_second_page_is_equal_and_its_first_line_says_how_to_write_it(text: str) -> None:
    assert page() == text
    first = text.splitlines()[0]
    assert first.startswith("<!--")
    assert first.endswith("-->")
    assert "`audiocl list benchmarks --markdown > docs/benchmarks.md`" in first
    assert "\r" not in text
    assert str(ROOT) not in text


def test_every_table_is_rectangular(text: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {line.count("|") for line in block.splitlines()}
        assert len(widths) == 1, block


def test_catalogue_table(text: str) -> None:
    head = text.split("\n## ", 1)[0]
    told = [[row[0].split("]")[0].strip("["), *row[2:]] for row in rows(head)]
    assert told == [  # the table of the six benchmarks, by hand
        ["esc50", "50", "10 x 5", "2,000", "10", "5.12 s"],
        ["us8k", "10", "5 x 2", "8,732", "15", "5.12 s"],
        ["sc2", "35", "7 x 5", "105,829", "1", "5.12 s"],
        ["timit2", "630", "315 x 2", "6,300", "30", "5.12 s"],
        ["timit3", "630", "210 x 3", "6,300", "30", "5.12 s"],
        ["vocalset", "16", "8 x 2", "1,520", "6", "5.12 s"],
    ]


@pytest.mark.parametrize("name", benchmarks.names())
def test_counts_of_clips_classes_and_sessions(text: str, name: str) -> None:
    benchmark = benchmarks.get(name)
    corpus = benchmark.corpus.info.name
    orders = json.loads((ROOT / "splits" / corpus / "orders.json").read_text(encoding="utf-8"))
    told = {(row[0].strip("`"), row[1]): row[2:] for row in rows(section(text, name))}
    assert told.keys() == {(protocol, part) for protocol in ("paper", "grouped") for part in ("train", "test")}

    def between(values: list[int]) -> str:
        return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"

    for (protocol, part), cells in told.items():
        count = Counter(clip["label"] for clip in clips_of(corpus, protocol) if clip["part"] == part)
        size = benchmark.classes_per_session
        sessions = [
            sum(count[label] for label in order[start : start + size])
            for order in orders
            for start in range(0, len(order), size)
        ]
        assert cells == [f"{count.total():,}", between(list(count.values())), between(sessions)]


@pytest.mark.parametrize("corpus", ["esc50", "us8k", "sc2", "timit", "vocalset"])
def test_related_clips_are_counted_right(text: str, corpus: str) -> None:
    clips = clips_of(corpus, "paper")
    training = {related_by(corpus, clip["clip_id"]) for clip in clips if clip["part"] == "train"}
    known = {(related_by(corpus, clip["clip_id"]), clip["label"]) for clip in clips if clip["part"] == "train"}
    test = [(related_by(corpus, clip["clip_id"]), clip["label"]) for clip in clips if clip["part"] == "test"]
    related = sum(group in training for group, _ in test)
    same = sum(pair in known for pair in test)
    told = section(text, "timit2" if corpus == "timit" else corpus)
    assert f"**Related under `paper`:** {related:,} of {len(test):,} test clips" in told
    assert (f", {same:,} (" if same else "none with one of its own class") in told

    summary = {row[0].split("]")[0].strip("["): row[2:] for row in rows(section(text, "Two protocols"))}
    paper, grouped = summary["timit2" if corpus == "timit" else corpus]
    assert grouped == "0 %"
    assert float(paper.removesuffix(" %")) == pytest.approx(100 * related / len(test), abs=0.051)
    if related < len(test):
        assert paper != "100 %"


def test_what_grouped_leaves_out(text: str) -> None:
    for corpus, facts in (
        ("esc50", ("2 clips", "recording 209698: 1 clip of `clock_alarm` left out, 1 clip of `clock_tick` tested")),
        ("us8k", ("79 clips", "recording 180937: 79 clips of `jackhammer` left out, 16 clips of `drilling` tested")),
    ):
        told = section(text, corpus)
        assert all(fact in told for fact in facts)
        gone = {clip["clip_id"] for clip in clips_of(corpus, "paper")}
        gone -= {clip["clip_id"] for clip in clips_of(corpus, "grouped")}
        assert {related_by(corpus, clip) for clip in gone} == set(re.findall(r"recording (\d+):", told))
        assert f"**Left out by `grouped`:** {len(gone)} clips" in told
    for corpus in ("sc2", "timit2", "vocalset"):
        assert "Left out by `grouped`" not in section(text, corpus)


def test_vocalset_pool(text: str) -> None:
    told = section(text, "vocalset")
    assert "2,093 of the 3,613 official clips" in told
    assert "20 (technique not used: `spoken`)" in told
    assert "95 clips of each class" in told


def test_cards_hashes_and_rules(text: str) -> None:
    index = splits.read_index()
    for name in corpora.names():
        info = corpora.get(name).info
        told = section(text, "timit2" if name == "timit" else name)
        assert f"- Licence: {info.licence}\n" in told
        assert f"<{info.homepage}>" in told
        assert re.sub(r"\s", "", info.citation) in re.sub(r"\s", "", told)
        assert (f"`audiocl data add {name} PATH`" if name == "timit" else f"`audiocl data get {name}`") in told
        for file, digest in index["files"].items():
            if file.startswith(f"{name}/"):
                assert f"(../splits/{file}) `{digest[:12]}`" in told
        for protocol in splits.PROTOCOLS:
            assert f"- `{protocol}`: {index['corpora'][name][protocol]['rule']}." in told


def test_the_listed_classes_are_order_0(text: str) -> None:
    for name in ("esc50", "us8k", "sc2", "vocalset"):
        benchmark = benchmarks.get(name)
        told = re.findall(r"^(\d+)\. (.*)$", section(text, name), flags=re.M)
        assert [int(number) for number, _ in told] == list(range(benchmark.describe()["sessions"]))
        listed = [label for _, labels in told for label in re.findall(r"`([^`]+)`", labels)]
        assert listed == splits.load_orders(name)[0]
    assert "<details>" not in section(text, "timit2")


def test_links_lead_somewhere(text: str) -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, flags=re.M)
    }
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 20
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert not target.startswith(("http", "/"))
            assert (FILE.parent / target).is_file(), target
    assert text.count("```") % 2 == 0
    assert text.count("<details>") == text.count("</details>")


def test_miniatures_have_one_table_at_the_end_or_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(benchmarks, "mini_names", lambda: ())
    without = page()
    assert "mini" not in without.lower().replace("minimum", "")
    monkeypatch.setattr(benchmarks, "mini_names", lambda: ("mini-us8k", "mini-timit3"))
    parts = {"train": 1_190, "test": 50, "rule": "test = folds 9 and 10"}
    index = splits.read_index()
    index["corpora"].pop("mini-timit", None)
    index["corpora"]["mini-us8k"] = {"paper": parts, "grouped": {**parts, "test": 48}}
    monkeypatch.setattr(splits, "read_index", lambda folder=None: index)
    with_two = page()
    assert with_two.startswith(without.rstrip("\n"))
    added = with_two[len(without.rstrip("\n")) :]
    assert re.findall(r"^## .*$", added, flags=re.M) == ["## Miniatures"]
    assert [row[:2] for row in rows(added)] == [
        ["`mini-us8k`", "[us8k](#us8k)"],
        ["`mini-timit3`", "[timit3](#timit3)"],
    ]
    assert rows(added)[1][3] == "8 x 3"
    assert "not comparable" in added
    assert rows(added)[0][7:] == ["1,190 / 50", "1,190 / 48", "test = folds 9 and 10"]
    assert rows(added)[1][7:] == ["-", "-", "-"]  # not frozen
    assert not any(name.startswith("mini-") for name in re.findall(r"^## (.*)$", text, flags=re.M))


def test_a_changed_split_file_gives_no_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(splits.splits_dir(), tmp_path / "splits")
    with (folder / "esc50" / "paper.csv").open("a", encoding="utf-8") as file:
        file.write("1-1-A-0,dog,test\n")
    monkeypatch.setattr(splits, "splits_dir", lambda: folder)
    with pytest.raises(StreamError, match=r"paper\.csv was changed"):
        page()


def test_overlap_by_hand() -> None:
    table = pd.DataFrame(
        [("a1", "x", "train"), ("a2", "x", "test"), ("a3", "y", "test"), ("b1", "y", "test"), ("c1", "y", "train")],
        columns=["clip_id", "label", "part"],
    )
    assert overlap(table, lambda clip_id: clip_id[0]) == Overlap(test=3, related=2, same_class=1)


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 9, "0 %"), (9, 9, "100 %"), (21_149, 21_150, "99.9 %"), (1, 20_000, "0.1 %"), (1, 3, "33.3 %")],
)
def test_percent_never_rounds_to_all_or_nothing(part: int, whole: int, expected: str) -> None:
    assert benchmark_page._percent(part, whole) == expected


def test_bibtex_has_one_field_per_line() -> None:
    entry = "@misc{key, author={A, B and {C, D}}, title={{T} x}, year={1993}}"
    assert bibtex(entry).splitlines() == [
        "@misc{key,",
        "  author={A, B and {C, D}},",
        "  title={{T} x},",
        "  year={1993}",
        "}",
    ]
    assert bibtex("") == ""
