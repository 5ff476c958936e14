"""Read weight files without trusting them: safetensors, and zipped PyTorch files whose pickles cannot run code.

Published layouts: spec/eat.md section 3. Nothing here imports fairseq, omegaconf or a model repository's remote code.
"""

from __future__ import annotations

import collections
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiocl_bench.backbones import eat, whisper
from audiocl_bench.backbones.base import Backbone, Options, Shapes
from audiocl_bench.errors import CheckpointError

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_HEAD_WIDTH = 64
"""Head width of every published EAT, SSLAM and Whisper: the number of heads leaves no trace in tensor shapes."""

_MARKS: tuple[tuple[str, str], ...] = (
    ("local_encoder.proj.weight", "an EAT or SSLAM"),
    ("embed_positions.weight", "a Whisper (Hugging Face layout)"),
    ("encoder.positional_embedding", "a Whisper in OpenAI's own layout (use the Hugging Face one)"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("feature_extractor.conv_layers", "a wav2vec 2.0 or HuBERT"),
    ("grep_linear", "a BEATs"),
    ("audio_spectrogram_transformer", "an AST"),
    ("audio_branch", "a CLAP"),
    ("word_embeddings", "a text model"),
    ("patch_embed.proj", "another vision or audio transformer"),
)


@dataclass(frozen=True)
class WeightFile:
    """An opened weight file.

    Attributes:
        path: the file.
        shapes: shape of every floating-point tensor by the name it has in the file.
        read: return one of them as the file holds it.
        config: the JSON object of the config.json beside it, if any.
        num_heads: number of attention heads told inside the file (fairseq's `cfg`), if any.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    config: Mapping[str, Any] | None = None
    num_heads: int | None = None

    @property
    def looks_like(self) -> str:
        """Name the network these tensors most resemble, for error messages."""
        for mark, network in _MARKS:
            if any(mark in name for name in self.shapes):
                return network
        return f"an unknown network (its first tensor is '{min(self.shapes)}')"


def open_weights(path: Path) -> WeightFile:
    """Open a weight file, or the one in a folder (with its config.json), without running anything in it.

    Raises:
        CheckpointError: no such path, no weight file there, a broken or truncated file, an unknown format, no tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the path of a weight file or of a folder that holds one.")
    file = _weight_file_in(path) if path.is_dir() else path
    described = path.is_dir() or path.name in _WEIGHT_FILES  # any other file need not be the one config.json is about
    config = _read_config(file.parent / "config.json") if described else None
    try:
        with file.open("rb") as handle:
            head = handle.read(512)
    except OSError as cause:
        raise CheckpointError(f"{file} cannot be read ({cause.strerror or cause}): check the file.") from cause
    if head.startswith(b"PK"):
        opened = _open_torch(file, config)
    elif head[8:9] == b"{":
        opened = _open_safetensors(file, config)
    elif head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the weights: fetch the file itself with `git lfs pull`."
        )
    else:
        raise CheckpointError(
            f"{file} is neither a safetensors file nor a zipped PyTorch checkpoint"
            f"{' (it is empty)' if not head else ''}: download it again."
        )
    if not opened.shapes:
        raise CheckpointError(f"{file} holds no weight tensors: it is not a model checkpoint.")
    return opened


def _weight_file_in(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.suffix in _WEIGHT_SUFFIXES)
    if len(found) != 1:
        listed = ", ".join(entry.name for entry in found) or "none"
        raise CheckpointError(
            f"{folder} should hold {' or '.join(_WEIGHT_FILES)} or one weight file ({listed} found): "
            "give the path of the file itself."
        )
    return found[0]


