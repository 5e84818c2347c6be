import pytest
from matplotlib.colors import same_color

from helpers.plots.diagram import Mark, diagram_words, stream_diagram
from helpers.plots.style import CLEAN, EDITED, description, to_png


def _stream(ax):
    clean, edited = ax.lines[:2]
    assert same_color(clean.get_color(), CLEAN)
    assert same_color(edited.get_color(), EDITED)
    return clean.get_xdata(), edited.get_xdata()


def test_the_stream_changes_colour_at_the_first_edit():
    clean, edited = _stream(stream_diagram(12, [Mark(8, "noise", "mlp"), Mark(2, "× 0.5")]))
    assert clean[1] == edited[0] == 2.5


def test_without_an_edit_all_of_the_stream_is_clean():
    clean, edited = _stream(stream_diagram(4))
    assert edited[0] == edited[1] == clean[1]


@pytest.mark.parametrize("site", ["block", "attention", "mlp", "skip"])
def test_every_site_is_labelled_and_told_in_words(site):
    ax = stream_diagram(6, [Mark(3, "my edit", site)], "A finding")
    assert "my edit" in [text.get_text() for text in ax.texts]
    assert "block 3" in description(ax)
    assert ax.get_title(loc="left") == "A finding"
    assert to_png(ax).startswith(b"\x89PNG")


def test_words_say_where_an_edit_can_reach():
    assert "nothing to its left" in diagram_words(12, [Mark(2, "× 0.5")])
    assert "edit" not in diagram_words(12)


def test_a_mark_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="block 12 does not exist: blocks go from 0 to 11"):
        stream_diagram(12, [Mark(12, "x")])
    with pytest.raises(ValueError, match="site 'head' is unknown"):
        stream_diagram(12, [Mark(2, "x", "head")])
