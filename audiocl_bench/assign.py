"""Which clips are test clips, and in which order classes arrive: pure functions of labels, groups and a generator.

Every function returns a new boolean array (True = test) or new lists. Shuffles are ranks of uniform draws instead of
`Generator.permutation`, because the uniform draws of a bit generator are the part of NumPy that keeps its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np

from audiocl_bench.errors import StreamError, unknown_name

T = TypeVar("T")


def shuffled(items: Sequence[T], generator: np.random.Generator) -> list[T]:
    """Return `items` in a random order: item i gets a uniform draw, items are sorted by their draws."""
    return [items[i] for i in np.argsort(generator.random(len(items)), kind="stable")]


def share(count: int, fraction: float | Fraction) -> int:
    """Return `fraction` of `count`, rounded half up; exact (a float counts as its decimal text)."""
    exact = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    return math.floor(exact * count + Fraction(1, 2))


def class_orders(
    classes: Iterable[str], count: int, generator_of: Callable[[int, int], np.random.Generator]
) -> list[list[str]]:
    """Return `count` distinct random orders of the sorted class names.

    Args:
        classes: class names, in any order.
        count: number of orders.
        generator_of: gives the generator of (order, attempt); attempt is 0 unless an earlier order came out again.

    Raises:
        StreamError: there are fewer than `count` different orders of that many classes.
    """
    names = sorted(classes)
    if count > math.factorial(len(names)):
        raise StreamError(
            f"{len(names)} classes have only {math.factorial(len(names))} different orders, but orders = {count}: "
            "ask for fewer orders."
        )
    orders: list[list[str]] = []
    for number in range(count):
        attempt = 0
        while (order := shuffled(names, generator_of(number, attempt))) in orders:
            attempt += 1
        orders.append(order)
    return orders


def stratified(
    labels: Sequence[str], fraction: float | Fraction, generator_of: Callable[[str], np.random.Generator]
) -> np.ndarray:
    """Choose round-half-up(fraction * n) clips of every class at random, at least one and at most n - 1.

    Args:
        labels: class name of every clip; the draw depends on the order of the rows, so sort them first.
        fraction: test share of every class, between 0 and 1.
        generator_of: gives the generator of a class; one per class, so that a class's draw depends on no other class.

    Returns:
        bool [clips], True = test. A class of a single clip gets no test clip (`Stream` refuses it by name).
    """
    is_test = np.zeros(len(labels), dtype=bool)
    for label, rows in rows_of(labels).items():
        chosen = shuffled(rows, generator_of(label))[: _target(len(rows), fraction)]
        is_test[chosen] = True
    return is_test


def by_membership(values: Sequence[str], test_values: Iterable[str], *, kind: str) -> np.ndarray:
    """Mark the clips whose value (fold or group) is one of `test_values`.

    Raises:
        UnknownNameError: a test value that no clip has.
    """
    wanted = list(test_values)
    present = set(values)
    for value in wanted:
        if value not in present:
            raise unknown_name(kind, value, present)
    return np.isin(np.asarray(values, dtype=object), wanted)


def by_groups(
    labels: Sequence[str], groups: Sequence[str], fraction: float | Fraction, generator: np.random.Generator
) -> np.ndarray:
    """Choose whole groups for test so that every class comes close to its share and no group is on both sides.

    Greedy pass: groups in random order; a group goes to test if no class of it would get more than its target,
    round-half-up(fraction * n) but at least one clip. Repair pass: a class that is still without test clips gives its
    smallest group that leaves every class it touches with train clips, even though the target is then exceeded.

    Args:
        labels: class name of every clip, in sorted-clip order.
        groups: group (speaker, recording, ...) of every clip; a group may hold one class or many.
        fraction: test share aimed at in every class.
        generator: shuffles the groups.

    Returns:
        bool [clips], True = test.

    Raises:
        StreamError: no whole group can give some class test clips and leave it train clips.
    """
    content: dict[str, dict[str, int]] = {}
    left: dict[str, int] = {}
    for label, group in zip(labels, groups, strict=True):
        inside = content.setdefault(group, {})
        inside[label] = inside.get(label, 0) + 1
        left[label] = left.get(label, 0) + 1
    room = {label: _target(count, fraction) for label, count in left.items()}
    order = shuffled(sorted(content), generator)
    chosen: set[str] = set()
    covered: set[str] = set()

    def take(group: str) -> None:
        chosen.add(group)
        for label, count in content[group].items():
            room[label] -= count
            left[label] -= count
            covered.add(label)

    for group in order:
        if all(count <= room[label] for label, count in content[group].items()):
            take(group)
    for label in sorted(left):
        if label in covered:
            continue
        able = [
            group
            for group in order
            if label in content[group] and all(count < left[other] for other, count in content[group].items())
        ]
        if not able:
            raise StreamError(_no_group(label, [group for group in order if label in content[group]]))
        take(min(able, key=lambda group: sum(content[group].values())))  # ties: first in the shuffled order
    return np.array([group in chosen for group in groups], dtype=bool)


def _no_group(label: str, its_groups: Sequence[str]) -> str:
    if len(its_groups) == 1:
        return (
            f"class '{label}' has a single group ('{its_groups[0]}'), so it cannot have both train and test clips: "
            f"add it to split_within (its clips are then split clip by clip) or leave the class out with where."
        )
    return (
        f"class '{label}' gets no test clips, because each of its {len(its_groups)} groups would leave some class "
        "without train clips: give the test groups yourself (groups = [...]) or leave the class out with where."
    )


def require_one_own_group(labels: Sequence[str], groups: Sequence[str], split_within: Iterable[str]) -> None:
    """Check that each class of `split_within` has one group, shared with no other class: its split then leaks nowhere.

    Raises:
        UnknownNameError: a name that is no class.
        StreamError: the class has several groups, or shares its group.
    """
    rows = rows_of(labels)
    for label in split_within:
        if label not in rows:
            raise unknown_name("class in split_within", label, rows)
        its_groups = sorted({groups[row] for row in rows[label]})
        if len(its_groups) > 1:
            raise StreamError(
                f"split_within names class '{label}', which has {len(its_groups)} groups and can be split by group: "
                "remove it from split_within."
            )
        sharing = sorted({labels[row] for row, group in enumerate(groups) if group == its_groups[0]} - {label})
        if sharing:
            raise StreamError(
                f"split_within names class '{label}', but its group '{its_groups[0]}' also holds clips of "
                f"'{sharing[0]}': splitting it clip by clip would put that group on both sides; leave the class out "
                "with where."
            )


def rows_of(labels: Sequence[str]) -> dict[str, list[int]]:
    """Return the row numbers of every class, classes in sorted order."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return dict(sorted(rows.items()))


def _target(count: int, fraction: float | Fraction) -> int:
    return min(max(1, share(count, fraction)), count - 1)
