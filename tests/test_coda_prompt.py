"""CODA-Prompt: components against literal loops, what a session may train, and whole runs (methods.md section 2.3)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import CPU, NETWORKS, SESSIONS, bytes_of, clips_of, network, reader, weights
from probes import Log
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench import audio, audit, backbones, config, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.method import Clips, Context, Session, SilentReporter, StreamInfo
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, execute, run_id

registry.names()  # makes the methods of a clone importable under their installed name
from audiocl_methods import coda_prompt as coda  # type: ignore[import-not-found]  # noqa: E402

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
QUICK: dict[str, Any] = {"components": 6, "length": 4, "epochs": 2, "batch_size": 6, "lr": 0.01}
ALL = tuple(range(6))
UNEVEN = ((0, 1, 2), (3,), (4, 5))


def config_of(**changes: Any) -> Any:
    return config.build(coda.CODAPromptConfig, "tiny", {**QUICK, **changes}, owner="coda-prompt")


def build(backbone: Backbone | None = None, *, seed: int = 0, sessions: int = 3, **changes: Any) -> Any:
    context = Context(seed, StreamInfo("tiny", sessions, 6, first_session_epochs=2))
    return coda.CODAPrompt(config_of(**changes), network() if backbone is None else backbone, context)


def opened(t: int, backbone: Backbone, stream: Sequence[tuple[int, ...]] = SESSIONS, *, per_class: int = 6) -> Session:
    mel, labels = clips_of(stream[t], backbone, per_class=per_class)
    return Session(t, stream[t], min(stream[t]), labels, reader(mel), CPU)


def learn(method: Any, *sessions: int, **options: Any) -> Any:
    for t in sessions:
        part = opened(t, method.backbone, **options)
        method.learn(part)
        part.close()
    return method


def probe(method: Any) -> Tensor:
    return clips_of(ALL, method.backbone, per_class=3, seed=99)[0]


def scores(method: Any, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


def spy(monkeypatch: pytest.MonkeyPatch, look: Callable[..., None]) -> None:
    """Show `look` what `fit` is given; then train as always."""
    real = coda.fit

    def fit(part: Any, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> list[float]:
        look(part, groups, loss, recipe)
        return real(part, groups, loss, recipe, context, **options)

    monkeypatch.setattr(coda, "fit", fit)


# ------------------------------------------------------------------------------------------------- weights and prefixes


def literal_weights(q: Tensor, k: Tensor, a: Tensor) -> Tensor:
    """cos(q_b * a_m, k_m), one pair at a time."""
    rows = []
    for query in q:
        row = []
        for key, attention in zip(k, a, strict=True):
            mixed = query * attention
            row.append(mixed / max(float(mixed.norm()), 1e-12) @ (key / max(float(key.norm()), 1e-12)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 999))
def test_weights_are_cosines_of_attended_queries_and_keys(clips: int, rows: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    q, k, a = (torch.randn(n, width, generator=draw, dtype=torch.float64) for n in (clips, rows, rows))
    got = coda.component_weights(q, k, a)
    torch.testing.assert_close(got, literal_weights(q, k, a), rtol=1e-9, atol=1e-9)
    assert bool((got.abs() <= 1 + 1e-9).all())
    torch.testing.assert_close(coda.component_weights(3 * q, 5 * k, 0.1 * a), got)  # only directions count


def test_vectors_of_length_zero_give_weight_zero_and_finite_slopes() -> None:
    q, k, a = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (2, 3, 5))
    q[0], k[1], a = torch.zeros(4), torch.zeros(4), a[:3].requires_grad_()
    k.requires_grad_()
    got = coda.component_weights(q, k, a)
    assert not bool(got[0].detach().any())
    assert float(got[1, 1].detach()) == 0
    got.sum().backward()
    assert bool(a.grad.isfinite().all())
    assert bool(k.grad.isfinite().all())


@both_networks
def test_features_are_those_of_prefixes_mixed_by_hand(network_name: str) -> None:
    """prompt = sum_m weight_m p_m; its first half are keys, its second half values, split into heads."""
    method = learn(build(network(network_name)), 0, 1)
    backbone, mel = method.backbone, probe(method)[:3]
    q = network(network_name).features(mel)
    want = []
    for clip, query in zip(mel, q, strict=True):
        prefix = {}
        for number, block in enumerate(method.blocks):
            p, k, a = (part[number] for part in method.components)
            assert p.shape == (4, 4, backbone.dim)  # two sessions own two rows each, of four prompt rows
            prompt = sum(w * rows for w, rows in zip(literal_weights(query[None], k, a)[0], p, strict=True))
            width = backbone.dim // backbone.num_heads
            heads = [
                torch.stack([prompt[rows, h * width : (h + 1) * width] for h in range(backbone.num_heads)])[None]
                for rows in ((0, 1), (2, 3))
            ]
            prefix[block] = (heads[0], heads[1])
        want.append(backbone.pooled(backbone.run(backbone.tokens(clip[None]), prefix=prefix))[0])
    torch.testing.assert_close(method.encode(Clips(mel)), torch.stack(want), rtol=0, atol=1e-5)
    assert float((method.encode(Clips(mel)) - q).abs().max()) > 1e-3  # prompts do change features


def test_matching_keys_give_the_sum_of_all_components() -> None:
    """Oracle 4: one session owns all M rows; a = 1 and k = q / |q| make every weight one."""
    method = learn(build(sessions=1), 0)
    assert method.components.k.shape[1] == 6
    mel = probe(method)[:1]
    q = method.query(mel)
    unit = F.normalize(q, dim=1).expand_as(method.components.k)
    method.components = coda.Components(method.components.p, unit, torch.ones_like(unit))
    seen: dict[int, Any] = {}
    real = method.backbone.run
    method.backbone.run = lambda tokens, **given: seen.update(given.get("prefix", {})) or real(tokens, **given)
    method.encode(Clips(mel, query=q))
    total = method.components.p.sum(1)  # [n, L, D]
    for number, block in enumerate(method.blocks):
        keys, values = (part[0].transpose(0, 1).flatten(1) for part in seen[block])
        torch.testing.assert_close(torch.cat([keys, values]), total[number], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------- rows of a session


def literal_gram_schmidt(earlier: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Classical Gram-Schmidt on unnormalised rows, as in the official code: every projection is of the drawn vector."""
    rows = [row.astype(np.float64) for row in earlier]
    count = len(rows)
    for vector in drawn:
        rows.append(vector - sum((((vector @ u) / (u @ u)) * u for u in rows), np.zeros_like(vector)))
    return np.array([row / np.linalg.norm(row) for row in rows[count:]])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(1, 5), st.integers(11, 30), st.integers(0, 999))
