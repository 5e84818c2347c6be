import pytest
import torch

from helpers.lesson5 import plots as skipping
from helpers.plots.style import description, to_png

CLEAN = torch.tensor([4.0, 2.0, 1.0, 2.0])


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


@pytest.mark.parametrize(
    ("run", "skipped", "said"),
    [
        ([4.0, 0.0, 1.5, 2.0], [1], "The step is exactly 0 at block 1; elsewhere it changes by up to 50 % (block 2)"),
        ([4.0, 3.0, 1.5, 2.0], [1], "At block 1 the step reads 3, not 0"),
        ([4.0, 2.0, 1.0, 0.0], [3], "The step is exactly 0 at block 3, and the others stay as they were"),
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 2, 3], "The step is exactly 0 at blocks 0 to 3"),
        ([4.0, 1.0, 3.0, 2.0], [], "Skipped: block 0 takes the longest step, 4, block 1 the shortest, 1"),
    ],
)
def test_the_title_says_what_the_steps_do(run, skipped, said):
    ax = skipping.plot_steps({"clean": CLEAN, "skipped": torch.tensor(run)}, skipped)
    assert title(ax) == said
    assert said in description(ax)
    assert list(ax.lines[1].get_ydata()) == run
    assert to_png(ax).startswith(b"\x89PNG")


def test_names_of_blocks():
    assert skipping.name_blocks([3]) == "block 3"
    assert skipping.name_blocks([4, 3]) == "blocks 3 and 4"
    assert skipping.name_blocks([0, 1, 2, 7, 9]) == "blocks 0 to 2, 7 and 9"


def test_next_tokens_are_drawn_as_they_are():
    ax = skipping.plot_next_tokens([" a", "$", " c"], [0.5, 0.3, 0.1], [0.2, 0.6, 0.1])
    assert title(ax) == "'\\$' takes the first place from ' a'"
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.3, 0.1, 0.2, 0.6, 0.1]
    assert "'$' 0.3 and 0.6" in description(ax)
    assert to_png(ax).startswith(b"\x89PNG")
    same = skipping.plot_next_tokens([" a", " b"], [0.5, 0.3], [0.4, 0.3])
    assert title(same) == "' a' stays first: p = 0.5 before, 0.4 after"


def costs_title(cost, low, high):
    cost, low, high = (torch.tensor(values) for values in (cost, low, high))
    figure = skipping.plot_costs(cost, low, high, cost.abs(), torch.linspace(0, 1, len(cost)))
    assert to_png(figure).startswith(b"\x89PNG")
    text = figure.get_suptitle().replace("\n", " ")
    assert text in description(figure)
    return text


def test_costs_are_counted_with_their_intervals():
    assert costs_title([2.0, 0.01, 0.2], [1.5, -0.02, 0.05], [2.5, 0.04, 0.4]) == (
        "1 of 3 blocks can be skipped, one at a time, for less than 0.1 nats a token; "
        "block 0 costs more (up to 2), 1 block is undecided."
    )
    assert costs_title([0.05, 0.06], [0.02, 0.02], [0.08, 0.09]).endswith("none surely costs more.")
    assert "blocks 0 and 1 cost more (up to 0.6)." in costs_title([0.5, 0.6], [0.4, 0.5], [0.6, 0.7])


def test_surplus_is_what_a_pair_costs_above_its_blocks():
    cost = torch.tensor([1.0, 0.2, 0.1])
    pairs = torch.tensor([[1.0, 1.5, 1.0], [1.5, 0.2, 0.3], [1.0, 0.3, 0.1]])
    extra = skipping.surplus(cost, pairs)
    assert extra.diagonal().isnan().all()
    assert extra[0, 1] == pytest.approx(0.3)
    assert extra[0, 2] == pytest.approx(-0.1)
    figure = skipping.plot_pairs(torch.stack([cost, cost]), torch.stack([pairs, pairs + 0.01]))
    assert "Of 3 pairs 2 cost more than the sum of their blocks in every passage, 1 less" in figure.get_suptitle()
    dots = figure.axes[1].lines[0]
    assert sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [
        (row, column) for row in range(3) for column in range(3) if row != column
    ]
    assert "the surplus is largest for blocks 0 and 1: 0.305 nats" in figure.get_suptitle()
    assert "The cheapest pair, blocks 1 and 2, costs 0.305 nats, the dearest, blocks 0 and 1, 1.5" in description(
        figure
    )
    assert to_png(figure).startswith(b"\x89PNG")


def test_pairs_without_any_surplus():
    cost = torch.tensor([[1.0, 0.5, 0.5]] * 2)
    pairs = torch.full((2, 3, 3), 1.0)
    pairs[1, 0, 1] = 1.6
    assert skipping.pairs_finding(cost, pairs) == (
        "Of 3 pairs 0 cost more than the sum of their blocks in every passage, 1 less."
    )


def test_a_sign_counts_only_if_every_passage_has_it():
    values = torch.tensor([[1.0, -1.0, 1.0, 0.0], [2.0, -0.5, -1.0, 1.0]])
    assert skipping.same_sign(values).tolist() == [1, -1, 0, 0]


def test_chainsaw_and_knife_are_compared():
    block = torch.tensor([1.0, 0.1])
    heads = torch.tensor([[0.1, 0.2], [0.01, 0.02]])
    ax = skipping.plot_chainsaw(block, block / 2, block / 3, heads)
    assert title(ax).endswith("head 1 of block 0 alone outdoes 1 of 2 whole blocks")
    assert len(ax.lines[3].get_ydata()) == 4
    assert ax.get_yscale() == "log"
    assert to_png(ax).startswith(b"\x89PNG")
    assert title(skipping.plot_chainsaw(block, block, block, heads / 10)).endswith("no head outdoes any whole block")


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (-0.694, 0.694, [-0.5, -0.1, 0, 0.1, 0.5]),
        (0, 3.2, [0, 0.1, 1]),
        (-0.02, 0.02, [-0.02, 0.02]),
    ],
)
def test_a_colour_bar_is_marked_near_both_of_its_ends(low, high, marks):
    assert skipping._marks(low, high) == marks
