"""Splits of cities whose prompt names the country: half of an evaluation is of countries that occur nowhere else.

Every answer (a continent, a language) gives equally many cities to every group as far as it has them; within an answer
the countries take turns, so that no large one dominates.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, get_args

import numpy as np

from datamodules.base import Split
from datamodules.contexts import load_context
from datamodules.example import Example
from datamodules.sampling import deal_in_rounds, fill_evenly, interleave, shuffled


class AskedCity(Protocol):
    """What is known of a city that is asked about."""

    @property
    def country(self) -> str:
        """Its country's name or code."""
        ...

    @property
    def question(self) -> str:
        """The user turn."""
        ...


C = TypeVar("C", bound=AskedCity)

Strata = dict[tuple[Split, str, str], list[C]]
"""Cities by split, group and answer."""

_MAX_GROUP_SHARE = 1 / 8
"""Of an answer's cities, for each of the four evaluation groups: half of the cities stay for training."""

_LARGE_COUNTRY_SHARE = 1 / 16
"""Of an answer's cities: a country with more is always a training country. Without the three largest of South America
nearly all of its training items would be Brazil's under an unlucky `split_seed`."""

_UNSEEN_SHARE = 1 / 8
"""Of an answer's countries: an unseen group takes turns among about so many, and at least `_MIN_UNSEEN_COUNTRIES`."""

_MIN_UNSEEN_COUNTRIES = 3


def without_demonstrated(cities: Sequence[C], context_name: str) -> tuple[list[C], set[str]]:
    """Return the cities without those of shipped demonstrations, and the countries of those."""
    demonstrations = load_context(context_name)
    assert not isinstance(demonstrations, str)
    questions = {message["content"] for message in demonstrations}
    countries = {city.country for city in cities if city.question in questions}
    return [city for city in cities if city.question not in questions], countries


def interleaved_splits(strata: Strata[C], example: Callable[[C, str], Example]) -> dict[Split, list[Example]]:
    """Return each split's examples, made of a city and its group, so that any prefix is about as balanced as all."""
    return {
        split: interleave(
            [[example(city, group) for city in cities] for (part, group, _), cities in strata.items() if part == split]
        )
        for split in get_args(Split)
    }


def table_of_splits(splits: Mapping[Split, Sequence[Example]], answers: Sequence[str]) -> str:
    """Return the number of items by split, group and answer, and of their countries, as a table to print."""
    names = [*answers, "items", "countries"]
    lines = [f"{'split':<6} {'group':<14}" + "".join(f"{name:>{len(name) + 2}}" for name in names)]
    for split, examples in splits.items():
        for group in sorted({example.group for example in examples}):
            members = [example for example in examples if example.group == group]
            counts = Counter(example.answer for example in members)
            counts["items"] = len(members)
            counts["countries"] = len({example.meta["country"] for example in members})
            numbers = "".join(f"{counts[name]:>{len(name) + 2}}" for name in names)
            lines.append(f"{split:<6} {group or '-':<14}{numbers}")
    return "\n".join(lines)


def split_by_country(
    by_answer: Mapping[str, Sequence[C]], always_train: Collection[str], sizes: Mapping[Split, int], split_seed: int
) -> Strata[C]:
    """Draw the splits.

    Validation and test are half ``unseen_country`` (countries that occur in no other split) and half ``seen_country``
    (other cities of training countries).

    Args:
        by_answer: The cities of every answer; a country's cities all have one.
        always_train: Countries that are never held out.
        sizes: Items of each of the three splits.
        split_seed: Which countries and cities go where.

    Returns:
        The cities by split, group ("" in training) and answer.

    Raises:
        ValueError: if there are fewer items than asked for.
    """
    answers = {
        name: _CitiesOfAnswer(cities, always_train, np.random.default_rng([split_seed, index]))
        for index, (name, cities) in enumerate(by_answer.items())
    }
    evaluated: dict[Split, int] = {"val": sizes["val"], "test": sizes["test"]}
    return _draw_unseen(answers, evaluated) | _draw_seen_and_train(answers, evaluated, sizes["train"])


