"""Fair shares and orders, as pure functions: how many items each class gives, and in which order they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Kind = tuple[str, ...]


def fill_evenly(total: int, available: Mapping[str, int], purpose: str) -> dict[str, int]:
    """Share `total` items among classes as equally as the data allow.

    Every class gives the same number; one that runs short gives all it has and the others fill up. A remainder that
    cannot be shared equally goes to the larger classes.

    Args:
        total: Items wanted, in all.
        available: Items that each class has.
        purpose: What the items are for, for the error message.

    Returns:
        Items to take from each class, in the order of `available`; they sum to `total`.

    Raises:
        ValueError: if the classes have fewer than `total` items together.
    """
    if total > sum(available.values()):
        raise ValueError(f"{purpose}: {total} items asked for, {sum(available.values())} available: {dict(available)}.")
    counts = dict.fromkeys(available, 0)
    left = total
    # In ascending order, a class that has less than an equal share of what is left cannot do more than give it all.
    for position, name in enumerate(sorted(available, key=available.__getitem__)):
        counts[name] = min(available[name], left // (len(available) - position))
        left -= counts[name]
    return counts


def shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """Return the items in random order."""
    return [items[index] for index in rng.permutation(len(items))]


def deal_in_rounds(groups: Sequence[Sequence[T]], rng: np.random.Generator) -> list[T]:
    """Concatenate rounds, each of which takes the next item of every group that still has one.

    Any prefix therefore draws on the groups as equally as their sizes allow. The order of the groups is drawn anew in
    every round, so that none comes first always.

    Args:
        groups: The items of each group, in the order to take them.
        rng: Source of the rounds' orders.

    Returns:
        All items of all groups.
    """
    dealt: list[T] = []
    for depth in range(max(map(len, groups), default=0)):
        open_groups = [group for group in groups if len(group) > depth]
        dealt.extend(group[depth] for group in shuffled(open_groups, rng))
    return dealt


def interleave(strata: Sequence[Sequence[T]]) -> list[T]:
    """Merge lists so that every prefix is a scaled-down copy of the whole.

    Item i of a list of n stands at (i + 1/2) / n of the way. Among the first p of all N items, a list of n of them is
    therefore represented by p * n / N items, within 1/2 + S * n / (2 * N) for S lists: one, if they are equally long.

    Args:
        strata: The lists, each of which keeps its order.

    Returns:
        All items of all lists.
    """
    placed = [
        ((2 * position + 1) / (2 * len(stratum)), index, item)
        for index, stratum in enumerate(strata)
        for position, item in enumerate(stratum)
    ]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def proportional_shares(total: int, available: Mapping[K, int], purpose: str) -> dict[K, int]:
    """Share `total` items among classes in proportion to their sizes, by largest remainders.

    Args:
        total: Items wanted, in all.
        available: Items that each class has. Of equal remainders, the earlier class's counts as larger.
        purpose: What the items are for, for the error message.

    Returns:
        Items to take from each class, in the order of `available`; they sum to `total`.

    Raises:
        ValueError: if the classes have fewer than `total` items together.
    """
    num_items = sum(available.values())
    if total > num_items:
        raise ValueError(f"{purpose}: {total} items asked for, {num_items} available: {dict(available)}.")
    counts = {name: total * size // max(num_items, 1) for name, size in available.items()}
    by_remainder = sorted(available, key=lambda name: -(total * available[name] % max(num_items, 1)))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def draw_whole_clusters(
    clusters: Sequence[Sequence[int]],
    kinds: Sequence[Kind],
    quotas: Mapping[Kind, int],
    max_cluster_size: int,
    purpose: str,
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Take clusters until they hold exactly as many items as the quotas sum to.

    A kind is named from the general to the special, such as (source, label). In their order, clusters are taken of
    which every item still fits its kind's quota. Where a quota can't be met by whole clusters, what it lacks is filled
    up from kinds that differ in the last name only, then in the last two, and at last from any.

    Args:
        clusters: Indices into `kinds`, each in one cluster; in random order.
        kinds: Kind of every item, all of one length.
        quotas: Items wanted of each kind.
        max_cluster_size: Larger clusters are never taken.
        purpose: What the items are for, for the error message.

    Returns:
        The clusters taken and the others, both in order.

    Raises:
        ValueError: if no whole clusters add up.
    """
    left = Counter(quotas)
    taken: set[int] = set()
    for depth in reversed(range(len(next(iter(quotas))) + 1)):
        finer, left = left, Counter()
        for kind, count in finer.items():
            left[kind[:depth]] += count
        for position, cluster in enumerate(clusters):
            counts = Counter(kinds[index][:depth] for index in cluster)
            if position not in taken and len(cluster) <= max_cluster_size and counts <= left:
                taken.add(position)
                left.subtract(counts)
    missing = left[()]
    if missing:
        raise ValueError(
            f"{purpose}: {missing} items are missing, for clusters of duplicates stay whole and those of more than "
            f"{max_cluster_size} items are trained on; ask for fewer."
        )
    chosen = [cluster for position, cluster in enumerate(clusters) if position in taken]
    return chosen, [cluster for position, cluster in enumerate(clusters) if position not in taken]
