import pytest
import torch

from helpers.lesson1 import plots as streams
from helpers.measurements import Measured
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


def test_first_token_ratio_is_told():
    ax = streams.plot_first_token(RISING * 30, RISING, 1, 0.5)
    assert "With the first token Δ is 30 times as large" in ax.get_title(loc="left")
    wider = streams.plot_first_token(RISING * torch.tensor([1.0, 1, 10, 20, 30]), RISING, 1, 0.5)
    assert "10 to 30 times" in wider.get_title(loc="left")
    assert ax.get_yscale() == "log"
    assert list(ax.lines[1].get_ydata()) == [1.0, 2.0, 4.0]
    assert to_png(ax).startswith(b"\x89PNG")
    assert streams.plot_first_token(RISING * 1.1, RISING, 1, 0.5).get_yscale() == "linear"


def factors(mean, error, kept):
    """What measured(…, "factors") holds of it, for one block and factors 0, 0.5 and 1.5."""
    of_prompts = ["scaled", "factor", "prompt", "flag"]
    of_means = ["prompts", "scaled", "factor", "measure"]
    return Measured(
        "some", "factors",
        {
            "mean": torch.tensor([-9.0, *mean])[None, None, :, None],
            "standard error": torch.tensor([0.1, *error])[None, None, :, None],
            "flags": torch.tensor([[False, False], *kept])[None, :, :, None],
        },
        {"mean": of_means, "standard error": of_means, "flags": of_prompts},
        {"scaled": [2], "factor": [0.0, 0.5, 1.5], "prompts": ["all"], "measure": ["log p"], "prompt": ["a", "b"],
         "flag": ["top-1 kept"]},
        {}, {"what": ""},
    )  # fmt: skip


def test_factors_are_told_with_their_intervals():
    found = {
        "big": factors([-6.0, 0.1], [0.5, 0.2], [[True, False], [True, True]]),
        "small": factors([-0.2, -0.3], [0.01, 0.01], [[False, False], [False, True]]),
    }
    ax = streams.plot_factors(found, 2)
    assert ax.get_title(loc="left").replace("\n", " ") == (
        "Block 2 × 0.5 and × 1.5 change log p by −6.00 and +0.10 on big, −0.20 and −0.30 on small"
    )
    assert "Big, mean over 2 prompts: × 0.5 −6.00 ± 0.98, the most probable word stays on 50 %" in description(ax)
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_ydata()) for line in hollow] == [pytest.approx([0.1]), []]  # the interval of one holds 0
    assert to_png(ax).startswith(b"\x89PNG")


def test_relative_errors_are_told_and_the_norm_stands_apart():
    falls = torch.tensor([0.0, 0, 0.5, 0.4, 0.3])
    rises = torch.tensor([0.0, 0, 0.5, 0.6, 0.8])
    ax = streams.plot_relative({0.5: (rises, torch.tensor([0.9])), 1.5: (falls, torch.tensor([0.25]))}, 1)
    title = ax.get_title(loc="left").replace("\n", " ")
    assert (
        title == "× 0.5: the relative error grows from 0.50 to 0.80; × 1.5: the relative error falls from 0.50 to 0.30"
    )
    assert "× 0.5: 0.500 after block 1, 0.600 before the last block, 0.800 after it, 0.900 after" in description(ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 1, 3, 1]  # no line crosses the change of unit
    assert to_png(ax).startswith(b"\x89PNG")


@pytest.mark.parametrize("sign", [1, -1])
def test_writer_and_erasers_are_named(sign):
    mlp = sign * torch.tensor([3.0, 20000, 1, -4000, -11000.4])
    ax = streams.plot_writes(torch.tensor([0.0, 7, 0, 0, 0]), mlp, 507)
    title = ax.get_title(loc="left").replace("\n", " ")
    minus = "" if sign > 0 else "−"
    assert f"block 1 writes {minus}20,000 into coordinate 507; those of blocks 3 and 4 take 15,000 back" in title
    assert "attention adds at most 7" in description(ax)
    assert to_png(ax).startswith(b"\x89PNG")


def test_attention_is_told_where_it_is_highest():
    ax = streams.plot_attention({"as it is": torch.tensor([0.1, 0.9, 0.5]), "it silent": torch.tensor([0.1, 0.2, 0.6])})
    title = ax.get_title(loc="left").replace("\n", " ")
    assert title == "Block 1 gives the first token 0.90 of its attention as it is, 0.20 with it silent"
    assert description(ax).endswith("From block 0 on, as it is: 0.10, 0.90, 0.50; it silent: 0.10, 0.20, 0.60.")
    assert to_png(ax).startswith(b"\x89PNG")
