import pytest
import torch

from helpers.lesson5 import plots, runs
from helpers.measurements import Measured
from helpers.plots.style import description, to_png

CLEAN = torch.tensor([4.0, 2.0, 1.0, 2.0])


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def suptitle(figure):
    text = figure.get_suptitle().replace("\n", " ")
    assert text in description(figure)
    assert to_png(figure).startswith(b"\x89PNG")
    return text


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
    ax = plots.plot_steps({"clean": CLEAN, "skipped": torch.tensor(run)}, skipped)
    assert title(ax) == said
    assert said in description(ax)
    assert list(ax.lines[1].get_ydata()) == run
    assert to_png(ax).startswith(b"\x89PNG")


def test_names_of_blocks():
    assert plots.name_blocks([3]) == "block 3"
    assert plots.name_blocks([4, 3]) == "blocks 3 and 4"
    assert plots.name_blocks([0, 1, 2, 7, 9]) == "blocks 0 to 2, 7 and 9"


def test_what_became_of_the_most_probable_token():
    names = [" a", "$", " c"]
    assert plots.next_token_finding(names, [0.5, 0.3, 0.1], [0.2, 0.6, 0.1]) == "'$' takes the first place from ' a'"
    assert (
        plots.next_token_finding(names, [0.5, 0.3, 0.1], [0.4, 0.3, 0.1])
        == "' a' stays first: p = 0.5 before, 0.4 after"
    )


# ---- what is drawn from stored measurements, here from small made ones


def stored(tensors, dims, **labels):
    tensors = {name: torch.as_tensor(value) for name, value in tensors.items()}
    return Measured("made", "part", tensors, dims, labels, {}, {"writer": 1})


def blocks_of(mean, error):
    dims = ["part", "block", "measure"]
    tensors = {"mean": [[[m] for m in mean]], "standard error": [[[e] for e in error]]}
    return stored(tensors, dict.fromkeys(tensors, dims), part=["block"], block=list(range(len(mean))), measure=["loss"])


def test_a_block_is_cheap_costly_or_undecided_by_its_whole_interval():
    mean, reach = torch.tensor([0.3, 0.12, 0.08, 0.02]), torch.tensor([0.1, 0.05, 0.05, 0.01])
    assert plots.sides(mean, reach).tolist() == [1, 0, 0, -1]


def test_damage_is_told_with_its_numbers_and_shapes():
    found = {"big": blocks_of([3.0, 0.02, 1.0, 0.5], [0.1, 0.01, 0.1, 0.1]), "small": blocks_of([2.0, 0.1], [0.1, 0.1])}
    figure = plots.plot_damage(found)
    assert suptitle(figure) == (
        "big: block 0 3.00 nats a token when skipped, block 2 1.00 and block 3 0.50, the median block 0.75; "
        "1 of 4 blocks cost less than 0.1, 1 of them by the whole interval"
    )
    assert "small: block 0 2, block 1 0.1." in description(figure)
    shapes = {box[0].get_marker(): list(box[0].get_xdata()) for box in figure.axes[0].containers}
    assert shapes == {"o": [0, 2, 3], "v": [1]}
    assert [box[0].get_marker() for box in figure.axes[1].containers] == ["o", "s"]


def test_the_writer_of_the_massive_token_is_told():
    sink = stored(
        {
            "text damage": [[[2.0], [2.2]], [[1.5], [1.7]], [[0.0], [0.2]], [[9.0], [9.0]]],
            "attention to first": [[[0.2, 0.2], [0.6, 0.1], [0.9, 0.7]]],
            "attention to first without writer": [[[0.2, 0.2], [0.6, 0.1], [0.1, 0.3]]],
            "even attention": [0.3],
        },
        {"text damage": ["edit", "window", "measure"]},
        edit=["MLP 1 skipped at all tokens", "MLP 1 skipped at the first token", "MLP 1 skipped at the others", "MLP 0 skipped"],
    )  # fmt: skip
    figure = plots.plot_writer({"blocks": blocks_of([1.0, 2.5, 0.3], [0.1, 0.1, 0.1]), "sink": sink})
    assert suptitle(figure) == (
        "SmolLM2: one MLP at one token carries 1.60 of the 2.50 nats that block 1 is worth; "
        "without it block 2 gives the first token 0.20 of its attention instead of 0.80"
    )
    assert [round(bar.get_width(), 3) for bar in figure.axes[0].patches] == [2.5, 2.1, 1.6, 0.1]
    assert "more than half of their attention: 2 clean, 0 without" in description(figure)


def pairs_of(**more):
    """Three texts, of which the first chose: block 2, then block 1."""
    both = torch.tensor([[1.0, 1.5, 1.0], [1.5, 0.2, 0.9], [1.0, 0.9, 0.1]])
    tensors = {
        "mean": both[..., None],
        "cheapest singles": [2, 1],
        "lowest sum": [0.1, 0.3],
        "cheapest together": [0.1, 0.9],
        "cheapest on all text": [[[0.1], [0.8]], [[0.2], [1.0]], [[0.3], [1.2]]],
        "greedy order": [2, 0],
        "greedy sum": [0.1, 1.1],
        "greedy": [0.1, 0.5],
        "greedy on all text": [[[0.1], [0.5]], [[0.2], [0.6]], [[0.3], [0.7]]],
        **more,
    }
    dims = {"mean": ["block", "other", "measure"]}
    dims |= {name: ["window", "removed", "measure"] for name in tensors if name.endswith("on all text")}
    found = stored(tensors, dims, block=[0, 1, 2], other=[0, 1, 2], measure=["loss"], removed=[1, 2], window=[0, 1, 2])
    found.about["prompts"] = [[1]]
    return found


