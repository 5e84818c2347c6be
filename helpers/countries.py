"""Countries and their capitals, as prompts whose answer is one token.

    facts = capital_prompts(lm)                 # every country that fits this model's tokenizer
    few = capital_prompts(lm, count=60)         # 60 of them, spread over the list

The table, `helpers/data/countries.tsv`, is read once for each call and kept nowhere.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from . import errors
from .models import LanguageModel

COUNTRIES_FILE = Path(__file__).resolve().parent / "data" / "countries.tsv"
TEMPLATE = "{capital} is the capital of"


@dataclass(frozen=True)
class Country:
    """One row of the table. `name` carries its article, as in "the Netherlands"."""

    name: str
    capital: str
    region: str
    adjective: str


@dataclass(frozen=True)
class CapitalPrompt:
    """A prompt, the country that completes it, and another country of the same region as contrast; both are one token."""

    prompt: str  # "Berlin is the capital of"
    target: str  # " Germany"
    contrast: str  # another country of the region


def read_countries() -> list[Country]:
    """Return all rows of the table, in its (alphabetical) order."""
    with COUNTRIES_FILE.open(encoding="utf-8", newline="") as file:
        return [
            Country(row["country"], row["capital"], row["region"], row["adjective"])
            for row in csv.DictReader(file, delimiter="\t")
        ]


def capital_prompts(lm: LanguageModel, count: int | None = None, template: str = TEMPLATE) -> list[CapitalPrompt]:
    """Return one prompt for each country whose name, with the space before it, is one token of `lm`.

    The contrast is the next such country of the same region, the region's first after its last; a country without such
    a neighbour is left out. count: that many, spread evenly over the shortest prompts that are enough (prompts of one
    length make a batch without padding); all by default. Raises BadValue when there are fewer than `count`, or none.
    """
    known = [country for country in read_countries() if _is_one_token(lm, " " + country.name)]
    regions: dict[str, list[Country]] = {}
    for country in known:
        regions.setdefault(country.region, []).append(country)
    found: list[CapitalPrompt] = []
    for country in known:
        neighbours = regions[country.region]
        other = neighbours[(neighbours.index(country) + 1) % len(neighbours)]
        if other is not country:
            text = template.format(capital=country.capital)
            found.append(CapitalPrompt(text, " " + country.name, " " + other.name))
    if not found:
        raise errors.BadValue("no country's name is one token of this model: its tokenizer leaves no prompt to ask.")
    if count is None:
        return found
    if not 1 <= count <= len(found):
        raise errors.BadValue(f"count {count} cannot be used: this model's tokenizer leaves 1 to {len(found)} prompts.")
    lengths = [len(lm.token_ids(one.prompt)) for one in found]
    longest = sorted(lengths)[count - 1]
    short = [one for one, length in zip(found, lengths, strict=True) if length <= longest]
    return [short[i * len(short) // count] for i in range(count)]


def _is_one_token(lm: LanguageModel, text: str) -> bool:
    try:
        lm.token_id(text)
    except errors.TargetIsNotOneToken:
        return False
    return True
