"""What lesson 5 says in words, held against what is stored and against what its cells printed.

tests/test_notebooks_rules.py asks that each number stands in an output; here, that it is the number of what the sentence names.
"""

import csv
import json
import re
from math import comb
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


def test_eight_blocks_are_priced_on_the_texts_that_had_no_say(cells):
    cheap, greedy = ("cheapest singles", "cheapest on all text"), ("greedy order", "greedy on all text")
    finding, others = prose(cells, "l5-together-finding"), slice(6, None)
    summed, together, *_ = eight(*cheap, others)
    assert f"cost {summed} nats one by one and {together} together: nearly the sum." in finding
    assert f"eight cheap blocks cost {summed} nats added up and {together} together: nearly" in prose(cells, "l5-recap")
    assert f"There the eight blocks cost {summed} nats, added up" in prose(cells, "l5-together-text")
    assert f"cost {summed} nats one by one" in prose(cells, "l5-together-guess")
    assert 0.8 <= float(together) <= 1.2, "the answer to the guess"
    for way, said in ((cheap, "dearer than the sum by {} ± {}"), (greedy, "cheaper by {} ± {}, which may be chance")):
        apart = eight(*way, others)[-1]
        error = 1.96 * float(apart.std()) / 18**0.5
        assert said.format(f"{abs(float(apart.mean())):.2f}", f"{error:.2f}") in finding
        assert (abs(float(apart.mean())) < error) == ("chance" in said)
    pairs, blocks = measured("pocket", "pairs"), measured("pocket", "blocks")
    alone = (
        blocks.at("damage", part="block", measure="loss", block=pairs["cheapest singles"].tolist())[6:].sum(1).mean()
    )
    on_all = [
        pairs.at(f"{kind} on all text", removed=8, measure="loss")[6:].mean() for kind in ("cheapest", "greedy", "best")
    ]
    small = [f"{float(value):.2f}" for value in (alone, *on_all)]
    for name in ("l5-together-finding", "l5-recap"):
        assert f"The pocket model's cost {small[0]} and {small[1]}." in prose(cells, name)
    assert f"the greedy eight cost {small[2]}, the best set of the six texts {small[3]}." in finding


def test_no_block_is_called_surely_cheap_that_the_corrected_test_does_not_call_so(cells):
    """Sign tests over the 24 texts, corrected for the number of blocks with Holm's method, counted here by hand."""
    surely = {}
    for model in ("smollm2", "pocket"):
        damage = measured(model, "blocks").at("damage", part="block", measure="loss").T  # (block, text)
        p = []
        for row in damage:
            below, above = int((row < plots.CHEAP).sum()), int((row > plots.CHEAP).sum())
            n, few = below + above, min(below, above)
            p.append((min(1, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n), below > above))
        surely[model] = set()
        for rank, block in enumerate(sorted(range(len(p)), key=lambda b: p[b][0])):
            if p[block][0] > 0.05 / (len(p) - rank):
                break
            if p[block][1]:
                surely[model].add(block)
    assert surely["smollm2"] == set() and 8 in surely["pocket"]
    with (NOTEBOOK.parents[1] / "helpers/data/claims.csv").open(encoding="utf-8", newline="") as file:
        ledger = {row["model"]: row["why"] for row in csv.DictReader(file) if row["claim"] == "5.5"}
    assert "(sign test, Holm): none;" in ledger["smollm2"] and "(sign test, Holm): block 8;" in ledger["pocket"]
    finding, recap = prose(cells, "l5-damage-finding"), prose(cells, "l5-recap")
    assert "calls no block surely cheap" in finding and "that test confirms block 8" in finding
    assert "none of them surely" in recap


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
    assert f"blocks 27 and 28 cost {extra} above their sum, on other texts" in prose(cells, "l5-recap")
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
    finding = prose(cells, "l5-patch-finding")
    assert f"For Rome: ` Italy` gets {before} at ` Berlin` after block 22, {after} at the last token" in finding
    counts = re.findall(r"Patched at (.+) after block (\d+): the other country comes first on (\d+) of (\d+)", drawn)
    on = {(place, block): hits for place, block, hits, _ in counts}
    assert {tried for *_, tried in counts} == {"22"}
    first, last = "' Berlin'", "the last token"
    assert f"on {on[first, '22']} of 22 capitals, at the last token on {on[last, '22']};" in finding
    assert f"after block 23 it is {on[first, '23']} and {on[last, '23']}.**" in finding
    assert f"comes first on {on[first, '22']} of 22 capitals" in prose(cells, "l5-recap")
    assert f"only a patch at the last token brings it, on {on[last, '23']}." in prose(cells, "l5-recap")


def test_blocks_just_below_the_line_are_named(cells):
    mean = measured("smollm2", "blocks").at("mean", part="block", measure="loss")
    low, high = (f"{float(value):.3f}" for value in torch.stack([mean[[7, 17, 18]].min(), mean[[7, 17, 18]].max()]))
    assert f"Blocks 7, 17 and 18 lie just below the line ({low} to {high})" in prose(cells, "l5-damage-finding")
    assert float(high) < plots.CHEAP
