"""What lesson 5 says in words, held against what is stored and against what its cells printed.

tests/test_notebooks_rules.py asks that each number stands in an output; here, that it is the number of what the sentence names.
"""

import json
import re
from pathlib import Path

import pytest
import torch

from helpers import measured
from helpers.lesson5 import plots, runs

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "05_skip_layer.ipynb"


@pytest.fixture(scope="module")
def cells():
    return {cell["id"]: cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]}


def prose(cells, name):
    return " ".join("".join(cells[name]["source"]).split())


def printed(cells, name):
    told = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cells[name]["outputs"]]
    return "\n".join("".join(text) for text in told)


def eight(order, on_all, texts=slice(None)):
    """What eight removed blocks of SmolLM2 cost, added up and together, means over texts; the difference and its interval."""
    pairs, blocks = measured("smollm2", "pairs"), measured("smollm2", "blocks")
    single = blocks.at("damage", part="block", measure="loss", block=pairs[order].tolist())[texts].sum(1)
    together = pairs.at(on_all, removed=8, measure="loss")[texts]
    apart = together - single
    return *(f"{float(v.mean()):.2f}" for v in (single, together, apart.abs())), apart


def test_eight_blocks_are_priced_on_all_texts_and_on_those_that_had_no_say(cells):
    cheap, greedy = ("cheapest singles", "cheapest on all text"), ("greedy order", "greedy on all text")
    finding = prose(cells, "l5-together-finding")
    summed, together, *_ = eight(*cheap)
    greedy_summed, greedy_together, *_ = eight(*greedy)
    assert f"cost {summed} nats one by one and {together} together" in finding
    assert f"the greedy eight cost {greedy_summed} and {greedy_together}." in finding
    assert f"cost {summed} nats added up and {together} together" in prose(cells, "l5-recap")
    assert f"a greedy eight {greedy_summed} and {greedy_together}" in prose(cells, "l5-recap")
    assert f"add up to {summed} nats" in prose(cells, "l5-together-text")
    assert f"cost {summed} nats one by one" in prose(cells, "l5-together-guess")
    for way, said in ((cheap, "dearer than the sum by {} ± {}"), (greedy, "cheaper by {} ± {}, which may be chance")):
        apart = eight(*way, slice(6, None))[-1]
        error = 1.96 * float(apart.std()) / 18**0.5
        assert said.format(f"{abs(float(apart.mean())):.2f}", f"{error:.2f}") in finding
        assert (abs(float(apart.mean())) < error) == ("chance" in said)


def test_three_ways_to_compare_a_block_with_a_head_stay_within_a_factor_of_two(cells, capsys):
    runs.show_prices({"SmolLM2": measured("smollm2", "prices"), "the pocket model": measured("pocket", "prices")})
    real, pocket = zip(*(line.split()[-2:] for line in capsys.readouterr().out.splitlines()[2:]), strict=True)
    found = measured("smollm2", "prices")
    block = found.at("damage", part="block", measure="KL").mean(0) / found["parameters"][0]
    heads = found.at("damage of heads", measure="KL").mean(0) / found["parameters of a head"][:, None]
    of_medians, own = block.quantile(0.5) / heads.quantile(0.5), (block[:, None] / heads).quantile(0.5)
    assert real[2:4] == (f"{of_medians:.2f}", f"{own:.2f}")
    finding, claims = prose(cells, "l5-price-finding"), Path(NOTEBOOK).parents[1] / "docs" / "claims.md"
    assert f"per parameter removed {real[4]}," in claims.read_text(encoding="utf-8")
    assert f"block by head: {real[2]}, the head is dearer" in finding and float(real[2]) < 1
    assert f"the median is {real[3]}, the block is dearer" in finding and f"24 texts: {real[4]}." in finding
    assert all(0.5 < float(ratio) < 2 for ratio in real[2:]), "neither, says the answer to the guess"
    assert f"{min(pocket[2:])} to {max(pocket[2:])} times" in finding


def test_what_the_six_texts_chose_was_measured_again_on_others(cells):
    source = "".join(cells["l5-together"]["source"]) + "".join(cells["l5-price"]["source"])
    assert "held_out(real, 12, 48)[6:]" in source and len(measured("smollm2", "pairs").about["prompts"]) == 6
    extra = re.search(r"Six others now: .*, above the sum (\d+\.\d+)$", printed(cells, "l5-together").rstrip()).group(1)
    assert f"above the sum; on six others it is {extra}." in prose(cells, "l5-together-finding")
    assert f"On other texts blocks 27 and 28 cost {extra} above their sum" in prose(cells, "l5-recap")
    kl, outdone, mean = re.search(
        r"six others now: KL (\S+), more than (\d+) blocks; with its mean (\S+)", printed(cells, "l5-price")
    ).groups()
    said = f"On six others it moves the prediction more than {outdone} of the 30 whole blocks (KL {kl})."
    assert said in prose(cells, "l5-price-finding")
    assert f"the KL there is {mean}." in prose(cells, "l5-price-finding")


def test_the_patch_says_what_its_numbers_are_of(cells):
    drawn = printed(cells, "l5-patch")
    at_berlin, at_last = re.search(r"at ' Berlin':(.*?)at the last token:(.*)", drawn, re.S).groups()
    before = re.search(r"block 22 (\S+?)[,;]", at_berlin).group(1)
    after = re.search(r"block 23 (\S+?)[,;]", at_last).group(1)
    said = f"at ` Berlin` after block 22, ` Italy` gets {before}; at the last token after block 23, {after}"
    for name in ("l5-patch-finding", "l5-recap"):
        assert said in prose(cells, name) and "one pair of sentences" in prose(cells, name)


def test_blocks_just_below_the_line_are_named(cells):
    mean = measured("smollm2", "blocks").at("mean", part="block", measure="loss")
    low, high = (f"{float(value):.3f}" for value in torch.stack([mean[[7, 17, 18]].min(), mean[[7, 17, 18]].max()]))
    assert f"Blocks 7, 17 and 18 lie just below the line ({low} to {high})" in prose(cells, "l5-damage-finding")
    assert float(high) < plots.CHEAP
