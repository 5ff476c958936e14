"""The training audio of the in-box backbone: packages, augmentation, teacher targets, packs."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiocl_bench import audio, backbones
from audiocl_bench.errors import AudioError, CheckpointError, ConfigError, CorpusError, UnknownNameError
from audiocl_bench.pretrain import augment, fingerprint, pack, recordings, sources, synthesis
from audiocl_bench.pretrain.pack import AudioConfig, Pack
from audiocl_bench.pretrain.recordings import Limits
from audiocl_bench.pretrain.teacher import Teacher, average
from audiocl_bench.seeding import numpy_generator

RATE = audio.SAMPLE_RATE


def tone(hertz: float, seconds: float, level: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def wav_bytes(wave: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return file.getvalue()


# -------------------------------------------------------------------------------------------------------------- sources


def test_catalogue_is_sane() -> None:
    names = [source.package for source in sources.CATALOGUE]
    assert len(names) == len(set(names))
    for source in sources.CATALOGUE:
        assert source.version, source.package
        assert source.licence, source.package
        assert "NC" not in source.licence
        assert "ND" not in source.licence


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/usr/share/klettres/ar/alpha/a-20.ogg", False),
        ("/usr/share/tuxpaint/stamps/animals/cat_desc_ar.ogg", False),
        ("/usr/share/tuxpaint/stamps/animals/cat_desc_be.ogg", True),
        ("/usr/share/tuxpaint/stamps/vehicles/car.ogg", True),
        ("/usr/share/sounds/arrow.ogg", True),
    ],
)
def test_arabic_is_left_out(path: str, taken: bool) -> None:
    assert sources.by_name(["klettres-data"])[0].takes(path) is taken


def test_kinds_and_groups_follow_the_path() -> None:
    [stamps] = sources.by_name(["tuxpaint-stamps-default"])
    assert stamps.kind_of("/stamps/animals/cat_desc_fr.ogg") == "speech"
    assert stamps.kind_of("/stamps/animals/cat_desc.ogg") == "speech"
    assert stamps.kind_of("/stamps/animals/cat.ogg") == "sound"
    assert stamps.group_of("/stamps/animals/cat_desc_fr.ogg") == stamps.group_of("/stamps/dog_desc_fr.ogg")
    assert stamps.group_of("/stamps/animals/cat.ogg") != stamps.group_of("/stamps/animals/dog.ogg")


def test_unknown_package_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="klettres-data"):
        sources.by_name(["klettres"])


def test_default_packages_leave_the_large_ones_out() -> None:
    chosen = {source.package for source in sources.by_name(())}
    assert "scratch" in chosen
    assert "widelands-data" not in chosen
    assert [source.package for source in sources.by_name(["widelands-data"])] == ["widelands-data"]


def test_licences_of_both_kinds_of_copyright_file() -> None:
    modern = "Format: x\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: b\nLicense: CC-BY-3.0\n\nLicense: GPL-2+\n"
    assert sources.licence_names(modern) == ("CC-BY-3.0", "GPL-2+")
    old = "released under the GNU General Public License\nand the Creative Commons\n Attribution-ShareAlike 3.0 license"
    assert sources.licence_names(old) == ("CC-BY-SA-3.0", "GPL")


def test_missing_tool_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no-such-apt is not there"):
        sources.run_tool(["no-such-apt", "download"], cwd=tmp_path, failed="x cannot be downloaded")
    with pytest.raises(CorpusError, match=r"x cannot be downloaded: exit code 1; check the network"):
        sources.run_tool(["false"], cwd=tmp_path, failed="x cannot be downloaded")


def test_zip_members_stay_below_their_folder(tmp_path: Path) -> None:
    archive = tmp_path / "inner" / "a.pk3"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sound/../../../evil.wav", wav_bytes(tone(440, 0.2)))
        file.writestr("sound/good.wav", wav_bytes(tone(440, 0.2)))
        file.writestr("picture.png", b"no sound")
    assert sources.open_archive(archive) == 2
    assert {path.name for path in tmp_path.rglob("*.wav")} == {"evil.wav", "good.wav"}
    assert all((archive.parent / "a.pk3.opened") in path.parents for path in tmp_path.rglob("*.wav"))


@pytest.mark.parametrize("packed", [False, True])
def test_streams_are_found_inside_other_files(tmp_path: Path, packed: bool) -> None:
    """Two Ogg streams and a WAV between other bytes, bare (Qt resource) and under OpenClonk's mangled gzip header."""
    ogg = [wav_bytes(tone(hertz, 1.3), kind="OGG") for hertz in (300, 500)]
    wav = wav_bytes(tone(700, 0.4))
    # A header without its stream, as text may hold one, is no recording.
    data = b"qres" + bytes(99) + ogg[0] + b"OggS RIFF" + wav + b"rest" + ogg[1] + bytes(7)
    if packed:
        data = b"\x1e\x8c" + gzip.compress(data)[2:]
    file = tmp_path / "sounds.rcc"
    file.write_bytes(data)
    assert sources.open_archive(file) == 3
    found = sorted((tmp_path / "sounds.rcc.opened").iterdir())
    assert [path.read_bytes() for path in found] == [ogg[0], wav, ogg[1]]


