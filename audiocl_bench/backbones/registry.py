"""The backbones known by name, and `load` for names and paths.

A package offers networks of its own under the entry-point group `audiocl.backbones`. The entry point's name is what
`--backbone` takes; its value names a `Row`, or a function without arguments that returns one:

    [project.entry-points."audiocl.backbones"]
    bird-eat = "my_package:BIRD_EAT"

    # EAT, SSLAM or Whisper weights that are published on the Hugging Face hub need no code:
    BIRD_EAT = Row("bird-eat", "EAT base, fine-tuned on birds", eat.BASE, "someone/bird-eat", revision="<commit>")

    # Any other network brings a function that builds it:
    BIRD_NET = Row("bird-net", "...", page="https://...", build=build, numbers=4_000_000)

    def build(options: Options, file: Path | None) -> Backbone: ...

`build` gets the options of the user (pool, layer, frames) and the row's `file` from the hub, fetched and checked, or
None where the row names no hub repository (weights inside the package, or random ones). It returns a
`backbones.base.Backbone`: `super().__init__` gets the options as they are, and `front_end` is one of the two that
`audio.FrontEnd` knows. What comes back is checked, frozen and put in eval mode here.

A plugin that cannot be used takes nothing else with it: `load` says so in one sentence, `list_rows` in its row. Names
of our own cannot be taken over.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from torch import Tensor

from audiocl_bench.backbones import checkpoints, eat, whisper
from audiocl_bench.backbones.base import Backbone, Options, hash_weights
from audiocl_bench.errors import AudioclError, CheckpointError, ConfigError, unknown_name
from audiocl_bench.files import sha256_file

GROUP = "audiocl.backbones"
Build = Callable[[Options, Path | None], Backbone]
"""How a plugin makes its network; see the head of this module."""

IN_THE_BOX = "eat-mini"
"""The backbone that ships with audiocl: no download, and trained."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folders of the weights that ship with audiocl: weight file, config.json, model card."""

_RECIPE_SEED = 20260107
_NO_PIN = "no commit of this repository could be verified; the weights hash in every result tells versions apart"


@dataclass(frozen=True)
class Row:
    """One backbone that has a name.

    Attributes:
        name: what `--backbone` takes; a plugin's row gets the name of its entry point.
        title: what it is, in a few words.
        config: size of its network; the class tells which network. None where `build` makes it.
        hub: Hugging Face repository; empty for weights that are made here or only published elsewhere.
        revision: commit of that repository. "main" only where no commit could be verified (see `note`).
        sha256: expected hash of the file, where known: it pins the weights even at revision "main".
        page: where a person gets the file when it is not on the hub.
        note: why a row is not pinned, or what to know.
        file: name of the weight file in the repository.
        build: how a plugin makes a network that is neither EAT nor Whisper.
        numbers: how many numbers its tensors hold, where `build` is given.
        package: name and version of the package that a plugin's row comes from; empty for our own.
        problem: why a plugin cannot be used, one sentence; empty where it can.
        shipped: its weights are a folder of its name in `WEIGHTS`, in this package.
    """

    name: str
    title: str
    config: eat.EATConfig | whisper.WhisperConfig | None = None
    hub: str = ""
    revision: str = "main"
    sha256: str = ""
    page: str = ""
    note: str = ""
    file: str = "model.safetensors"
    build: Build | None = None
    numbers: int = 0
    package: str = ""
    problem: str = ""
    shipped: bool = False

    @property
    def network(self) -> str:
        """Return "eat" (SSLAM included), "whisper", or "own" for a plugin's network."""
        if self.config is None:
            return "own"
        return "eat" if isinstance(self.config, eat.EATConfig) else "whisper"

    @property
    def stand_in(self) -> bool:
        """True for random weights: neither shipped nor said to be trained by a repository or page."""
        return not (self.shipped or self.hub or self.page or self.problem)

    @property
    def source(self) -> str:
        """Return where the weights come from."""
        if self.shipped:
            return f"shipped with audiocl, sha256 {self.sha256[:12]}"
        if self.hub:
            return f"hf:{self.hub}@{self.revision}" + (f", read by {self.package}" if self.build else "")
        made = self.package or f"seed {_RECIPE_SEED}"
        if self.page:
            return f"{self.page}, in {self.package}" if self.build else self.page
        return made if self.problem else f"random weights ({made})"

    @property
    def parameters(self) -> int:
        """Count the numbers in the backbone's tensors: fixed positions included, heads and decoders not."""
        if self.config is None:
            return self.numbers
        if isinstance(self.config, eat.EATConfig):
            shapes = dict(eat.published_shapes(self.config))
            shapes["pos_embed"] = (1, eat.MAX_TIME_PATCHES * eat.MEL_PATCHES, self.config.dim)
        else:
            shapes = dict(whisper.published_shapes(self.config))
        return sum(math.prod(size or 0 for size in shape) for shape in shapes.values())


