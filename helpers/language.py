"""Which language the package speaks: helpers/say.py says, this chooses."""

from __future__ import annotations

import os

from . import errors
from .say import CATALOGUES, DOMAIN, ENGLISH, VARIABLE


def set_language(name: str) -> None:
    """Say everything in this language from now on: "en", or a folder of helpers/locale. Raises BadValue for another one."""
    if name not in languages():
        raise errors.BadValue(
            "there is no language {name!r}: choose one of {known}, or add a catalogue.",
            name=name,
            known=", ".join(languages()),
        )
    os.environ[VARIABLE] = name


def languages() -> list[str]:
    """The languages that can be said: English, and each that has a compiled catalogue."""
    return [ENGLISH, *sorted(path.parts[-3] for path in CATALOGUES.glob(f"*/LC_MESSAGES/{DOMAIN}.mo"))]
