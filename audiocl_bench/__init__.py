"""Core of audiocl: streams in, methods learn session by session, every prediction is written down.

The core knows no method by name; methods live in `audiocl_methods` (folder `methods/`) and in outside plugins.

    import audiocl_bench as audiocl

    audiocl.run(method="ncm,ranpac", bench="us8k", data="mini", backbone="eat-mini")
    audiocl.load_results().sessions
    audiocl.benchmarks["esc50"].describe()

These names are loaded when they are used: `audiocl --help` must not wait for torch.
"""

import sys as _sys
import warnings as _warnings
from contextlib import suppress as _suppress
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from audiocl_bench.errors import AudioclError

if _TYPE_CHECKING:
    from audiocl_bench import backbones, benchmarks
    from audiocl_bench.api import Results, load_results, methods, plot, run, table

__version__ = "0.1.0"
__all__ = [
    "AudioclError",
    "Results",
    "__version__",
    "backbones",
    "benchmarks",
    "load_results",
    "methods",
    "plot",
    "run",
    "table",
]


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        raise AttributeError(f"module 'audiocl_bench' has no attribute '{name}'")
    _import_tqdm()
    if name in ("backbones", "benchmarks"):
        return _import_module(f"audiocl_bench.{name}")  # which puts it into this package
    value = globals()[name] = getattr(_import_module("audiocl_bench.api"), name)
    return value


def _import_tqdm() -> None:
    """Let tqdm, which libraries import, not complain in a notebook without ipywidgets: our progress needs none."""
    if "IPython" in _sys.modules:
        with _warnings.catch_warnings(), _suppress(ImportError):
            _warnings.simplefilter("ignore")
            _import_module("tqdm.auto")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
