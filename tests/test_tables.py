import numpy as np
import pytest
import torch

from helpers.tables import below, format_number, make_table, show_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (6.78951, "6.79"),
        (0.31415926, "0.3142"),
        (12345.6, "12350"),
        (1234567.0, "1.23e+06"),
        (-0.5, "-0.5"),
        (0.0, "0"),
        (3e-16, "< 1e-12"),
        (-3e-16, "< 1e-12"),
        (1.234e-5, "1.23e-05"),
        (7, "7"),
        (True, "yes"),
        (None, ""),
        ("a word", "a word"),
        (float("nan"), "nan"),
        (torch.tensor(2.5), "2.5"),
        (np.float64(0.1), "0.1"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_rounding_hides_the_last_bits():
    assert format_number(0.1 + 0.2) == format_number(0.3)
    assert format_number(6.7949999 + 1e-13) == format_number(6.7949999)


def test_below_says_the_same_for_zero_and_for_the_last_bit():
    assert below(0.0) == below(2e-16) == "< 1e-12"
    assert below(0.25) == "0.25"
    assert below(torch.tensor(1e-7), 1e-6) == "< 1e-06"


def test_one_series_is_one_row():
    table = make_table(torch.tensor([0.0, 6.789, 10.0], dtype=torch.float64), "Δ")
    assert table.header == ("", "0", "1", "2")
    assert table.rows == (("", "0", "6.789", "10"),)


def test_mapping_array_and_rows():
    by_name = make_table({"Δ": [1.0, 2.0], "‖H‖": torch.ones(2)}, "two", columns=["a", "b"], corner="point")
    assert by_name.rows == (("Δ", "1", "2"), ("‖H‖", "1", "1"))
    assert make_table(np.eye(2), "eye", rows=["x", "y"]).rows == (("x", "1", "0"), ("y", "0", "1"))
    assert make_table({"before": 0.5, "after": " Germany"}, "pairs").rows == (("before", "0.5"), ("after", " Germany"))
    assert make_table([("a", 1), ("b", 2.5)], "rows").rows == (("", "a", "1"), ("", "b", "2.5"))


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        make_table([1.0, 2.0], "x", columns=["a", "b", "c"])
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        make_table(np.eye(2), "x", rows=["a"])


def test_text_is_aligned_and_html_is_headed_and_escaped():
    table = make_table({"a<b": [1.5, 22]}, "Δ & more", columns=["first", "second"])
    assert repr(table) == "Δ & more\n     first  second\na<b    1.5      22"
    html = table._repr_html_()
    assert ">Δ &amp; more</caption>" in html
    assert html.count('scope="col"') == 3
    assert '<th scope="row" style="text-align: left">a&lt;b</th><td>1.5</td>' in html
    assert table.to_markdown().splitlines()[-1] == "| a<b | 1.5 | 22 |"


def test_html_shows_code_as_code_and_breaks_no_number():
    html = make_table(
        [["in-place `a<b`", 1.5, -2.0], ["is a word", 3e-16, 1.234e-5]], "`x`", columns="abc"
    )._repr_html_()
    assert "<code>x</code></caption>" in html and "in-place <code>a&lt;b</code></td><td>1.5</td><td>-2</td>" in html
    assert '<td style="white-space: nowrap">&lt; 1e-12</td><td style="white-space: nowrap">1.23e-05</td>' in html
    assert '<td style="text-align: left">is a word</td>' in html


def test_show_table_displays_and_returns_nothing(capsys):
    assert show_table([1.0], "one number") is None
    assert "one number" in capsys.readouterr().out


def test_words_stand_on_the_left_and_numbers_on_the_right():
    table = make_table(
        [["holds", 1.5, 3e-16], ["does not hold", 22, "1.2e-05"]], "t", ["verdict", "Δ", "miss"], ["a", "b"]
    )
    assert table.words == (True, True, False, False)
    assert repr(table).splitlines()[1:] == [
        "   verdict          Δ     miss",
        "a  holds          1.5  < 1e-12",
        "b  does not hold   22  1.2e-05",
    ]
    assert '<td style="text-align: left">holds</td><td>1.5</td>' in table._repr_html_()
