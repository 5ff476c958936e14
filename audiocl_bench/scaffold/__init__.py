"""Write the beginning of a method plugin or of a benchmark of one's own: complete, and running as it is.

The templates are text files beside this one, filled by `string.Template`. A folder appears whole or not at all, and
nothing that exists is ever overwritten.
"""

from __future__ import annotations

import keyword
import os
import re
import shutil
import string
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from audiocl_bench import files, registry
from audiocl_bench.errors import AudioclError, ConfigError

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_LONGEST = 40
_TAKEN_PACKAGES = ("bench", "methods")  # audiocl_bench and audiocl_methods are ours


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: the new folder.
        paths: its files, relative to it, in alphabetical order; of sounds only their folders.
        facts: names that the templates were filled with.
    """

    folder: Path
    paths: tuple[str, ...]
    facts: Mapping[str, str]


def new_method(name: str, out: Path) -> Written:
    """Write a pip-installable plugin with one working method into the new folder `out/name`.

    Args:
        name: what `--method` will take: small letters, digits and single hyphens, beginning with a letter.
        out: folder in which the new one is made; made too if it is not there.

    Raises:
        ConfigError: the name cannot be used, or there is something at `out/name` already.
        AudioclError: the folder cannot be written.
    """
    _check_name(name)
    if name in registry.names():
        raise ConfigError(f"there is a method '{name}' already (audiocl list methods): choose another name.")
    package = f"audiocl_{name.replace('-', '_')}"
    if package.removeprefix("audiocl_") in _TAKEN_PACKAGES:
        raise ConfigError(f"a package {package} is part of audiocl itself: choose another name than '{name}'.")
    facts = {
        "name": name,
        "distribution": f"audiocl-{name}",
        "package": package,
        "class_name": _class_name(name),
    }
    return _write(out / name, facts, _method_files)


def new_benchmark(name: str, out: Path) -> Written:
    """Write a benchmark described in TOML, with sample sounds that it runs on, into the new folder `out/name`.

    Args:
        name: what the benchmark is called: as for `new_method`.
        out: folder in which the new one is made; made too if it is not there.

    Raises:
        ConfigError: the name cannot be used, or there is something at `out/name` already.
        AudioclError: the folder cannot be written.
    """
    from audiocl_bench import benchmarks

    _check_name(name)
    if name in (*benchmarks.names(), *benchmarks.mini_names()):
        raise ConfigError(f"there is a benchmark '{name}' already (audiocl list benchmarks): choose another name.")
    return _write(out / name, {"name": name}, _benchmark_files)


def _check_name(name: str) -> None:
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) and len(name) <= _LONGEST:
        if keyword.iskeyword(name):
            raise ConfigError(f"'{name}' is a word of Python: choose another name, for example my-{name}.")
        return
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower())
    while words and not words[0][0].isalpha():
        words = [words[0].lstrip("0123456789"), *words[1:]] if words[0].lstrip("0123456789") else words[1:]
    near = "-".join(words)[:_LONGEST].strip("-")
    hint = f", for example {near}" if near and near != name else ""
    raise ConfigError(
        f"'{name}' cannot be a name: use small letters, digits and single hyphens, beginning with a letter, at most "
        f"{_LONGEST} in all{hint}."
    )


def _class_name(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("-"))


def _write(folder: Path, facts: Mapping[str, str], fill: Callable[[Path, Mapping[str, str]], None]) -> Written:
    """Fill a temporary folder beside `folder` and move it into place."""
    folder = folder.expanduser()
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigError(
            f"{folder} exists already, and nothing is overwritten: choose another name or another --out folder."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as cause:
        raise AudioclError(files.explain_os_error(cause, folder)) from cause
    try:
        fill(temporary, facts)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(folder)  # onto nothing, or onto an empty folder; anything else is refused by the system
    except OSError as cause:
        raise AudioclError(files.explain_os_error(cause, folder)) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = dict.fromkeys(f"{p.parent.as_posix()}/" if p.suffix == ".wav" else p.as_posix() for p in found)
    return Written(folder, tuple(shown), dict(facts))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _method_files(folder: Path, facts: Mapping[str, str]) -> None:
    for template, target in (
        ("pyproject.toml.txt", "pyproject.toml"),
        ("README.md.txt", "README.md"),
        ("package.py.txt", f"{facts['package']}/__init__.py"),
        ("method.py.txt", f"{facts['package']}/method.py"),
        ("test.py.txt", f"tests/test_{facts['package']}.py"),
        ("gitignore.txt", ".gitignore"),
    ):
        _fill(f"method/{template}", folder / target, facts)


def _benchmark_files(folder: Path, facts: Mapping[str, str]) -> None:
    from audiocl_bench.scaffold import sounds

    _fill("benchmark/benchmark.toml.txt", folder / f"{facts['name']}.toml", facts)
    _fill("benchmark/README.md.txt", folder / "README.md", facts)
    sounds.write(folder / "audio")


def _fill(template: str, target: Path, facts: Mapping[str, str]) -> None:
    text = string.Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(facts)
    files.write_text(target, text)
