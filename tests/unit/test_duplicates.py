"""Near duplicates: what is folded, what is close, and that clusters are the components of exactly that relation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import duplicates
from datamodules.duplicates import JACCARD_THRESHOLD, jaccard, near_duplicate_clusters, normalise_text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello, World!", "hello world"),
        ("@user @USER_2 hi", "hi"),
        ("mail me@home", "mail me home"),
        ("see https://t.co/AbC?d=1 now", "see now"),
        ("see www.example.org. now URL", "see now"),
        ("curl is a word", "curl is a word"),
        ("Soooo coooool 2000", "soo cool 2000"),
        ("don't -- #Stop", "don t stop"),
        ("\uff28\uff49\u00a0there", "hi there"),
        ("STRASSE straße", "strasse strasse"),
        ("@user \N{GRINNING FACE} ...", ""),
    ],
)
def test_normalise_text(text: str, normal: str) -> None:
    assert normalise_text(text) == normal


def test_jaccard_by_hand() -> None:
    # " abcdef " has the shingles " abcd", "abcde", "bcdef", "cdef "; " abcdeg " shares the first two.
    assert jaccard("abcdef", "abcdeg") == 2 / 6
    assert jaccard("a", "a") == 1.0
    assert jaccard("a", "b") == 0.0


def test_copies_of_copies_are_one_cluster() -> None:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "nobody",
        "at",
        "all",
        "is",
        "looking",
        "at",
        "it",
    ]
    chain = [" ".join([*words[start:], "zebra", "yak"][:14]) for start in (0, 2, 4)]
    texts = [chain[0], "Something else.", chain[1], "@user " + chain[2].upper() + "!!!", chain[2]]
    assert jaccard(*map(normalise_text, chain[:2])) >= JACCARD_THRESHOLD
    assert jaccard(normalise_text(chain[0]), normalise_text(chain[2])) < JACCARD_THRESHOLD
    assert near_duplicate_clusters(texts) == [[0, 2, 3, 4], [1]]


def test_texts_of_one_template_are_not_all_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    overlaps = []
    own = duplicates._overlap
    monkeypatch.setattr(duplicates, "_overlap", lambda *sets: overlaps.append(1) or own(*sets))
    template = "Mister {} went to the market on a rainy Monday morning and came back with seven fresh apples."
    texts = [template.format(f"{number:03d}") for number in range(200)]
    assert near_duplicate_clusters(texts) == [list(range(200))]
    assert len(overlaps) < 2 * len(texts)  # all pairs are 19,900


def test_links_join_whole_clusters() -> None:
    texts = ["one text", "One text!", "quite another", "a third one"]
    assert near_duplicate_clusters(texts, [(1, 3)]) == [[0, 1, 3], [2]]


@pytest.mark.parametrize(("texts", "clusters"), [([], []), (["", "!"], [[0, 1]]), (["a"], [[0]])])
def test_few_or_empty_texts(texts: list[str], clusters: list[list[int]]) -> None:
    assert near_duplicate_clusters(texts) == clusters


PHRASES = st.lists(
    st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]), min_size=1, max_size=9
)


@given(st.lists(PHRASES.map(" ".join), max_size=25))
def test_clusters_are_the_connected_components(texts: list[str]) -> None:
    clusters = near_duplicate_clusters(texts)
    assert sorted(itertools.chain(*clusters)) == list(range(len(texts)))
    cluster_of = {index: number for number, cluster in enumerate(clusters) for index in cluster}
    expected = {index: {index} for index in range(len(texts))}
    for first, second in itertools.combinations(range(len(texts)), 2):
        similarity = jaccard(texts[first], texts[second])
        if similarity >= JACCARD_THRESHOLD:
            merged = expected[first] | expected[second]
            for index in merged:
                expected[index] = merged
        if similarity > JACCARD_THRESHOLD + 0.1:  # MinHash may miss a pair just at the threshold
            assert cluster_of[first] == cluster_of[second]
    for cluster in clusters:
        assert set(cluster) <= expected[cluster[0]]
