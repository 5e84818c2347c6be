"""Countries and their capitals, as prompts whose answer is one token.

    facts = capital_prompts(lm)                         # every country that fits this model's tokenizer
    few = capital_prompts(lm, count=60)                 # 60 of them, spread over the list
    facts = capital_prompts(lm, examples=["France"])    # "Paris is the capital of France. Berlin is the capital of"
    right = answers_right(lm, facts)                    # which of them the model completes with the country

A model that was trained to follow instructions needs an example: without one it goes on with " the" or with a province.
The table, `helpers/data/countries.tsv`, is read once for each call and kept nowhere.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import errors
from .models import LanguageModel

COUNTRIES_FILE = Path(__file__).resolve().parent / "data" / "countries.tsv"
TEMPLATE = "{capital} is the capital of"
# The same question in other words. What holds for one phrasing need not hold for another.
PHRASINGS = {
    "is the capital of": TEMPLATE,
    "serves as": "{capital} serves as the capital of",
    "the country with": "The country with the capital {capital} is",
}


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
    capital: str = ""  # "Berlin"

    @property
    def given_away(self) -> bool:
        """Whether the capital's name holds the answer, as Kuwait City does: the model then needs to copy, not to know."""
        return self.target.strip() in self.capital


def read_countries() -> list[Country]:
    """Return all rows of the table, in its (alphabetical) order."""
    with COUNTRIES_FILE.open(encoding="utf-8", newline="") as file:
        return [
            Country(row["country"], row["capital"], row["region"], row["adjective"])
            for row in csv.DictReader(file, delimiter="\t")
        ]


def capital_prompts(
    lm: LanguageModel, count: int | None = None, template: str = TEMPLATE, examples: Sequence[str] = ()
) -> list[CapitalPrompt]:
    """Return one prompt for each country whose name, with the space before it, is one token of `lm`.

    The contrast is the next such country of the same region, the region's first after its last; a country without such
    a neighbour is left out. count: that many, spread evenly over the shortest prompts that are enough (prompts of one
    length make a batch without padding); all by default. template: text with `{capital}` in it; PHRASINGS has some.
    examples: countries whose sentences stand in front, in this order, such as ["France"]; they are neither asked for nor
    used as a contrast. Raises BadValue when there are fewer than `count`, or none, or when a template or example does not fit.
    """
    if not isinstance(template, str) or "{capital}" not in template:
        raise errors.BadValue(
            "the template {template!r} has no {{capital}} in it: write one such as '{{capital}} is the capital of'.",
            template=template,
        )
    countries = read_countries()
    shown = _examples(countries, template, examples)
    known = [one for one in countries if one.name not in examples and _is_one_token(lm, " " + one.name)]
    regions: dict[str, list[Country]] = {}
    for country in known:
        regions.setdefault(country.region, []).append(country)
    found: list[CapitalPrompt] = []
    for country in known:
        neighbours = regions[country.region]
        other = neighbours[(neighbours.index(country) + 1) % len(neighbours)]
        if other is not country:
            text = shown + template.replace("{capital}", country.capital)
            found.append(CapitalPrompt(text, " " + country.name, " " + other.name, country.capital))
    if not found:
        raise errors.BadValue("no country's name is one token of this model: its tokenizer leaves no prompt to ask.")
    if count is None:
        return found
    if not 1 <= count <= len(found):
        raise errors.BadValue(
            "count {count} cannot be used: this model's tokenizer leaves 1 to {n_prompts} prompts.",
            count=count,
            n_prompts=len(found),
        )
    lengths = [len(lm.token_ids(one.prompt)) for one in found]
    longest = sorted(lengths)[count - 1]
    short = [one for one, length in zip(found, lengths, strict=True) if length <= longest]
    return [short[i * len(short) // count] for i in range(count)]


def _examples(countries: list[Country], template: str, names: Sequence[str]) -> str:
    """The examples' sentences, each with a full stop and a space behind it."""
    if isinstance(names, str):
        raise errors.BadValue(
            "examples {names!r} is one text: give a list of countries, for example ['France'].", names=names
        )
    by_name = {country.name: country for country in countries}
    for name in names:
        if name not in by_name:
            raise errors.BadValue(
                "the example {name!r} is not in the table of countries: write its name as there, for example 'France'.",
                name=name,
            )
    return "".join(f"{template.replace('{capital}', by_name[name].capital)} {name}. " for name in names)


@torch.no_grad()
def answers_right(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> list[bool]:
    """For each prompt, whether the target is the most probable next token of the model as it is now, live edits included.

    One pass for all prompts of one length. Raises BadPrompt, TargetIsNotOneToken.
    """
    rows = [lm.token_ids(fact.prompt) for fact in facts]
    right = [False] * len(rows)
    for length in sorted({len(row) for row in rows}):
        mine = [i for i, row in enumerate(rows) if len(row) == length]
        top = lm.logits(torch.tensor([rows[i] for i in mine]))[:, -1].argmax(-1).tolist()
        for i, token in zip(mine, top, strict=True):
            right[i] = token == lm.token_id(facts[i].target)
    return right


def positions_of(lm: LanguageModel, prompt: str, text: str) -> list[int]:
    """Positions of the tokens that hold the last occurrence of `text` in a prompt, for example those of its capital.

    Raises BadPrompt when it does not occur, and BadValue for a tokenizer that does not say where its tokens lie.
    """
    begin = prompt.rfind(text) if text else -1
    if begin < 0:
        raise errors.BadPrompt(
            "{text!r} does not occur in the prompt {prompt!r}: give a part of it.", text=text, prompt=prompt
        )
    if not getattr(lm.tokenizer, "is_fast", False):
        raise errors.BadValue(
            "this tokenizer does not say where its tokens lie in the text: load the model with a fast tokenizer."
        )
    spans = lm.tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [i for i, (start, stop) in enumerate(spans) if start < begin + len(text) and stop > begin]


def _is_one_token(lm: LanguageModel, text: str) -> bool:
    try:
        lm.token_id(text)
    except errors.TargetIsNotOneToken:
        return False
    return True
