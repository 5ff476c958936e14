"""Environmental and urban sounds in miniature: small parametric models of what makes each class, no recordings.

Every class is one function of two generators. `source` fixes the object (its size, pitch, rate, material) and is
equal in all clips of a group; `take` gives timing and order. What is drawn from `source` never depends on `take`.
Around the object a recording is made: room, background, microphone, level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from audiocl_bench.mini import dsp
from audiocl_bench.mini.dsp import Rng, Wave, between
from audiocl_bench.mini.spec import RATE, ClipSpec
from audiocl_bench.seeding import numpy_generator

SEED = 20260801
"""Seed of all miniature sounds."""

LENGTH = 40_960
"""Samples of a full clip: 2.56 s, 256 rows of log-mel."""

_Synth = Callable[[Rng, Rng, int], Wave]


# -------------------------------------------------------------------------------------------------------------- animals


def dog(source: Rng, take: Rng, n: int) -> Wave:
    """Barks: a voiced burst of 0.1 to 0.25 s whose pitch rises and falls, through a short open tract, with rasp."""
    pitch, length, rasp = between(source, 220, 800), between(source, 0.09, 0.22), source.uniform(0.1, 0.6)
    size = between(source, 0.75, 1.3)
    rate, double = between(source, 1.2, 3.2), source.random() < 0.4
    events = []
    for onset in dsp.beats(take, n, rate, looseness=0.25)[: int(take.integers(2, 7))]:
        for part in range(2 if double else 1):
            m = int(RATE * length * between(take, 0.8, 1.25))
            contour = pitch * between(take, 0.92, 1.08) * (0.65 + 0.5 * dsp.arch(m, 0.6))
            voice = dsp.glottis(take, contour, jitter=0.02, shimmer=0.2)
            voice = dsp.unit(voice) + rasp * take.standard_normal(m)
            bark = dsp.body(voice, [700 * size, 1300 * size, 2600 * size], [200, 300, 600], [1.0, 0.7, 0.3])
            start = onset + int(part * RATE * length * 1.3)
            events.append((start, bark * dsp.burst(m, 0.015, length * 1.5) * take.uniform(0.6, 1.0)))
    return dsp.place(n, events)


def frog(source: Rng, take: Rng, n: int) -> Wave:
    """Croaks: a fixed resonance struck by a train of pulses slow enough to rattle, again and again at an even pace."""
    carrier, pulses = between(source, 450, 2400), between(source, 22, 75)
    length, rate = between(source, 0.12, 0.45), between(source, 1.0, 2.6)
    events = []
    for onset in dsp.beats(take, n, rate, looseness=0.06):
        m = int(RATE * length * between(take, 0.9, 1.1))
        train = dsp.glottis(take, pulses * np.linspace(0.85, 1.15, m), jitter=0.01, shimmer=0.1)
        croak = dsp.body(train, [carrier, 2.1 * carrier, 0.5 * carrier], [120, 300, 120], [1.0, 0.4, 0.25])
        events.append((onset, croak * dsp.arch(m, 0.25)))
    return dsp.place(n, events)


def crickets(source: Rng, take: Rng, n: int) -> Wave:
    """Stridulation: a pure tone of 2.4 to 6 kHz in syllables of some 15 ms, a few to a chirp or all in one trill."""
    voices = [
        (between(source, 2400, 6000), between(source, 22, 55), between(source, 1.4, 4.0), source.random())
        for _ in range(int(source.integers(1, 4)))
    ]
    wave = np.zeros(n)
    time = dsp.seconds(n)
    for number, (carrier, syllables, chirps, kind) in enumerate(voices):
        wings = np.sin(np.pi * (syllables * time + take.random())) ** 2  # one stroke of the wings
        gate = ((chirps * time + take.random()) % 1.0 < 0.45 + 0.1 * kind).astype(float) if kind < 0.65 else np.ones(n)
        gate = np.convolve(gate, np.hanning(160) / np.hanning(160).sum(), mode="same")
        drift = carrier * (1.0 + 0.004 * dsp.wander(take, n, 4.0))
        wave += 0.6**number * dsp.tone(drift, n) * wings * gate
    return wave


def chirping_birds(source: Rng, take: Rng, n: int) -> Wave:
    """Song: whistles of 2 to 7 kHz that sweep by up to an octave within 30 to 200 ms, in short repeated motifs."""
    motifs = []
    for _ in range(int(source.integers(2, 4))):
        notes = [
            (between(source, 2000, 5500), source.uniform(-0.9, 0.9), between(source, 0.03, 0.16), source.uniform(0, 60))
            for _ in range(int(source.integers(1, 5)))
        ]
        motifs.append((notes, int(source.integers(1, 5)), source.uniform(0.02, 0.09)))
    events, at = [], int(take.uniform(0.0, 0.4) * RATE)
    while at < n:
        notes, repeats, pause = motifs[int(take.integers(len(motifs)))]
        strength = between(take, 0.35, 1.0)
        for _ in range(repeats):
            for pitch, sweep, length, warble in notes:
                m = int(RATE * length)
                bend = sweep * np.linspace(-0.5, 0.5, m) + 0.06 * np.sin(2 * np.pi * warble * dsp.seconds(m))
                events.append((at, strength * dsp.arch(m) * dsp.harmonics(pitch * 2.0**bend, [1.0, 0.08], m)))
                at += m + int(RATE * pause)
        at += int(RATE * between(take, 0.08, 0.6))
    return dsp.place(n, events)


# --------------------------------------------------------------------------------------------------------------- nature


def rain(source: Rng, take: Rng, n: int) -> Wave:
    """Countless drops: steady hiss, rising towards 2 to 6 kHz, grainy with single drops that are heard out of it."""
    density, heard = between(source, 400, 3000), source.uniform(0.4, 1.0)
    surface, hiss = between(source, 1500, 5500), source.uniform(-3.0, 2.0)
    drops = dsp.spikes(take, n, density, 0.7)
    drops = dsp.body(drops, [surface, 0.55 * surface, 1.35 * surface], [900, 500, 1500], [1.0, 0.5, 0.6])
    return dsp.unit(dsp.band(dsp.coloured(take, n, hiss), 300, 8000, 1)) + heard * dsp.unit(drops)


def sea_waves(source: Rng, take: Rng, n: int) -> Wave:
    """Surf: noise that swells within a second or two, gets brighter as the wave breaks, and draws back hissing."""
    period, dark, bright = between(source, 1.6, 3.6), between(source, 180, 500), between(source, 1200, 4000)
    depth, width = source.uniform(0.7, 0.95), source.uniform(2.0, 3.5)
    phase = (dsp.seconds(n) / period + take.random()) % 1.0
    crest = source.uniform(0.35, 0.6)
    swell = np.where(phase < crest, phase / crest, (1.0 - phase) / (1.0 - crest)) ** 1.5
    swell = swell * (1.0 + 0.15 * dsp.wander(take, n, 3.0))
    centre = dark * (bright / dark) ** swell.clip(0.0, 1.2)
    low = dsp.coloured(take, n, -8.0) * 0.15
    return low + dsp.moving_noise(take, n, centre, width) * (1.0 - depth + depth * swell.clip(0.0))


def crackling_fire(source: Rng, take: Rng, n: int) -> Wave:
    """Wood bursting: clicks of 1 to 10 ms at random times and of very unequal strength, over a soft breathing roar."""
    rate, roar = between(source, 12, 70), source.uniform(0.05, 0.25)
    centre = between(source, 1200, 4000)
    wave = dsp.body(
        dsp.spikes(take, n, rate, 1.1), [centre, 0.4 * centre, 1.7 * centre], [1500, 500, 2500], [1, 0.6, 0.8]
    )
    events = []
    for onset in dsp.scattered(take, n, 0.15 * rate):  # bursts: splinters go in quick succession
        m = int(RATE * between(take, 0.01, 0.05))
        events.append((int(onset), take.uniform(0.1, 0.5) * take.standard_normal(m) * dsp.decay(m, 0.05)))
    wave = dsp.unit(wave) + 0.4 * dsp.unit(dsp.band(dsp.place(n, events), 700, 7000, 1))
    return wave + roar * dsp.coloured(take, n, -7.0) * np.exp(0.35 * dsp.wander(take, n, 4.0))


def wind(source: Rng, take: Rng, n: int) -> Wave:
    """Gusts: noise in a band that climbs as the wind grows and sinks as it dies; sometimes an edge that whistles."""
    centre, width = between(source, 150, 700), source.uniform(0.9, 2.0)
    pace, whistle, edge = between(source, 0.7, 1.8), source.uniform(0.0, 1.0), between(source, 450, 1300)
    gust = dsp.wander(take, n, pace)
    wave = dsp.moving_noise(take, n, centre * 2.0 ** (0.7 * gust), width) * np.exp(0.6 * gust)
    if whistle > 0.4:
        wander = edge * 2.0 ** (0.25 * gust)
        narrow = dsp.coloured(take, n, 0.0)
        narrow = dsp.one_pole(narrow, 25.0) * dsp.tone(wander, n)  # slow noise on a moving tone: a whistling edge
        wave = dsp.unit(wave) + whistle * dsp.unit(narrow * np.exp(0.9 * gust))
    return wave


def thunderstorm(source: Rng, take: Rng, n: int) -> Wave:
    """A clap that tears, then rolls: low noise in overlapping rumbles that get darker and fade; rain behind it."""
    dark, rolls, wet = between(source, 90, 260), source.uniform(3.0, 9.0), source.uniform(0.01, 0.12)
    near = source.uniform(0.0, 1.0)
    start = int(RATE * take.uniform(-0.5, 0.7))
    time = (dsp.seconds(n) - start / RATE).clip(0.0)
    events = [(start + int(RATE * take.uniform(0.0, 1.4)), between(take, 0.3, 1.0)) for _ in range(int(rolls) + 2)]
    shape = sum((g * np.pad(dsp.burst(n, 0.06, 1.6), (max(0, s), 0))[:n] for s, g in events), np.zeros(n))
    noise = dsp.moving_noise(take, n, dark * (1.0 + 4.0 * near * np.exp(-3.0 * time)), 2.2)
    clap = dsp.band(take.standard_normal(n), 300, 5000, 1) * (time > 0) * np.exp(-9.0 * time) * near
    clap *= np.exp(0.8 * dsp.wander(take, n, 40.0))
    rolling = dsp.unit(noise * shape) + 0.6 * dsp.unit(clap) * near
    return rolling + wet * dsp.coloured(take, n, 0.0)


# ---------------------------------------------------------------------------------------------------------------- human


def footsteps(source: Rng, take: Rng, n: int) -> Wave:
    """Steps, 1.5 to 2.8 a second: a dull thump of the heel, and some 80 ms later the ball of the foot scraping."""
    rate, thump, grit = between(source, 1.5, 2.8), between(source, 70, 190), between(source, 900, 4000)
    gravel, roll = source.uniform(0.15, 1.0), source.uniform(0.05, 0.11)
    events = []
    for onset in dsp.beats(take, n, rate, looseness=0.05):
        heel = dsp.modes([thump, 2.3 * thump, 4.1 * thump], [0.14, 0.09, 0.05], [1.0, 0.5, 0.3]) * take.uniform(
            0.7, 1.0
        )
        m = int(RATE * 0.16)
        sole = take.standard_normal(m) * np.exp(0.9 * gravel * dsp.wander(take, m, 120.0)) * dsp.burst(m, 0.02, 0.15)
        sole = dsp.unit(dsp.band(sole, 0.4 * grit, 1.6 * grit, 1))
        m = int(RATE * 0.03)
        strike = dsp.band(take.standard_normal(m) * dsp.decay(m, 0.02), 300, 3000, 1)
        events += [
            (onset, dsp.unit(heel)),
            (onset, 0.6 * strike),
            (onset + int(RATE * roll * between(take, 0.85, 1.15)), 0.7 * gravel * sole * take.uniform(0.6, 1.0)),
        ]
    return dsp.place(n, events)


def clapping(source: Rng, take: Rng, n: int) -> Wave:
    """Hands: noise bursts of 10 to 20 ms around the 0.8 to 2 kHz of the hollow between palms, one to eight people."""
    people = int(source.choice((1, 1, 2, 3, 5, 8)))
    hands = [
        (between(source, 2.6, 5.2), between(source, 800, 2200), between(source, 0.025, 0.07)) for _ in range(people)
    ]
    events = []
    for number, (rate, hollow, length) in enumerate(hands):
        for onset in dsp.beats(take, n, rate, looseness=0.04):
            m = int(RATE * 0.09)
            noise = take.standard_normal(m) * dsp.burst(m, 0.001, length)
            clap = dsp.body(noise, [hollow * between(take, 0.9, 1.1), 2.4 * hollow], [400, 1200], [1.0, 0.5])
            events.append((onset, clap * take.uniform(0.7, 1.0) / (1.0 + 0.25 * number)))
    return dsp.room(dsp.place(n, events), take, source.uniform(0.2, 0.9), source.uniform(0.02, 0.3))


# ------------------------------------------------------------------------------------------------------------- interior


def door_wood_knock(source: Rng, take: Rng, n: int) -> Wave:
    """Knocks, three to five in quick even succession, then silence: a wooden board of 90 to 500 Hz, dead in 0.1 s."""
    board, dull, pace = between(source, 110, 320), source.uniform(0.08, 0.2), between(source, 3.5, 7.5)
    plates = board * np.array([1.0, 1.7, 2.35, 3.4, 4.9]) * np.exp(0.08 * source.standard_normal(5))
    ring = dsp.modes(plates, dull * np.array([1.0, 0.8, 0.6, 0.45, 0.3]), [1.0, 0.9, 0.6, 0.5, 0.3])
    click = source.uniform(0.1, 0.5)
    events, at = [], take.uniform(0.05, 0.5)
    while at < n / RATE:
        for _ in range(int(take.integers(3, 6))):
            m = 160
            knuckle = click * dsp.band(take.standard_normal(m), 600, 4000, 1) * dsp.decay(m, 0.008)
            strength = take.uniform(0.7, 1.0)
            events += [(int(at * RATE), strength * ring), (int(at * RATE), strength * knuckle)]
            at += between(take, 0.94, 1.06) / pace
        at += take.uniform(0.7, 1.3)
    return dsp.place(n, events)


def clock_tick(source: Rng, take: Rng, n: int) -> Wave:
    """An escapement: bright clicks of 10 ms, exactly even, every second one (the tock) a little lower."""
    rate, pitch, ring = between(source, 2.0, 5.5), between(source, 1800, 4800), between(source, 0.012, 0.045)
    tock, softer, thud = source.uniform(0.7, 1.0), source.uniform(0.5, 1.0), source.uniform(0.0, 0.5)
    ratios = np.array([1.0, 1.51, 2.2, 0.37]) * np.exp(0.1 * source.standard_normal(4))
    period, start = RATE / rate, take.random()
    events = []
    for number in range(int(n / period) + 1):
        scale, gain = (1.0, 1.0) if number % 2 == 0 else (tock, softer)
        click = dsp.modes(pitch * scale * ratios, ring * np.array([1, 0.8, 0.6, 1.2]), [1.0, 0.6, 0.4, thud])
        events.append((int((number + start) * period), gain * take.uniform(0.93, 1.0) * click))
        again = click[: len(click) // 2] * 0.3  # the pallet falls back after a few milliseconds
        events.append((int((number + start) * period + 0.012 * RATE), gain * again))
    return dsp.place(n, events)


def clock_alarm(source: Rng, take: Rng, n: int) -> Wave:
    """An alarm: equal electronic beeps of one pitch in groups, or (one clock in four) a hammer between two bells."""
    if source.random() < 0.25:
        pitch, hammer = between(source, 1500, 3200), between(source, 14, 24)
        bell = dsp.modes(pitch * np.array([1.0, 1.47, 2.1, 2.9]), [0.5, 0.4, 0.3, 0.2], [1.0, 0.8, 0.6, 0.4])
        onsets = dsp.beats(take, n, hammer, looseness=0.03)
        return dsp.place(n, ((at, bell * take.uniform(0.6, 1.0)) for at in onsets))
    pitch, beep, gap = between(source, 1300, 3800), between(source, 0.05, 0.14), between(source, 0.7, 1.3)
    count, pause = int(source.choice((2, 3, 4, 4))), between(source, 0.2, 0.55)
    square = source.random() < 0.6
    spectrum = [1.0, 0.02, 0.33, 0.02, 0.2] if square else [1.0, 0.1, 0.05]
    cycle = count * beep * (1.0 + gap) + pause
    place = (dsp.seconds(n) + take.random() * cycle) % cycle
    on = (place < count * beep * (1.0 + gap)) & (place % (beep * (1.0 + gap)) < beep)
    edge = np.hanning(48) / np.hanning(48).sum()
    return dsp.harmonics(pitch, spectrum, n) * np.convolve(on.astype(float), edge, mode="same")


def keyboard_typing(source: Rng, take: Rng, n: int) -> Wave:
    """Keys: pairs of clicks (down, and up some 80 ms later), each key with a sound of its own, in uneven flurries."""
    rate, case, hollow = between(source, 4.5, 10.0), between(source, 220, 700), source.uniform(0.1, 0.6)
    bright, length = between(source, 1400, 3800), between(source, 0.008, 0.02)
    events = []
    for onset in dsp.beats(take, n, rate, looseness=0.5):
        key = between(take, 0.75, 1.33)
        for delay, gain in ((0.0, 1.0), (between(take, 0.05, 0.11), take.uniform(0.25, 0.6))):
            m = int(RATE * 0.04)
            click = take.standard_normal(m) * dsp.burst(m, 0.0005, length * (1.0 if delay == 0.0 else 0.6))
            click = dsp.body(click, [bright * key, 1.8 * bright * key], [900, 1800], [1.0, 0.7])
            thud = hollow * dsp.modes([case * key], [0.04], [0.5])[:m] * (delay == 0.0)
            event = np.zeros(m)
            event += click
            event[: len(thud)] += thud
            events.append((onset + int(RATE * delay), gain * take.uniform(0.5, 1.0) * event))
    return dsp.place(n, events)


def vacuum_cleaner(source: Rng, take: Rng, n: int) -> Wave:
    """A motor of 150 to 450 Hz, perfectly steady with many harmonics, inside the broad roar of the air it moves."""
    pitch, whine = between(source, 140, 450), source.uniform(0.35, 1.0)
    partials = np.exp(0.8 * source.standard_normal(20)) / np.arange(1, 21) ** source.uniform(0.2, 0.8)
    nozzle, slope = between(source, 500, 2500), source.uniform(-4.0, -1.0)
    load = 1.0 + 0.006 * dsp.wander(take, n, 0.8)
    motor = dsp.harmonics(pitch * load, partials, n)
    air = dsp.coloured(take, n, slope)
    air = dsp.unit(air) + 0.6 * dsp.unit(dsp.resonate(air, nozzle, 500))
    return dsp.unit(air) + whine * dsp.unit(motor)


# ------------------------------------------------------------------------------------------------------------- exterior


def siren(source: Rng, take: Rng, n: int) -> Wave:
    """A pitch that sweeps without rest between some 500 and 1600 Hz: wail, yelp, or two alternating tones."""
    low, interval, kind = between(source, 420, 850), source.uniform(0.4, 1.1), int(source.integers(0, 3))
    rate = (between(source, 0.25, 0.6), between(source, 2.2, 4.5), between(source, 0.6, 1.2))[kind]
    cycle = (rate * dsp.seconds(n) + take.random()) % 1.0
    if kind == 2:
        sweep = np.convolve((cycle < 0.5).astype(float), np.hanning(400) / np.hanning(400).sum(), mode="same")
        interval *= 0.55  # a fourth or so
    else:
        sweep = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.where(cycle < 0.6, cycle / 1.2, 0.5 + (cycle - 0.6) / 0.8))
    horn = 0.75 ** np.arange(10) * np.exp(0.4 * source.standard_normal(10))
    wave = dsp.harmonics(low * 2.0 ** (interval * sweep), horn, n)
    passing = np.exp(0.25 * dsp.wander(take, n, 0.5))
    return dsp.room(wave * passing, take, 0.8, source.uniform(0.05, 0.4))


def engine(source: Rng, take: Rng, n: int) -> Wave:
    """Combustion: 25 to 110 firings a second, not all cylinders alike, through the pipes' fixed resonances."""
    return _combustion(source, take, n, between(source, 25, 110))


