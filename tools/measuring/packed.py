"""Prompts that begin alike, put into one row: their common beginning is computed once, for all of them.

    row = Packed(lm, ids)                              # ids: one list for each prompt
    sweep_edits(row, row.ids, edits, measure=row.measure(predictions(lm, targets)))[0]     # (edits, prompts, columns)

A token of a causal model sees only what stands before it. So "Paris is the capital of France." has the same states in
front of every question, edited or not. The row holds it once, then the rest of each prompt; a mask lets each rest see the
beginning and itself, and its positions are counted on from the beginning. The numbers are those of the prompts alone, up
to rounding; sixty questions of 12 tokens cost what 25 of them would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers import LanguageModel, Measure, Outcome, Tokens


def shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts have in common at their beginning, leaving each at least one of its own."""
    common = 0
    while all(common < len(row) - 1 and row[common] == rows[0][common] for row in rows):
        common += 1
    return common


class Packed(LanguageModel):
    """The same model, which sees one row of several prompts and reads out only the last token of each."""

    def __init__(self, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        super().__init__(lm.model, lm.tokenizer)
        common = shared(rows)
        owner, position, ends = [-1] * common, list(range(common)), []
        ids = list(rows[0][:common])
        for prompt, row in enumerate(rows):
            ids += row[common:]
            owner += [prompt] * (len(row) - common)
            position += range(common, len(row))
            ends.append(len(ids) - 1)
        self.ids, self.owner, self.position, self.ends = torch.tensor(ids), owner, position, ends
        mine = torch.tensor(owner)
        seen = (mine[None] == -1) | (mine[None] == mine[:, None])
        seen &= torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        self.mask = torch.zeros(seen.shape, dtype=lm.dtype).masked_fill(~seen, torch.finfo(lm.dtype).min)[None, None]

    def inputs(self, tokens: Tokens) -> dict[str, Tensor | bool]:
        found: dict[str, Tensor | bool] = {"input_ids": tokens.ids, "use_cache": False}
        found |= {"attention_mask": self.mask, "position_ids": torch.tensor([self.position])}
        return {**found, "logits_to_keep": torch.tensor(self.ends)}

    def read_out(self, stream: Tensor) -> Tensor:
        return super().read_out(stream[:, self.ends])

    def laid_out(self, values: Sequence[Tensor]) -> Tensor:
        """One value (n_blocks, pos, …) for each prompt, put where the row has these tokens: (n_blocks, len(row), …)."""
        owners = [max(prompt, 0) for prompt in self.owner]
        return torch.stack([values[p][:, at] for p, at in zip(owners, self.position, strict=True)], dim=1)

    def measure(self, one: Measure) -> Measure:
        """A measure of single prompts, such as `predictions`, for all prompts of the row: (copies, prompts, columns)."""

        def compute(outcome: Outcome) -> Tensor:
            found = [
                one.compute(Outcome(outcome.edited[:, p], outcome.clean[p], outcome.ids, p))
                for p in range(len(self.ends))
            ]
            return torch.stack(found, dim=1)

        return Measure(compute, one.columns, every_position=True)
