"""Write a trained student as a backbone: weights in the published layout, config.json, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from audiocl_bench import __version__, files
from audiocl_bench.audio import AUDIOSET_MEAN, AUDIOSET_STD
from audiocl_bench.backbones import eat
from audiocl_bench.errors import CheckpointError, ResultsError
from audiocl_bench.pretrain import curve
from audiocl_bench.pretrain.batches import Clips
from audiocl_bench.pretrain.recipe import ModelConfig, Recipe
from audiocl_bench.pretrain.trainer import CHECKPOINT, CURVE, read_checkpoint

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TIME_PATCHES = 64
"""Positions written for so many time patches (10 s); the loader extends them by the formula."""

_FRAMES_PER_HOUR = 360_000  # of 10 ms

_HF_STEMS = {
    "patch_embed.proj.": "local_encoder.proj.",
    "cls_token": "extra_tokens",
    "pos_embed": "fixed_positional_encoder.positions",
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the backbone's folder, for `audiocl_bench.backbones.load`.
        sha256: of the weight file.
        size: bytes of the weight file.
        parameters: numbers that were trained; positions, which are fixed, not among them.
    """

    folder: Path
    sha256: str
    size: int
    parameters: int


def published(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return a student's weights in the Hugging Face layout (`model.` names, fused qkv), float16.

    Args:
        weights: parameters under the backbone's own names.
        model: the size.

    Raises:
        CheckpointError: a weight is not finite in float16.
    """
    clean: dict[str, Tensor] = {"pos_embed": eat.position_code(TIME_PATCHES, model.dim)}
    for name, value in weights.items():
        if ".attn.k_proj." in name or ".attn.v_proj." in name:
            continue
        if ".attn.q_proj." in name:
            thirds = [weights[name.replace(".q_proj.", f".{role}_proj.")] for role in "qkv"]
            clean[name.replace(".q_proj.", ".qkv.")] = torch.cat(thirds)
        else:
            renamed = name.replace(".attn.out_proj.", ".attn.proj.").replace("patch_embed.", "patch_embed.proj.")
            clean[renamed] = value
    written = {}
    for name, value in clean.items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if not bool(half.isfinite().all()):
            raise CheckpointError(f"the weight '{name}' does not fit into float16: train with a lower lr.")
        for stem, theirs in _HF_STEMS.items():
            if name.startswith(stem):
                name = theirs + name[len(stem) :]
                break
        written[f"model.{name}"] = half
    return dict(sorted(written.items()))


def config(model: ModelConfig) -> dict[str, Any]:
    """Return config.json in the layout of the published EAT repositories."""
    return {
        "architectures": ["EATModel"],
        "depth": model.depth,
        "embed_dim": model.dim,
        "img_size": [eat.PATCH * TIME_PATCHES, eat.MEL_BINS],
        "in_chans": 1,
        "layer_norm_first": False,
        "max_length": TIME_PATCHES,
        "mel_bins": eat.MEL_BINS,
        "mlp_ratio": model.mlp_ratio,
        "model_type": "eat",
        "model_variant": "pretrain",
        "norm_affine": True,
        "norm_eps": eat.EPS,
        "num_classes": 0,
        "num_heads": model.heads,
        "patch_size": eat.PATCH,
        "qkv_bias": True,
        "stride": eat.PATCH,
        "torch_dtype": "float16",
    }


def export(recipe: Recipe, pack: Clips, run: Path, folder: Path, *, probe: Path | None = None) -> Exported:
    """Write the student of a run's checkpoint as a backbone folder.

    Args:
        recipe: the run's recipe.
        pack: its clips, for the card.
        run: folder of checkpoint and curve.
        folder: where the backbone goes.
        probe: table of measured accuracies for the card, CSV or JSON (a list of objects); without one it has none.

    Raises:
        CheckpointError: no checkpoint, or not one of this network.
        ResultsError: the probe file cannot be read, or the folder cannot be written.
    """
    content = read_checkpoint(run / CHECKPOINT)
    if content["settings"]["model"] != recipe.settings()["model"]:
        raise CheckpointError(f"{run / CHECKPOINT} holds a network of another size than {recipe.path}: use its recipe.")
    measured = None if probe is None else _probe(probe)
    prefix = "student."
    student = {
        name.removeprefix(prefix): value for name, value in content["learner"].items() if name.startswith(prefix)
    }
    weights = published(student, recipe.model)
    target = folder / WEIGHTS
    with files.atomic_path(target, error=ResultsError) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    files.write_text(folder / CONFIG, json.dumps(config(recipe.model), indent=2) + "\n", error=ResultsError)
    parameters = sum(value.numel() for value in student.values())
    exported = Exported(folder, files.sha256_file(target), target.stat().st_size, parameters)
    card = _card(recipe, pack, content, curve.read(run / CURVE), exported, measured)
    files.write_text(folder / CARD, card, error=ResultsError)
    return exported


# ------------------------------------------------------------------------------------------------------------ the card


def _card(
    recipe: Recipe,
    pack: Clips,
    content: Mapping[str, Any],
    losses: pd.DataFrame,
    exported: Exported,
    measured: pd.DataFrame | None,
) -> str:
    model, step, steps = recipe.model, int(content["step"]), int(content["settings"]["run"]["steps"])
    unfinished = "" if step == steps else f" **Unfinished: {step:,} of {steps:,} steps.**"
    parts = [
        f"# {recipe.run.name}",
        f"A small EAT (Chen et al., IJCAI 2024: class token, post-norm blocks, patches of 16 x 16 log-mel cells), "
        f"{model.depth} blocks, width {model.dim}, {model.heads} heads, {exported.parameters:,} trained parameters. It "
        f"turns a 16 kHz clip into features for a frozen or lightly adapted backbone.{unfinished}",
        f"Input: 128-bin kaldi log-mel, 10 ms rows, any multiple of 16 of them, normalised as "
        f"(x + {-AUDIOSET_MEAN}) / (2 * {AUDIOSET_STD}); `audiocl_bench.backbones.load(FOLDER)` does all of it.",
        "## Training",
        _training(recipe, pack, content),
        "## Data",
        _data(pack.clips),
        "## End of the loss curve",
        _end(losses),
        "## Measured",
        "Not measured with this file."
        if measured is None
        else _table([str(name) for name in measured], measured.to_numpy().tolist()),
        "## Limits",
        _LIMITS,
        "## Licence",
        _licence(pack),
        "## File",
        f"`{WEIGHTS}`: float16, {exported.size:,} bytes, sha256 `{exported.sha256}`. Written by audiocl {__version__}.",
        "## Recipe",
        f"```json\n{json.dumps({**content['settings'], 'audio': recipe.audio}, indent=1, sort_keys=True)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """- Trained on few hours of sound: expect less from it than from a published EAT.
- Sounds like those in the table above are known to it; others (long scenes, dense music, far-field speech) are not.
- Clips of up to a few seconds were seen in training; longer ones work, with positions that it never learned.
- Recordings that equal a held-out evaluation file were left out; other cuts of the same upload cannot be ruled out.
- A teacher's own training data and biases reach this network through what it distilled."""


def _training(recipe: Recipe, pack: Clips, content: Mapping[str, Any]) -> str:
    objective, run = content["settings"]["objective"], content["settings"]["run"]
    lines = [
        f"- {content['step']:,} of {run['steps']:,} steps, seed {run['seed']}, {content['seconds'] / 3600:.2f} hours "
        f"of steps; AdamW, warm-up and cosine.",
    ]
    if objective["eat_share"] > 0:
        lines.append(
            f"- {100 * objective['eat_share']:g} % of steps: EAT's own objective, masked prediction of a moving "
            f"average of itself ({100 * objective['mask_ratio']:g} % masked, {objective['clones']} clones per clip)."
        )
    distils = recipe.objective.distils
    if distils > 0 and pack.teacher is not None:
        teacher = pack.teacher
        layers = ", ".join(str(layer) for layer in sorted(set(objective["teacher_layers"])))
        lines.append(
            f"- {100 * distils:g} % of steps: distillation of layers {layers} of {teacher['name']} "
            f"(weights `{str(teacher['weights_hash'])[:16]}`). That teacher learned from labels of its own."
        )
    return "\n".join(lines)


def _licence(pack: Clips) -> str:
    teacher = pack.teacher
    whisper = ""
    if teacher is not None and "whisper" in str(teacher["name"]).lower():
        whisper = " The teacher, Whisper by OpenAI, is under the MIT licence."
    return (
        "Weights made with audiocl's recipe are given under the Apache License 2.0, as audiocl itself. The recordings "
        f"they were trained on are not part of them; each package's licence stands in the table above.{whisper}"
    )


def _data(clips: pd.DataFrame) -> str:
    hours = clips["frames"].sum() / _FRAMES_PER_HOUR
    parts = [f"{len(clips):,} clips, {hours:.1f} hours, varied copies included. No labels of theirs were used."]
    for keys in (["source"], ["package", "licence"]):
        if set(keys) <= set(clips):
            grouped = clips.fillna("").groupby(keys, sort=True)["frames"].agg(["size", "sum"]).reset_index()
            rows = [
                [*row[: len(keys)], f"{row[-2]:,}", f"{row[-1] / _FRAMES_PER_HOUR:.2f}"]
                for row in grouped.to_numpy().tolist()
            ]
            parts.append(_table([*keys, "clips", "hours"], rows))
    return "\n\n".join(parts)


def _end(losses: pd.DataFrame) -> str:
    """Return the mean of every loss over the last twentieth of the steps, beside that over the first twentieth."""
    if losses.empty:
        return "No curve was kept."
    span = max(1, len(losses) // 20)
    known = [name for name in curve.LOSSES if losses[name].notna().any()]
    rows = [
        [name, f"{losses[name].dropna().head(span).mean():.4f}", f"{losses[name].dropna().tail(span).mean():.4f}"]
        for name in known
    ]
    return _table(["loss", "first steps", "last steps"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(list(columns)), line(["---"] * len(columns)), *map(line, rows)])


def _probe(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_json(path) if path.suffix == ".json" else pd.read_csv(path)
    except (OSError, ValueError) as cause:
        first = (str(cause).splitlines() or [""])[0]
        raise ResultsError(f"{path} cannot be read as a table ({first}): give a CSV file, or JSON objects.") from cause
    if table.empty:
        raise ResultsError(f"{path} holds no rows: measure first, or leave --probe out.")
    return table.fillna("")