def _combustion(source: Rng, take: Rng, n: int, firing: float) -> Wave:
    cylinders, uneven = int(source.choice((2, 3, 4, 4, 6))), source.uniform(0.05, 0.35)
    pipes = [between(source, 90, 300), between(source, 300, 900), between(source, 900, 3000)]
    gains = [1.0, source.uniform(0.4, 1.0), source.uniform(0.2, 0.8)]
    strengths = np.exp(uneven * source.standard_normal(cylinders))
    clatter, revs = source.uniform(0.05, 0.3), source.uniform(0.0, 0.25)
    curve = firing * (1.0 + 0.012 * dsp.wander(take, n, 3.0)) * 2.0 ** (revs * dsp.wander(take, n, 0.5))
    phase = np.cumsum(curve) / RATE
    at = np.interp(np.arange(take.random(), phase[-1]), phase, np.arange(float(n)))
    order = (np.arange(len(at)) + int(take.integers(cylinders))) % cylinders
    pulses = dsp.pulse_train(at, strengths[order] * np.exp(0.06 * take.standard_normal(len(at))), n)
    spin = (phase - take.random()) % 1.0
    noise = dsp.band(take.standard_normal(n), 1000, 6000, 1) * np.exp(-4.0 * spin)  # valves, once a firing
    return dsp.unit(dsp.body(pulses, pipes, [70, 160, 500], gains)) + clatter * dsp.unit(noise)