def _whisper(size: str, config: whisper.WhisperConfig, revision: str, sha256: str = "") -> Row:
    return Row(f"whisper-{size}", f"Whisper {size}, encoder", config, f"openai/whisper-{size}", revision, sha256)


# Where the pins come from. Whisper's commits: hub caches and pinned revisions in several unrelated public projects. The
# commits of the two fine-tuned EATs, the sha256 of whisper-base.en and those of EAT and SSLAM (spec/eat.md section 3):
# one public project each, so a mismatch may also mean that the pin is wrong. None was checked against the hub itself.
_ROWS = (
    Row(
        "eat-base",
        "EAT base, 30 epochs of self-supervised AudioSet",
        eat.BASE,
        "worstchan/EAT-base_epoch30_pretrain",
        sha256="8623072d09aac4f3ad1168b4fed3a24e4f68fe1da25b9fe733375efb237e5f48",
        note="pinned by the file's sha256: no commit of this repository could be verified",
    ),
    Row(
        "eat-base-epoch10",
        "EAT base, 10 epochs of self-supervised AudioSet (the EAT paper's)",
        eat.BASE,
        page="https://drive.google.com/file/d/10pklbY_fKraQUIBizSg1kv4lJXNWxpxl",
        note="published on Google Drive only (EAT-base_epoch10_pt.pt)",
    ),
    Row(
        "eat-base-finetuned",
        "EAT base, 30 epochs, then fine-tuned on AudioSet-2M labels",
        eat.BASE,
        "worstchan/EAT-base_epoch30_finetune_AS2M",
        "60d61e8b2e9e5ba3be6860285de80cb7d625ccbb",
        note="saw AudioSet's labels",
    ),
    Row(
        "eat-large",
        "EAT large, 20 epochs of self-supervised AudioSet",
        eat.LARGE,
        "worstchan/EAT-large_epoch20_pretrain",
        note=_NO_PIN,
    ),
    Row(
        "eat-large-finetuned",
        "EAT large, 20 epochs, then fine-tuned on AudioSet-2M labels",
        eat.LARGE,
        "worstchan/EAT-large_epoch20_finetune_AS2M",
        "53b1251196e3dabb991dfa7629fa89394c7f8335",
        note="saw AudioSet's labels",
    ),
    Row(
        "sslam-base",
        "SSLAM base, self-supervised on AudioSet and its mixtures",
        eat.BASE,
        "ta012/SSLAM_pretrain",
        sha256="8ec670adb241c710422ddd894ff1bade142ef0b25cf1ee68577aa45f89432298",
        note="pinned by the file's sha256: no commit of this repository could be verified",
    ),
    Row(
        "sslam-base-finetuned",
        "SSLAM base, then fine-tuned on AudioSet-2M labels",
        eat.BASE,
        "ta012/SSLAM_AS2M_Finetuned",
        note=f"saw AudioSet's labels; {_NO_PIN}",
    ),
    Row(
        IN_THE_BOX,
        "small EAT, pretrained by us: distilled from Whisper tiny.en on free sound",
        eat.MINI,
        sha256="03c13df75fccd0f1f9555119ddb952bdbfb58b64b09ee51b6f3d5e8dfed19c08",
        shipped=True,
        note="in the box; recipe: recipes/eat-mini.toml",
    ),
    _whisper("tiny.en", whisper.TINY, "87c7102498dcde7456f24cfd30239ca606ed9063"),
    _whisper("tiny", whisper.TINY, "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"),
    _whisper(
        "base.en",
        whisper.BASE,
        "911407f4214e0e1d82085af863093ec0b66f9cd6",
        "d4dd5542fd6a1d35639e21384238f3bfe6c557c849d392b5905d33ee29e71db5",
    ),
    _whisper("base", whisper.BASE, "e37978b90ca9030d5170a5c07aadb050351a65bb"),
    _whisper("small.en", whisper.SMALL, "e8727524f962ee844a7319d92be39ac1bd25655a"),
    _whisper("small", whisper.SMALL, "973afd24965f72e36ca33b3055d56a652f456b4d"),
    _whisper("medium", whisper.MEDIUM, "abdf7c39ab9d0397620ccaea8974cc764cd0953e"),
    Row("eat-tiny", "tiny EAT with random weights, for tests and demonstrations", eat.TINY),
    Row("whisper-tiny-random", "tiny Whisper encoder with random weights, for tests", whisper.TINY_RANDOM),
)
_BY_NAME = {row.name: row for row in _ROWS}


