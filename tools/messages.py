"""Collect what the package says, for translators, and compile what they wrote: python tools/messages.py [--compile]

Writes helpers/locale/helpers.pot, brings each language's helpers.po up to date with it and compiles it to the helpers.mo that
`helpers.say` reads. --compile: compile only. A translation whose {names} differ from the text's is named, and nothing is compiled.
docs/translating.md says how to add a language.
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from helpers import errors

PACKAGE = Path(__file__).resolve().parent.parent / "helpers"
MISTAKES = [
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.HelpersError)
]
KEYWORDS = dict.fromkeys(["say", "translatable", *MISTAKES])
COMMENT = "Translators:"  # how a comment in the code begins that a translator should read


def extracted(package: Path = PACKAGE) -> Catalog:
    """Every text in a call of `say` or `translatable`, or of an exception, with the files that it stands in."""
    about = "# What the package says to people, for translators: docs/translating.md. Written by make messages."
    found = Catalog(project="causal-interventions-course", header_comment=about, charset="utf-8", fuzzy=False)
    for file, _, text, comments, context in extract_from_dir(
        package, [("**.py", "python")], keywords=KEYWORDS, comment_tags=[COMMENT], strip_comment_tags=True
    ):
        place = (f"helpers/{Path(file).as_posix()}", 1)
        found.add(text, locations=[place], auto_comments=comments, context=context)
    return found


def texts(catalog: Catalog) -> set[str]:
    """The texts of a catalogue; its header has none."""
    return {str(message.id) for message in catalog if message.id}


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parts[-3] if path.suffix == ".po" else None)


def write(catalog: Catalog, path: Path) -> None:
    # Files without line numbers: a line that moves is no news to a translator.
    with path.open("wb") as file:
        write_po(file, catalog, width=100, include_lineno=False, ignore_obsolete=True)


def fields(text: str) -> set[str]:
    """The {names} in a text. Raises ValueError for a brace without its partner."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def mistakes(catalog: Catalog) -> list[str]:
    """One sentence for each translation whose {names} are not those of the text."""
    found = []
    for message in catalog:
        if not message.id or not message.string or message.fuzzy:
            continue
        text, translation = str(message.id), str(message.string)
        try:
            wanted = fields(text)
        except ValueError:  # the text has braces of its own, and is never filled in
            continue
        try:
            given = fields(translation)
        except ValueError as error:
            found.append(f"{translation!r}: {error}; a brace that is meant as such is written twice.")
            continue
        if given != wanted:
            listed = [", ".join(f"{{{name}}}" for name in sorted(names)) or "none" for names in (wanted, given)]
            found.append(f"{translation!r} has {listed[1]}; its text has {listed[0]}.")
    return found


def update(package: Path = PACKAGE) -> list[Path]:
    """Write the template if the texts have changed, bring every language up to date with it, and return what was written."""
    folder, catalog = package / "locale", extracted(package)
    template = folder / "helpers.pot"
    folder.mkdir(exist_ok=True)
    written = []
    if not template.is_file() or texts(read(template)) != texts(catalog):
        write(catalog, template)
        written.append(template)
    for path in sorted(folder.glob("*/LC_MESSAGES/helpers.po")):
        language = read(path)
        language.update(catalog, no_fuzzy_matching=True)
        write(language, path)
        written.append(path)
    return written


def compile_all(package: Path = PACKAGE) -> tuple[list[Path], list[str]]:
    """Compile every language; return what was written, or nothing and what must be mended first."""
    catalogs = {path: read(path) for path in sorted((package / "locale").glob("*/LC_MESSAGES/helpers.po"))}
    wrong = [f"{path.parts[-3]}: {said}" for path, catalog in catalogs.items() for said in mistakes(catalog)]
    if wrong:
        return [], wrong
    for path, catalog in catalogs.items():
        with path.with_suffix(".mo").open("wb") as file:
            write_mo(file, catalog)
    return [path.with_suffix(".mo") for path in catalogs], []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--compile", action="store_true", help="compile only")
    written = [] if parser.parse_args(arguments).compile else update()
    compiled, wrong = compile_all()
    for path in [*written, *compiled]:
        print("written:", path.relative_to(PACKAGE.parent).as_posix())
    for said in wrong:
        print(said, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
