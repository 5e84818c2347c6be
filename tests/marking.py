"""A language that puts ⟦ and ⟧ around each piece of a text between its {names}: what is put in for a name must be marked by itself."""

import importlib.util
import re
import string
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

import helpers.say

ROOT = Path(__file__).resolve().parents[1]
TERMS = {
    "SmolLM2",
    "MLP",
    "KL",
    "BOS",
    "make_hook",
    "float",
    "tuple",
    "GELU",
    "H_10",
    "H_11",
}  # the same in every language
MARKED = re.compile(r"⟦[^⟦⟧]*⟧")
QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")  # tokens of the model, and code


def marked(text):
    """`text` as the marking language says it."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        return f"⟦{text}⟧"
    told = ""
    for words, name, rule, way in parts:
        told += f"⟦{words.replace('{', '{{').replace('}', '}}')}⟧" if words else ""
        if name is not None:
            told += "{" + name + (f"!{way}" if way else "") + (f":{rule}" if rule else "") + "}"
    return told


@contextmanager
def marking_language(folder):
    """Gives a MonkeyPatch; under it HELPERS_LANGUAGE=qps speaks the marking language. folder: an empty one."""
    spec = importlib.util.spec_from_file_location("messages_tool", ROOT / "tools" / "messages.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    place = folder / "qps" / "LC_MESSAGES"
    place.mkdir(parents=True)
    catalog = Catalog()
    for text in tool.texts(tool.extracted()):
        catalog.add(text, marked(text))
    with (place / "helpers.mo").open("wb") as file:
        write_mo(file, catalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers.say, "CATALOGUES", folder)
        helpers.say.catalogue.cache_clear()
        yield patch
        helpers.say.catalogue.cache_clear()


def plain(text):
    """Without markup: what is read. Pictures are their text alternatives."""
    text = re.sub(r'<img alt="([^"]*)"[^>]*>', r"\1 ", text)
    return unescape(re.sub(r"<[^<>]*>", " ", text.replace("‖<", "‖ <")))


def letters(text):
    """Without marks, without what wrapping changes, and without capitals: a sentence may begin with a mark."""
    return re.sub(r"[\s⟦⟧]+", "", plain(text)).lower()


def unmarked(text, own=()):
    """The words of a text that are left when marked pieces, quoted tokens and terms are taken out, and `own`, longest first."""
    rest = MARKED.sub(" ", plain(text).replace("\n", " "))
    for piece in own:
        rest = rest.replace(piece, " ")
    rest = QUOTED.sub(" ", re.sub(r"docs/errors\.md#\w+", "", rest))
    return sorted(set(re.findall(r"[A-Za-z_]\w{2,}", rest)) - TERMS)