def names() -> tuple[str, ...]:
    """Return the names `load` knows: our own in the order of the catalogue, then those of plugins. Imports none."""
    return (*_BY_NAME, *_plugins())


def list_rows() -> tuple[Row, ...]:
    """Return the catalogue, plugins included; no weights are read. A plugin that cannot be used says so in its row."""
    return (*_ROWS, *map(_row_or_problem, _plugins()))


def cached(name: str) -> bool:
    """Tell whether a named backbone can be loaded without a download: shipped, made here, or in the hub's cache."""
    row = _BY_NAME.get(name) or _row_or_problem(name)
    if row.problem:
        return False
    return (
        row.stand_in
        or row.shipped
        or (row.build is not None and not row.hub)
        or (bool(row.hub) and isinstance(try_to_load_from_cache(row.hub, row.file, revision=row.revision), str))
    )


def _plugins() -> dict[str, EntryPoint]:
    """Return the entry points of outside backbones by name, in alphabetical order; our own names stay ours."""
    found = {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _BY_NAME}
    return dict(sorted(found.items()))


def _package(entry: EntryPoint) -> str:
    """Return name and version of the package that declares an entry point."""
    distribution = entry.dist
    if distribution is not None:
        return f"{distribution.name} {distribution.version}"
    return entry.value.partition(":")[0].partition(".")[0]


def _plugin_row(name: str) -> Row:
    """Import a plugin's row.

    Raises:
        ConfigError: it cannot be imported or is no proper `Row`; the sentence names the package.
    """
    entry = _plugins()[name]
    package = _package(entry)
    who = f"backbone {name} of package {package} ({entry.value})"
    mend = f"mend or uninstall {package}"
    try:
        found = entry.load()
        row = found() if callable(found) else found
    except (Exception, SystemExit) as cause:  # an outside package may fail in any way
        raise ConfigError(f"{who} cannot be imported ({_first_line(cause)}): {mend}.") from cause
    if not isinstance(row, Row):
        raise ConfigError(f"{who} is a {type(row).__name__}, not an audiocl_bench.backbones.Row: {mend}.")
    if (row.config is None) == (row.build is None):
        raise ConfigError(f"{who} needs a config (EAT or Whisper) or a build function, and not both: {mend}.")
    if row.config is not None and not row.hub:
        raise ConfigError(f"{who} has a config but no hub repository to get its weights from: {mend}.")
    return replace(row, name=name, package=package, problem="")


def _row_or_problem(name: str) -> Row:
    try:
        return _plugin_row(name)
    except ConfigError as error:
        title = f"CANNOT BE USED: {str(error).rstrip('.')}"
        return Row(name, title, package=_package(_plugins()[name]), problem=str(error))


def _first_line(cause: BaseException) -> str:
    first = (str(cause).splitlines() or [""])[0].rstrip(".")
    return f"{type(cause).__name__}: {first}" if first else type(cause).__name__


def _built(row: Row, options: Options, file: Path | None) -> Backbone:
    """Let a plugin build its network, and check what comes back with one silent clip.

    Raises:
        ConfigError: an option does not fit, as the network says, or what was built is no usable backbone.
        CheckpointError: the plugin raised an error.
    """
    assert row.build is not None
    who = f"backbone {row.name} of package {row.package}"
    try:
        network = row.build(options, file)
    except AudioclError:  # pool, layer or frames, or a weight file: the sentence is for the user
        raise
    except (Exception, SystemExit) as cause:
        raise CheckpointError(
            f"{who} cannot be built ({_first_line(cause)}): tell its authors, or choose another backbone."
        ) from cause
    if not isinstance(network, Backbone):
        raise ConfigError(f"{who} built a {type(network).__name__}, not an audiocl_bench.backbones.Backbone.")
    network.name, network.source, network.stand_in = options.name, options.source, options.stand_in
    network.requires_grad_(False)
    network.eval()
    network.weights_hash = network.weights_hash or hash_weights(network.state_dict())
    front_end = network.front_end
    try:
        with torch.no_grad():
            features = network.features(torch.zeros(1, front_end.frames, front_end.n_mels))
    except Exception as cause:
        raise ConfigError(f"{who} fails on a silent clip ({_first_line(cause)}): tell its authors.") from cause
    network.passes.clips = network.passes.block_runs = 0
    if features.shape != (1, network.dim) or not bool(features.isfinite().all()):
        raise ConfigError(
            f"{who} gives features of shape {list(features.shape)} for one silent clip, but {[1, network.dim]} finite "
            "numbers are needed: tell its authors."
        )
    if len(network.blocks) != network.depth:
        raise ConfigError(f"{who} says it has {network.depth} blocks and has {len(network.blocks)}: tell its authors.")
    return network


