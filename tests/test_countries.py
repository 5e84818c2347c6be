import pytest
import torch

from helpers import PHRASINGS, CapitalPrompt, answers_right, capital_prompts, load_model, positions_of
from helpers.countries import read_countries
from helpers.errors import BadPrompt, BadValue


@pytest.fixture(scope="module")
def lm():
    return load_model()


def test_the_table_has_every_country_once():
    countries = read_countries()
    assert len(countries) == 195
    assert len({country.name for country in countries}) == 195
    assert all(country.name and country.capital and country.region for country in countries)


def test_every_target_and_contrast_is_one_token_of_one_region(lm):
    regions = {" " + country.name: country.region for country in read_countries()}
    capitals = {" " + country.name: country.capital for country in read_countries()}
    facts = capital_prompts(lm)
    for fact in facts:
        assert lm.token_id(fact.target) != lm.token_id(fact.contrast)
        assert regions[fact.target] == regions[fact.contrast]
        assert fact.prompt == f"{capitals[fact.target]} is the capital of"
    assert len({fact.target for fact in facts}) == len(facts) >= 50


def test_a_count_takes_short_prompts_spread_over_the_table(lm):
    facts, every = capital_prompts(lm, 50), capital_prompts(lm)
    assert len(facts) == len(set(facts)) == 50
    assert set(facts) <= set(every)
    longest = max(len(lm.token_ids(fact.prompt)) for fact in facts)
    assert sum(len(lm.token_ids(fact.prompt)) < longest for fact in every) < 50
    initials = {fact.target[1] for fact in facts}
    assert len(initials) > 10


def test_too_many_are_refused(lm):
    with pytest.raises(BadValue, match="count 999 cannot be used"):
        capital_prompts(lm, 999)
    with pytest.raises(BadValue, match="count 0"):
        capital_prompts(lm, 0)


def test_a_tokenizer_without_country_names_is_told(lm, monkeypatch):
    monkeypatch.setattr("helpers.countries._is_one_token", lambda lm, text: False)
    with pytest.raises(BadValue, match="no country's name is one token"):
        capital_prompts(lm)


def test_examples_stand_in_front_and_are_neither_asked_nor_a_contrast(lm):
    facts = capital_prompts(lm, examples=["France", "Egypt"])
    plain = {fact.target for fact in capital_prompts(lm)}
    assert {fact.target for fact in facts} == plain - {" France", " Egypt"}
    assert not {fact.contrast for fact in facts} & {" France", " Egypt"}
    (german,) = (fact for fact in facts if fact.target == " Germany")
    shown = "Paris is the capital of France. Cairo is the capital of Egypt. "
    assert german.prompt == shown + "Berlin is the capital of" and german.capital == "Berlin"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"examples": ["Atlantis"]}, "example 'Atlantis' is not in the table"),
        ({"examples": "France"}, "is one text: give a list of countries"),
        ({"template": "is the capital of"}, "has no {capital} in it"),
    ],
)
def test_examples_and_templates_that_do_not_fit_are_told(lm, options, sentence):
    with pytest.raises(BadValue, match=sentence):
        capital_prompts(lm, **options)


def test_right_answers_are_those_of_plain_passes(lm):
    facts = [fact for template in PHRASINGS.values() for fact in capital_prompts(lm, template=template)[::30]]
    facts.append(CapitalPrompt("Berlin is the capital of", " France", " Germany", "Berlin"))
    expected = []
    for fact in facts:
        with torch.no_grad():
            top = lm.model(torch.tensor([lm.token_ids(fact.prompt)])).logits[0, -1].argmax()
        expected.append(lm.tokenizer.decode([int(top)]) == fact.target)
    assert answers_right(lm, facts) == expected and expected[-1] is False and any(expected)


def test_positions_hold_the_last_occurrence(lm):
    prompt = "Berlin is large. Buenos Aires is the capital of"
    tokens = lm.token_strings(prompt)
    for text in ("Berlin", "Buenos Aires", "capital of"):
        found = positions_of(lm, prompt, text)
        assert "".join(tokens[i] for i in found).strip() == text
    assert positions_of(lm, "is it is", "is")[0] == len(lm.token_ids("is it is")) - 1
    with pytest.raises(BadPrompt, match="'Rome' does not occur"):
        positions_of(lm, prompt, "Rome")


def test_a_capital_that_holds_the_answer_is_marked(lm):
    given = {fact.target for fact in capital_prompts(lm) if fact.given_away}
    assert given and all(target.strip() in " ".join(c.capital for c in read_countries()) for target in given)
    assert CapitalPrompt("", " Kuwait", " Iraq", "Kuwait City").given_away
    assert not CapitalPrompt("", " Germany", " France", "Berlin").given_away