def helicopter(source: Rng, take: Rng, n: int) -> Wave:
    """Rotor blades: 9 to 24 soft thuds a second of low noise, hard-edged on approach, over a turbine's thin whine."""
    blades, thud, slap = between(source, 9, 24), between(source, 60, 220), source.uniform(0.1, 0.8)
    turbine, whine, sharp = between(source, 900, 3500), source.uniform(0.0, 0.15), source.uniform(2.0, 6.0)
    phase = np.cumsum(blades * (1.0 + 0.01 * dsp.wander(take, n, 0.7))) / RATE + take.random()
    chop = np.exp(-sharp * (phase % 1.0))
    low = dsp.moving_noise(take, n, np.full(n, thud), 1.6) * chop
    high = dsp.band(dsp.coloured(take, n, -3.0), 350, 4500, 1) * chop**1.5
    coming = np.exp(0.3 * dsp.wander(take, n, 0.6))
    return (dsp.unit(low) + slap * dsp.unit(high)) * coming + whine * dsp.tone(turbine, n)


def church_bells(source: Rng, take: Rng, n: int) -> Wave:
    """Cast bells: a strike, then hum, prime, minor third, fifth and octave ringing for seconds, the upper ones less."""
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.6, 3.0, 4.1, 5.4])
    times = np.array([4.0, 2.5, 2.0, 1.4, 1.5, 0.8, 0.7, 0.5, 0.3])
    gains = np.array([0.5, 0.7, 0.8, 0.4, 1.0, 0.5, 0.6, 0.4, 0.3])
    steps = np.array([0, 2, 4, 5, 7])[: int(source.integers(1, 5))]
    prime = between(source, 220, 700)
    bells = []
    for step in steps:
        detuned = np.exp(0.006 * source.standard_normal(9))
        ring = dsp.modes(
            prime * 2.0 ** (step / 12) * ratios * detuned, times, gains * np.exp(0.4 * source.standard_normal(9))
        )
        bells.append(ring[: 2 * n])
    rate = between(source, 0.7, 2.2)
    onsets = [at - int(RATE * 0.9) for at in dsp.beats(take, n + RATE, rate, looseness=0.08)]  # some rang before
    order = take.integers(len(bells), size=len(onsets))
    events = ((at, take.uniform(0.6, 1.0) * bells[which]) for at, which in zip(onsets, order, strict=True))
    return dsp.place(n, events)


