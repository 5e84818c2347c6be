import base64
import struct
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest

from helpers.plots import style


def _size(png: bytes) -> tuple[int, int]:
    return struct.unpack(">II", png[16:24])


def test_every_figure_has_the_same_size():
    assert _size(style.to_png(style.new_axes())) == (700, 400)
    assert _size(style.to_png(style.new_axes(), dpi=80)) == (560, 320)


def test_the_palette_is_seaborns_colourblind_one_without_seaborn():
    import seaborn

    assert tuple(seaborn.color_palette("colorblind").as_hex()) == style.PALETTE
    code = "import sys, helpers.plots.style; print(*{'seaborn', 'pandas', 'matplotlib.pyplot'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_no_pyplot_state_is_left_behind():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    style.to_png(style.new_axes())
    assert plt.get_fignums() == before


def test_png_face_is_opaque_white():
    import matplotlib.image as image

    ax = style.new_axes()
    ax.set_axis_off()
    pixels = image.imread(BytesIO(style.to_png(ax)))
    assert np.all(pixels[0, 0] == 1.0)


def test_series_differ_by_more_than_colour():
    looks = [style.series_style(i) for i in range(8)]
    assert len({look["marker"] for look in looks}) == len({look["color"] for look in looks}) == 8


def test_axes_given_are_used():
    ax = style.new_axes()
    assert style.new_axes(ax) is ax


def test_stream_axis_puts_the_output_of_block_b_at_b_plus_1():
    ax = style.new_axes()
    style.stream_axis(ax, 4)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["emb", "0", "1", "2", "3"]
    assert list(ax.get_xticks()) == [0, 1, 2, 3, 4]


def test_narrow_axes_name_fewer_places_and_always_the_last_point_of_the_stream():
    wide, narrow = style.new_axes(size=(20, 4)), style.new_axes(size=(4, 4))
    for ax in (wide, narrow):
        style.stream_axis(ax, 48, "norm")
    assert len(wide.get_xticks()) > len(narrow.get_xticks()) > 3
    for ax in (wide, narrow):
        assert list(ax.get_xticks())[-2:] == [48, 49]
        assert [label.get_text() for label in ax.get_xticklabels()][-2:] == ["47", "norm"]
    style.block_axis(narrow, 48)
    assert [label.get_text() for label in narrow.get_xticklabels()] == [str(x) for x in narrow.get_xticks()]
    assert narrow.get_xticks()[0] == 0


def test_the_mark_of_an_edit_is_a_labelled_line_at_its_place():
    ax = style.new_axes()
    style.stream_axis(ax, 12)
    style.mark_edit(ax, 3, "block 2 × 0.5")
    assert list(ax.lines[0].get_xdata()) == [3, 3]
    assert ax.texts[0].get_text() == "block 2 × 0.5"


def test_a_figure_without_words_is_refused():
    with pytest.raises(ValueError, match="no text alternative"):
        style.show_figure(style.new_axes())


def test_img_carries_the_escaped_words_and_a_png():
    ax = style.new_axes()
    style.describe(ax, 'Δ "grows" & stays < 12')
    html = style.to_img(ax)
    assert 'alt="Δ &quot;grows&quot; &amp; stays &lt; 12"' in html
    data = html.split("base64,")[1].split('"')[0]
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_show_figure_displays_words_beside_the_picture(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *objects: shown.extend(objects))
    style.show_figure(style.new_axes(), alt="Δ grows < 12.")
    picture, words = shown
    data, metadata = picture._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(picture) == "Δ grows < 12."
    assert metadata == {"image/png": {"alt": "Δ grows < 12.", "width": 700, "height": 400}}
    assert _size(base64.b64decode(data["image/png"])) == (1400, 800), "two pixels a dot"
    assert "Δ grows &lt; 12." in words._repr_html_()
    assert "base64" not in words._repr_html_()


def test_outside_jupyter_a_figure_prints_as_its_words(capsys):
    style.show_figure(style.new_axes(), alt="Δ grows.")
    assert capsys.readouterr().out == "Δ grows.\n(figure in words)\n"


def test_a_title_keeps_log_p_of_a_token_together():
    ax = style.new_axes()
    for length in range(20, 80):
        style.set_title(ax, f"{'x' * length} log p(' France') falls")
        assert "log p(' France')" in ax.get_title(loc="left")
