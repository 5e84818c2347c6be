"""The edited copies of a prompt that a sweep runs: which edits each of them has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import errors
from .applying import check_edits
from .edits import Edit
from .models import LanguageModel, Tokens

Copy = tuple[Edit, ...]  # the edits of one edited copy of a prompt, earliest block first


def check_list(edits: object) -> None:
    """Raises BadEdit unless this is a list of interventions."""
    if isinstance(edits, Edit | str) or not isinstance(edits, Sequence) or not edits:
        raise errors.BadEdit(
            "give a list of edits, for example [skip_block(0), skip_block(1)]; each may be a list itself."
        )


def copy_of(lm: LanguageModel, one: Edit | Sequence[Edit]) -> Copy:
    copy = tuple(one) if isinstance(one, Sequence) and not isinstance(one, str) else (one,)
    if not copy:
        raise errors.BadEdit("one of the interventions is an empty list: give an edit or several.")
    check_edits(lm, copy)
    return tuple(sorted(copy, key=lambda e: e.block))


def check_values_per_prompt(copies: Sequence[Copy], tokens: Tokens) -> None:
    """Raises BadValue unless values with a row for each prompt stand as the tokens do: each row begins with its prompt."""
    lengths = tokens.mask.sum(1)
    longest = int(lengths.max())
    at_the_start = torch.equal(
        tokens.mask, torch.arange(tokens.mask.shape[1], device=lengths.device) < lengths[:, None]
    )
    for one in (one for copy in copies for one in copy):
        if one.prompts not in (None, len(lengths)):
            raise errors.BadValue(
                "{one!r} has values for {n_rows} prompts, and {n_prompts} are swept: give one row for each, or "
                "one for all.",
                one=one,
                n_rows=one.prompts,
                n_prompts=len(lengths),
            )
        if one.length not in (None, 1, longest):
            raise errors.BadValue(
                "{one!r} has values for {n_positions} positions, and the longest prompt has {longest} tokens: give one for "
                "each, counted from the start of each prompt, or one for all.",
                one=one,
                n_positions=one.length,
                longest=longest,
            )
        if one.length not in (None, 1) and not at_the_start:
            raise errors.BadValue(
                "{one!r} has a value for each position, and these prompts are padded on the left, so that it is not told "
                "where each begins: give the texts, or tokens and values that are padded on the right.",
                one=one,
            )


def for_prompts(copies: Sequence[Copy], numbers: Sequence[int], prompts: int, length: int) -> list[Copy]:
    """The copies for some of the prompts. An edit that several copies share stays one, so that they can build on it."""
    same = {id(one): one.for_some(numbers, prompts, length) for copy in copies for one in copy}
    return [tuple(same[id(one)] for one in copy) for copy in copies]
