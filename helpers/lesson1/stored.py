"""What was measured beforehand over many prompts, as a small table."""

from __future__ import annotations

from torch import Tensor

from helpers.measurements import Measured
from helpers.say import say
from helpers.tables import show_table


def show_first_token(stored: Measured, block: int, factors: tuple[float, ...] = (0.5, 0.75, 1.25, 1.5)) -> None:
    """Display, for each factor on a block, what the first token does to Δ: means over the prompts of `stored`.

    stored: measured(model, "factors"). The ratio is that of the means, and the largest of all points from the edit on.
    """
    points = stored.labels["point"]
    last = max(point for point in points if isinstance(point, int))
    where = {"along": "delta", "scaled": block, "factor": [*factors], "point": [*range(block + 1, last + 1)]}
    with_it, without = (stored.at("stream", **where, **{"first token": one}) for one in ("with", "without"))
    rows = {  # (factors, points) -> (factors,)
        say("Δ with it / Δ without it, at most"): (with_it / without).max(dim=1).values,
        say("Δ with it, before the last block"): with_it[:, -2],
        say("Δ with it, after the last block"): with_it[:, -1],
    }
    title = say(
        "The first token over {n_prompts} prompts, block {block} scaled",
        n_prompts=len(stored.labels["prompt"]),
        block=block,
    )
    show_table(rows, title, columns=[f"× {factor:g}" for factor in factors])


def at_the_end(stored: Measured, along: str, block: int, factor: float) -> Tensor:
    """Before and after the last block, (2,): the mean over the prompts of "relative error" or "survival", with this factor on a
    block and without the first token. stored: measured(model, "factors").
    """
    last = max(point for point in stored.labels["point"] if isinstance(point, int))
    where = {"along": along, "scaled": block, "factor": factor, "point": [last - 1, last]}
    return stored.at("stream", **where, **{"first token": "without"})