# ---------------------------------------------------------------------------------------------------------------- urban


def air_conditioner(source: Rng, take: Rng, n: int) -> Wave:
    """A fan: unchanging broad low noise, the mains' hum and its harmonics, and the faint beat of the blades."""
    slope, mains, hum = source.uniform(-7.0, -3.0), source.choice((50.0, 60.0)), source.uniform(0.1, 0.7)
    partials = source.random(16) / np.arange(1, 17) ** 0.7
    blades, beat, grille = between(source, 8, 30), source.uniform(0.02, 0.12), between(source, 250, 1200)
    air = dsp.coloured(take, n, slope)
    air = dsp.unit(air) + 0.5 * dsp.unit(dsp.resonate(air, grille, 250))
    air *= 1.0 + beat * dsp.tone(blades, n, take.random())
    return dsp.unit(air) + hum * dsp.unit(dsp.harmonics(2.0 * mains * 0.985, partials, n))


def car_horn(source: Rng, take: Rng, n: int) -> Wave:
    """A horn: up to three fixed notes of 300 to 700 Hz together, each with twenty harmonics, on and off at once."""
    notes = [between(source, 300, 480)]
    notes += [notes[0] * ratio for ratio in (1.25, 1.5)[: int(source.integers(0, 3))]]
    formant, length = between(source, 1200, 2800), between(source, 0.15, 1.1)
    partials = np.exp(-0.5 * ((np.log2(np.arange(1, 21) * notes[0] / formant)) / 1.4) ** 2)
    flutter = dsp.wander(take, n, 30.0)
    wave = sum((dsp.harmonics(note * (1.0 + 0.0006 * flutter), partials, n) for note in notes), np.zeros(n))
    gate, at = np.zeros(n), take.uniform(0.0, 0.3)
    for _ in range(int(take.integers(1, 5))):
        m = int(RATE * length * between(take, 0.7, 1.4))
        gate += dsp.place(n, [(int(at * RATE), dsp.arch(m, min(0.5, 0.015 * RATE / m)))])
        at += m / RATE + take.uniform(0.07, 0.3)
    return dsp.room(wave * gate.clip(max=1.0), take, 0.6, source.uniform(0.02, 0.2))


