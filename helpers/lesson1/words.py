"""What a run would say next: one word's probability, and a small table of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from helpers.course.words import Words, words_side_by_side
from helpers.models import LanguageModel
from helpers.say import say
from helpers.tables import format_number
from helpers.tracing import Trace


def probability(lm: LanguageModel, run: Trace, word: str) -> float:
    """The probability of `word`, one token, right after the prompt of a traced run. Raises TargetIsNotOneToken."""
    return float(run.last_logits[0].softmax(-1)[lm.token_id(word)])


def show_next_words(lm: LanguageModel, runs: Mapping[str, Trace], most: int = 3) -> None:
    """Display how probable the `most` likeliest next words of each run are in every run."""
    from IPython.display import display

    logits = {name: run.last_logits[0] for name, run in runs.items()}
    display(words_side_by_side(lm, logits, say("How probable each next word is"), most))


def word_finding(words: Words) -> str:
    """Return in one sentence what becomes of the clean run's most probable word."""
    first = max(range(len(words.names)), key=words.edited.__getitem__)
    name, before, after = repr(words.names[0]), *(format_number(one[0], 2) for one in (words.clean, words.edited))
    if words.edited[first] == words.edited[0]:
        return say("{name} stays first: {before} before, {after} after", name=name, before=before, after=after)
    return say(
        "{name} goes from {before} to {after}, and {other!r} is first with {other_probability}",
        name=name,
        before=before,
        after=after,
        other=words.names[first],
        other_probability=format_number(words.edited[first], 2),
    )
