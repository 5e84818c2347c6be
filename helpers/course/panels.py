"""The frame of every widget: controls → a pure computation → a pure drawing → picture, words and one line of numbers.

    panel = Panel(
        "Scale a block",
        {"pocket": lm, "smollm2": lambda: load_model("smollm2")},      # or one model: then there is no list to choose from
        {"block": block_slider(2), "factor": factor_slider(0.5), "prompt": prompt_box(prompt)},
        sizes=lambda lm: {"block": lm.n_blocks},                       # how far the sliders reach on a model
        compute=lambda replay, **asked: measure(replay, **asked),      # a helpers.replay.Replay and values in, numbers out
        draw=lambda numbers: draw_numbers(numbers),                    # numbers in, Axes or Figure out
        summary=lambda numbers: f"Δ ends at {format_number(numbers[-1])}",      # numbers in, one line out
        words=lambda numbers: words_table(...),                        # numbers in, HTML beside the picture out
    )
    panel                                # the last line of a cell shows it
    panel.controls["block"].value = 5    # what a slider does, and what a test does

Every panel keeps its own state and nothing else does, so several may live at once. Values travel through `observe`
and `widgets.HTML`: no Output widget, whose routing is left to the front end and cannot be tested without one.
A mistake that the package explains (HelpersError) is shown as its sentence, and the panel lives on. While the kernel
computes, the front end holds a control's later values back and sends only the newest: no stale step waits in a queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from helpers.errors import BadValue, HelpersError
from helpers.models import LanguageModel, check_model
from helpers.plots.style import WIDGET_DPI, to_img
from helpers.progress import kernel_here
from helpers.replay import Replay
from helpers.say import say, translatable

LABEL = {"description_width": "initial"}  # the whole label, however long
WIDE = widgets.Layout(width="500px", max_width="100%")
ONE = ""  # the name of a model that comes alone

Source = LanguageModel | Callable[[], LanguageModel]  # a model, or what loads it when it is first chosen
Models = LanguageModel | Mapping[str, Source]


class Panel:
    """Controls above a picture, words beside it, and a line of numbers.

    `models`: one model, or names with models or with functions that load one when it is first chosen. With several the
    first control chooses. Ranges follow the chosen model, and values that it does not have become its last.

    Attributes: `controls` (argument names of `compute`, and "model", to ipywidgets), `text` (the line of numbers, or the
    sentence of a mistake), `image` (the `<img>` as HTML) and `words` (HTML), both empty after a mistake, `widget` (the
    ipywidget that shows all of it), `result` (what `compute` returned last, None after a mistake).
    """

    def __init__(
        self,
        title: str,
        models: Models,
        controls: Mapping[str, widgets.ValueWidget],
        compute: Callable[..., Any],
        draw: Callable[[Any], Axes | Figure],
        summary: Callable[[Any], str],
        sizes: Callable[[LanguageModel], Mapping[str, int]] = lambda lm: {},
        words: Callable[[Any], str] = lambda result: "",
        below: Sequence[widgets.Widget] = (),
    ) -> None:
        self.title = title
        self.result: Any = None
        self.text = ""
        self._sources: dict[str, Source] = dict(models) if isinstance(models, Mapping) else {ONE: models}
        if not self._sources:
            raise BadValue("a panel needs a model: pass one, or names with models, for example {'pocket': lm}.")
        for source in self._sources.values():
            if isinstance(source, nn.Module) or not callable(source):  # a bare transformers model is no loader
                check_model(source)
        self._loaded: dict[str, Replay | HelpersError] = {}
        self._fitted: LanguageModel | None = None
        names = list(self._sources)
        self.controls = {"model": choice(names, label=translatable("model"))} if len(names) > 1 else {}
        self.controls |= controls
        self._compute, self._draw, self._summary = compute, draw, summary
        self._sizes, self._words = sizes, words
        self._picture, self._line, self._beside = widgets.HTML(), widgets.HTML(), widgets.HTML()
        head = widgets.HTML(f"<strong>{escape(title)}</strong>")
        shown = widgets.HBox(
            [self._picture, self._beside],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 24px"),
        )
        self.widget = widgets.VBox([head, *self.controls.values(), *below, self._line, shown])
        self._still = False
        for name, control in self.controls.items():
            control.observe(self._on_model if name == "model" else self._on_change, names="value")
        self.update()

    @property
    def image(self) -> str:
        return str(self._picture.value)

    @property
    def words(self) -> str:
        return str(self._beside.value)

    @property
    def model(self) -> str:
        """The name of the chosen model."""
        return str(self.controls["model"].value) if len(self._sources) > 1 else next(iter(self._sources))

    @property
    def replay(self) -> Replay:
        """The chosen model with its clean passes, loaded if need be. Raises what its loading raised."""
        name = self.model
        if name not in self._loaded:
            source = self._sources[name]
            try:
                if callable(source):
                    self.say(say("Loading {name} …", name=name))
                    source = source()
                self._loaded[name] = Replay(source, since=moves)
            except HelpersError as mistake:
                self._loaded[name] = mistake
        found = self._loaded[name]
        if isinstance(found, HelpersError):
            raise found
        return found

    def update(self) -> None:
        """Compute and draw from the present values of the controls."""
        picture = words = ""
        try:
            replay = self.replay
            self._fit(replay.lm)
            values = {name: control.value for name, control in self.controls.items() if name != "model"}
            self.result = self._compute(replay, **values)
        except HelpersError as mistake:
            self.result, self.text = None, str(mistake)
        else:
            self.text = self._summary(self.result)
            words = self._words(self.result)
            picture = to_img(self._draw(self.result), WIDGET_DPI)
        self.say(self.text)
        self._picture.value, self._beside.value = picture, words

    def say(self, text: str) -> None:
        """Show a line at once, also while something computes."""
        self._line.value = f'<p role="status" aria-live="polite">{escape(text)}</p>'

    def _fit(self, lm: LanguageModel) -> None:
        """Let the ranges follow the model; what this changes is no reason to draw, since a drawing follows anyway."""
        if lm is self._fitted:
            return
        self._still = True
        try:
            for name, count in self._sizes(lm).items():
                self.controls[name].set_size(count)
        finally:
            self._still = False
        self._fitted = lm

    def _on_model(self, change: Any) -> None:
        if isinstance(self._loaded.get(self.model), HelpersError):
            del self._loaded[self.model]  # chosen again: try again
        self.update()

    def _on_change(self, change: Any) -> None:
        if not self._still:
            self.update()

    def __repr__(self) -> str:
        return f"{self.title}: {self.text}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # The plain text is ours: ipywidgets' own would carry the picture's bytes into the stored notebook.
        view = {"model_id": self.widget.model_id, "version_major": 2, "version_minor": 0}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}


def moves() -> object:
    """Equal while somebody moves controls and runs no cell: in between no code has written into a weight."""
    kernel: Any = kernel_here()
    try:
        moved = kernel.get_parent("shell")["header"]["msg_type"] == "comm_msg"
    except (AttributeError, KeyError, TypeError):  # another kind of kernel, or none
        moved = False
    return kernel.execution_count if moved else object()


class IndexSlider(widgets.IntSlider):
    """A slider over 0 to a number that the model decides."""

    def set_size(self, count: int) -> None:
        self.max = count - 1  # a value beyond it becomes the last


def block_slider(value: int = 0, label: str = translatable("block")) -> IndexSlider:
    """A slider over the blocks of the chosen model."""
    return index_slider(value, label)


def index_slider(value: int = 0, label: str = translatable("head")) -> IndexSlider:
    """A slider over 0 to a number that the panel's `sizes` tells."""
    return IndexSlider(
        value=value, min=0, max=value, description=say(label), continuous_update=False, style=LABEL, layout=WIDE
    )