def children_playing(source: Rng, take: Rng, n: int) -> Wave:
    """High voices: several children of 280 to 650 Hz calling over one another, gliding syllables, vowels, shrieks."""
    kids = [(between(source, 280, 600), between(source, 1.15, 1.45)) for _ in range(int(source.integers(3, 6)))]
    shrill = source.uniform(0.0, 0.4)
    vowels = ((850, 1400, 2900), (500, 2200, 3000), (320, 2700, 3400), (480, 950, 2800), (350, 800, 2700))
    events = []
    for pitch, scale in kids:
        at = take.uniform(-0.4, 0.8)
        while at < n / RATE:
            m = int(RATE * between(take, 0.1, 0.45))
            high = 2.0 if take.random() < shrill else 1.0
            glide = high * pitch * 2.0 ** (take.uniform(-0.2, 0.5) + take.uniform(-0.45, 0.3) * np.linspace(0, 1, m))
            call = dsp.glottis(take, glide, jitter=0.008, shimmer=0.06)
            call = dsp.one_pole(call, 1500.0) + 0.03 * take.standard_normal(m)
            formants = [scale * f for f in vowels[int(take.integers(5))]]
            call = dsp.unit(dsp.tract(call, formants, [90, 120, 180])) * dsp.arch(m, 0.3)
            events.append((int(at * RATE), between(take, 0.25, 1.0) * call))
            at += m / RATE + (take.uniform(0.02, 0.1) if take.random() < 0.65 else between(take, 0.3, 1.2))
    return dsp.room(dsp.place(n, events), take, 0.5, source.uniform(0.1, 0.6))


