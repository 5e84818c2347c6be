"""The bar that a long sweep shows to a person who waits, in a terminal or under a notebook's cell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = bool | Callable[[int, int], object] | None


def somebody_watches() -> bool:
    """A terminal, or a notebook cell that a person runs: programs that execute notebooks let no cell ask for input."""
    if sys.stderr.isatty():
        return True
    kernel = kernel_here()
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


def kernel_here() -> Any:
    """The notebook's kernel, or None where there is none."""
    return getattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel", None)


class _UnderTheCell:
    """A file for tqdm: each line takes the place of the one before, and blanks take it away.

    Written to stderr instead, a bar that is gone leaves a red box under the cell and blanks in the saved notebook.
    """

    encoding = "utf-8"  # tqdm asks: it draws blocks then, else hash signs
    shown: Any = None

    def write(self, text: str) -> None:
        from IPython.display import display

        line = {"text/plain": text.strip()}
        if self.shown is not None:
            self.shown.update(line, raw=True)
        elif line["text/plain"]:
            self.shown = display(line, raw=True, display_id=True)

    def flush(self) -> None:
        """Nothing waits."""


@contextmanager
def bar(total: int, progress: Progress) -> Iterator[Callable[[int], object]]:
    if callable(progress):
        count = 0

        def tell(more: int) -> None:
            nonlocal count
            count += more
            progress(count, total)

        yield tell
    elif progress or (progress is None and somebody_watches()):
        from tqdm import tqdm

        file = sys.stderr if kernel_here() is None else _UnderTheCell()
        look = "sweep {percentage:3.0f} % |{bar}| {elapsed} passed, {remaining} to go"
        with tqdm(total=total, delay=1.5, leave=False, file=file, ncols=72, miniters=1, bar_format=look) as shown:
            yield shown.update
    else:
        yield lambda more: None
