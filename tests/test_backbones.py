"""Backbones against the official EAT oracle, transformers' Whisper, attention by hand, and broken or hostile files."""

from __future__ import annotations

import argparse
import copy
import enum
import importlib.util
import json
import os
import pickle
import shutil
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiocl_bench import backbones
from audiocl_bench.audio import AUDIOSET_MEAN, AUDIOSET_STD
from audiocl_bench.backbones import checkpoints, eat, registry, whisper
from audiocl_bench.backbones.base import Backbone, Options, hash_weights
from audiocl_bench.errors import CheckpointError, ConfigError, UnknownNameError

Shared = Callable[..., Path]
TOLERANCE = 1e-5
ANY = Options(name="any", source="any")
TINY_WHISPER = "whisper-tiny-random"


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return backbones.load("eat-tiny", frames=64)


@pytest.fixture(scope="module")
def tiny_whisper() -> Backbone:
    return backbones.load(TINY_WHISPER, frames=64)


@pytest.fixture(params=["eat-tiny", TINY_WHISPER])
def either(request: pytest.FixtureRequest, tiny: Backbone, tiny_whisper: Backbone) -> Backbone:
    return tiny if request.param == "eat-tiny" else tiny_whisper


def noise(backbone: Backbone, clips: int = 3, frames: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(clips, frames, backbone.front_end.n_mels, generator=torch.Generator().manual_seed(seed))


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def clean_tiny() -> dict[str, Tensor]:
    return eat.random_weights(eat.TINY, registry.draw_weight)


def hf_layout(clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{rename(name, '')}": value.clone() for name, value in clean.items()}


def fairseq_layout(clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {rename(name, "modality_encoders.IMAGE."): value.clone() for name, value in clean.items()}


def rename(name: str, modality: str) -> str:
    """Write the table of spec/eat.md section 3 backwards, independently of `eat.clean_name`."""
    if name.startswith("blocks."):
        return name
    stem, dot, rest = name.partition(".")
    pre_norm = "context_encoder.norm" if modality else "pre_norm"
    stems = {
        "patch_embed": "local_encoder",
        "cls_token": "extra_tokens",
        "pos_embed": "fixed_positional_encoder.positions",
        "pre_norm": pre_norm,
    }
    return modality + stems[stem] + dot + rest


TINY_CONFIG = {"model_type": "eat", "embed_dim": 96, "depth": 3, "num_heads": 4, "mlp_ratio": 4.0}


def write_hf(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] = TINY_CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_fairseq(path: Path, model: Mapping[str, object], **extra: object) -> Path:
    torch.save({"args": None, "cfg": {"model": {"num_heads": 4}}, "model": OrderedDict(model), **extra}, path)
    return path


# --- EAT against the official classes ---


def oracle_folder(shared: Shared, tmp_path: Path) -> Path:
    for name, target in (
        ("tiny_checkpoint_hf_pretrain.safetensors", "model.safetensors"),
        ("tiny_config_hf_pretrain.json", "config.json"),
    ):
        shutil.copyfile(shared("oracles", "eat", name), tmp_path / target)
    return tmp_path


@pytest.mark.parametrize("layout", ["hf", "hf file", "fairseq", "recipe"])
def test_every_block_equals_the_official_eat(shared: Shared, tmp_path: Path, layout: str) -> None:
    x = torch.from_numpy(np.load(shared("oracles", "eat", "tiny_input.npy")))[:, 0]
    expected = torch.from_numpy(np.load(shared("oracles", "eat", "tiny_output.npy")))
    spec = {
        "hf": lambda: str(oracle_folder(shared, tmp_path)),
        "hf file": lambda: str(oracle_folder(shared, tmp_path) / "model.safetensors"),
        "fairseq": lambda: str(shared("oracles", "eat", "tiny_checkpoint_fairseq_pretrain.pt")),
        "recipe": lambda: "eat-tiny",
    }[layout]()
    backbone = backbones.load(spec)
    outputs: list[Tensor] = []
    tokens = backbone.tokens(x)
    last = backbone.run(tokens, outputs=outputs)
    for mine, official in zip([tokens, *outputs], expected, strict=True):
        assert gap(mine, official) < TOLERANCE
    assert gap(last, expected[-1]) < TOLERANCE
    assert gap(backbone.features(x), expected[-1][:, 0]) < TOLERANCE
    assert gap(backbone.layer_features(x), expected[1:, :, 0].transpose(0, 1)) < TOLERANCE


def test_the_inside_of_each_block_equals_the_official_trace(shared: Shared) -> None:
    trace = {k: torch.from_numpy(v) for k, v in np.load(shared("oracles", "eat", "tiny_trace.npz")).items()}
    backbone = backbones.load("eat-tiny", frames=256)
    x = torch.from_numpy(np.load(shared("oracles", "eat", "tiny_input.npy")))[:, 0]
    patches = backbone.patch_embed(x[:, None]).flatten(2).transpose(1, 2)
    assert gap(patches, trace["patch_embed"]) < TOLERANCE
    assert gap(backbone.pre_norm(trace["before_pre_norm"]), trace["pre_norm"]) < TOLERANCE
    entering = trace["pre_norm"]
    for index, block in enumerate(backbone.blocks):
        attended = block.attn(entering)
        assert gap(attended, trace[f"block{index}_attn"]) < TOLERANCE
        assert gap(block.norm1(entering + attended), trace[f"block{index}_norm1"]) < TOLERANCE
        assert gap(block.mlp(trace[f"block{index}_norm1"]), trace[f"block{index}_ffn"]) < TOLERANCE
        entering = trace[f"block{index}"]


def test_layouts_of_one_network_hash_equal_and_answer_equal(shared: Shared, tmp_path: Path) -> None:
    hf = backbones.load(str(oracle_folder(shared, tmp_path)), frames=256)
    fairseq = backbones.load(str(shared("oracles", "eat", "tiny_checkpoint_fairseq_pretrain.pt")), frames=256)
    assert hf.weights_hash == fairseq.weights_hash
    assert len(hf.weights_hash) == 64
    x = noise(hf, 2, 256)
    assert torch.equal(hf.features(x), fairseq.features(x))
    teacher = torch.load(shared("oracles", "eat", "tiny_checkpoint_fairseq_pretrain.pt"), weights_only=True)["model"][
        "_ema"
    ]
    assert not torch.equal(hf.get_parameter("blocks.0.mlp.fc1.weight"), teacher["blocks.0.mlp.fc1.weight"]), (
        "the oracle's teacher should differ from its student, else this test shows nothing"
    )
    assert torch.equal(hf.get_parameter("blocks.0.mlp.fc1.weight"), fairseq.get_parameter("blocks.0.mlp.fc1.weight"))


def test_layer_norms_use_the_official_epsilon(tiny: Backbone, tiny_whisper: Backbone) -> None:
    """An epsilon of 1e-12 would pass the oracle's tolerance, so it is asserted."""
    for backbone, eps in ((tiny, 1e-6), (tiny_whisper, 1e-5)):
        assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)} == {eps}


@pytest.mark.parametrize(
    ("listing", "dropped"),
    [
        ("keys_base_hf_pretrain.tsv", 0),
        ("keys_base_hf_finetune.tsv", 4),
        ("keys_base_fairseq_finetuned.tsv", 4),
        ("keys_base_fairseq_pretrain.tsv", 14),
    ],
)
def test_every_tensor_of_the_published_base_files_has_its_place(shared: Shared, listing: str, dropped: int) -> None:
    lines = shared("oracles", "eat", listing).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    published = {name: tuple(json.loads(shape)) for name, shape in rows if not name.startswith("_ema")}
    placed = {eat.clean_name(name): shape for name, shape in published.items() if eat.clean_name(name) is not None}
    assert len(published) - len(placed) == dropped
    expected = dict(eat.published_shapes(eat.BASE))
    assert placed.pop("pos_embed") == (1, 6144, 768)
    assert expected.pop("pos_embed") == (1, None, 768)
    assert placed == expected
    assert all(eat.clean_name(name) is None for name, _ in rows if name.startswith("_ema"))


@pytest.mark.parametrize("config", [eat.BASE, eat.LARGE, eat.TINY])
def test_published_shapes_fill_the_network_exactly(config: eat.EATConfig) -> None:
    with torch.device("meta"):
        front_end = backbones.load("eat-tiny").front_end
        network = eat.EAT(config, ANY, front_end, time_patches=768)
        tensors = {
            name: torch.empty([6144 if size is None else size for size in shape])
            for name, shape in eat.published_shapes(config).items()
        }
        network.load_state_dict(eat.own_state(tensors), strict=True, assign=True)


def test_catalogue_counts_the_published_numbers_of_parameters() -> None:
    """Element counts of spec/eat.md section 3; Whisper's by hand from its published sizes."""
    counts = {row.name: row.parameters for row in backbones.list_rows()}
    assert counts["eat-base"] == counts["sslam-base"] == 89_972_736
    assert counts["eat-large"] == 308_867_072
    d, f, blocks = 384, 1536, 4
    stem = 80 * d * 3 + d + d * d * 3 + d + 1500 * d + 2 * d
    assert counts["whisper-tiny.en"] == stem + blocks * (4 * d * d + 3 * d + 2 * d * f + f + d + 4 * d)
    assert tuple(counts) == backbones.names()


def test_official_features_of_the_fine_tuned_base(shared: Shared) -> None:
    """The authors' own features; needs the real checkpoint, named by AUDIOCL_EAT_BASE_FINETUNED."""
    spec = os.environ.get("AUDIOCL_EAT_BASE_FINETUNED")
    if not spec:
        pytest.skip("needs EAT-base_epoch30_finetune_AS2M (set AUDIOCL_EAT_BASE_FINETUNED to its path)")
    from audiocl_bench.audio import load

    expected = torch.from_numpy(
        np.load(shared("oracles", "eat", "official_test_features_base_epoch30_finetune_AS2M.npy"))
    )
    backbone = backbones.load(spec, frames=1024)
    wave = load(shared("oracles", "eat", "official_test.wav"))
    x = backbone.front_end.normalise(backbone.front_end.fit([backbone.front_end.extract(wave)]))
    assert gap(backbone.run(backbone.tokens(x))[0], expected) < 1e-3


# --- positions ---


@settings(max_examples=20, deadline=None)
@given(t=st.integers(0, 767), f=st.integers(0, 7), i=st.integers(0, 23))
def test_position_code_follows_its_formula(t: int, f: int, i: int) -> None:
    row = eat.position_code(768, 96)[0, 8 * t + f].double().numpy()
    rate = 10000.0 ** (-i / 24)
    expected = [np.sin(f * rate), np.cos(f * rate), np.sin(t * rate), np.cos(t * rate)]
    assert np.abs(row[[i, 24 + i, 48 + i, 72 + i]] - expected).max() < 1e-4  # float32 angles up to 767


def test_position_code_equals_the_stored_one(shared: Shared) -> None:
    stored = load_file(shared("oracles", "eat", "tiny_checkpoint_hf_pretrain.safetensors"))
    assert gap(eat.position_code(64, 96), stored["model.fixed_positional_encoder.positions"]) < 5e-6


def test_short_position_tables_are_extended_and_slices_agree(tmp_path: Path, tiny: Backbone) -> None:
    clean = clean_tiny()
    clean["pos_embed"] = clean["pos_embed"][:, : 8 * 4]  # 4 time patches: an old, fixed-length download
    old = backbones.load(str(write_fairseq(tmp_path / "old.pt", fairseq_layout(clean))), frames=160)
    assert old.max_frames == tiny.max_frames == 16 * 768
    x = noise(tiny, 2, 160)
    assert torch.equal(old.features(x), tiny.features(x))
    assert tiny.tokens(noise(tiny, 1, 1600)).shape == (1, 801, 96)


def test_odd_position_tables_warn_or_fail(tmp_path: Path) -> None:
    clean = clean_tiny()
    rounded = {**clean, "pos_embed": clean["pos_embed"].half().float()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = eat.build(eat.TINY, rounded, ANY)
    assert torch.equal(backbone.pos_embed[:, :512], rounded["pos_embed"]), "stored positions are used as they are"
    with pytest.warns(UserWarning, match=r"positions differ from the EAT formula by up to 2\.0e-03"):
        eat.build(eat.TINY, {**clean, "pos_embed": clean["pos_embed"] + 2e-3}, ANY)
    with pytest.raises(CheckpointError, match="pos_embed has 13 rows"):
        eat.build(eat.TINY, {**clean, "pos_embed": clean["pos_embed"][:, :13]}, ANY)


# --- checkpoint layouts ---


class Mode(enum.Enum):
    CLS = 1


def test_fine_tuned_fairseq_files_with_foreign_objects_load(tmp_path: Path, tiny: Backbone) -> None:
    """NumPy scalars, an enum, a Namespace and an object of a module that is gone: weights_only=True refuses them."""
    gone = types.ModuleType("gone_user_module")
    gone.Config = type("Config", (dict,), {"__module__": "gone_user_module"})  # type: ignore[attr-defined]
    sys.modules["gone_user_module"] = gone
    half = {f"model.{name}": value.half() for name, value in fairseq_layout(clean_tiny()).items()}
    heads = {"fc_norm.weight": torch.ones(96), "head.weight": torch.ones(527, 96), "head.bias": torch.ones(527)}
    path = tmp_path / "checkpoint_best.pt"
    extra = {"best": np.float64(0.489), "mode": Mode.CLS, "config": gone.Config(a=1), "set": {1, 2}}
    try:
        write_fairseq(path, {**half, **heads}, extra_state=extra, task=argparse.Namespace(seed=1))
    finally:
        del sys.modules["gone_user_module"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    backbone = backbones.load(str(path), frames=64)
    assert {p.dtype for p in backbone.state_dict().values()} == {torch.float32}
    assert backbone.num_heads == 4
    x = noise(tiny)
    assert 1e-6 < gap(backbone.features(x), tiny.features(x)) < 5e-2, "float16 weights: near, not equal"


def test_avex_layout_brings_its_own_statistics(tmp_path: Path, tiny: Backbone) -> None:
    tensors = {f"backbone.{name}": value for name, value in hf_layout(clean_tiny()).items()}
    tensors["classifier.weight"] = torch.ones(5, 96)
    backbone = backbones.load(str(write_hf(tmp_path / "avex", tensors)))
    assert (backbone.front_end.mean, backbone.front_end.std) == (-5.553, 4.606)
    assert (tiny.front_end.mean, tiny.front_end.std) == (AUDIOSET_MEAN, AUDIOSET_STD)
    assert backbone.weights_hash == tiny.weights_hash
    assert backbone.name == "avex"


def test_hash_sees_every_bit_and_name() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    plain = hash_weights(state)
    assert plain == hash_weights(dict(reversed(state.items())))
    assert plain == hash_weights({"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.ones(4)})
    nudged = {**state, "b": torch.nextafter(torch.ones(4), torch.full((4,), 2.0))}
    others = [nudged, {**state, "a": torch.zeros(3, 2)}, {"a": state["a"], "c": state["b"]}]
    assert len({plain, *map(hash_weights, others)}) == 4


# --- hostile, broken and foreign files ---


class Attack:
    """Runs a shell command when a careless reader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("place", ["extra", "state", "root"])
def test_a_hostile_pickle_is_not_executed(tmp_path: Path, tiny: Backbone, place: str) -> None:
    marker, path = tmp_path / "owned", tmp_path / "evil.pt"
    model: dict[str, object] = dict(fairseq_layout(clean_tiny()))
    if place == "root":
        torch.save(Attack(marker), path)
    else:
        attack = {"zz": Attack(marker)}
        write_fairseq(path, {**model, **attack} if place == "state" else model, extra_state=attack)
    if place == "root":
        with pytest.raises(CheckpointError, match="no table of tensors"):
            backbones.load(str(path))
    else:
        assert backbones.load(str(path)).weights_hash == tiny.weights_hash
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file should be dangerous to a careless reader, else this test shows nothing"


def test_a_pickle_cannot_change_what_the_reader_trusts(tmp_path: Path) -> None:
    """BUILD with a slot state sets attributes on whatever a file names; it may only reach throw-away objects."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    forged = (
        b"\x80\x02}X\x05\x00\x00\x00modelc" + b"torch._utils\n_rebuild_tensor_v2\n"
        b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86bcnt\nsystem\ns."
    )
    path = tmp_path / "forged.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", forged), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"forged/{name}", content)
    with pytest.raises(CheckpointError):
        backbones.load(str(path))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_torchscript_is_refused_before_it_is_interpreted(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        backbones.load(str(path))


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_pt = write_fairseq(tmp_path / "good.pt", fairseq_layout(clean_tiny())).read_bytes()
    good_st = (write_hf(tmp_path / "good", hf_layout(clean_tiny())) / "model.safetensors").read_bytes()
    cases = {
        "empty.pt": (b"", "it is empty"),
        "page.safetensors": (b"<!doctype html><html>", "neither a safetensors file nor"),
        "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        "cut.pt": (good_pt[: len(good_pt) // 2], "truncated"),
        "cut.safetensors": (good_st[: len(good_st) // 2], "broken or truncated"),
        "header.safetensors": (good_st[:60], "broken or truncated"),
        "zip.pt": (b"PK\x05\x06" + bytes(18), "broken PyTorch checkpoint"),
        "legacy.pt": (pickle.dumps({"model": {}}), "neither a safetensors file nor"),
    }
    for name, (content, told) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=told) as caught:
            backbones.load(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"weights\.pt does not exist"):
        backbones.load(str(tmp_path / "weights.pt"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(CheckpointError, match=r"hollow should hold model\.safetensors .*none found"):
        backbones.load("hollow")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match="no weight tensors"):
        backbones.load("epoch.pt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model.blocks.2.norm2.bias"), r"lacks the tensor 'blocks\.2\.norm2\.bias'.* an EAT or SSLAM"),
        (lambda t: t.update({"model.blocks.0.gamma": torch.ones(3)}), r"unexpected tensor 'model\.blocks\.0\.gamma'"),
        (
            lambda t: t.update({"model.extra_tokens": torch.ones(1, 2, 96)}),
            r"extra_tokens' is \[1, 2, 96\] .*\[1, 1, 96\]",
        ),
        (lambda t: t.update({"model.pre_norm.bias": torch.full((96,), torch.nan)}), r"pre_norm\.bias' .*not finite"),
        (lambda t: t.update({"pre_norm.bias": torch.ones(96)}), "holds 'pre_norm.bias' twice"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(tmp_path: Path, change: Callable, told: str) -> None:
    tensors = hf_layout(clean_tiny())
    change(tensors)
    with pytest.raises(CheckpointError, match=told) as caught:
        backbones.load(str(write_hf(tmp_path / "odd", tensors)))
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"layer_norm_first": True}, "layer_norm_first is True, but only False"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05"),
        ({"depth": "3"}, "depth is a whole number above 0, not '3'"),
        ({"depth": 4}, r"lacks the tensor 'blocks\.3\.attn\.proj\.bias' \(11 more\)"),
        ({"mlp_ratio": 0}, "mlp_ratio is a number above 0"),
        ({"model_type": "hubert"}, "model_type 'hubert' is not supported"),
    ],
)
def test_a_config_that_does_not_fit_is_explained(tmp_path: Path, setting: dict[str, object], told: str) -> None:
    folder = write_hf(tmp_path / "odd", hf_layout(clean_tiny()), {**TINY_CONFIG, **setting})
    with pytest.raises(CheckpointError, match=told):
        backbones.load(str(folder))


def test_foreign_checkpoints_are_recognised(tmp_path: Path) -> None:
    resnet = {"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3), "fc.weight": torch.ones(2, 4)}
    torch.save(resnet, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"resnet\.pth is neither an EAT.*looks like a ResNet"):
        backbones.load(str(tmp_path / "resnet.pth"))
    encoder = whisper.random_weights(whisper.TINY_RANDOM, registry.draw_weight)
    save_file(encoder, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is no EAT: it looks like a Whisper"):
        checkpoints.load_file(tmp_path / "model.safetensors", ANY, eat.BASE)
    tiny_file = tmp_path / "eat.safetensors"
    save_file(hf_layout(clean_tiny()), tiny_file)
    with pytest.raises(CheckpointError, match=r"is no Whisper encoder: it looks like an EAT or SSLAM"):
        checkpoints.load_file(tiny_file, ANY, whisper.TINY)
    with pytest.raises(CheckpointError, match=r"number of attention heads: put its config\.json beside it"):
        backbones.load(str(tiny_file))


# --- Whisper ---


def transformers_encoder(folder: Path, positions: int):
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = WhisperEncoder(WhisperConfig(**{**raw, "max_source_positions": positions, "dtype": "float32"})).eval()
    state = {
        name.removeprefix("model.encoder."): value.float()
        for name, value in load_file(folder / "model.safetensors").items()
    }
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("frames", [pytest.param(3000, marks=pytest.mark.slow), 512])
def test_every_whisper_block_equals_transformers(shared: Shared, frames: int) -> None:
    pytest.importorskip("transformers")
    folder = shared("weights", "whisper-tiny.en-encoder")
    backbone = backbones.load(str(folder), frames=frames)
    x = noise(backbone, 1, frames, seed=1).clamp(-1, 1.5)  # the range of Whisper's normalised log-mel
    official = transformers_encoder(folder, frames // 2)
    seen: list[Tensor] = []
    for layer in official.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    last = official(x.transpose(1, 2)).last_hidden_state
    outputs: list[Tensor] = []
    mine = backbone.run(backbone.tokens(x), outputs=outputs)
    for block in range(backbone.depth - 1):
        assert gap(outputs[block], seen[block]) < TOLERANCE
    assert gap(mine, last) < TOLERANCE
    assert torch.equal(mine, outputs[-1])
    assert gap(backbone.features(x), last.mean(1)) < TOLERANCE
    assert (backbone.name, backbone.stand_in, backbone.dim) == ("whisper-tiny.en-encoder", False, 384)


def test_whisper_layouts_and_decoder(tmp_path: Path, tiny_whisper: Backbone) -> None:
    encoder = whisper.random_weights(whisper.TINY_RANDOM, registry.draw_weight)
    whole = {f"model.encoder.{name}": value for name, value in encoder.items()}
    whole |= {"model.decoder.layers.0.fc1.weight": torch.ones(3), "proj_out.weight": torch.ones(2)}
    config = {
        "model_type": "whisper",
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 256,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    }
    for layout, tensors in (("whole", whole), ("bare", encoder)):
        loaded = backbones.load(str(write_hf(tmp_path / layout, tensors, config)), frames=64)
        assert loaded.weights_hash == tiny_whisper.weights_hash
        assert torch.equal(loaded.features(noise(loaded)), tiny_whisper.features(noise(loaded)))
    save_file(whole, tmp_path / "alone.safetensors")  # without a config: heads of 64, as in every published Whisper
    assert backbones.load(str(tmp_path / "alone.safetensors"), frames=64).num_heads == 1


def test_whisper_closing_norm_belongs_to_the_last_block(tiny_whisper: Backbone) -> None:
    tokens = tiny_whisper.tokens(noise(tiny_whisper))
    first = tiny_whisper.run(tokens, stop=1)
    assert torch.equal(first, tiny_whisper.blocks[0](tokens))
    assert torch.equal(tiny_whisper.run(tokens), tiny_whisper.final_norm(tiny_whisper.blocks[1](first)))
    assert torch.equal(tiny_whisper.run(tokens, stop=0), tokens)


# --- running: prefixes, hooks, parts, costs ---


def attention_by_hand(block: torch.nn.Module, x: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention in float64 NumPy, one clip and one head at a time, over [prefix; own] keys and values."""
    attn = block.attn

    def project(linear: torch.nn.Linear, row: np.ndarray) -> np.ndarray:
        bias = 0.0 if linear.bias is None else linear.bias.double().numpy()
        return row @ linear.weight.double().numpy().T + bias

    width = x.shape[2] // heads
    out = np.zeros(x.shape)
    for clip in range(x.shape[0]):
        row = x[clip].double().numpy()
        q, k, v = (project(linear, row) for linear in (attn.q_proj, attn.k_proj, attn.v_proj))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            keys = np.concatenate([key[clip % len(key), head].double().numpy(), k[:, part]])
            values = np.concatenate([value[clip % len(value), head].double().numpy(), v[:, part]])
            scores = q[:, part] @ keys.T / np.sqrt(width)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[clip, :, part] = weights @ values
    return torch.from_numpy(np.stack([project(attn.out_proj, row) for row in out]))


@settings(max_examples=10, deadline=None)
@given(length=st.integers(0, 4), clips=st.integers(1, 3), common=st.booleans(), name=st.sampled_from(["e", "w"]))
def test_prefix_attention_equals_softmax_by_hand(length: int, clips: int, common: bool, name: str) -> None:
    config = eat.TINY if name == "e" else whisper.TINY_RANDOM
    block = {"e": eat.PostNormBlock, "w": whisper.PreNormBlock}[name](config)
    generator = torch.Generator().manual_seed(length)
    for parameter in block.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    heads, width = config.num_heads, config.dim // config.num_heads
    x = torch.randn(clips, 5, config.dim, generator=generator)
    key, value = torch.randn(2, 1 if common else clips, heads, length, width, generator=generator)
    assert gap(block.attn(x, (key, value)).double(), attention_by_hand(block, x, key, value, heads)) < TOLERANCE
    if length == 0:
        assert torch.equal(block.attn(x, (key, value)), block.attn(x))


def test_prefixes_reach_their_block_only(either: Backbone) -> None:
    tokens = either.tokens(noise(either))
    width = either.dim // either.num_heads
    key, value = torch.ones(2, 1, either.num_heads, 2, width)
    plain: list[Tensor] = []
    with_prefix: list[Tensor] = []
    either.run(tokens, outputs=plain)
    changed = either.run(tokens, prefix={1: (key, value)}, outputs=with_prefix)
    assert torch.equal(plain[0], with_prefix[0])
    assert gap(plain[1], with_prefix[1]) > 1e-3
    assert changed.shape == tokens.shape
    empty = dict.fromkeys(range(either.depth), (key[:, :, :0], value[:, :, :0]))
    assert torch.equal(either.run(tokens, prefix=empty), either.run(tokens))
    each = {1: (key.repeat(3, 1, 1, 1), value.repeat(3, 1, 1, 1))}
    assert gap(either.run(tokens, prefix=each), changed) < TOLERANCE


def test_prefixes_of_the_wrong_shape_are_refused(tiny: Backbone) -> None:
    tokens = tiny.tokens(noise(tiny))
    good = torch.ones(1, 4, 2, 24)
    for key, value in ((good[0], good), (good, torch.ones(2, 4, 2, 24)), (good, good[:, :, :1]), (good[:, :2], good)):
        with pytest.raises(ConfigError, match="prefix"):
            tiny.run(tokens, prefix={0: (key, value)})
    with pytest.raises(ConfigError, match="block 3 does not exist"):
        tiny.run(tokens, prefix={3: (good, good)})


def test_prefixes_are_trainable_and_the_backbone_is_not(either: Backbone) -> None:
    with torch.enable_grad():
        key, value = (torch.randn(1, either.num_heads, 2, either.dim // either.num_heads) for _ in range(2))
        key.requires_grad_(), value.requires_grad_()
        either.run(either.tokens(noise(either)), prefix={0: (key, value)}).square().sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert float(key.grad.abs().sum()) > 0
    assert all(p.grad is None and not p.requires_grad for p in either.parameters())
    assert not either.training


def test_attention_hook_sees_what_enters_the_projections(either: Backbone) -> None:
    seen: dict[int, Tensor] = {}
    projected: list[Tensor] = []
    handles = [
        b.attn.v_proj.register_forward_hook(lambda m, args, out: projected.append(args[0])) for b in either.blocks
    ]
    tokens = either.tokens(noise(either))
    outputs: list[Tensor] = []
    either.run(tokens, on_attention_input=seen.__setitem__, outputs=outputs)
    for handle in handles:
        handle.remove()
    assert list(seen) == list(range(either.depth))
    assert all(torch.equal(seen[i], projected[i]) for i in seen)
    expected = tokens if either.network == "eat" else either.blocks[0].norm1(tokens)
    assert torch.equal(seen[0], expected)
    if either.network == "eat":
        assert torch.equal(seen[1], outputs[0])


def test_a_run_in_parts_equals_a_whole_run(either: Backbone) -> None:
    tokens = either.tokens(noise(either))
    whole = either.run(tokens)
    for cut in range(either.depth + 1):
        assert torch.equal(either.run(either.run(tokens, stop=cut), start=cut), whole)
    for start, stop in ((-1, 1), (2, 1), (0, either.depth + 1)):
        with pytest.raises(ConfigError, match="do not lie in"):
            either.run(tokens, start=start, stop=stop)


def test_passes_count_clips_and_blocks() -> None:
    backbone = backbones.load("eat-tiny", frames=32, layer=2)
    x = noise(backbone, 5, 32)
    backbone.features(x)
    assert (backbone.passes.clips, backbone.passes.block_runs) == (5, 10)
    tokens = backbone.tokens(x)
    backbone.run(tokens, start=1, stop=3)
    backbone.run(tokens, stop=0)
    assert (backbone.passes.clips, backbone.passes.block_runs) == (10, 20)
    backbone.layer_features(x[:1])
    assert (backbone.passes.clips, backbone.passes.block_runs) == (11, 23)


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(["eat-tiny", TINY_WHISPER]), clips=st.integers(2, 6), seed=st.integers(0, 99))
def test_a_clip_does_not_depend_on_its_batch(name: str, clips: int, seed: int) -> None:
    backbone = backbones.load(name, frames=64)
    x = noise(backbone, clips, seed=seed)
    together = backbone.layer_features(x)
    alone = torch.cat([backbone.layer_features(clip[None]) for clip in x])
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(seed))
    assert gap(together, alone) < TOLERANCE
    assert gap(backbone.layer_features(x[order]), together[order]) < TOLERANCE
    assert torch.equal(backbone.layer_features(x), together)


def test_prompt_tokens_may_be_put_before_the_rest(tiny: Backbone) -> None:
    tokens = tiny.tokens(noise(tiny))
    prompts = torch.ones(3, 2, tiny.dim)
    out = tiny.run(torch.cat([prompts, tokens], dim=1))
    assert out.shape == (3, tokens.shape[1] + 2, tiny.dim)
    assert gap(out[:, 2:], tiny.run(tokens)) > 1e-4


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_lora_finds_its_projections_by_name(either: Backbone) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    adapted = copy.deepcopy(either)
    x = noise(either)
    plain = either.features(x)
    pattern = r"blocks\.(\d+)\.attn\.(k_proj|v_proj)"
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=pattern), adapted)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable == {
        f"blocks.{i}.attn.{role}_proj.lora_{ab}.default.weight"
        for i in range(either.depth)
        for role in "kv"
        for ab in "AB"
    }
    assert torch.equal(adapted.features(x), plain)
    adapted.get_parameter("blocks.0.attn.v_proj.lora_B.default.weight").fill_(0.5)
    assert gap(adapted.features(x), plain) > 1e-4
    assert torch.equal(either.features(x), plain), "a copy does not touch the original"


# --- options, names, paths ---


def test_pooling_and_layer_choose_tokens(tiny: Backbone) -> None:
    x = noise(tiny)
    outputs: list[Tensor] = []
    tiny.run(tiny.tokens(x), outputs=outputs)
    for layer in (1, 2, 3):
        cls = backbones.load("eat-tiny", layer=layer, pool="cls", frames=64)
        mean = backbones.load("eat-tiny", layer=layer, pool="mean", frames=64)
        assert torch.equal(cls.features(x), outputs[layer - 1][:, 0])
        assert gap(mean.features(x), outputs[layer - 1][:, 1:].mean(1)) < 1e-6
        assert torch.equal(cls.layer_features(x)[:, layer - 1], cls.features(x))
        assert cls.layer_features(x).shape == (3, 3, 96)
        assert cls.weights_hash == tiny.weights_hash


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("eat-tiny", {"pool": "max"}, "pool is cls or mean, not 'max'"),
        (TINY_WHISPER, {"pool": "cls"}, "no CLS token"),
        ("eat-tiny", {"layer": 0}, "layer is a whole number from 1 to 3"),
        ("eat-tiny", {"layer": 4}, "layer is a whole number from 1 to 3"),
        ("eat-tiny", {"layer": True}, "layer is a whole number"),
        ("eat-tiny", {"frames": 100}, "frames is a multiple of 16 up to 12288"),
        ("eat-tiny", {"frames": 0}, "frames"),
        ("eat-tiny", {"frames": 16 * 769}, "frames is a multiple of 16 up to 12288"),
        (TINY_WHISPER, {"frames": 3}, "frames is a multiple of 2 up to 3000"),
        (TINY_WHISPER, {"frames": 3002}, "frames is a multiple of 2 up to 3000"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        backbones.load(name, **options)


def test_inputs_that_do_not_fit_are_refused(either: Backbone) -> None:
    for shape in ((1, 64, 7), (64, either.front_end.n_mels), (1, either.multiple + 1, either.front_end.n_mels)):
        with pytest.raises(ConfigError, match=r"the input is|frames is"):
            either.tokens(torch.zeros(shape))


def test_a_waveform_becomes_features(either: Backbone) -> None:
    wave = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(3))
    x = either.front_end.batch([either.front_end.extract(wave)])
    features = either.features(x)
    assert features.shape == (1, either.dim)
    assert bool(features.isfinite().all())


def test_defaults_and_provenance() -> None:
    tiny, tiny_whisper = backbones.load("eat-tiny"), backbones.load(TINY_WHISPER)
    assert (tiny.pool, tiny.layer, tiny.front_end.frames, tiny.stand_in) == ("cls", 3, 1024, True)
    assert (tiny_whisper.pool, tiny_whisper.layer, tiny_whisper.front_end.frames) == ("mean", 2, 3000)
    assert tiny.weights_hash == backbones.load("eat-tiny").weights_hash != tiny_whisper.weights_hash
    told = tiny.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["weights_hash"] == tiny.weights_hash
    assert told["front_end"]["frames"] == 1024


def test_the_backbone_in_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough to ship, trained, pinned, and refused when it is not what was shipped."""
    row = backbones.row(registry.IN_THE_BOX)
    folder = registry.WEIGHTS / row.name
    assert (folder / row.file).stat().st_size <= 8e6
    tensors = load_file(folder / row.file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert 3e6 < sum(tensor.numel() for tensor in tensors.values()) <= 6e6
    assert row.sha256 in (folder / "README.md").read_text(encoding="utf-8")  # the card speaks of this file

    monkeypatch.setattr(registry, "hf_hub_download", lambda *_, **__: pytest.fail("asked for a download"))
    network = backbones.load("eat-mini", frames=64, allow_download=False)
    assert backbones.cached("eat-mini")
    assert (network.name, network.stand_in, network.dim, network.depth) == ("eat-mini", False, 224, 6)
    assert row.sha256[:12] in network.source
    random = eat.build(eat.MINI, eat.random_weights(eat.MINI, registry.draw_weight), Options("random", "here"))
    assert network.weights_hash != random.weights_hash

    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="is missing: install audiocl again"):
        backbones.load("eat-mini")
    shutil.copytree(folder, tmp_path / row.name)
    with (tmp_path / row.name / row.file).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(CheckpointError, match="is changed: install audiocl again"):
        backbones.load("eat-mini")


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'eat-bas': did you mean .*eat-base"):
        backbones.load("eat-bas")


def test_offline_says_how_to_fetch_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(registry, "hf_hub_download", refuse)
    with pytest.raises(
        CheckpointError, match=r"download https://huggingface\.co/worstchan/EAT.* pass `--backbone PATH`"
    ):
        backbones.load("eat-base")
    with pytest.raises(CheckpointError, match=r"drive\.google\.com.* pass `--backbone PATH`"):
        backbones.load("eat-base-epoch10")
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"whisper-tiny\.en is not in the local cache"):
        backbones.load("whisper-tiny.en", allow_download=False)


def test_downloads_are_checked_against_their_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    asked: list[tuple[str, str]] = []

    def deliver(repo: str, file: str, *, revision: str, local_files_only: bool) -> str:
        asked.append((repo, revision))
        return str(shared("weights", "whisper-tiny.en-encoder", file))

    monkeypatch.setattr(registry, "hf_hub_download", deliver)
    fetched = backbones.load("whisper-tiny.en")
    assert asked == [("openai/whisper-tiny.en", "87c7102498dcde7456f24cfd30239ca606ed9063")]
    assert (fetched.name, fetched.stand_in) == ("whisper-tiny.en", False)
    assert fetched.source.startswith("hf:openai/whisper-tiny.en@87c71024")
    for other in ("eat-base", "whisper-base.en"):
        with pytest.raises(CheckpointError, match=f"is not the pinned {other}"):
            backbones.load(other)
    with pytest.raises(CheckpointError, match="it looks like a Whisper"):
        backbones.load("eat-large")


def test_catalogue_rows_are_pinned_or_say_why() -> None:
    for row in backbones.list_rows():
        assert row.stand_in or row.shipped or row.hub or row.page
        pinned = len(row.revision) == 40 and set(row.revision) <= set("0123456789abcdef")
        assert pinned or len(row.sha256) == 64 or row.stand_in or row.note, row.name
        assert row.sha256 == "" or len(row.sha256) == 64
        assert row.network in ("eat", "whisper")