def drilling(source: Rng, take: Rng, n: int) -> Wave:
    """A power drill: a whining motor of 120 to 500 Hz that runs up, sags under load and stops, with grinding noise."""
    pitch, grind, slope = between(source, 120, 500), source.uniform(0.3, 0.9), source.uniform(-1.0, 3.0)
    partials = np.exp(0.7 * source.standard_normal(24)) / np.arange(1, 25) ** source.uniform(0.1, 0.5)
    hammer, depth = between(source, 35, 70), source.uniform(0.0, 0.7)
    start, stop = take.uniform(-0.8, 0.7), take.uniform(1.7, 3.4)
    time = dsp.seconds(n)
    speed = (1.0 - np.exp(-(time - start).clip(0.0) / 0.12)) * np.exp(-(time - stop).clip(0.0) / 0.25)
    biting = 1.0 / (1.0 + np.exp(-12.0 * (time - start - take.uniform(0.3, 0.7)))) * (time < stop)
    curve = pitch * (speed.clip(0.15) * (1.0 - 0.12 * biting) + 0.01 * dsp.wander(take, n, 5.0))
    motor = dsp.harmonics(curve, partials, n) * speed
    stone = dsp.band(dsp.coloured(take, n, slope), 600, 7500, 1) * biting * (0.1 + speed)
    stone *= 1.0 - depth * (0.5 + 0.5 * dsp.tone(hammer * speed.clip(0.3), n))
    return dsp.unit(motor) + grind * dsp.unit(stone)


def engine_idling(source: Rng, take: Rng, n: int) -> Wave:
    """An engine at rest: the combustion of `engine` at 15 to 38 firings a second, slow enough to count."""
    return _combustion(source, take, n, between(source, 15, 38))


def gun_shot(source: Rng, take: Rng, n: int) -> Wave:
    """A blast: noise at its loudest within a millisecond, dead in 0.1 s, then the echoes of walls and hills."""
    crack, boom, echo = between(source, 0.05, 0.2), between(source, 80, 260), source.uniform(0.1, 0.6)
    tail, shots = between(source, 0.4, 1.2), int(source.choice((1, 1, 1, 2, 4)))
    gap = between(source, 0.09, 0.5)
    m = int(RATE * 0.8)
    events = []
    first = take.uniform(0.05, 0.3)
    for shot in range(shots):
        blast = dsp.coloured(take, m, -2.0) * dsp.burst(m, 0.0006, crack)
        blast += dsp.band(take.standard_normal(m), 0.6 * boom, 1.6 * boom, 2) * dsp.burst(m, 0.004, 3.0 * crack)
        events.append((int(RATE * (first + shot * gap * between(take, 0.95, 1.05))), blast))
    return dsp.room(dsp.place(n, events), take, tail, echo)


