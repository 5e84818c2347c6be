"""What lesson 4 says in words, counted again from the stored numbers with plain loops."""

import csv
import re
from math import comb
from pathlib import Path

import nbformat
import numpy as np
import pytest

from helpers.measurements import measured

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = nbformat.read(ROOT / "notebooks/04_head_ablation.ipynb", as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells}
OUTPUTS = {cell.id: cell.get("outputs", []) for cell in NOTEBOOK.cells}
LEAD = "logit difference"


@pytest.fixture(scope="module")
def found():
    return measured("smollm2", "heads")


def change(found, kind, measure=LEAD):
    """(n_prompts, n_heads of the whole model)."""
    return found.at("change", replacement=kind, measure=measure).flatten(1).double().numpy()


def heads_to_half(sizes):
    ordered, number = sorted(sizes, reverse=True), 0
    while sum(ordered[:number]) < sum(sizes) / 2:
        number += 1
    return number


def test_half_of_all_change_is_counted_on_each_prompt_not_after_plus_and_minus_have_cancelled(found):
    sizes = {kind: [np.mean([abs(v) for v in head]) for head in change(found, kind).T] for kind in ("zero", "mean")}
    zero, mean = (heads_to_half(sizes[kind]) for kind in ("zero", "mean"))
    signed = heads_to_half([abs(sum(head) / len(head)) for head in change(found, "mean").T])
    assert (zero, mean, signed) == (53, 29, 5)
    finding = CELLS["l4-maps-finding"]
    assert f"With zeros it takes {zero} of SmolLM2's 270 heads" in finding and f"with means {mean}.**" in finding
    assert f"Averaged *with* signs, {signed} heads would seem" in finding
    assert f"from {sum(sizes['zero']):.1f} nats to {sum(sizes['mean']):.1f}" in finding
    assert f"With zeros, {zero} of SmolLM2's 270 heads" in CELLS["l4-maps-guess"]
    block = [max(sizes[kind][5 * 9 : 6 * 9]) for kind in ("zero", "mean")]
    assert "the largest size is {:.2f} with zeros, {:.2f} with means".format(*block) in finding
    off = [np.mean(np.abs(found.at("all off", off=kind, block=0, measure=LEAD).numpy())) for kind in ("zero", "mean")]
    assert "{:.2f} nats with zeros, {:.2f} with means; on the pocket model".format(*off) in finding
    assert "by {:.2f} nats with zeros, by {:.2f} with means".format(*off) in CELLS["l4-recap"]


def test_an_r_that_six_heads_make_is_called_so(found):
    writes = found["direct mean"].flatten().double().numpy()
    cost = -found.at("mean", prompts="all", replacement="mean", measure=LEAD).flatten().double().numpy()
    rest = np.abs(writes) < 0.3
    ranks = [np.argsort(np.argsort(v)) for v in (writes, cost)]
    r, without, by_rank = (np.corrcoef(*pair)[0, 1] for pair in ((writes, cost), (writes[rest], cost[rest]), ranks))
    assert int((~rest).sum()) == 6
    finding = CELLS["l4-inside-finding"]
    assert f"r = {r:.2f} says yes, but the six named heads make it" in finding
    assert f"it is {without:.2f}. By rank, where only the order of all heads counts, it is {by_rank:.2f}." in finding


def test_most_of_what_block_23_costs_one_at_a_time_is_one_head_and_no_sum_is_called_a_stand_in(found):
    right = found["right"].numpy()
    alone = change(found, "mean", "log p")[right].mean(0)[23 * 9 : 24 * 9]
    assert f"Of the {-sum(alone):.2f}, head 23.4 alone costs {-alone[4]:.2f}" in CELLS["l4-together-finding"]
    assert "a sum cannot tell" in CELLS["l4-together-finding"] and "such sums cannot tell" in CELLS["l4-recap"]
    assert not [name for name, text in CELLS.items() if "eads cover for each other" in text]


def test_who_is_significant_is_asked_of_the_right_answers_alone(found):
    right = found["right"].numpy()
    p = []
    for head in change(found, "zero", "log p")[right].T:
        few = min(sum(head > 0), sum(head < 0))
        n = int(sum(head != 0))
        p.append(min(1.0, 2 * sum(comb(n, k) for k in range(int(few) + 1)) / 2**n))
    sure = np.zeros(270, bool)
    for rank, place in enumerate(np.argsort(p, kind="stable")):  # Holm
        if p[place] > 0.05 / (270 - rank):
            break
        sure[place] = True
    never = found.at("flags", replacement="zero", flag="target is top-1")[found["right"]].flatten(1).all(0).numpy()
    finding = CELLS["l4-top-one-finding"]
    assert int(right.sum()) == 35 and "on all 35 prompts" in finding
    assert f"{int(never.sum())} of SmolLM2's 270 heads leave" in finding
    assert f"Yet {int((sure & never).sum())} of them move log p" in finding
    assert f"In all, {int(sure.sum())} heads are **significant**" in finding