class _CitiesOfAnswer(Generic[C]):
    """The cities of one answer while they are dealt out; every call takes from what is left."""

    def __init__(self, cities: Sequence[C], always_train: Collection[str], rng: np.random.Generator) -> None:
        """Shuffle the countries, and the cities of each."""
        by_country: defaultdict[str, list[C]] = defaultdict(list)
        for city in cities:
            by_country[city.country].append(city)
        self.max_group = int(_MAX_GROUP_SHARE * len(cities))
        self._rng = rng
        self._left = {country: shuffled(members, rng) for country, members in sorted(by_country.items())}
        self._num_unseen = max(_MIN_UNSEEN_COUNTRIES, int(_UNSEEN_SHARE * len(self._left)))
        candidates = [
            country
            for country, members in self._left.items()
            if country not in always_train and len(members) <= _LARGE_COUNTRY_SHARE * len(cities)
        ]
        self._candidates = shuffled(candidates, rng)

    def take_countries(self, num_cities: int, num_calls: int) -> list[C]:
        """Hold out countries until `num_cities` can be drawn evenly from enough of them; return all cities of these.

        The cities come in rounds over the countries. Fewer than `num_cities` are returned where the candidates run out:
        this call takes no more than its share of them, if it is the first of `num_calls`.
        """
        max_countries = math.ceil(len(self._candidates) / num_calls)
        max_per_country = math.ceil(num_cities / self._num_unseen)
        taken: list[list[C]] = []
        while len(taken) < max_countries and sum(min(len(cities), max_per_country) for cities in taken) < num_cities:
            taken.append(self._left.pop(self._candidates.pop()))
        return deal_in_rounds(taken, self._rng)

    def deal_training(self, max_countries: int) -> tuple[list[C], list[C]]:
        """Return one city of each training country, and in rounds the further cities of these countries.

        The first list is for training alone, so whatever is evaluated of the second has its country trained on. The
        limit matters where training is too small to see every country.
        """
        countries = shuffled(list(self._left.values()), self._rng)[:max_countries]
        return [cities[0] for cities in countries], deal_in_rounds([cities[1:] for cities in countries], self._rng)

    def split_off(self, cities: Sequence[C], num_val: int, num_test: int) -> tuple[list[C], ...]:
        """Split cities that come in rounds into validation, test and the rest.

        Evaluation takes every second city from the front until it has enough, so that of every country about as many
        stay for training as are evaluated. Chance alone decides between validation and test.
        """
        num_evaluated = num_val + num_test
        evaluated = shuffled(cities[: 2 * num_evaluated : 2], self._rng)
        rest = [*cities[1 : 2 * num_evaluated : 2], *cities[2 * num_evaluated :]]
        return evaluated[:num_val], evaluated[num_val:], rest


def _draw_unseen(answers: Mapping[str, _CitiesOfAnswer[C]], sizes: Mapping[Split, int]) -> Strata[C]:
    """Draw half of each evaluation split from countries that are held out for it."""
    strata: Strata[C] = {}
    limits = {name: cities.max_group for name, cities in answers.items()}
    for index, (split, size) in enumerate(sizes.items()):
        purpose = f"num_{split}={size}, half of it of unseen countries"
        planned = fill_evenly(size // 2, limits, purpose)
        held = {name: cities.take_countries(planned[name], len(sizes) - index) for name, cities in answers.items()}
        counts = fill_evenly(size // 2, {name: min(limits[name], len(held[name])) for name in held}, purpose)
        strata |= {(split, "unseen_country", name): held[name][: counts[name]] for name in held}
    return strata


def _draw_seen_and_train(
    answers: Mapping[str, _CitiesOfAnswer[C]], sizes: Mapping[Split, int], num_train: int
) -> Strata[C]:
    """Draw training, and the other half of each evaluation split, from the countries that are left."""
    dealt = {name: cities.deal_training(num_train // len(answers)) for name, cities in answers.items()}
    # A quarter each for validation and test: they never compete, and `split_off` takes no more than every second city.
    limits = {name: min(answers[name].max_group, len(further) // 4) for name, (_, further) in dealt.items()}
    counts = {
        split: fill_evenly(size - size // 2, limits, f"num_{split}={size}, half of it of seen countries")
        for split, size in sizes.items()
    }
    strata: Strata[C] = {}
    for name, (firsts, further) in dealt.items():
        val, test, rest = answers[name].split_off(further, counts["val"][name], counts["test"][name])
        strata["val", "seen_country", name] = val
        strata["test", "seen_country", name] = test
        strata["train", "", name] = [*firsts, *rest]
    available = {name: len(strata["train", "", name]) for name in answers}
    for name, count in fill_evenly(num_train, available, f"num_train={num_train}").items():
        del strata["train", "", name][count:]
    return strata