def jackhammer(source: Rng, take: Rng, n: int) -> Wave:
    """A pneumatic hammer: 12 to 28 blows a second, each a clang of steel and a thud of the ground, and its exhaust."""
    rate, steel, thud = between(source, 12, 28), between(source, 900, 2600), between(source, 70, 200)
    ratios = np.array([1.0, 1.58, 2.3, 3.1]) * np.exp(0.1 * source.standard_normal(4))
    ring, puff = between(source, 0.015, 0.06), source.uniform(0.15, 0.6)
    blow = dsp.modes(steel * ratios, ring * np.array([1.0, 0.8, 0.7, 0.5]), [1.0, 0.8, 0.6, 0.4])
    ground = dsp.modes([thud, 2.1 * thud], [0.09, 0.05], [1.2, 0.7])
    exhaust = take.standard_normal(n)
    onsets = dsp.beats(take, n, rate, looseness=0.025)
    start = int(RATE * take.uniform(0.0, 0.9)) if take.random() < 0.4 else 0  # some are switched on in the clip
    onsets = [at for at in onsets if at >= start]
    m = int(RATE * 0.05)
    hits = []
    for at in onsets:
        noise = dsp.band(take.standard_normal(m), 500, 7000, 1) * dsp.decay(m, 0.035)
        hits += [(at, take.uniform(0.7, 1.0) * blow), (at, take.uniform(0.8, 1.0) * ground), (at, 0.7 * noise)]
    breath = dsp.place(n, ((at, dsp.arch(int(RATE / rate), 0.4)) for at in onsets))
    return dsp.unit(dsp.place(n, hits)) + puff * dsp.unit(dsp.band(exhaust, 800, 5000, 1) * breath)


def street_music(source: Rng, take: Rng, n: int) -> Wave:
    """A busker: notes of one scale in time with a beat, plucked or blown, over chords, sometimes with a drum."""
    tempo, root = between(source, 2.2, 5.0), between(source, 110, 220)
    scale = np.array(((0, 2, 4, 7, 9, 12, 14), (0, 3, 5, 7, 10, 12, 15))[int(source.integers(2))])
    blown, drum, chords = source.random() < 0.5, source.random() < 0.5, source.uniform(0.15, 0.5)
    partials = 0.7 ** np.arange(12) * np.exp(0.5 * source.standard_normal(12))
    events = []
    beat = RATE / tempo
    at = int(-take.random() * beat)
    note = int(take.integers(len(scale)))
    number = int(take.integers(8))
    while at < n:
        note = int((note + take.integers(-2, 3)) % len(scale))
        span = int(take.choice((1, 1, 2)))
        m = int(beat * span * 1.05)
        pitch = 2.0 * root * 2.0 ** (scale[note] / 12)
        if blown:
            curve = pitch * (1.0 + 0.006 * dsp.tone(5.2, m) * np.linspace(0, 1, m))
            sound = dsp.harmonics(curve, partials, m) * dsp.arch(m, 0.12)
        else:
            sound = dsp.harmonics(pitch, partials, m) * dsp.burst(m, 0.004, 0.9) * dsp.arch(m, 0.05).clip(0.2)
        events.append((at, 0.9 * sound))
        if number % 4 == 0:
            length = int(4 * beat)
            third, fifth = (3, 7) if 3 in scale else (4, 7)
            base = root * 2.0 ** (float(take.choice((0, 5, 7))) / 12)
            triad = (base, base * 2 ** (third / 12), base * 2 ** (fifth / 12))
            chord = sum((dsp.harmonics(f, [1, 0.6, 0.4, 0.2, 0.1], length) for f in triad), np.zeros(length))
            events.append((at, chords * chord * dsp.burst(length, 0.01, 3.0)))
        if drum:
            hit = dsp.modes([75.0, 120.0], [0.2, 0.1], [1.5, 0.8])
            if number % 2:
                hit = dsp.band(take.standard_normal(1600), 1500, 7500, 1) * dsp.decay(1600, 0.12)
            events.append((at, 0.8 * hit))
        at += int(beat * span)
        number += span
    return dsp.room(dsp.place(n, events), take, 0.5, source.uniform(0.02, 0.3))


ENVIRONMENT: Mapping[str, _Synth] = {
    "dog": dog,
    "frog": frog,
    "crickets": crickets,
    "chirping_birds": chirping_birds,
    "rain": rain,
    "sea_waves": sea_waves,
    "crackling_fire": crackling_fire,
    "wind": wind,
    "thunderstorm": thunderstorm,
    "footsteps": footsteps,
    "clapping": clapping,
    "door_wood_knock": door_wood_knock,
    "clock_tick": clock_tick,
    "clock_alarm": clock_alarm,
    "keyboard_typing": keyboard_typing,
    "vacuum_cleaner": vacuum_cleaner,
    "siren": siren,
    "engine": engine,
    "helicopter": helicopter,
    "church_bells": church_bells,
}
"""Twenty of ESC-50's classes, four to five of each of its families but the human one."""

