"""A pre-training recipe: one TOML file with the tables [model], [audio], [objective], [optimiser] and [run].

[audio] describes the data and is read by `audiocl_bench.pretrain.pack`; the other four are the frozen dataclasses here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from audiocl_bench import config
from audiocl_bench.backbones.eat import PATCH, EATConfig
from audiocl_bench.config import MethodConfig, setting
from audiocl_bench.errors import AudioclError, ConfigError, UnknownNameError, unknown_name

T = TypeVar("T", bound=MethodConfig)

_EAT = "EAT, spec/eat.md section 2"
_OURS = "our choice"


@dataclass(frozen=True)
class ModelConfig(MethodConfig):
    """Table [model]: size of the network. The defaults have 3.69 M parameters, 7.4 MB in float16.

    Raises:
        ConfigError: the width fits neither the heads nor the positions, or a value is out of range.
    """

    dim: int = setting(224, _OURS, unit="token width", low=8, high=4096)
    depth: int = setting(6, _OURS, unit="blocks", low=1, high=96)
    heads: int = setting(7, _OURS, unit="attention heads", low=1, high=256)
    mlp_ratio: float = setting(4.0, _EAT, unit="MLP width / token width", low=0.25, high=16.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ConfigError(f"dim = {self.dim} is not a multiple of heads = {self.heads}.")
        if self.dim % 4:
            raise ConfigError(f"dim = {self.dim} is not a multiple of 4, as the positions need.")

    @property
    def network(self) -> EATConfig:
        """The size as the backbone's own code takes it."""
        return EATConfig(self.dim, self.depth, self.heads, self.mlp_ratio)