def test_new_rows_follow_gram_schmidt_or_are_orthogonal(n: int, count: int, width: int, seed: int) -> None:
    earlier = np.random.default_rng(seed).standard_normal((n, width)) + 1  # trained rows are not orthogonal
    got = coda.orthogonal_rows(earlier, count, np.random.default_rng(7))
    drawn = np.random.default_rng(7).standard_normal((count, width))
    np.testing.assert_allclose(got, literal_gram_schmidt(earlier, drawn), atol=1e-9)
    exact = coda.orthogonal_rows(earlier, count, np.random.default_rng(7), exact=True)
    np.testing.assert_allclose(exact @ exact.T, np.eye(count), atol=1e-9)
    np.testing.assert_allclose(exact @ earlier.T, 0, atol=1e-8)


@pytest.mark.parametrize("exact", [False, True])
def test_rows_without_a_free_direction_are_random_unit_vectors(exact: bool) -> None:
    got = coda.orthogonal_rows(np.eye(5), 3, np.random.default_rng(0), exact=exact)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1)
    assert np.abs(got @ got.T - np.eye(3)).max() < 0.99


@both_networks
def test_the_first_sessions_rows_are_orthonormal(network_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle 3, and later rows of length one that differ between sessions, blocks and run seeds."""
    starts: list[list[Tensor]] = []
    spy(monkeypatch, lambda part, groups, *_: starts.append([p.detach().clone() for p in groups[0].parameters[:3]]))
    learn(build(network(network_name)), 0, 1)
    learn(build(network(network_name), seed=1), 0)
    for part in starts[0]:
        R = part.flatten(2)
        torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(2).expand(len(R), 2, 2), rtol=0, atol=1e-5)
    for start in starts:
        for part in start:
            torch.testing.assert_close(part.flatten(2).norm(dim=2), torch.ones(part.shape[:2]))
    k = [start[1] for start in starts]
    assert not torch.equal(k[0][0], k[0][1])
    assert not torch.equal(k[0], k[1])
    assert not torch.equal(k[0], k[2])


@both_networks
def test_rows_of_earlier_sessions_never_move_and_later_ones_do_not_exist(network_name: str) -> None:
    """Oracles 1 and 2. The optimiser is new in every session: stale moments would move earlier rows too."""
    method = build(network(network_name), lr=0.1)
    pretrained, kept = weights(method.backbone), None
    for t in range(3):
        learn(method, t)
        assert all(part.shape[1] == 2 * (t + 1) for part in method.components)
        assert not any(part.requires_grad for part in method.components)
        if kept is not None:
            assert bytes_of([part[:, : 2 * t].contiguous() for part in method.components]) == kept
        kept = bytes_of([part.contiguous() for part in method.components])
    assert weights(method.backbone) == pretrained


def test_a_step_moves_exactly_the_declared_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    method = learn(build(epochs=1, batch_size=12), 0)
    before = bytes_of(method.state_dict())
    found: dict[str, Any] = {}

    def look(part: Session, groups: Any, loss: Any, recipe: Any) -> None:
        assert not any(p.requires_grad for p in method.backbone.parameters())
        (group,) = groups
        found["parameters"] = group.parameters
        found["start"] = bytes_of([p.detach() for p in group.parameters])
        clips, labels = next(part.batches(12))
        loss(clips, labels).backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in group.parameters)
        assert all(part.grad is None and not part.requires_grad for part in method.components)  # oracle 1

    spy(monkeypatch, look)
    learn(method, 1)
    after = bytes_of([p.detach() for p in found["parameters"]])
    assert len(after) == 5  # p, k, a; head weight and bias
    assert all(new != old for new, old in zip(after, found["start"], strict=True))
    for name, part in zip(("p", "k", "a"), method.components, strict=True):
        assert bytes_of(part[:, :2].contiguous()) == before["components"][name]
    assert bytes_of(method.head.weight[:2].detach()) == before["head"]["weight"]  # LOCAL: old rows stay
    assert method.num_seen == 4


@pytest.mark.parametrize(("components", "sessions", "owned"), [(None, 10, 10), (None, 1, 100), (None, 99, 1)])
def test_components_are_shared_out(components: int | None, sessions: int, owned: int) -> None:
    assert coda.owned_components(components, sessions) == owned


@settings(deadline=None, max_examples=30)
@given(st.one_of(st.none(), st.integers(1, 700)), st.integers(1, 700))
def test_every_session_owns_a_component_or_the_setting_is_refused(components: int | None, sessions: int) -> None:
    if components is not None and components < sessions:
        with pytest.raises(ConfigError, match=f"'components' is {components}, .* {sessions} sessions"):
            coda.owned_components(components, sessions)
        return
    owned = coda.owned_components(components, sessions)
    assert owned >= 1
    assert owned * sessions <= (components or max(100, sessions))


def test_timits_315_sessions_own_one_component_each_unless_m_is_100() -> None:
    assert build(sessions=315, components=None).owned == 1
    with pytest.raises(ConfigError, match="315 or more, or to none"):
        build(sessions=315, components=100)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("ortho", [0.0, 0.3])
def test_loss_is_local_cross_entropy_plus_orthogonality(ortho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method = learn(build(ortho=ortho), 0)
    gaps = []

    def look(part: Session, groups: Any, loss: Any, recipe: Any) -> None:
        clips, y = next(part.batches(6))
        p, k, a, weight, bias = (parameter.detach() for parameter in groups[0].parameters)
        rows = [torch.cat([old, new], dim=1).flatten(2) for old, new in zip(method.components, (p, k, a), strict=True)]
        penalty = sum(float(((Z @ Z.T - torch.eye(len(Z))) ** 2).mean()) for part in rows for Z in part)
        full = coda.Components(torch.cat([method.components.p, p], dim=1), rows[1], rows[2])
        z = method._features(clips.mel, method.query(clips.mel), full)
        assert len(weight) == 2
        want = float(F.cross_entropy(F.linear(z, weight, bias), y - 2)) + ortho * penalty
        gaps.append(float(loss(clips, y).detach()) - want)

    spy(monkeypatch, look)
    learn(method, 1)
    assert gaps == [pytest.approx(0, abs=1e-5)]


def test_recipe_is_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    spy(monkeypatch, lambda part, groups, loss, recipe: given.append((groups, recipe)))
    learn(build(components=None, length=8, batch_size=128, lr=1e-3, epochs=3), 0)
    ((group,), recipe) = given[0]
    assert (recipe.optimiser, recipe.schedule, recipe.weight_decay, recipe.clip) == ("adam", "coda", 0.0, None)
    assert (recipe.epochs, recipe.batch_size, group.lr) == (3, 128, 1e-3)
    assert group.parameters[0].shape == (3, 33, 8, 96)


def test_presets_are_the_published_recipes() -> None:
    def made(**changes: Any) -> Any:
        return config.build(coda.CODAPromptConfig, "esc50", changes, owner="coda-prompt")

    assert made() == coda.CODAPromptConfig() == made(preset="audio")
    plain = made(preset="cifar100")
    assert (plain.epochs, plain.lr, plain.batch_size, plain.length, plain.ortho) == (20, 1e-3, 128, 8, 0.0)
    assert plain.blocks == (0, 1, 2, 3, 4)
    assert made(preset="imagenet-r").epochs == 50
    assert made(preset="imagenet-r", epochs=7).epochs == 7
    with pytest.raises(UnknownNameError, match="preset of coda-prompt"):
        made(preset="imagenet")


def test_epochs_none_means_the_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    spy(monkeypatch, lambda part, groups, loss, recipe: given.append(recipe.epochs))
    learn(build(epochs=None), 0)
    assert given == [2]


def test_queries_come_from_the_pretrained_network_once_per_clip() -> None:
    method = build(epochs=2)
    learn(method, 0, 1)
    clips = 12
    assert method.backbone.passes.clips == 2 * (clips + 2 * clips + clips)  # queries, two epochs, training accuracy
    mel = probe(method)
    assert torch.equal(method.query(mel), network().features(mel))
    kept = method.encode(Clips(mel, query=method.query(mel)))
    assert torch.equal(kept, method.encode(Clips(mel)))
    assert not torch.equal(kept, method.encode(Clips(mel, query=method.query(mel).flip(0))))


def test_only_blocks_that_exist_are_prompted() -> None:
    assert build().blocks == (0, 1, 2)
    assert build(network("whisper-tiny-random")).blocks == (0, 1)
    assert build(blocks=(2, 7)).blocks == (2,)
    shallow = network()
    shallow.layer = 1
    assert build(shallow).blocks == (0,)
    assert build(blocks=(3,)).blocks == (2,)
    with pytest.raises(ConfigError, match="'blocks' is empty"):
        build(blocks=())
    with pytest.raises(ConfigError, match="'length' is 5"):
        build(length=5)


def test_training_lowers_the_loss_and_learns_the_classes() -> None:
    first, last = (learn(build(epochs=epochs, lr=0.02), 0).context.report.notes["train_loss"] for epochs in (1, 12))
    assert last < 0.5 * first
    method = learn(build(epochs=12, lr=0.02), 0)
    mel, labels = clips_of((0, 1), method.backbone, per_class=8, seed=5)
    assert float((scores(method, mel).argmax(1) == torch.from_numpy(labels)).float().mean()) > 0.9
    assert method.context.report.notes["train_accuracy"] > 0.9


# --------------------------------------------------------------------------------------------------- interface and runs


@both_networks
@pytest.mark.parametrize(("stream", "per_class"), [(SESSIONS, 6), (UNEVEN, 6), (UNEVEN, 1)])
def test_audits_state_and_resume(network_name: str, stream: Any, per_class: int) -> None:
    """Uneven sessions, a session of one class, classes of one clip: every stream passes the audits and resumes."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    method, broken = (build(network(network_name)) for _ in range(2))
    mel = clips_of(ALL, method.backbone, per_class=11, seed=99)[0][:64]
    for t in range(3):
        learn(method, t, stream=stream, per_class=per_class)
        learn(broken, t, stream=stream, per_class=per_class)
        buffer = io.BytesIO()
        torch.save(broken.state_dict(), buffer)
        buffer.seek(0)
        broken = build(network(network_name))
        broken.load_state_dict(torch.load(buffer, weights_only=True))
        assert bytes_of(broken.state_dict()) == bytes_of(method.state_dict())
        assert method.num_seen == max(stream[t]) + 1
        assert 0 <= method.context.report.notes["train_accuracy"] <= 1
    assert torch.equal(torch.get_rng_state(), before)
    assert (broken.num_seen, broken.encoder_version) == (method.num_seen, method.encoder_version) == (6, 3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    checks = [
        audit.batch_independence(method, mel, batch_sizes=(1, 7, 64), seed_order=order),
        audit.repeatability(method, mel),
        audit.seen_classes_only(method, mel, 6),
        audit.state_is_complete(method, lambda: build(network(network_name)), mel),
    ]
    assert [check.name for check in checks if not check.passed] == []
    reference = method.encode(Clips(mel))
    for size in (1, 7):
        again = torch.cat([method.encode(Clips(part)) for part in mel.split(size)])
        torch.testing.assert_close(again, reference, rtol=0, atol=1e-5)


def test_the_state_owns_its_memory_and_seeds_decide_everything() -> None:
    method, twin, other = (learn(build(seed=seed), 0, 1) for seed in (0, 0, 1))
    state = bytes_of(method.state_dict())
    assert bytes_of(twin.state_dict()) == state
    assert bytes_of(other.state_dict()) != state
    for part in method.state_dict()["components"].values():
        part.zero_()
    assert bytes_of(method.state_dict()) == state


class StopError(Exception):
    """Ends a run after a session, as a kill would."""


class Stops(Log):
    """A monitor that ends the run once session `after` is saved."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def session_done(self, session: int, accuracy: float) -> None:
        super().session_done(session, accuracy)
        if session == self.after:
            raise StopError


def test_a_run_resumes_to_the_same_result(tiny_material: Material, tmp_path: Path) -> None:
    plan = Plan(coda.CODAPrompt, config_of(epochs=1), 0)
    straight, broken = ResultsDir(tmp_path / "straight"), ResultsDir(tmp_path / "broken")
    execute(plan, tiny_material, straight)
    with pytest.raises(StopError):
        execute(plan, tiny_material, broken, monitor=Stops(0))
    log = Log()
    identity, status = execute(plan, tiny_material, broken, monitor=log)
    assert (status, log.started) == ("done", [(3, 1)])
    assert identity == run_id(plan, tiny_material)
    rows = [results.run(identity) for results in (straight, broken)]
    assert all(row["audit_passed"] for row in rows)
    assert rows[0]["final_accuracy"] == rows[1]["final_accuracy"]
    first, second = (results.predictions(identity)["predicted"].tolist() for results in (straight, broken))
    assert first == second
    # Every test clip's query is taken once: 12 + 24 + 36 prompted passes and 36 queries, over three sessions of 4.
    passes = straight.sessions(identity)["eval_passes"].tolist()
    assert passes == [8, 12, 16]


# ---------------------------------------------------------------------------------------------------------- real speech


class Losses(SilentReporter):
    """Keeps the mean loss of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        self.history.append(loss)


@pytest.mark.slow
def test_it_learns_two_speakers_on_real_speech(shared: Callable[..., Path]) -> None:
    """Whisper, 24 words of two speakers, 12 unheard words: the loss falls, and a linear probe is hardly better."""
    backbone = backbones.load(str(shared("weights", "whisper-tiny.en-encoder")), frames=100)
    files = sorted(shared("data", "arabic_speech_commands").glob("*/*_NO_01.ogg"))
    speakers = sorted({path.name.split("_")[0] for path in files})[:2]
    paths = [path for name in speakers for path in [p for p in files if p.name.split("_")[0] == name][:36]]
    mel = backbone.front_end.batch([backbone.front_end.extract(audio.load(path)) for path in paths])
    labels, held_out = np.repeat([0, 1], 36), np.tile(np.arange(36) >= 24, 2)
    features = backbone.features(mel).numpy()
    probe = LogisticRegression(max_iter=1000).fit(features[~held_out], labels[~held_out])
    context = Context(0, StreamInfo("speakers", 1, 2, first_session_epochs=10), report=Losses())
    method = coda.CODAPrompt(config_of(components=10, length=8, epochs=10, batch_size=8, lr=5e-3), backbone, context)
    part = Session(0, (0, 1), 0, labels[~held_out], reader(mel[torch.from_numpy(~held_out)]), CPU)
    method.learn(part)
    right = scores(method, mel[torch.from_numpy(held_out)]).argmax(1).numpy() == labels[held_out]
    history = method.context.report.history
    assert history[-1] < 0.7 * history[0]
    assert right.mean() > probe.score(features[held_out], labels[held_out]) - 0.15