URBAN: Mapping[str, _Synth] = {
    "air_conditioner": air_conditioner,
    "car_horn": car_horn,
    "children_playing": children_playing,
    "dog_bark": dog,
    "drilling": drilling,
    "engine_idling": engine_idling,
    "gun_shot": gun_shot,
    "jackhammer": jackhammer,
    "siren": siren,
    "street_music": street_music,
}
"""The ten classes of UrbanSound8K."""

_SHORTEST = {"gun_shot": 0.8, "car_horn": 0.9, "dog_bark": 1.1}  # seconds; UrbanSound8K keeps short events short


# -------------------------------------------------------------------------------------------------------------- recipes


class Environment:
    """ESC-50 in miniature: 20 classes x 8 sources x 2 takes of 2.56 s, folds by source."""

    name = "mini-esc50"

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return all 320 clips, sorted by clip id; fold 5 holds a quarter of each class."""
        folds = "11223455"
        return tuple(
            sorted(
                ClipSpec(f"{label}/s{source}_{take}", label, f"s{source}", folds[source - 1])
                for label in ENVIRONMENT
                for source in range(1, 9)
                for take in (1, 2)
            )
        )

    def render(self, spec: ClipSpec) -> NDArray[np.float32]:
        """Return one clip, float32 [40960]: a source draws object, room and microphone, a take all the rest."""
        source, take = _draws(self.name, spec)
        wave = ENVIRONMENT[spec.label](source, take, LENGTH)
        at = numpy_generator(SEED, self.name, spec.label, spec.group, "recording")
        wave = dsp.room(wave, at, at.uniform(0.15, 0.7), at.uniform(0.0, 0.15))
        colour = dsp.microphone(at, LENGTH, 0.5)
        scene = numpy_generator(SEED, self.name, spec.clip_id, "scene")
        bed = dsp.background(scene, LENGTH)
        return _record(wave, bed, colour, scene)


class Urban:
    """UrbanSound8K in miniature: 10 classes x 8 recordings x 3 slices of up to 2.56 s, folds by recording."""

    name = "mini-us8k"

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return all 240 clips, sorted by clip id; folds 9 and 10 hold one recording of each class each."""
        made = []
        for number, label in enumerate(URBAN):
            for recording in range(8):
                fold = recording + 3 if recording > 5 else (number + recording) % 8 + 1
                group = f"r{8 * number + recording + 1:02d}"
                made += [ClipSpec(f"{label}/{group}_{cut}", label, group, str(fold)) for cut in (1, 2, 3)]
        return tuple(sorted(made))

    def render(self, spec: ClipSpec) -> NDArray[np.float32]:
        """Return one slice, float32 [up to 40960]; slices of a recording share object, place, microphone and bed."""
        source, take = _draws(self.name, spec)
        at = numpy_generator(SEED, self.name, spec.label, spec.group, "recording")
        wave = URBAN[spec.label](source, take, LENGTH)
        wave = dsp.room(wave, at, at.uniform(0.2, 0.9), at.uniform(0.0, 0.2))
        colour = dsp.microphone(at, LENGTH, 0.5)
        ratio, loudness = 25.0 * at.random() ** 1.6, dsp.loudness(at)
        scene = numpy_generator(SEED, self.name, spec.clip_id, "scene")
        bed = dsp.background(at, 3 * LENGTH // 2)  # 4 s of the place, of which every slice hears a part
        start = int(scene.integers(LENGTH // 2))
        ratio, loudness = ratio + scene.uniform(-2.0, 2.0), loudness + scene.uniform(-1.5, 1.5)
        bed = bed[start : start + LENGTH]
        if (
            at.random() < 0.6
        ):  # another of the ten sounds, further off: half of the real clips are not in the foreground
            other = str(at.choice([label for label in URBAN if label != spec.label]))
            far = dsp.band(dsp.unit(URBAN[other](at, scene, LENGTH)), 0.0, between(at, 1000.0, 4000.0), 1)
            bed = dsp.unit(bed + at.uniform(0.7, 2.5) * dsp.room(far, at, 0.8, 0.5))
        wave = _blend(wave, bed, colour, ratio)
        shortest = int(RATE * _SHORTEST.get(spec.label, LENGTH / RATE))
        return dsp.finish(wave[: int(scene.integers(shortest, LENGTH + 1))], loudness)


def _draws(recipe: str, spec: ClipSpec) -> tuple[Rng, Rng]:
    """Return the generators of a clip's source and take."""
    source = numpy_generator(SEED, recipe, spec.label, spec.group, "source")
    return source, numpy_generator(SEED, recipe, spec.label, spec.group, spec.clip_id, "take")


def _record(wave: Wave, bed: Wave, colour: Wave, scene: Rng) -> NDArray[np.float32]:
    return dsp.finish(_blend(wave, bed, colour, scene.uniform(0.0, 25.0)), dsp.loudness(scene))


def _blend(wave: Wave, bed: Wave, colour: Wave, decibel: float) -> Wave:
    """Put a background `decibel` below the event's active level, and record both with one microphone."""
    return dsp.recorded(dsp.unit(wave) + 10.0 ** (-decibel / 20.0) * bed, colour)