@dataclass(frozen=True)
class ObjectiveConfig(MethodConfig):
    """Table [objective]: EAT's masked prediction, distillation of a teacher's layers, how they mix, and augmentation.

    `eat_share` and `distil_share` are the shares of steps that take each objective, spread evenly; their sum is at
    least 1, and what exceeds 1 is the share of steps that take both. `distil_share` None is 1 - `eat_share`.

    `student_layers`, `teacher_layers` and `layer_weights` go together: the tokens after student block k predict teacher
    layer j (0: the stem, k: after block k), with that weight.

    Raises:
        ConfigError: shares below 1 in sum, lists of different lengths, a value out of range.
    """

    eat_share: float = setting(0.1, _OURS, unit="share of steps", low=0.0, high=1.0)
    distil_share: float | None = setting(None, _OURS, unit="share of steps", low=0.0, high=1.0)

    mask_ratio: float = setting(0.8, _EAT, unit="share of patches", low=0.05, high=0.95)
    mask_block: int = setting(5, _EAT, unit="patches per side of a visible block", low=1, high=8)
    clones: int = setting(8, "EAT takes 16; a CPU gains from fewer", unit="masked copies per clip", low=1, high=64)
    ema_decay: float = setting(0.999, "EAT: 0.9998, for runs of 400,000 steps", low=0.0, high=1.0)
    ema_end_decay: float = setting(0.9999, "EAT: 0.99999", low=0.0, high=1.0)
    ema_anneal: float = setting(0.5, "EAT: a quarter of its steps", unit="share of steps", low=0.0, high=1.0)
    decoder_layers: int = setting(4, "EAT: 6", low=1, high=12)
    decoder_dim: int = setting(112, "EAT: the token width", low=8, high=4096)
    decoder_kernel: int = setting(3, _EAT, unit="patches", low=1, high=15)
    decoder_groups: int = setting(7, "EAT: 16 groups of 48 channels; here 7 of 16", low=1, high=256)
    decoder_noise: float = setting(0.01, "data2vec 2.0", unit="standard deviation of masked cells", low=0.0, high=1.0)
    eat_frame_weight: float = setting(1.0, _EAT, low=0.0, high=1e3)
    eat_class_weight: float = setting(1.0, _EAT, low=0.0, high=1e3)

    student_layers: tuple[int, ...] = setting((2, 4, 6), _OURS, unit="block whose output predicts", low=1)
    teacher_layers: tuple[int, ...] = setting((1, 2, 4), _OURS, unit="layer predicted, 0 is the stem", low=0)
    layer_weights: tuple[float, ...] = setting((1.0, 1.0, 1.0), _OURS, low=0.0, high=1e3)
    distil_frame_weight: float = setting(1.0, _OURS, low=0.0, high=1e3)
    distil_class_weight: float = setting(1.0, _OURS, low=0.0, high=1e3)
    cosine_weight: float = setting(1.0, "after DistilHuBERT, which adds a cosine term", low=0.0, high=1e3)
    hide: float = setting(0.0, _OURS, unit="share of patches the student never sees", low=0.0, high=0.95)
    hide_until: float = setting(1.0, _OURS, unit="share of steps that hide", low=0.0, high=1.0)
    padding_seen: float = setting(
        1.0, "a frozen backbone sees its padding too", unit="share of clips whose padding is seen", low=0.0, high=1.0
    )

    gain_db: float = setting(6.0, _OURS, unit="dB, up or down", low=0.0, high=40.0)
    crop: float = setting(0.2, _OURS, unit="largest share of a clip that is cut away", low=0.0, high=0.9)
    time_mask: float = setting(0.1, _OURS, unit="largest share of rows", low=0.0, high=1.0)
    freq_mask: float = setting(0.1, _OURS, unit="largest share of mel bins", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eat_share + self.distils < 1 - 1e-9:
            raise ConfigError(
                f"eat_share = {self.eat_share} and distil_share = {self.distil_share} leave steps without any: "
                "make their sum at least 1."
            )
        lengths = {len(self.student_layers), len(self.teacher_layers), len(self.layer_weights)}
        if len(lengths) != 1:
            raise ConfigError("student_layers, teacher_layers and layer_weights are not equally long.")
        if self.distils > 0 and not sum(self.layer_weights) > 0:
            raise ConfigError("layer_weights holds no weight above 0, but distil_share asks for distillation.")
        if self.decoder_dim % self.decoder_groups:
            raise ConfigError(
                f"decoder_dim = {self.decoder_dim} is not a multiple of decoder_groups = {self.decoder_groups}."
            )
        if self.decoder_kernel % 2 == 0:
            raise ConfigError(
                f"decoder_kernel = {self.decoder_kernel} is even, but the grid keeps its size with odd ones."
            )

    @property
    def distils(self) -> float:
        """Share of steps that distil."""
        return 1.0 - self.eat_share if self.distil_share is None else self.distil_share


@dataclass(frozen=True)
class OptimiserConfig(MethodConfig):
    """Table [optimiser]: AdamW with a linear warm-up and a cosine, both by step and never by the clock."""

    lr: float = setting(1e-3, _OURS, low=0.0, high=1.0)
    lr_end: float = setting(0.01, _OURS, unit="share of lr at the last step", low=0.0, high=1.0)
    warmup: float = setting(0.05, "EAT: 0.13 of its steps", unit="share of steps", low=0.0, high=1.0)
    beta1: float = setting(0.9, _EAT, low=0.0, high=0.9999)
    beta2: float = setting(0.98, "EAT: 0.95", low=0.0, high=0.99999)
    eps: float = setting(1e-6, "EAT", low=0.0, high=1.0)
    weight_decay: float = setting(0.05, _EAT, unit="not on norms, biases and the class token", low=0.0, high=10.0)
    clip: float = setting(1.0, _OURS, unit="largest norm of the gradient", low=1e-6, high=1e6)


@dataclass(frozen=True)
class RunConfig(MethodConfig):
    """Table [run]: length, batches, precision, and how often something is written.

    `buckets` are input lengths in 10 ms rows: a clip is padded to the first that holds it, or cut to the last one.
    `tokens` patches of a step give a bucket's batch size, and `eat_tokens` that of a step with EAT's objective (every
    clip counts once, however many clones it has).

    Raises:
        ConfigError: buckets that are no rising multiples of 16, a batch without a clip, a value out of range.
    """

    name: str = setting("eat-mini", _OURS)
    steps: int = setting(6000, _OURS, low=1, high=10**8)
    seed: int = setting(0, _OURS, low=0, high=2**31)
    buckets: tuple[int, ...] = setting((112, 208, 512), _OURS, unit="rows of 10 ms", low=PATCH)
    tokens: int = setting(4096, _OURS, unit="patches per step", low=1, high=10**7)
    eat_tokens: int = setting(2048, _OURS, unit="patches per step", low=1, high=10**7)
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "bfloat16 on CUDA, float32 on a CPU")
    compile: Literal["auto", "yes", "no"] = setting("auto", "yes on CUDA, no on a CPU")
    log_every: int = setting(20, _OURS, unit="steps per row of the loss curve", low=1, high=10**6)
    checkpoint_minutes: float = setting(10.0, _OURS, low=0.0, high=1e4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.buckets or any(size % PATCH for size in self.buckets):
            raise ConfigError(f"buckets = {list(self.buckets)} are not multiples of {PATCH} rows.")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"buckets = {list(self.buckets)} do not rise from each to the next.")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        model, objective, optimiser, run: the tables.
        audio: table [audio] as it stands in the file.
        path: the file, for messages.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    optimiser: OptimiserConfig
    run: RunConfig
    audio: Mapping[str, Any]
    path: str = "recipe"

    def __post_init__(self) -> None:
        """Refuse layers that the network does not have (ConfigError)."""
        beyond = [layer for layer in self.objective.student_layers if layer > self.model.depth]
        if beyond and self.objective.distils > 0:
            raise ConfigError(
                f"{self.path}, table [objective]: student_layers names block {beyond[0]}, but [model] has "
                f"depth = {self.model.depth}."
            )

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return all that decides the weights, by table, as plain values; how often something is written does not."""
        tables = {name: getattr(self, name).as_dict() for name in ("model", "objective", "optimiser", "run")}
        for name in ("name", "log_every", "checkpoint_minutes"):
            del tables["run"][name]
        return tables


_TABLES: dict[str, type[MethodConfig]] = {
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "optimiser": OptimiserConfig,
    "run": RunConfig,
}


def read(path: Path, *, steps: int | None = None, precision: str | None = None) -> Recipe:
    """Read a recipe file; tables that are missing take their defaults.

    Args:
        path: TOML file.
        steps, precision: replace those of table [run].

    Raises:
        ConfigError: no such file, no TOML, or a value that does not fit; names file, table and field.
        UnknownNameError: an unknown table or field; the nearest names are listed.
    """
    tables: dict[str, dict[str, Any]] = {name: {} for name in (*_TABLES, "audio")}
    for key, value in config.read_file(path).items():
        table, dot, field = key.partition(".")
        if not dot:
            raise ConfigError(f"{path}: '{key}' stands outside the tables [{'], ['.join(tables)}]: move it into one.")
        if table not in tables:
            raise unknown_name(f"table of {path}", table, tables)
        tables[table][field] = value
    given = {"steps": steps, "precision": precision}
    tables["run"] |= {name: value for name, value in given.items() if value is not None}
    built = {name: _table(cls, tables[name], f"{path}, table [{name}]") for name, cls in _TABLES.items()}
    return Recipe(**built, audio=tables["audio"], path=str(path))  # type: ignore[arg-type]


def _table(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise unknown_name(f"setting in {where}:", name, known)
    try:
        return config.build(cls, "", values, owner=where)
    except UnknownNameError:
        raise
    except AudioclError as error:
        raise ConfigError(f"{where}: {error}") from error


def takes(objective: ObjectiveConfig, step: int) -> tuple[bool, bool]:
    """Tell whether a zero-based step takes EAT's objective, and whether it distils; shares are spread evenly."""
    eat = _evenly(step, objective.eat_share)
    if not eat:
        return False, True
    both = objective.eat_share + objective.distils - 1.0
    turn = math.floor(step * objective.eat_share + 1e-9)  # EAT steps before this one
    return True, _evenly(turn, both / objective.eat_share)


