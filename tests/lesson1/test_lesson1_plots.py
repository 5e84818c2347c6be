import pytest
import torch

from helpers.lesson1 import plots as streams
from helpers.plots.style import description, to_png

RISING = torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0])
FALLING = torch.tensor([0.0, 0.0, 4.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (RISING, "Δ is 1 after block 1, grows at every block and ends at 4 after block 3"),
        (FALLING, "Δ is 4 after block 1, falls at every block and ends at 1 after block 3"),
        (torch.tensor([0, 0, 1.0, 3, 2]), "Δ is 1 after block 1, rises to 3 after block 2 and ends at 2 after block 3"),
        (torch.tensor([0, 0, 3.0, 1, 2]), "Δ is 3 after block 1, falls to 1 after block 2 and ends at 2 after block 3"),
        (torch.tensor([0, 0, 3.0, 4, 1, 2]), "Δ is 3 after block 1, moves between 1 and 4 and ends at 2 after block 4"),
        (torch.tensor([0, 0, 1.0, 3, 2, 4]), "rises with dips and ends at 4 after block 4"),
        (torch.tensor([0, 0, 4.0, 2, 3, 1]), "falls with rises and ends at 1 after block 4"),
        (torch.tensor([0, 0, 3.0, 3, 3]), "stays there and is 3"),
    ],
)
def test_the_title_says_what_the_line_does(values, said):
    ax = streams.plot_measure(values, 1, 0.5)
    assert said in ax.get_title(loc="left").replace("\n", " ")
    assert said in description(ax)
    assert list(ax.lines[0].get_ydata()) == values.tolist()
    assert "block 1 × 0.5" in [text.get_text() for text in ax.texts]
    assert to_png(ax).startswith(b"\x89PNG")


def test_the_last_block_has_no_course():
    assert streams.measure_finding(RISING, 3) == "Δ is 4 after block 3, the last block"
    assert streams.measure_finding(RISING, 3, "cosine similarity").startswith("Cosine similarity is 4")


@pytest.mark.parametrize(
    ("delta", "relative", "said"),
    [
        (RISING, RISING, "Δ grows from 1 to 4, and relative to the stream\nthe error grows from 1 to 4"),
        (RISING, FALLING, "Δ grows from 1 to 4, but relative to the stream\nthe error falls from 4 to 1"),
        (FALLING, FALLING, "Δ falls from 4 to 1, and relative to the stream\nthe error falls from 4 to 1"),
    ],
)
def test_both_views_are_told(delta, relative, said):
    figure = streams.plot_growth(delta, RISING * 10, relative, torch.ones(5), 1, 0.5)
    assert figure.get_suptitle() == said
    assert [len(ax.get_legend().get_texts()) for ax in figure.axes] == [2, 2]
    assert to_png(figure).startswith(b"\x89PNG")


def test_first_token_ratio_is_told():
    ax = streams.plot_first_token(RISING * 30, RISING, 1, 0.5)
    assert "With the first token Δ is 30 times as large" in ax.get_title(loc="left")
    wider = streams.plot_first_token(RISING * torch.tensor([1.0, 1, 10, 20, 30]), RISING, 1, 0.5)
    assert "10 to 30 times" in wider.get_title(loc="left")
    assert ax.get_yscale() == "log"
    assert list(ax.lines[1].get_ydata()) == [1.0, 2.0, 4.0]
    assert to_png(ax).startswith(b"\x89PNG")
    assert streams.plot_first_token(RISING * 1.1, RISING, 1, 0.5).get_yscale() == "linear"


def test_token_norms_find_the_loudest_point():
    norms = torch.ones(5, 3)
    norms[3, 0] = 50
    ax = streams.plot_token_norms(norms)
    assert "50 times as long as the others' (after block 2)" in ax.get_title(loc="left").replace("\n", " ")
    norms[0, 0] = 60
    assert "50 times" in description(streams.plot_token_norms(norms))  # what the embedding holds is no activation yet


def test_the_end_counts_both_dips():
    ax = streams.plot_end({0.5: [9.0, 8.0, 2.0], 1.5: [9.0, 10.0, 3.0]}, ["block 10", "block 11", "final norm"])
    title = ax.get_title(loc="left").replace("\n", " ")
    assert "The last block lowers Δ for 1 of 2 factors, the final norm for 2" in title
    assert "× 0.5: 9, 8, 2" in description(ax)
