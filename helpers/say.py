"""What the package says to people goes through gettext, so that a course can be read in another language.

    say("Δ goes from {begin} to {end}.", begin="67", end="134")     # in the language that HELPERS_LANGUAGE names
    title: str = translatable("Repair it")                          # marked where it is written, said where it is shown:
    say(title)

The exceptions of helpers/errors.py say their sentences themselves; helpers/language.py chooses the language.
Numbers are formatted before, so they are the same in each language. Without a catalogue the text itself is what is said.
docs/translating.md tells how to add a language. Source: Python's gettext; the catalogues are made by Babel.
"""

from __future__ import annotations

import os
from functools import cache
from gettext import NullTranslations, translation
from pathlib import Path

DOMAIN = "helpers"
CATALOGUES = Path(__file__).resolve().parent / "locale"
VARIABLE = "HELPERS_LANGUAGE"  # the process keeps the choice, so that what it starts speaks the same language
ENGLISH = "en"


def say(text: str, /, **values: object) -> str:
    """Return `text` in the chosen language, with `values` in place of its {names}. Without values braces are only braces."""
    chosen = os.environ.get(VARIABLE)
    if not chosen or chosen == ENGLISH or not text:  # gettext takes "" for a question about the catalogue itself
        return text.format(**values) if values else text
    translated = catalogue(chosen).gettext(text)
    if not values:
        return translated
    try:
        return translated.format(**values)
    except (LookupError, ValueError, AttributeError):  # a slip in a translation must cost nobody the sentence
        return text.format(**values)


def translatable(text: str) -> str:
    """Mark a text that is written in one place and said in another. It comes back as it is."""
    return text


@cache
def catalogue(language: str) -> NullTranslations:
    """The translations into a language; what says everything in English where there are none."""
    return translation(DOMAIN, CATALOGUES, [language], fallback=True)
