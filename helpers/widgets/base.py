"""The frame of every widget: controls → a pure computation → a pure drawing → picture and one line of numbers.

    panel = Panel(
        "Scale a block",
        {"block": block_slider(lm.n_blocks, 2), "factor": factor_slider(0.5), "prompt": prompt_box(prompt)},
        compute=lambda block, factor, prompt: measure(lm, prompt, block, factor),   # values in, numbers out
        draw=lambda numbers: draw_numbers(numbers, ax=new_axes(dpi=WIDGET_DPI)),    # numbers in, Axes out
        summary=lambda numbers: f"Δ ends at {format_number(numbers[-1])}",          # numbers in, one line out
    )
    panel                                # the last line of a cell shows it
    panel.controls["block"].value = 5    # what a slider does, and what a test does

Every panel keeps its own state and nothing else does, so several may live at once. Values travel through `observe`
and `widgets.HTML`: no Output widget, whose routing is left to the front end and cannot be tested without one.
A mistake that the package explains (HelpersError) is shown as its sentence, and the panel lives on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.errors import HelpersError
from helpers.plots.style import WIDGET_DPI, to_img

LABEL = {"description_width": "initial"}  # the whole label, however long
WIDE = widgets.Layout(width="500px", max_width="100%")


class Panel:
    """Controls above a picture and a line of numbers. `controls` maps argument names of `compute` to ipywidgets.

    Attributes: `controls`, `text` (the line of numbers, or the sentence of a mistake), `image` (the `<img>` as HTML,
    empty after a mistake), `widget` (the ipywidget that shows all of it), `result` (what `compute` returned last,
    None after a mistake).
    """

    def __init__(
        self,
        title: str,
        controls: Mapping[str, widgets.ValueWidget],
        compute: Callable[..., Any],
        draw: Callable[[Any], Axes | Figure],
        summary: Callable[[Any], str],
    ) -> None:
        self.title = title
        self.controls = dict(controls)
        self.result: Any = None
        self.text = ""
        self._compute, self._draw, self._summary = compute, draw, summary
        self._picture, self._line = widgets.HTML(), widgets.HTML()
        head = widgets.HTML(f"<strong>{escape(title)}</strong>")
        self.widget = widgets.VBox([head, *self.controls.values(), self._line, self._picture])
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        self.update()

    @property
    def image(self) -> str:
        return str(self._picture.value)

    def update(self) -> None:
        """Compute and draw from the present values of the controls."""
        values = {name: control.value for name, control in self.controls.items()}
        try:
            self.result = self._compute(**values)
        except HelpersError as mistake:
            self.result, self.text = None, str(mistake)
            picture = ""
        else:
            self.text = self._summary(self.result)
            picture = to_img(self._draw(self.result), WIDGET_DPI)
        self._line.value = f'<p role="status" aria-live="polite">{escape(self.text)}</p>'
        self._picture.value = picture

    def _on_change(self, change: Any) -> None:
        self.update()

    def __repr__(self) -> str:
        return f"{self.title}: {self.text}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # The plain text is ours: ipywidgets' own would carry the picture's bytes into the stored notebook.
        view = {"model_id": self.widget.model_id, "version_major": 2, "version_minor": 0}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}


def block_slider(n_blocks: int, value: int = 0, label: str = "block") -> widgets.IntSlider:
    """A slider over the blocks of a model, 0 to `n_blocks - 1`."""
    return index_slider(n_blocks, value, label)


def index_slider(count: int, value: int = 0, label: str = "head") -> widgets.IntSlider:
    """A slider over 0 to `count - 1`."""
    return widgets.IntSlider(
        value=value, min=0, max=count - 1, description=label, continuous_update=False, style=LABEL, layout=WIDE
    )


def factor_slider(
    value: float = 0.5, low: float = 0.0, high: float = 3.0, step: float = 0.1, label: str = "factor"
) -> widgets.FloatSlider:
    """A slider over numbers from `low` to `high`."""
    return widgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, continuous_update=False, style=LABEL, layout=WIDE
    )


def prompt_box(value: str, label: str = "prompt") -> widgets.Text:
    """A line of text that takes effect with Enter or when it loses the focus."""
    return widgets.Text(value=value, description=label, continuous_update=False, style=LABEL, layout=WIDE)


def choice(options: Sequence[Any], value: Any = None, label: str = "measure") -> widgets.Dropdown:
    """A list to choose one of `options` from (values, or pairs of label and value); the first unless told."""
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return widgets.Dropdown(
        options=options, value=first if value is None else value, description=label, style=LABEL, layout=WIDE
    )


def tick(value: bool, label: str) -> widgets.Checkbox:
    """A box to tick."""
    return widgets.Checkbox(value=value, description=label, indent=False, style=LABEL, layout=WIDE)
