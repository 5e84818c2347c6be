import pytest

from helpers import capital_prompts, load_model
from helpers.countries import read_countries
from helpers.errors import BadValue


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