def _evenly(index: int, share: float) -> bool:
    """Tell whether the count of chosen indices, floor(share * n), rises at `index`."""
    # The small number keeps shares such as 0.1, which binary fractions miss, from losing a turn.
    return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)


def rate(optimiser: OptimiserConfig, step: int, steps: int) -> float:
    """Return the learning rate of a zero-based step.

    With W = round(warmup * steps): lr (step + 1) / W while step < W, then lr (e + (1 - e) (1 + cos(pi x)) / 2) with
    x = (step - W) / max(1, steps - 1 - W) and e = `lr_end`, so that the last step takes e * lr.
    """
    warm = round(optimiser.warmup * steps)
    if step < warm:
        return optimiser.lr * (step + 1) / warm
    x = (step - warm) / max(1, steps - 1 - warm)
    return optimiser.lr * (optimiser.lr_end + (1 - optimiser.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))


def ema_decay(objective: ObjectiveConfig, step: int, steps: int) -> float:
    """Return the EMA decay of a zero-based step: linear from `ema_decay` to `ema_end_decay`, then constant."""
    anneal = objective.ema_anneal * steps
    x = min(1.0, step / anneal) if anneal > 0 else 1.0
    return objective.ema_decay + (objective.ema_end_decay - objective.ema_decay) * x
