"""Figures for papers and pages: each kind is a pure function from tables to a `Drawing`, the figure with its numbers.

    chosen = select(result_dirs("results"), benchmarks=["esc50"], methods=["pace", "ranpac"])
    drawing = curves(chosen.runs, chosen.sessions())
    drawing.save(Path("figures/esc50"))      # esc50.png, .svg, .pdf, and esc50.parquet with what is drawn
    drawing.figure                           # a matplotlib Figure, to be changed at will

Accuracies are in percent. Sessions count from 0 in tables, as everywhere in results, and from 1 in pictures, as in the
paper. Runs that differ in settings, data or weights are never averaged; runs on own or synthetic data or with a
stand-in backbone say so in the figure and never stand beside the paper's numbers.
"""

from audiocl_bench.report.figures import paper
from audiocl_bench.report.figures.lines import adapted, cka, curves, freeze
from audiocl_bench.report.figures.matrices import matrix, paper_matrix
from audiocl_bench.report.figures.runs import Chosen, labelled, select
from audiocl_bench.report.figures.scores import COSTS, bars, cost, drift
from audiocl_bench.report.figures.style import FORMATS, WIDTHS, Drawing

__all__ = [
    "COSTS",
    "FORMATS",
    "WIDTHS",
    "Chosen",
    "Drawing",
    "adapted",
    "bars",
    "cka",
    "cost",
    "curves",
    "drift",
    "freeze",
    "labelled",
    "matrix",
    "paper",
    "paper_matrix",
    "select",
]