def test_read_is_the_project_s_load_where_both_work(tmp_path: Path) -> None:
    stereo = np.stack([tone(440, 0.5), tone(660, 0.5)], axis=1)
    for rate in (8000, 16_000, 22_050, 44_100):
        soundfile.write(tmp_path / "a.wav", stereo, rate)
        np.testing.assert_array_equal(
            sources.read(tmp_path / "a.wav"), sources.to_pcm(audio.load(tmp_path / "a.wav").numpy())
        )


def test_read_takes_odd_rates_and_refuses_what_is_no_sound(tmp_path: Path) -> None:
    time = np.arange(22_254) / 22_254
    soundfile.write(tmp_path / "odd.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), 22_254)
    pcm = sources.read(tmp_path / "odd.wav")
    assert len(pcm) == pytest.approx(RATE, rel=1e-3)
    assert peak_hertz(pcm.astype(np.float32)) == pytest.approx(1000, rel=1e-3)
    (tmp_path / "text.ogg").write_bytes(b"OggS or not")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    for name, said in (
        ("text.ogg", "decoded"),
        ("short.wav", "shorter"),
        ("nan.wav", "finite"),
        ("none.wav", "decoded"),
    ):
        with pytest.raises(AudioError, match=said):
            sources.read(tmp_path / name)


def test_digest_ignores_padding_but_no_change() -> None:
    pcm = sources.to_pcm(tone(440, 0.5))
    padded = np.concatenate([np.zeros(100, np.int16), pcm, np.zeros(7, np.int16)])
    changed = pcm.copy()
    changed[4000] += 1
    assert sources.digest(padded) == sources.digest(pcm) != sources.digest(changed)


# ------------------------------------------------------------------------------------------------------------ synthesis


def parse_midi(song: bytes) -> list[tuple[float, int, int, int]]:
    """Read a MIDI file of one track: (seconds, status, first byte, second byte) of every channel event."""
    assert song[:4] == b"MThd"
    _, tracks, ticks = struct.unpack(">HHH", song[8:14])
    assert tracks == 1
    assert struct.unpack(">I", song[18:22])[0] == len(song) - 22
    at, now, tempo, events = 22, 0, 500_000, []
    while at < len(song):
        delta = 0
        while True:
            delta = delta << 7 | song[at] & 0x7F
            at += 1
            if not song[at - 1] & 0x80:
                break
        now += delta
        status = song[at]
        if status == 0xFF:
            if song[at + 1] == 0x51:
                tempo = int.from_bytes(song[at + 3 : at + 6], "big")
            at += 3 + song[at + 2]
        else:
            size = 1 if status >> 4 == 0xC else 2
            events.append((now * tempo / ticks / 1e6, status, song[at + 1], song[at + 2] if size == 2 else 0))
            at += 1 + size
    return events


def test_midi_says_what_the_notes_say() -> None:
    notes = [synthesis.Note((60,), 100, 0.5), synthesis.Note((60, 64), 70, 1.0)]
    events = parse_midi(synthesis.midi(notes, program=17, channel=3))
    assert events[0] == (0.0, 0xC3, 17, 0)
    assert events[1:] == [
        (0.0, 0x93, 60, 100),
        (0.5, 0x83, 60, 0),
        (3.0, 0x93, 60, 70),
        (3.0, 0x93, 64, 70),
        (4.0, 0x83, 60, 0),
        (4.0, 0x83, 64, 0),
    ]


def test_every_program_plays_all_pitches() -> None:
    for program in (0, 127):
        single = [note for note in synthesis.notes_of(program) if len(note.keys) == 1]
        assert {note.keys[0] for note in single} == set(synthesis.PITCHES)
        assert synthesis.notes_of(program) == synthesis.notes_of(program)
    assert synthesis.notes_of(0)[-1] != synthesis.notes_of(1)[-1]


# -------------------------------------------------------------------------------------------------------------- augment


def test_level_is_the_rms_of_what_sounds() -> None:
    wave = np.concatenate([np.zeros(RATE, np.float32), tone(500, 1.0, 0.4), np.zeros(RATE, np.float32)])
    assert augment.level(wave) == pytest.approx(0.4 / np.sqrt(2), rel=1e-3)
    assert augment.level(np.zeros(RATE, np.float32)) == 0.0
    assert augment.level(augment.to_level(wave, -20.0)) == pytest.approx(0.1, rel=1e-3)
    assert np.abs(augment.to_level(wave, 20.0)).max() == pytest.approx(0.99, rel=1e-5)


@pytest.mark.parametrize("snr", [-3.0, 0.0, 12.0])
def test_noise_reaches_its_snr(snr: float) -> None:
    wave = tone(500, 2.0)
    noise = augment.coloured_noise(numpy_generator(1, "noise"), len(wave), -3.0)
    added = augment.add_at_snr(wave, noise, snr) - wave
    reached = 20 * np.log10(augment.level(wave) / augment.level(added))
    assert reached == pytest.approx(snr, abs=0.05)


def test_silence_is_left_alone() -> None:
    silence, wave = np.zeros(RATE, np.float32), tone(500, 1.0)
    np.testing.assert_array_equal(augment.add_at_snr(silence, wave, 0.0), silence)
    np.testing.assert_array_equal(augment.add_at_snr(wave, silence, 0.0), wave)
    assert len(augment.trim(silence)) == 0


@pytest.mark.parametrize("slope", [-6.0, -3.0, 0.0])
def test_noise_has_its_colour(slope: float) -> None:
    noise = augment.coloured_noise(numpy_generator(2, "noise"), 20 * RATE, slope)
    power = np.square(np.abs(np.fft.rfft(noise)))
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    low = power[(hertz > 200) & (hertz < 400)].mean()
    high = power[(hertz > 3200) & (hertz < 6400)].mean()
    assert 10 * np.log10(high / low) == pytest.approx(4 * slope, abs=1.0)


def peak_hertz(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
    return float(np.argmax(spectrum)) * RATE / (8 * len(wave))


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.25])
def test_speed_moves_length_and_pitch_together(factor: float) -> None:
    fast = augment.change_speed(tone(600, 1.0), factor)
    assert len(fast) == pytest.approx(RATE / factor, rel=0.01)
    assert peak_hertz(fast) == pytest.approx(600 * factor, rel=0.01)


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_tempo_moves_length_alone(factor: float) -> None:
    wave = tone(600, 1.5)
    other = augment.change_tempo(wave, factor)
    assert len(other) == round(len(wave) / factor)
    assert peak_hertz(other) == pytest.approx(600, rel=0.01)
    inner = other[1000:-1000]
    assert augment.level(inner) == pytest.approx(augment.level(wave), rel=0.1)


