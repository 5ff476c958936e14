"""The notebook of first steps: stored clean, and every cell does what its text says, in a real kernel."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from audiocl_bench.results import ResultsDir

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


# --------------------------------------------------------------------------------------------------------------- stored


def test_it_is_stored_clean() -> None:
    text, notebook = NOTEBOOK.read_text(encoding="utf-8"), read()
    nbformat.validate(notebook)
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert re.fullmatch("[a-z-]+", cell.id)
        assert cell.source == cell.source.strip()
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"/home/|/root|/work/|/tmp|[A-Z]:\\\\", text)


def test_it_says_that_its_numbers_say_nothing_about_real_sound() -> None:
    first = read().cells[0].source
    assert "synthetic" in first
    assert "say nothing about real ones" in first


def test_the_method_is_that_of_the_readme() -> None:
    """Told twice, with the same code: only what explains it differs."""

    def code(text: str) -> list[str]:
        body = text[text.index("class Diagonal") :].replace(", strict=True", "")
        lines = [re.sub(r"\s+#.*|: Session|: Clips", "", line) for line in body.splitlines()]
        return [line for line in lines if line.strip() and '"""' not in line and "Config = " not in line]

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"<!-- test: method -->\n```python\n(.*?)```", readme, re.DOTALL)
    [cell] = [cell for cell in read().cells if cell.id == "method"]
    assert code(cell.source) == code(block)


# ------------------------------------------------------------------------------------------------------------- executed


class ThisPython(KernelSpecManager):
    """Knows one kernel, of the Python that runs the tests: what else is installed does not matter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        assert kernel_name == "python3"
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )


class Kernel:
    """The notebook in a kernel of its own, its cells executed in order; more can be executed after them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notebook = read()
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
        self.client = NotebookClient(
            self.notebook, km=manager, timeout=1800, resources={"metadata": {"path": str(folder)}}
        )

    def execute(self, cell: NotebookNode) -> list[NotebookNode]:
        self.notebook.cells.append(cell)
        self.client.execute_cell(cell, len(self.notebook.cells) - 1)
        return list(cell.outputs)

    def evaluate(self, code: str) -> Any:
        """Execute code that prints JSON."""
        [output] = self.execute(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({code}))"))
        return json.loads(output.text)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCL_HOME", str(tmp_path_factory.mktemp("notebook-home")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.delenv("MPLBACKEND", raising=False)
        started = Kernel(folder)
        with started.client.setup_kernel():
            for number, cell in enumerate(started.notebook.cells):
                started.client.execute_cell(cell, number)
            yield started


def outputs(kernel: Kernel, name: str) -> list[NotebookNode]:
    [cell] = [cell for cell in kernel.notebook.cells if cell.id == name]
    return list(cell.outputs)


def shown_table(output: NotebookNode) -> pd.DataFrame:
    """Read the numbers of a table as pandas shows it, its column names from the first row."""
    rows = re.findall(r"<tr.*?</tr>", output.data["text/html"], re.DOTALL)
    names = re.findall(r"<th>(.*?)</th>", rows[0])[1:]
    numbers = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    return pd.DataFrame([row for row in numbers if row], columns=names).astype(float)


@pytest.mark.slow
def test_every_cell_runs_and_complains_of_nothing(kernel: Kernel) -> None:
    for cell in kernel.notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            text = json.dumps(output)
            assert "Warning" not in text, text
            assert "Traceback" not in text, text
    assert [path.name for path in kernel.folder.iterdir()] == ["audiocl-results"]


@pytest.mark.slow
def test_the_runs_are_stored_and_marked(kernel: Kernel) -> None:
    runs = ResultsDir(kernel.folder / "audiocl-results").runs()
    assert sorted(zip(runs["method"], runs["order"], strict=True)) == [
        (method, order) for method in ("diagonal", "ncm", "ranpac") for order in (0, 1)
    ]
    assert runs["audit_passed"].all()
    assert runs["mini"].all()
    assert not runs["comparable"].any()
    assert (runs["final_accuracy"] > 10).all()  # ten classes
    said = {str(json.loads(notes).get("method_source_sha256", "")).partition(":")[2] for notes in runs["notes"]}
    assert said == {"", "inline"}


@pytest.mark.slow
def test_progress_is_a_line_for_every_run(kernel: Kernel) -> None:
    told = "".join(str(output.get("text", "")) + str(output.get("data", "")) for output in outputs(kernel, "compare"))
    for run_id in ResultsDir(kernel.folder / "audiocl-results").run_ids():
        assert (f"{run_id}: " in told) == (not run_id.startswith("diagonal"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "methods"), [("curves", {"ncm", "ranpac"}), ("own-compare", {"diagonal", "ncm", "ranpac"})]
)
def test_the_curves_are_drawn_from_what_was_stored(kernel: Kernel, name: str, methods: set[str]) -> None:
    shown = outputs(kernel, name)
    [picture] = [output.data["image/png"] for output in shown if "image/png" in output.get("data", {})]
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)), format="png")
    assert pixels.shape[0] > 200
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 50
    [table] = [shown_table(output) for output in shown if "text/html" in output.get("data", {})]
    assert set(table.columns) == methods
    results = ResultsDir(kernel.folder / "audiocl-results")
    for method in methods:
        ids = [run_id for run_id in results.run_ids() if run_id.startswith(method)]
        curves = [results.sessions(run_id)["accuracy"].to_numpy() for run_id in ids]
        assert table[method].to_numpy() == pytest.approx(np.mean(curves, axis=0), abs=0.06)


@pytest.mark.slow
def test_every_test_clip_is_in_the_confusions(kernel: Kernel) -> None:
    [output] = outputs(kernel, "confusions")
    counts = shown_table(output)
    results = ResultsDir(kernel.folder / "audiocl-results")
    run_id = next(run_id for run_id in results.run_ids() if run_id.startswith("diagonal"))
    clips = results.predictions(run_id)
    assert counts.to_numpy().sum() == (clips["after_session"] == 4).sum()


@pytest.mark.slow
def test_an_edited_cell_makes_a_new_run_and_an_unchanged_one_does_not(kernel: Kernel) -> None:
    """Last of the tests of this kernel: it adds runs."""
    [cell] = [cell for cell in kernel.notebook.cells if cell.id == "method"]
    again = "audiocl.run(Diagonal, **{**where, 'orders': 0})['run_id'].tolist()"
    [before] = kernel.evaluate("mine['run_id'].tolist()[:1]")
    for source, same in (
        (cell.source, True),
        (f"{cell.source}\n\n\nUNUSED = 1", True),
        (cell.source.replace("clamp_min(1e-6)", "clamp_min(1e-5)"), False),
        (cell.source, True),
    ):
        kernel.execute(nbformat.v4.new_code_cell(source))
        [found] = kernel.evaluate(again)
        assert (found == before) is same, source
    assert len(ResultsDir(kernel.folder / "audiocl-results").run_ids()) == 7