def factor_slider(
    value: float = 0.5, low: float = 0.0, high: float = 3.0, step: float = 0.1, label: str = translatable("factor")
) -> widgets.FloatSlider:
    """A slider over numbers from `low` to `high`."""
    return widgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=say(label),
        continuous_update=False,
        style=LABEL,
        layout=WIDE,
    )


def prompt_box(value: str, label: str = translatable("prompt")) -> widgets.Text:
    """A line of text that takes effect with Enter or when it loses the focus."""
    return widgets.Text(value=value, description=say(label), continuous_update=False, style=LABEL, layout=WIDE)


def choice(options: Sequence[Any], value: Any = None, label: str = translatable("measure")) -> widgets.Dropdown:
    """A list to choose one of `options` from (values, or pairs of label and value); the first unless told."""
    pairs = [option if isinstance(option, tuple) else (str(option), option) for option in options]
    return widgets.Dropdown(
        options=[(say(name), one) for name, one in pairs],
        value=pairs[0][1] if value is None else value,
        description=say(label),
        style=LABEL,
        layout=WIDE,
    )


def tick(value: bool, label: str) -> widgets.Checkbox:
    """A box to tick."""
    return widgets.Checkbox(value=value, description=say(label), indent=False, style=LABEL, layout=WIDE)