def _read_config(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{path} is not valid JSON ({cause}): download it again.") from cause
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object: download it again.")
    return config


def _open_safetensors(path: Path, config: Mapping[str, Any] | None) -> WeightFile:
    try:
        file = safe_open(str(path), framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError) as cause:
        raise CheckpointError(
            f"{path} is a broken or truncated safetensors file ({cause}): download it again."
        ) from cause
    return WeightFile(path, shapes, file.get_tensor, config)


def _open_torch(path: Path, config: Mapping[str, Any] | None) -> WeightFile:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is a truncated PyTorch checkpoint: download it again.")
    content = _unpickle(path)
    cfg = content.get("cfg") if isinstance(content, Mapping) else None
    if isinstance(content, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no table of tensors: it is not a model checkpoint.")
    # `_ema` (the teacher, a dict of tensors) and counters fall away here: only the student's weights are tensors.
    tensors = {
        str(name): value for name, value in content.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return WeightFile(path, shapes, tensors.__getitem__, config, _fairseq_heads(cfg))


def _fairseq_heads(cfg: Any) -> int | None:
    """Find `num_heads` in a fairseq config: under `model`, or in the pre-training config quoted there."""
    model = cfg.get("model") if isinstance(cfg, Mapping) else None
    while isinstance(model, Mapping):
        heads = model.get("num_heads")
        if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0:
            return heads
        quoted = model.get("pretrained_model_args") or model.get("w2v_args")
        model = quoted.get("model", quoted) if isinstance(quoted, Mapping) else None
    return None


def _unpickle(path: Path) -> Any:
    """Load a zipped PyTorch file: torch's own safe loader first, else one that turns every foreign object inert."""
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as cause:
        raise CheckpointError(f"{path} is a broken PyTorch checkpoint ({cause}): download it again.") from cause
    if scripted:  # torch.load would hand these to the TorchScript interpreter, which does run code
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint: use the weights it was made from.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice about pickles is for those who call it directly
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            pass  # fine-tuned fairseq files carry NumPy scalars, enums and configs that the safe loader refuses
        except Exception as cause:  # a hostile or cut file may fail anywhere inside torch
            raise _broken(path, cause) from cause
        try:
            return torch.load(path, map_location="cpu", weights_only=False, mmap=True, pickle_module=_inert_pickle())
        except Exception as cause:
            raise _broken(path, cause) from cause


def _broken(path: Path, cause: Exception) -> CheckpointError:
    first_line = (str(cause).splitlines() or [""])[0][:200]
    return CheckpointError(
        f"{path} is a broken PyTorch checkpoint ({type(cause).__name__}: {first_line}): download it again."
    )


def _inert_pickle() -> Any:
    """Return a stand-in for the pickle module whose unpickler can make tensors and plain containers, nothing else.

    Every name outside the allow-list becomes a fresh empty class that swallows whatever the file does to it. Classes
    and functions are made per call, so a file cannot leave changes behind on them either.
    """

    class Inert:
        """Takes the place of any object that is not a tensor or a plain container."""

        def __new__(cls, *args: object, **kwargs: object) -> Inert:
            return super().__new__(cls)

        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def __call__(self, *args: object, **kwargs: object) -> Inert:
            return self

        def __setstate__(self, state: object) -> None:
            pass

        def __setitem__(self, key: object, value: object) -> None:
            pass

        def append(self, value: object) -> None:
            pass

        def extend(self, values: object) -> None:
            pass

        def add(self, value: object) -> None:
            pass

    def rebuild_tensor(*args: Any) -> Tensor:
        return torch._utils._rebuild_tensor_v2(*args)

    def rebuild_parameter(data: Tensor, *_: object) -> Tensor:
        return data

    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "Size"): torch.Size,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    }

    class Unpickler(pickle.Unpickler):
        """Resolves the allow-list; torch resolves its own `*Storage` names before it asks."""

        def find_class(self, module: str, name: str, /) -> Any:
            return allowed.get((module, name), Inert)

    def load(*_: object, **__: object) -> Any:
        raise pickle.UnpicklingError("not a zipped PyTorch file")

    return SimpleNamespace(Unpickler=Unpickler, load=load, UnpicklingError=pickle.UnpicklingError, __name__="inert")


def collect(file: WeightFile, expected: Shapes, clean: Callable[[str], str | None], network: str) -> dict[str, Tensor]:
    """Return every expected tensor in float32 under its clean name, having checked that the file fits exactly.

    Args:
        file: an opened weight file.
        expected: shape of every tensor by clean name.
        clean: maps a name in the file to a clean one, or to None where the tensor is not part of the backbone.
        network: what is wanted, for error messages ("EAT").

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped, doubled or not finite; names file and tensor.
    """
    place: dict[str, str] = {}
    for name in sorted(file.shapes):
        target = clean(name)
        if target is None:
            continue
        if target in place:
            raise CheckpointError(
                f"{file.path} holds '{target}' twice ('{place[target]}' and '{name}'): download it again."
            )
        place[target] = name
    missing, unexpected = sorted(set(expected) - set(place)), sorted(set(place) - set(expected))
    if missing or unexpected:
        told = " and ".join(
            f"{what} tensor '{names[0]}'" + (f" ({len(names) - 1} more)" if len(names) > 1 else "")
            for what, names in (("lacks", missing), ("has the unexpected", [place[name] for name in unexpected]))
            if names
        ).replace("lacks tensor", "lacks the tensor")
        raise CheckpointError(f"{file.path} {told}, so it is no {network}: it looks like {file.looks_like}.")
    for name, shape in expected.items():
        found = file.shapes[place[name]]
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{file.path}: tensor '{place[name]}' is {list(found)} where this {network} needs [{wanted}]: "
                "choose the backbone that the file belongs to."
            )
    return {name: _float32(file, place[name]) for name in expected}


