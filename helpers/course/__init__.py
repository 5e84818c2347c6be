"""What all lessons share: exercises and their checks, panels, words, the ledger. The rooms are helpers/lesson1 to 5."""

from collections.abc import Mapping, Sequence

import helpers

_SHARED = {
    "helpers.course.exercise": ["hint", "own_or_solution", "show_solution"],
    "helpers.course.guess": ["predict", "show_guesses"],
    "helpers.course.ledger": ["show_committed", "show_ledger", "show_parts"],
    "helpers.hooks": ["first", "with_first"],
    "helpers.plots.diagram": ["Mark", "stream_diagram"],
    "helpers.plots.style": ["point_names", "show_figure"],
    "helpers.tables": ["below", "show_table"],
}


def offers(room: str, own: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """All that a lesson's notebook imports from its room: the lesson's own names, what lessons share, and the helpers.

    own: module of the room -> names.
    """
    core = {f"helpers.{module}": names for module, names in helpers._WHERE.items()}
    return {**core, **_SHARED, **{f"{room}.{module}": names for module, names in own.items()}}
