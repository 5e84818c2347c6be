"""What the package says goes through gettext: the sentences, the template for translators, and its tool."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog

import helpers.language
import helpers.say
from helpers import errors, set_language
from helpers.language import languages
from helpers.say import catalogue, say, translatable

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "helpers"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("messages_tool", ROOT / "tools" / "messages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_french(tool, tmp_path, monkeypatch):
    """A function that translates: text -> translation, compiled, chosen for this process, and gone after the test."""

    def speak(translations):
        place = tmp_path / "locale" / "fr" / "LC_MESSAGES"
        place.mkdir(parents=True)
        catalog = Catalog(locale="fr")
        for text, translation in translations.items():
            catalog.add(text, translation)
        tool.write(catalog, place / "helpers.po")
        assert tool.compile_all(tmp_path) == ([place / "helpers.mo"], [])
        for module in (helpers.say, helpers.language):
            monkeypatch.setattr(module, "CATALOGUES", tmp_path / "locale")
        monkeypatch.setenv("HELPERS_LANGUAGE", "en")  # so that the choice ends with the test
        catalogue.cache_clear()
        set_language("fr")

    yield speak
    catalogue.cache_clear()


def test_without_a_language_the_text_itself_is_said(monkeypatch):
    monkeypatch.delenv("HELPERS_LANGUAGE", raising=False)
    assert say("Δ goes from {begin} to {end}.", begin="67", end=134) == "Δ goes from 67 to 134."
    assert say("for example {'pocket': lm}.") == "for example {'pocket': lm}."
    assert say("{{capital}} is not in {text!r}", text="a b") == "{capital} is not in 'a b'"
    assert say("") == "" and translatable("Repair it") == "Repair it"


def test_a_translation_takes_the_values_in_its_own_order(in_french):
    in_french({"{name} is {value}.": "{value} : voilà {name}.", "Repair it": "Réparer"})
    assert say("{name} is {value}.", name="Δ", value="3.5") == "3.5 : voilà Δ."
    assert say(translatable("Repair it")) == "Réparer"
    assert say("never translated {x}", x=1) == "never translated 1" and say("") == ""
    set_language("en")
    assert say("Repair it") == "Repair it"


def test_a_slip_that_no_tool_has_seen_costs_nobody_the_sentence(in_french, tool, monkeypatch):
    monkeypatch.setattr(tool, "mistakes", lambda catalog: [])
    in_french({"{name} is 1": "{nom} est 1", "{name} is 2": "{name est 2", "{name} is 3": "{} est 3"})
    assert [say(f"{{name}} is {i}", name="Δ") for i in (1, 2, 3)] == ["Δ is 1", "Δ is 2", "Δ is 3"]


def test_an_error_and_its_note_are_said_too(in_french):
    in_french({
        "token id {wrong} does not exist: this model has tokens 0 to {vocabulary}; use ids that its own tokenizer made.":
            "{wrong} ! ({vocabulary})",
        "What this means and how to mend it: {page}": "Voir {page}",
    })  # fmt: skip
    import torch

    from helpers import load_model

    with pytest.raises(errors.BadPrompt) as caught:
        load_model().logits(torch.tensor([[99999]]))
    assert str(caught.value) == "99999 ! (6143)"
    assert caught.value.__notes__ == ["Voir docs/errors.md#badprompt"]


def test_an_unknown_language_is_refused_and_changes_nothing(monkeypatch):
    monkeypatch.delenv("HELPERS_LANGUAGE", raising=False)
    with pytest.raises(errors.BadValue, match="there is no language 'xx': choose one of en"):
        set_language("xx")
    assert "HELPERS_LANGUAGE" not in os.environ and languages()[0] == "en"


def test_what_a_process_starts_speaks_its_language_and_an_unknown_one_is_english():
    code = "from helpers.say import say; print(say('yes'))"
    for language in ("en", "xx", ""):
        asked = {**os.environ, "HELPERS_LANGUAGE": language}
        said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=asked)
        assert said.stdout == "yes\n"


def test_saying_imports_nothing_but_the_standard_library():
    code = "import sys; before = set(sys.modules); import helpers.say; print(*set(sys.modules) - before)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    others = {name.split(".")[0] for name in said} - set(sys.stdlib_module_names)
    assert others == {"helpers"}


# ---- every call

MISTAKES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ValueError)}


def calls():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if (
                getattr(node.func, "id", "") in {"say", "translatable"} | MISTAKES
                or getattr(node.func, "attr", "") in MISTAKES
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_the_names_in_a_text_are_those_of_its_values(tool):
    wrong, seen = [], 0
    for place, call in calls():
        given = {keyword.arg for keyword in call.keywords}
        if isinstance(call.args[0], ast.Constant) and given:
            seen += 1
            if tool.fields(call.args[0].value) != given:
                wrong.append(place)
    assert not wrong and seen > 300


def test_no_sentence_is_filled_in_before_it_is_looked_up():
    """say(f"…") and say("…" + x) would look up a text that no catalogue can have."""
    assert [place for place, call in calls() if isinstance(call.args[0], ast.JoinedStr | ast.BinOp)] == []


def test_every_text_is_found_for_translators(tool):
    """Before Python 3.12 nothing inside an f-string can be found: such a text would never be translated."""
    known = tool.texts(tool.extracted())
    texts = [(place, call.args[0].value) for place, call in calls() if isinstance(call.args[0], ast.Constant)]
    assert [place for place, text in texts if text not in known] == [] and len(texts) > 900


# ---- the template and its tool


def test_the_template_has_what_the_code_says(tool):
    template = tool.read(PACKAGE / "locale" / "helpers.pot")
    now, then = tool.texts(tool.extracted()), tool.texts(template)
    assert now == then, "helpers/locale/helpers.pot is out of date: make messages"
    assert len(now) > 900 and "Scale a block" in now


def test_the_languages_that_are_here_fit(tool):
    for path in PACKAGE.glob("locale/*/LC_MESSAGES/helpers.po"):
        assert tool.mistakes(tool.read(path)) == []


def test_a_language_keeps_its_translations_when_the_code_changes(tool, tmp_path):
    package = tmp_path / "helpers"
    package.mkdir()
    code = package / "part.py"
    code.write_text('say("stays {x}", x=1)\n# Translators: of a hook\nsay("goes")\n', encoding="utf-8")
    assert [path.name for path in tool.update(package)] == ["helpers.pot"]
    assert "of a hook" in (package / "locale" / "helpers.pot").read_text(encoding="utf-8")
    assert tool.update(package) == [], "nothing changed, so nothing is written"
    place = package / "locale" / "vi" / "LC_MESSAGES"
    place.mkdir(parents=True)
    shutil.copy(package / "locale" / "helpers.pot", place / "helpers.po")
    text = (place / "helpers.po").read_text(encoding="utf-8")
    for english, translation in (("stays {x}", "ở lại {x}"), ("goes", "đi")):
        text = text.replace(f'msgid "{english}"\nmsgstr ""', f'msgid "{english}"\nmsgstr "{translation}"')
    (place / "helpers.po").write_text(text, encoding="utf-8")
    code.write_text('say("stays {x}", x=1)\nsay("comes")\n', encoding="utf-8")
    tool.update(package)
    now = {message.id: message.string for message in tool.read(place / "helpers.po") if message.id}
    assert now == {"stays {x}": "ở lại {x}", "comes": ""}
    assert tool.compile_all(package) == ([place / "helpers.mo"], [])


@pytest.mark.parametrize(
    ("translation", "said"),
    [
        ("{y} reste", "has {y}; its text has {x}"),
        ("reste", "has none; its text has {x}"),
        ("{x reste", "expected '}'"),
        ("{x} reste", None),
    ],
)
def test_a_translation_with_other_names_is_not_compiled(tool, tmp_path, translation, said):
    place = tmp_path / "locale" / "fr" / "LC_MESSAGES"
    place.mkdir(parents=True)
    catalog = Catalog(locale="fr")
    catalog.add("{x} stays", translation)
    tool.write(catalog, place / "helpers.po")
    compiled, wrong = tool.compile_all(tmp_path)
    assert (compiled == []) == bool(said) and (place / "helpers.mo").exists() == (not said)
    assert (said in wrong[0]) if said else not wrong