def test_tempo_keeps_the_order_of_events() -> None:
    wave = np.concatenate([tone(400, 0.5), np.zeros(RATE // 2, np.float32), tone(1000, 0.5)])
    slow = augment.change_tempo(wave, 0.5)
    thirds = np.array_split(slow, 3)
    assert peak_hertz(thirds[0][800:-800]) == pytest.approx(400, rel=0.02)
    assert peak_hertz(thirds[2][800:-800]) == pytest.approx(1000, rel=0.02)
    assert np.abs(thirds[1][1600:-1600]).max() < 0.02


@pytest.mark.parametrize("t60", [0.3, 0.8])
def test_room_falls_by_60_db_in_its_time(t60: float) -> None:
    tail = augment.impulse_response(numpy_generator(3, "room"), t60, wet=0.5)
    assert tail[0] == 1.0
    assert np.square(tail[1:]).sum() == pytest.approx(0.5, rel=0.01)
    # Schroeder's backward integral: its slope between -5 and -25 dB, carried on to -60.
    energy = np.cumsum(np.square(tail[1:], dtype=np.float64)[::-1])[::-1]
    decibel = 10 * np.log10(energy / energy[0])
    time = np.arange(len(decibel)) / RATE
    used = (decibel < -5) & (decibel > -25)
    slope = np.polyfit(time[used], decibel[used], 1)[0]
    assert -60 / slope == pytest.approx(t60, rel=0.15)


def test_equaliser_tilts_and_limits() -> None:
    def gain(hertz: float, **settings: float) -> float:
        wave = tone(hertz, 1.0)
        return 20 * np.log10(augment.level(augment.equalise(wave, **settings)) / augment.level(wave))

    assert gain(1000, tilt=3.0) == pytest.approx(0.0, abs=0.1)
    assert gain(4000, tilt=3.0) == pytest.approx(6.0, abs=0.1)
    assert gain(500, tilt=3.0) == pytest.approx(-3.0, abs=0.1)
    assert gain(100, tilt=0.0, low=300.0, high=3400.0) < -30
    assert gain(1000, tilt=0.0, low=300.0, high=3400.0) == pytest.approx(0.0, abs=0.2)
    assert gain(7000, tilt=0.0, low=300.0, high=3400.0) < -20


def test_placing() -> None:
    wave = np.arange(1, 6, dtype=np.float32)
    assert augment.place(wave, 8, 2).tolist() == [0, 0, 1, 2, 3, 4, 5, 0]
    assert augment.place(wave, 4, 2).tolist() == [0, 0, 1, 2]
    assert augment.place(wave, 4, -2).tolist() == [3, 4, 5, 0]
    assert augment.sequence([wave, wave], [3]).tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 1, 2, 3, 4, 5]
    filled = augment.repeat(numpy_generator(4), tone(500, 0.3), 2 * RATE)
    assert len(filled) == 2 * RATE
    assert augment.level(filled) > 0.1
    assert np.count_nonzero(filled) > 0.4 * RATE  # sounds more than once


def test_variation_is_a_function_of_the_seed() -> None:
    wave = tone(500, 1.0)
    everything = augment.Strength(speed_chance=1, tempo_chance=1, colour_chance=1, room_chance=1, noise_chance=1)

    def vary(seed: int) -> np.ndarray:
        rng = numpy_generator(seed, "vary")
        return augment.vary_recording(rng, augment.vary_source(rng, wave, everything), everything)

    np.testing.assert_array_equal(vary(1), vary(1))
    assert not np.array_equal(vary(1), vary(2))
    assert vary(1).dtype == np.float32
    nothing = augment.Strength(
        speed_chance=0, tempo_chance=0, colour_chance=0, narrow_chance=0, room_chance=0, noise_chance=0
    )
    rng = numpy_generator(1)
    np.testing.assert_array_equal(augment.vary_recording(rng, augment.vary_source(rng, wave, nothing), nothing), wave)


# ----------------------------------------------------------------------------------------------------------- recordings

LIMITS = Limits(seconds=1.0, pieces=3, music_pieces=2)


def test_cut_takes_silence_off_and_keeps_the_rest() -> None:
    quiet = np.zeros(RATE, np.float32)
    found = recordings.cut(sources.to_pcm(np.concatenate([quiet, tone(500, 0.6, 0.05), quiet])), False, LIMITS)
    [piece] = found.pieces
    assert len(piece) == pytest.approx(0.66 * RATE, abs=0.03 * RATE)
    assert np.abs(piece).max() / 32767 == pytest.approx(recordings.PEAK, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "music", "count"), [(0.9, False, 1), (2.5, False, 3), (9.0, False, 3), (9.0, True, 2)]
)
def test_long_recordings_are_cut(seconds: float, music: bool, count: int) -> None:
    found = recordings.cut(sources.to_pcm(tone(500, seconds)), music, LIMITS)
    assert len(found.pieces) == count
    assert all(len(piece) <= RATE + 1 for piece in found.pieces)


def test_silent_and_tiny_recordings_give_nothing() -> None:
    assert recordings.cut(sources.to_pcm(tone(500, 1.0, 0.002)), False, LIMITS).pieces == ()
    click = np.zeros(RATE, np.float32)
    assert recordings.cut(sources.to_pcm(click), False, LIMITS).pieces == ()
    assert recordings.cut(np.zeros(0, np.int16), False, LIMITS).pieces == ()


# ---------------------------------------------------------------------------------------------------------- fingerprint


def test_landmarks_find_a_part_and_nothing_else() -> None:
    rng = np.random.default_rng(7)

    def bells(count: int) -> np.ndarray:
        wave = np.zeros(5 * RATE, np.float32)
        for _ in range(count):
            at, hertz = int(rng.integers(0, 4 * RATE)), float(rng.uniform(200, 6000))
            time = np.arange(5 * RATE - at) / RATE
            wave[at:] += (np.sin(2 * np.pi * hertz * time) * np.exp(-6 * time)).astype(np.float32)
        return sources.to_pcm(0.1 * wave)

    known = [(str(number), bells(40)) for number in range(6)]
    index = fingerprint.Index(known)
    assert len(index) == 6
    # Shifted by 2.4 frames of the spectrogram, so that the two grids do not coincide.
    part = known[3][1][RATE + 614 : 4 * RATE]
    noisy = part * 0.3 + rng.standard_normal(len(part)) * 30
    match = index.match(noisy.astype(np.int16))
    assert match is not None
    assert match.name == "3"
    assert match.likely
    stranger = index.match(bells(40))
    assert stranger is None or not stranger.likely
    assert index.match(np.zeros(RATE, np.int16)) is None
    assert index.match(np.zeros(10, np.int16)) is None
    assert fingerprint.Index([]).match(part) is None


# -------------------------------------------------------------------------------------------------------------- teacher

WHISPER = "whisper-random-tiny"


def stand_in() -> str:
    [name] = [row.name for row in backbones.list_rows() if row.stand_in and "whisper" in row.name]
    return name


def test_targets_are_the_means_of_their_tokens() -> None:
    teacher = Teacher(stand_in())
    waves = torch.from_numpy(np.stack([tone(400, 1.05), tone(900, 1.05)]))
    tokens = teacher.tokens(waves)
    assert tokens.shape == (2, 53, teacher.layers, teacher.dim)  # 105 rows, rounded up to 106
    targets = teacher.targets(waves, patches=7)
    for patch in range(7):
        expected = tokens[:, 8 * patch : min(8 * patch + 8, 53)].mean(dim=1)
        torch.testing.assert_close(targets[:, patch], expected)
    with pytest.raises(ValueError, match="patch 7"):
        average(tokens, 8)


def test_layers_are_the_network_s_own() -> None:
    teacher = Teacher(stand_in())
    network = backbones.load(stand_in(), frames=100)
    wave = torch.from_numpy(tone(400, 1.0))
    x = network.front_end.batch([network.front_end.extract(wave)])
    stem = network.tokens(x)
    outputs: list[torch.Tensor] = []
    network.run(stem, stop=network.depth, outputs=outputs)
    tokens = teacher.tokens(wave[None])
    assert teacher.describe()["layers"] == list(range(network.depth + 1))
    torch.testing.assert_close(tokens[:, :, 0], stem)
    torch.testing.assert_close(tokens[:, :, 1], outputs[0])
    torch.testing.assert_close(tokens[:, :, -1], outputs[-1])


def test_a_missing_teacher_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("audiocl_bench.backbones.registry.hf_hub_download", offline)
    with pytest.raises(CheckpointError, match="teacher is missing, backbone whisper-base could not be fetched") as told:
        Teacher("whisper-base")
    assert "--teacher PATH" in str(told.value)
    assert "--backbone" not in str(told.value)


def test_teacher_is_a_whisper() -> None:
    [name] = [row.name for row in backbones.list_rows() if row.stand_in and "whisper" not in row.name][:1]
    with pytest.raises(ConfigError, match="name a Whisper encoder"):
        Teacher(name)


# ----------------------------------------------------------------------------------------------------------------- pack


@pytest.fixture
def packages(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two unpacked packages, and no way to run any tool: 14 files, of which 11 can be used once."""
    cache = private_home / "pretrain" / "packages"
    speech, sound = (
        sources.Source("words", "1", "speech", "CC0-1.0", "words", group=r"/(\w)\d+\.wav$"),
        sources.Source("noises", "1", "sound", "GPL-2+", "noises", kinds=(("/music", "music"),)),
    )
    monkeypatch.setattr(sources, "CATALOGUE", (speech, sound))
    for source in (speech, sound):
        (cache / "unpacked" / f"{source.package}_1_all" / "usr/share/doc" / source.package).mkdir(parents=True)
        (cache / f"{source.package}_1_all.deb").write_bytes(source.package.encode())
        copyright_file = cache / "unpacked" / f"{source.package}_1_all" / "usr/share/doc" / source.package / "copyright"
        copyright_file.write_text(f"Format: x\n\nFiles: *\nLicense: {source.licence}\n")
    words, noises = (cache / "unpacked" / f"{name}_1_all" for name in ("words", "noises"))
    rng = np.random.default_rng(5)
    for number in range(6):
        soundfile.write(words / f"{'ab'[number % 2]}{number}.wav", tone(200 + 90 * number, 0.4 + 0.1 * number), RATE)
    for number in range(4):
        wave = (0.1 * rng.standard_normal(int((0.3 + 2.0 * number) * 22_050))).astype(np.float32)
        soundfile.write(noises / f"n{number}.flac", wave, 22_050)
    soundfile.write(noises / "music.wav", np.stack([tone(300, 8.0), tone(301, 8.0)], axis=1), RATE)
    soundfile.write(noises / "silent.wav", np.zeros(RATE), RATE)
    (noises / "broken.ogg").write_bytes(b"OggS, or so it says")
    shutil.copy(words / "a0.wav", noises / "same.wav")
    shutil.copy(noises / "n1.flac", noises / "n1-copy.flac")

    def refuse(command: list[str], **_: object) -> str:
        raise AssertionError(f"{command} must not be run here")

    monkeypatch.setattr(sources, "run_tool", refuse)
    monkeypatch.setattr(pack, "SHARD_CLIPS", 8)
    for cached in (pack._read_plan, pack._samples, pack._teacher):
        cached.cache_clear()
    return cache


SETTINGS = AudioConfig(
    sound_variants=3, speech_variants=2, music_variants=2, pieces=2, music_pieces=1, sequences=0.4, mixtures=0.4
)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("mel.u8", "targets.f16", "clips.parquet", "manifest.json")}


def test_pack_reports_what_it_used_and_left_out(packages: Path, tmp_path: Path) -> None:
    made = pack.build(SETTINGS, tmp_path / "pack", workers=1, progress=False)
    words, noises = made.manifest["packages"]
    assert (words["package"], words["licences_in_copyright_file"]) == ("words", ["CC0-1.0"])
    assert words["sha256"] == sources.sha256_file(packages / "words_1_all.deb")
    assert (words["recordings"], words["pieces"]) == (6, 6)
    assert [noises[name] for name in ("recordings", "unreadable", "silent", "repeated")] == [9, 1, 1, 1]
    assert noises["pieces"] == 1 + 1 + 1 + 2 + 1 + 1  # n3 is 6.3 s; the copy of a word is a piece until they are joined
    assert made.manifest["dropped"] == {"held_out": 0, "in_two_packages": 1}
    assert made.teacher is None
    assert made.targets is None
    # 6 words twice, 5 pieces of noise three times, one of music twice
    assert len(made) == 12 + 15 + 2 == len(made.clips)
    assert set(made.clips["source"]) <= {"speech", "sequence", "sound", "music", "mixture"}
    sequence = made.clips[made.clips["source"] == "sequence"]
    for recording in sequence["recording"]:
        assert len({part.split("/")[-1][0] for part in recording.split(" + ")}) == 1  # one speaker
    assert {"row", "source", "package", "licence", "variant", "frames", "group"} <= set(made.clips.columns)
    assert made.clips["frames"].between(98, 498).all()
    assert made.manifest["totals"]["seconds"] == pytest.approx(made.clips["frames"].sum() / 100)


def test_held_out_recordings_are_dropped(packages: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation" / "audio"
    evaluation.mkdir(parents=True)
    wave, rate = soundfile.read(packages / "unpacked/words_1_all/a2.wav")
    soundfile.write(evaluation / "clip.flac", wave, rate)
    settings = replace(SETTINGS, held_out=(str(tmp_path / "evaluation"), str(tmp_path / "absent")))
    made = pack.build(settings, tmp_path / "pack", workers=1, progress=False)
    assert made.manifest["dropped"]["held_out"] == 1
    assert made.manifest["held_out"] == {"checked": ["evaluation"], "files": 1, "not_there": ["absent"]}
    assert not made.clips["recording"].str.contains("a2.wav").any()
    unguarded = pack.build(SETTINGS, tmp_path / "other", workers=1, progress=False)
    assert unguarded.clips["recording"].str.contains("a2.wav").any()
    assert pack.overlap(unguarded, [tmp_path / "evaluation"])["key"].tolist() == ["words:/a2.wav"]
    # A part of another recording, softer, noisier and coded with loss, is found by its landmarks.
    wave, rate = soundfile.read(packages / "unpacked/noises_1_all/n3.flac", dtype="float32")
    part = 0.3 * wave[2 * rate : 5 * rate] + 0.001 * np.random.default_rng(1).standard_normal(3 * rate)
    soundfile.write(evaluation / "part.ogg", part, rate)
    found = pack.overlap(unguarded, [tmp_path / "evaluation"]).set_index("key")
    assert found.loc["noises:/n3.flac", "file"] == "audio/part.ogg"
    assert set(found.index) == {"words:/a2.wav", "noises:/n3.flac"}


def test_batch_equals_direct_computation(packages: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, teacher=stand_in())
    made = pack.build(settings, tmp_path / "pack", workers=1, progress=False)
    assert made.teacher is not None
    plan_folder = tmp_path / "plan"
    plan_folder.mkdir()
    parts = recordings.collect(
        sources.CATALOGUE, packages, packages.parent / "recordings", settings.limits, workers=1, say=print
    )
    plan = pack._plan(settings, pack._pieces(parts, frozenset())[0])
    teacher = Teacher(settings.teacher)
    rows = np.array([3, 0, 17, 28])
    frames = 112
    packed = made.batch(rows, frames)
    assert packed.mel.shape == (4, frames, 128)
    assert packed.mel.dtype == torch.float32
    assert packed.targets is not None
    for place, row in enumerate(rows):
        pcm = pack._render(plan, *map(int, plan.items[row])).pcm
        wave = torch.from_numpy(pcm.astype(np.float32) / 32768.0)
        mel = audio.FrontEnd("kaldi", 128, 100_000).extract(wave)
        real = min(len(mel), frames)
        assert len(mel) == made.clips["frames"][row]
        assert packed.lengths[place] == real
        assert (packed.mel[place, :real] - mel[:real]).abs().max() < 0.06
        assert (packed.mel[place, real:] == 0).all()
        patches = -(-len(mel) // 16)
        expected = teacher.targets(wave[None], patches)[0][: frames // 16]
        valid = -(-real // 16)
        assert packed.valid[place].tolist() == [True] * valid + [False] * (frames // 16 - valid)
        torch.testing.assert_close(packed.targets[place, :valid], expected[:valid], atol=5e-3, rtol=2e-3)
        assert (packed.targets[place, valid:] == 0).all()


def test_crops_are_parts_of_the_whole(packages: Path, tmp_path: Path) -> None:
    made = pack.build(replace(SETTINGS, teacher=stand_in()), tmp_path / "pack", workers=1, progress=False)
    row = int(made.clips["frames"].argmax())
    frames = int(made.clips["frames"][row])
    whole = made.batch(np.array([row]), 16 * (-(-frames // 16)))
    start = (frames - 40) // 16 * 16
    cut = made.batch(np.array([row, row]), 64, starts=np.array([start, 0]))
    left = frames - start
    assert cut.lengths.tolist() == [left, 64]
    torch.testing.assert_close(cut.mel[0, :left], whole.mel[0, start : start + left])
    assert (cut.mel[0, left:] == 0).all()
    assert whole.targets is not None
    assert cut.targets is not None
    torch.testing.assert_close(cut.targets[1], whole.targets[0, :4])
    real = -(-left // 16)
    torch.testing.assert_close(cut.targets[0, :real], whole.targets[0, start // 16 : start // 16 + real])
    for arguments in (
        (np.array([row]), 60, None),
        (np.array([row]), 64, np.array([8])),
        (np.array([row]), 64, np.array([4096])),
    ):
        with pytest.raises(ValueError, match="start"):
            made.batch(*arguments)


def test_moments_are_those_of_all_targets(packages: Path, tmp_path: Path) -> None:
    made = pack.build(replace(SETTINGS, teacher=stand_in()), tmp_path / "pack", workers=1, progress=False)
    assert made.teacher is not None
    assert made.targets is not None
    everything = np.asarray(made.targets, dtype=np.float64)
    np.testing.assert_allclose(made.teacher["mean"], everything.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(made.teacher["std"], everything.std(axis=0), atol=1e-5)
    assert made.teacher["mean"].shape == (len(made.teacher["layers"]), made.teacher["dim"])


def test_interrupted_pack_goes_on_and_ends_with_the_same_bytes(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, teacher=stand_in())
    pack.build(settings, tmp_path / "whole", workers=1, progress=False)
    real = pack._make_shard
    made: list[int] = []

    def dies(number: int, folder: Path) -> tuple[int, float]:
        if len(made) == 2:
            # What a kill between two files of a shard leaves behind.
            (folder / f"{number:05d}.mel").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(number)
        return real(number, folder)

    monkeypatch.setattr(pack, "_make_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        pack.build(settings, tmp_path / "cut", workers=1, progress=False)
    with pytest.raises(CorpusError, match="no finished pack"):
        Pack.open(tmp_path / "cut")
    monkeypatch.setattr(pack, "_make_shard", lambda number, folder: made.append(number) or real(number, folder))
    again = pack.build(settings, tmp_path / "cut", workers=1, progress=False)
    assert len(made) == len(set(made)) == -(-len(again) // 8)  # no shard was made twice
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("shards-*"))
    assert pack.build(settings, tmp_path / "cut", workers=1, progress=False).hash == again.hash
    for other in (replace(settings, seed=1), replace(settings, teacher="")):
        with pytest.raises(ConfigError, match="another table"):
            pack.build(other, tmp_path / "cut", workers=1, progress=False)
    elsewhere = replace(settings, held_out=("nowhere",), teacher=str(tmp_path / "lost.safetensors"))
    assert pack.build(elsewhere, tmp_path / "cut", workers=1, progress=False).hash == again.hash


@pytest.mark.slow
def test_number_of_processes_changes_no_byte(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # New processes read the module as it is in the file, so the shards must have their real size here.
    monkeypatch.setattr(pack, "SHARD_CLIPS", 256)
    settings = replace(SETTINGS, teacher=stand_in(), sound_variants=60)
    one = pack.build(settings, tmp_path / "one", workers=1, progress=False)
    assert len(one) > 256
    two = pack.build(settings, tmp_path / "two", workers=2, progress=False)
    assert one.hash == two.hash
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_seed_gives_other_clips_of_the_same_recordings(packages: Path, tmp_path: Path) -> None:
    one = pack.build(SETTINGS, tmp_path / "one", workers=1, progress=False)
    two = pack.build(replace(SETTINGS, seed=1), tmp_path / "two", workers=1, progress=False)
    assert one.hash != two.hash
    assert sorted(one.clips["group"]) == sorted(two.clips["group"])


def test_broken_numbers_of_variants_are_drawn_by_lot(packages: Path, tmp_path: Path) -> None:
    none = replace(SETTINGS, speech_variants=0, music_variants=0, sound_variants=1)
    assert len(pack.build(none, tmp_path / "one", workers=1, progress=False)) == 5
    half = pack.build(replace(none, sound_variants=40.5), tmp_path / "half", workers=1, progress=False)
    assert 200 < len(half) < 205


def test_clean_clips_are_their_recordings(packages: Path, tmp_path: Path) -> None:
    """Without variation, sequences and mixtures a clip is its recording, scaled and moved, between zeros."""
    settings = replace(SETTINGS, clean=1.0, sequences=0.0, mixtures=0.0, sound_variants=0, music_variants=0)
    parts = recordings.collect(
        sources.CATALOGUE, packages, packages.parent / "recordings", settings.limits, workers=1, say=print
    )
    plan = pack._plan(settings, pack._pieces(parts, frozenset())[0])
    for row, variant in plan.items:
        clip = pack._render(plan, int(row), int(variant)).pcm / 32768.0
        piece = plan.wave(int(row))
        likeness = np.correlate(clip, piece, mode="valid")
        at = int(np.argmax(np.abs(likeness)))
        inside = clip[at : at + len(piece)]
        gain = float(inside @ piece / (piece @ piece))
        np.testing.assert_allclose(inside, gain * piece, atol=3e-5)
        outside = np.concatenate([clip[:at], clip[at + len(piece) :]])
        assert not outside.any()


def test_quantisation_error_is_half_a_step() -> None:
    mel = np.random.default_rng(6).uniform(pack.LOW, 10.8, (500, 128)).astype(np.float32)
    error = np.abs(pack.dequantise(pack.quantise(mel)) - mel)
    assert error.max() <= pack.STEP / 2 + 1e-5 < 0.06
    assert pack.quantise(np.full((1, 1), pack.LOW, np.float32)).item() == 0
    loudest = pack.features(torch.from_numpy(tone(1000, 1.0, 1.0))[None])
    assert loudest.max() < pack.LOW + 255 * pack.STEP


def test_damaged_pack_is_told(packages: Path, tmp_path: Path) -> None:
    pack.build(SETTINGS, tmp_path / "pack", workers=1, progress=False)
    mel = tmp_path / "pack" / "mel.u8"
    mel.write_bytes(mel.read_bytes()[:-1])
    with pytest.raises(CorpusError, match=r"damaged pack \(mel.u8 has"):
        Pack.open(tmp_path / "pack")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"speach_variants": 2}, "speech_variants"),
        ({"mixtures": 2.0}, "mixtures"),
        ({"packages": ["klettres"]}, "klettres-data"),
        ({"seed": "x"}, "whole number"),
    ],
)
def test_table_is_checked(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AudioConfig.from_table(table)


def test_table_is_read() -> None:
    read = AudioConfig.from_table({"packages": ["scratch"], "max_seconds": 4, "teacher": "x"})
    assert read == AudioConfig(packages=("scratch",), max_seconds=4.0, teacher="x")
    assert json.loads(json.dumps(read.as_dict()))["packages"] == ["scratch"]
    assert AudioConfig.from_table(read.as_dict()) == read


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_deb_is_unpacked_to_its_audio(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: words\nVersion: 1:2-3\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (tree / "usr/share/doc/words").mkdir(parents=True)
    (tree / "usr/share/doc/words/copyright").write_text("Format: x\n\nFiles: *\nLicense: CC0-1.0\n")
    (tree / "usr/share/words").mkdir()
    (tree / "usr/share/words/a.wav").write_bytes(wav_bytes(tone(400, 0.5)))
    (tree / "usr/share/words/a.png").write_bytes(b"picture")
    with zipfile.ZipFile(tree / "usr/share/words/more.pk3", "w") as archive:
        archive.writestr("deep/b.wav", wav_bytes(tone(500, 0.5)))
    cache = tmp_path / "cache"
    cache.mkdir()
    deb = cache / "words_1%3a2-3_all.deb"
    sources.run_tool(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(deb)], cwd=tmp_path, failed="x")
    source = sources.Source("words", "1:2-3", "speech", "CC0-1.0", "words")
    told: list[str] = []
    [package] = sources.fetch([source], cache, say=told.append)
    assert (package.version, package.licences) == ("1:2-3", ("CC0-1.0",))
    assert [recording.key for recording in sources.recordings(package)] == [
        "words:/usr/share/words/a.wav",
        "words:/usr/share/words/more.pk3.opened/deep/b.wav",
    ]
    assert not list(package.folder.rglob("*.png"))
    assert told == ["unpacking words_1%3a2-3_all.deb"]
    sources.fetch([source], cache, say=told.append)
    assert len(told) == 1
    shutil.rmtree(package.folder)
    deb.write_bytes(b"cut")
    with pytest.raises(CorpusError, match="cannot be unpacked"):
        sources.fetch([source], cache, say=told.append)
    assert not package.folder.exists()