def test_the_ledger_shows_both_parts_of_claim_4_3():
    with (ROOT / "helpers/data/claims.csv").open(encoding="utf-8", newline="") as file:
        (row,) = [one for one in csv.DictReader(file) if one["claim"] == "4.3" and one["model"] == "smollm2"]
    assert "whichever head is removed" in row["the report says"], "it was measured in block 5 and elsewhere"
    shown = CELLS["l4-ledger"]
    assert 'show_parts("4.3", "4.7", "4.8", model=model)' in shown and '("pocket", "smollm2")' in shown
    notebook = nbformat.read(ROOT / "notebooks/04_head_ablation.ipynb", as_version=4)
    (cell,) = [one for one in notebook.cells if one.id == "l4-ledger"]
    said = "".join(out.get("text", "") for out in cell.outputs)
    for part in row["why"].split("; "):
        assert part in said


def test_a_part_that_a_coin_gives_is_called_so():
    with (ROOT / "helpers/data/claims.csv").open(encoding="utf-8", newline="") as file:
        (row,) = [one for one in csv.DictReader(file) if one["claim"] == "4.7" and one["model"] == "smollm2"]
    true, tried = map(int, re.search(r"heads of block 5: (\d+) of (\d+)", row["why"]).groups())
    assert 2 * sum(comb(tried, k) for k in range(true, tried + 1)) / 2**tried > 0.05
    assert f"SmolLM2's {true} of {tried} in 4.7 is what a coin gives" in CELLS["l4-explore-text"]


def test_what_is_said_of_other_phrasings_holds_by_rank_and_leaves_none_out():
    shown = "".join(out.get("text", "") for out in OUTPUTS["l4-phrasing"])
    told = CELLS["l4-phrasing-finding"]
    for model, said in (
        ("pocket", "The r agree: −{:.2f} to {:.2f} for zeros"),
        ("smollm2", "r from {:.2f} to {:.2f}"),
    ):
        maps = measured(model, "phrasings").at("mean", measure=LEAD).flatten(1).double().numpy()
        assert len(maps) == 4, "all that is stored is shown"
        r = sorted(np.corrcoef(maps[0], one)[0, 1] for one in maps[1:])
        ranks = [np.argsort(np.argsort(one)) for one in maps]
        by_rank = sorted(np.corrcoef(ranks[0], one)[0, 1] for one in ranks[1:])
        assert said.format(abs(r[0]), r[-1]) in told
        assert f"{by_rank[0]:.2f} to {by_rank[-1]:.2f}" in told
        n_heads = {"pocket": 12, "smollm2": 9}[model]
        top = ["{}.{}".format(*divmod(int(np.abs(one).argmax()), n_heads)) for one in maps]
        assert f"zeros, strongest head in each of four phrasings: {', '.join(top)}" in shown
    means = [line for line in shown.splitlines() if line.startswith("pocket, means")]
    assert means == ["pocket, means, strongest head in each of four phrasings: 8.4, 8.4, 8.4, 8.4"]
    assert "Maps of means were not measured there" in told
    assert "On the pocket model means name one strongest head in four phrasings, zeros three" in CELLS["l4-recap"]


def test_a_swap_is_told_with_its_control_and_the_other_way():
    shown = "".join(out.get("text", "") for out in OUTPUTS["l4-swap"])
    control, back = (re.search(rf"{words} (\d+) of 22", shown).group(1) for words in ("swapped:", "Germany' first on"))
    assert f"The six other heads of the block do it on {control}" in CELLS["l4-swap-finding"]
    assert f"comes first on {back} of 22" in CELLS["l4-swap-finding"]


def test_the_block_with_the_gap_is_said_to_be_the_only_one(found):
    alone = found.at("mean", replacement="mean", prompts="right", measure="log p").sum(1).numpy()
    at_once = found.at("all off mean", off="mean", prompts="right", measure="log p").numpy()
    gap, following = np.argsort(-np.abs(at_once - alone))[:2]
    assert gap == 23
    said = f"The next largest gap: block {following}, {-alone[following]:.2f} and {-at_once[following]:.2f}."
    assert said in CELLS["l4-together-finding"]