def singles_of():
    """The same three texts: what each block costs alone."""
    return stored(
        {"damage": [[[[1.0], [0.2], [0.1]], [[1.0], [0.3], [0.2]], [[1.3], [0.4], [0.3]]]]},
        {"damage": ["part", "window", "block", "measure"]},
        part=["block"],
        measure=["loss"],
    )


def test_removal_compares_the_sum_with_what_it_costs_together_on_the_texts_that_had_no_say():
    best = {"best on all text": [[[0.1], [0.4]], [[0.2], [0.5]], [[0.3], [0.6]]]}
    figure = plots.plot_removal(
        {"big": pairs_of(), "small": pairs_of(**best)}, {"big": singles_of(), "small": singles_of()}
    )
    assert suptitle(figure) == (
        "big: the 2 cheapest blocks 0.60 nats added up, 1.10 together; the greedy 2: 1.40 and 0.65 "
        "small: the 2 cheapest blocks 0.60 nats added up, 1.10 together; the greedy 2: 1.40 and 0.65"
    )
    assert [len(ax.lines) for ax in figure.axes] == [3, 4]
    assert figure.axes[0].get_ylabel() == "rise of the loss on 2 other\ntexts, nats a token"
    assert figure.axes[0].get_ylim()[1] > 1.0, "nothing is cut off"
    assert "small, best set of the choosing texts: 0.25, 0.55." in description(figure)


def test_what_was_chosen_on_some_texts_is_shown_on_the_others_too(capsys):
    runs.show_removal("big", pairs_of(), singles_of())
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[1]: line[-4:] for line in said if line[:2] in (["the", "1"], ["the", "2"], ["all", "3"])}
    assert rows == {
        "1": ["0.30", "0.90", "1.10", "0.50"],
        "2": ["0.60", "1.10", "1.40", "0.65"],
        "3": ["0.50", "1.00", "1.30", "0.60"],
    }
    apart = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([-0.6, -0.6, -0.9])
    wanted = [f"{d.mean():+.2f} ± {1.96 * d.std() / 3**0.5:.2f}" for d in apart]
    assert f"cheapest {wanted[0]}, greedy {wanted[1]} (95 %)" in " ".join(said[-1])


def test_the_worst_pairs_are_those_far_above_their_sum():
    assert plots.worst_pairs(pairs_of(), 2) == {
        "blocks 1 and 2": ["0.20", "0.10", "0.90", "0.60"],
        "blocks 0 and 1": ["1.00", "0.20", "1.50", "0.30"],
    }


def prices_of():
    return stored(
        {
            "damage": [[[[1.0], [0.3]]], [[[0.5], [0.1]]], [[[0.6], [0.2]]]],
            "damage of heads": [[[[0.1], [0.4]], [[0.02], [0.03]]]],
            "parameters": [[12_000_000] * 2, [4_000_000] * 2, [8_000_000] * 2],
            "parameters of a head": [2e6, 2e6],
        },
        {"damage": ["part", "window", "block", "measure"], "damage of heads": ["window", "block", "head", "measure"]},
        part=["block", "attention", "mlp"],
        measure=["KL"],
    )


def test_prices_are_damage_over_parameters():
    damage, price = plots.prices(prices_of())
    assert damage["MLP"].tolist() == pytest.approx([0.6, 0.2])
    assert price["block"].tolist() == pytest.approx([1 / 12, 0.3 / 12])
    assert price["head"].tolist() == pytest.approx([0.05, 0.2, 0.01, 0.015])
    figure = plots.plot_prices({"big": prices_of()})
    assert suptitle(figure) == (
        "big: without a block the KL is 10 times that without one of its heads (median), and a block has 6 times the "
        "parameters: 0.054 nats for a million parameters in a block, 0.032 in a head"
    )
    assert [row[0] for row in plots.price_rows({"big": prices_of()}, {"big": "1.9"}, "24").values()] == [
        "0.054", "0.032", "1.67", "1.67", "1.9",
    ]  # fmt: skip
    assert plots.strongest_head(prices_of()) == "Head 0.1 alone: KL 0.40, more than 1 of the 2 whole blocks."


def test_the_crossing_is_where_the_last_place_takes_over():
    ax = plots.plot_crossing({"at the name": [0.8, 0.7, 0.0], "at the last token": [0.0, 0.1, 0.6]}, [0, 5, 6], " x")
    assert title(ax) == (
        "At block 6 the answer changes place: patched at the last token p(' x') rises from 0.1000 (after block 5) to 0.60"
    )
    assert "at the name: block 0 0.80, block 5 0.70, block 6 0.00" in description(ax)
    never = plots.crossing_finding({"a": [0.8, 0.7], "b": [0.1, 0.2]}, [0, 1], " x")
    assert never == "The two places do not change over: p(' x') at most 0.80 and 0.20"