def load(
    spec: str,
    *,
    pool: str | None = None,
    layer: int | None = None,
    frames: int | None = None,
    allow_download: bool = True,
) -> Backbone:
    """Load a frozen backbone by name, or from a weight file or folder (EAT, SSLAM or Whisper; see `checkpoints`).

    Args:
        spec: a name of `names()`, or a path. A name wins; write ./name for a path of the same spelling.
        pool: "cls" (EAT's default) or "mean" (Whisper's default and only one).
        layer: number of blocks that feed the head, 1..depth; default all.
        frames: input length in 10 ms rows (EAT: a multiple of 16, default 1024; Whisper: of 2, default 3000).
        allow_download: fetch missing weights from the Hugging Face hub; False uses its local cache only.

    Raises:
        UnknownNameError: neither a name nor an existing path.
        CheckpointError: weights cannot be fetched, are broken or belong to another network.
        ConfigError: pool, layer or frames does not fit the network, or a plugin cannot be used.
    """
    row = _BY_NAME.get(spec)
    if row is None and spec in _plugins():
        row = _plugin_row(spec)
    if row is None:
        path = Path(spec).expanduser()
        if not path.exists() and not _reads_like_a_path(spec):
            raise unknown_name(
                "backbone", spec, names(), hint="`audiocl list backbones` shows all; a path to weights works too."
            )
        name = path.resolve().name if path.is_dir() else path.stem
        return checkpoints.load_file(path, Options(name, str(path), pool, layer, frames))
    options = Options(row.name, row.source, pool, layer, frames, row.stand_in)
    if row.build is not None:
        return _built(row, options, _fetch(row, allow_download=allow_download) if row.hub else None)
    assert row.config is not None
    if row.shipped:
        return checkpoints.load_file(_shipped(row), options, row.config)
    if not row.stand_in:
        return checkpoints.load_file(_fetch(row, allow_download=allow_download), options, row.config)
    if isinstance(row.config, eat.EATConfig):
        return eat.build(row.config, eat.random_weights(row.config, draw_weight), options)
    return whisper.build(row.config, whisper.random_weights(row.config, draw_weight), options)


def draw_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw the random tensor `name`: equal for equal names and shapes, on every machine.

    RandomState seeded by the name's CRC-32, not `audiocl_bench.seeding`: the recipe is that of the EAT oracle, so that
    the tiny EAT made here equals the tiny checkpoint written by the official classes.
    """
    seed = (zlib.crc32(name.encode()) ^ _RECIPE_SEED) & 0xFFFFFFFF
    z = np.random.RandomState(seed).standard_normal(math.prod(shape)).reshape(shape)
    if name == "cls_token":
        values = 0.5 * z
    elif name.endswith(".bias"):
        values = 0.05 * z
    elif "norm" in name.split(".")[-2]:
        values = 1.0 + 0.1 * z
    else:
        values = z / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def _reads_like_a_path(spec: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(separator in spec for separator in separators) or spec.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _shipped(row: Row) -> Path:
    """Return the folder of weights that came with the package, the file's hash checked.

    Raises:
        CheckpointError: the file is missing or is not the one that was shipped.
    """
    path = WEIGHTS / row.name / row.file
    if not path.is_file() or sha256_file(path) != row.sha256:
        raise CheckpointError(
            f"{path}, which came with audiocl, is {'changed' if path.is_file() else 'missing'}: install audiocl again."
        )
    return path.parent


def _fetch(row: Row, *, allow_download: bool) -> Path:
    """Return the row's weight file in the Hugging Face cache, downloaded where needed and its hash checked."""
    if not row.hub:
        raise CheckpointError(
            f"backbone {row.name} cannot be downloaded automatically: get it from {row.page} by hand and pass "
            "`--backbone PATH`."
        )
    address = f"https://huggingface.co/{row.hub}/resolve/{row.revision}/{row.file}"
    try:
        path = Path(hf_hub_download(row.hub, row.file, revision=row.revision, local_files_only=not allow_download))
    except Exception as cause:  # network, proxy, hub and disk errors come as a dozen unrelated classes
        why = "is not in the local cache" if not allow_download else f"could not be fetched ({type(cause).__name__})"
        raise CheckpointError(
            f"backbone {row.name} {why}: download {address} by hand and pass `--backbone PATH`, or take "
            f"`--backbone {IN_THE_BOX}`, which came with audiocl."
        ) from cause
    if row.sha256 and sha256_file(path) != row.sha256:
        raise CheckpointError(
            f"{path} is not the pinned {row.name} (its sha256 should start with {row.sha256[:12]}): delete it from the "
            f"cache and fetch it again, or pass `--backbone PATH` to use it under its own name."
        )
    return path