def _float32(file: WeightFile, name: str) -> Tensor:
    try:
        # A copy, so that nothing depends on the file once it is read (its pages may be memory-mapped).
        value = file.read(name).detach().to(torch.float32, copy=True).contiguous()
    except (SafetensorError, RuntimeError, OSError) as cause:
        raise CheckpointError(f"{file.path}: tensor '{name}' cannot be read ({cause}): download it again.") from cause
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{file.path}: tensor '{name}' holds values that are not finite: download it again.")
    return value


def detect(file: WeightFile) -> eat.EATConfig | whisper.WhisperConfig:
    """Tell which network, and of what size, a weight file holds: by its config.json, else by its tensors.

    Raises:
        CheckpointError: neither an EAT (or SSLAM) nor a Whisper encoder, or a variant that was never published.
    """
    if file.config is not None and "model_type" in file.config:
        kind = file.config["model_type"]
        if kind not in ("eat", "whisper"):
            raise CheckpointError(
                f"{file.path.parent / 'config.json'}: model_type '{kind}' is not supported: use an EAT, SSLAM or "
                "Whisper."
            )
        return _eat_from_config(file) if kind == "eat" else _whisper_from_config(file)
    clean_eat = _by_clean_name(file, eat.clean_name)
    if "patch_embed.proj.weight" in clean_eat and "pre_norm.weight" in clean_eat:
        return _eat_from_tensors(file, clean_eat)
    clean_whisper = _by_clean_name(file, whisper.clean_name)
    if "embed_positions.weight" in clean_whisper and "conv1.weight" in clean_whisper:
        return _whisper_from_tensors(file, clean_whisper)
    raise CheckpointError(
        f"{file.path} is neither an EAT, an SSLAM nor a Whisper encoder: it looks like {file.looks_like}."
    )


def load_file(path: Path, options: Options, config: eat.EATConfig | whisper.WhisperConfig | None = None) -> Backbone:
    """Build a frozen backbone from a weight file or folder; `config` None means: find out.

    Raises:
        CheckpointError: the file is broken, unsafe or belongs to another network.
        ConfigError: pool, layer or frames does not fit.
    """
    file = open_weights(path)
    config = detect(file) if config is None else config
    if isinstance(config, whisper.WhisperConfig):
        tensors = collect(file, whisper.published_shapes(config), whisper.clean_name, "Whisper encoder")
        return whisper.build(config, tensors, options)
    tensors = collect(file, eat.published_shapes(config), eat.clean_name, "EAT")
    if any(name.startswith("backbone.model.") for name in file.shapes):
        return eat.build(config, tensors, options, mean=eat.AVEX_MEAN, std=eat.AVEX_STD)
    return eat.build(config, tensors, options)


