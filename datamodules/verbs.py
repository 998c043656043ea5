"""The verbs that `PastTenseDataModule` asks about, and the pattern that each follows.

The data are the verbs of the NIH SPECIALIST Lexicon, as the package `lemminflect` (MIT) carries them: no network. Its
table is read as the text file that it is; the package's code is never run. A verb is used unless

* its lemma is not of 3 to 8 lower-case ASCII letters: phrases, hyphens, names, and long technical terms;
* the lexicon has no past tense of it or several (cancel: canceled, cancelled): the answer would be disputable;
* it follows none of the three patterns: irregular verbs (take, took) and those that double a consonant (stop, stopped).
  Over these and the three together, SmolLM2-135M-Instruct is right on too few even behind demonstrations.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Pattern = Literal["-ed", "-d", "-ied"]
"""walk, walked; bake, baked; cry, cried."""

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

_TABLE = ("resources", "infl_lu.csv.gz")
"""Lines ``lemma,verb,PAST,PARTICIPLE,PRESENT PARTICIPLE,THIRD PERSON``; several forms are parted by "/"."""

_LEMMA = re.compile(r"[a-z]{3,8}")

_PREFIXES = (
    "a", "back", "be", "co", "de", "dis", "en", "for", "fore", "gain", "in", "inter", "mis", "out", "over", "pre", "re",
    "sub", "un", "under", "up", "way", "with",
)  # fmt: skip
"""Of verbs that inflect as what follows them does (react as act)."""

_SPELLINGS = (("ise", "ize"), ("yse", "yze"), ("our", "or"))
"""British and American ends of a lemma."""


class Verb(NamedTuple):
    """A verb with one past tense."""

    lemma: str
    past: str

    @property
    def pattern(self) -> Pattern:
        """How the past tense is made of the lemma."""
        if self.past == self.lemma + "ed":
            return "-ed"
        return "-d" if self.past == self.lemma + "d" else "-ied"

    @property
    def question(self) -> str:
        """The text of the prompt."""
        return f'What is the past tense of the verb "{self.lemma}"?'


def load_verbs() -> list[Verb]:
    """Read the verbs described above, sorted by lemma.

    Raises:
        ImportError: if `lemminflect` is not installed.
    """
    # find_spec does not run the package, which would import spaCy where that is installed.
    found = importlib.util.find_spec("lemminflect")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "PastTenseDataModule needs the package `lemminflect`, for its table of verbs: pip install lemminflect"
        )
    verbs: dict[str, Verb] = {}
    with gzip.open(Path(found.submodule_search_locations[0], *_TABLE), "rt", encoding="utf-8") as table:
        for line in table:
            verb = _verb(line.rstrip("\n").split(","))
            if verb is not None:
                verbs[verb.lemma] = verb
    return [verbs[lemma] for lemma in sorted(verbs)]


def families(verbs: Sequence[Verb]) -> list[list[int]]:
    """Partition verbs into families: a verb, its other spelling, and what prefixes make of it (act, react).

    A model that has seen "act, acted" knows "react". Some are relatives by chance ("long" of "belong"); that costs
    items and leaks nothing.

    Returns:
        The indices of every verb in exactly one family; each ascending, families by their first index.
    """
    past_of = {verb.lemma: verb.past for verb in verbs}
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, verb in enumerate(verbs):
        members[_root(verb, past_of)].append(index)
    return sorted(members.values())


def _root(verb: Verb, past_of: dict[str, str]) -> str:
    """Take prefixes off for as long as what is left is a verb of the list that inflects alike; one spelling of two."""
    for prefix in _PREFIXES:
        rest = verb.lemma.removeprefix(prefix)
        if rest != verb.lemma and past_of.get(rest) == verb.past.removeprefix(prefix):
            return _root(Verb(rest, past_of[rest]), past_of)
    for british, american in _SPELLINGS:
        other = verb.lemma.removesuffix(british) + american
        if verb.lemma.endswith(british) and other in past_of:
            return _root(Verb(other, past_of[other]), past_of)
    return verb.lemma


def _verb(fields: Sequence[str]) -> Verb | None:
    """Read a line of the table; None: not a verb to ask about."""
    if len(fields) < 3 or fields[1] != "verb" or not _LEMMA.fullmatch(fields[0]):
        return None
    lemma, _, past = fields[:3]
    patterns = [lemma + "ed", lemma + "d", *([lemma[:-1] + "ied"] if lemma.endswith("y") else [])]
    return Verb(lemma, past) if past in patterns else None
