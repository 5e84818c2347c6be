"""Give back after each cell what the cell has freed: a class on one server needs it, and no learner sees it.

A pass over a real model frees megabytes that the C library would keep for the next one; in a whole lesson 40 MB of a kernel's
430. An IPython extension, like restarted.py beside it: tools/ipython_config.py loads both when a kernel starts.
"""

from __future__ import annotations

from typing import Any

from helpers.memory import give_back


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython for each new kernel."""
    shell.events.register("post_run_cell", _after_a_cell)


def _after_a_cell(result: Any) -> None:
    give_back()