def _by_clean_name(file: WeightFile, clean: Callable[[str], str | None]) -> dict[str, tuple[int, ...]]:
    return {target: shape for name, shape in file.shapes.items() if (target := clean(name)) is not None}


def _depth(shapes: Mapping[str, tuple[int, ...]], stem: str) -> int:
    """Count blocks: one more than the highest index after `stem`."""
    indices = [name.split(".")[1] for name in shapes if name.startswith(stem)]
    return max((int(index) + 1 for index in indices if index.isdecimal()), default=0)


def _heads(file: WeightFile, dim: int) -> int:
    if file.num_heads is not None:
        return file.num_heads
    if dim % _HEAD_WIDTH:
        raise CheckpointError(
            f"{file.path} does not tell its number of attention heads: put its config.json beside it and give the "
            "folder."
        )
    return dim // _HEAD_WIDTH


def _eat_from_tensors(file: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> eat.EATConfig:
    dim, depth = shapes["patch_embed.proj.weight"][0], _depth(shapes, "blocks.")
    hidden = shapes.get("blocks.0.mlp.fc1.weight", (4 * dim,))[0]
    return eat.EATConfig(dim, depth, _heads(file, dim), mlp_ratio=hidden / dim)


def _whisper_from_tensors(file: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> whisper.WhisperConfig:
    positions, dim = shapes["embed_positions.weight"]
    hidden = shapes.get("layers.0.fc1.weight", (4 * dim,))[0]
    n_mels = shapes["conv1.weight"][1]
    return whisper.WhisperConfig(dim, _depth(shapes, "layers."), _heads(file, dim), hidden, n_mels, positions)


_EAT_FIXED = {
    "patch_size": eat.PATCH,
    "stride": eat.PATCH,
    "in_chans": 1,
    "mel_bins": eat.MEL_BINS,
    "qkv_bias": True,
    "layer_norm_first": False,
    "norm_eps": eat.EPS,
    "norm_affine": True,
}
_WHISPER_FIXED = {"activation_function": "gelu"}


def _eat_from_config(file: WeightFile) -> eat.EATConfig:
    _check_fixed(file, _EAT_FIXED)
    assert file.config is not None
    ratio = file.config.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 0:
        raise CheckpointError(f"{file.path.parent / 'config.json'}: mlp_ratio is a number above 0, not {ratio!r}.")
    return eat.EATConfig(_whole(file, "embed_dim"), _whole(file, "depth"), _whole(file, "num_heads"), float(ratio))


def _whisper_from_config(file: WeightFile) -> whisper.WhisperConfig:
    _check_fixed(file, _WHISPER_FIXED)
    return whisper.WhisperConfig(
        dim=_whole(file, "d_model"),
        depth=_whole(file, "encoder_layers"),
        num_heads=_whole(file, "encoder_attention_heads"),
        hidden=_whole(file, "encoder_ffn_dim"),
        n_mels=_whole(file, "num_mel_bins"),
        positions=_whole(file, "max_source_positions"),
    )


def _check_fixed(file: WeightFile, fixed: Mapping[str, Any]) -> None:
    assert file.config is not None
    for key, value in fixed.items():
        if file.config.get(key, value) != value:
            raise CheckpointError(
                f"{file.path.parent / 'config.json'}: {key} is {file.config[key]!r}, but only {value!r} is supported."
            )


def _whole(file: WeightFile, key: str) -> int:
    assert file.config is not None
    value = file.config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{file.path.parent / 'config.json'}: {key} is a whole number above 0, not {value!r}.")
    return value
