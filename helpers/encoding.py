"""Text to token ids and back: what a LanguageModel's tokenizer side does, and the sentence when a prompt cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import errors
from .checks import kind_of
from .say import say


@dataclass(frozen=True)
class Tokens:
    """Encoded prompts: ids (batch, pos) and mask (batch, pos), False where a shorter prompt is padded.

    What `lm.encode` gives, and what a trace keeps, are copies of the ids and masks that were passed in.
    """

    ids: Tensor
    mask: Tensor

    @property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @property
    def last(self) -> Tensor:
        """(batch,) the position of each prompt's last real token."""
        return self.mask.shape[1] - 1 - self.mask.flip(1).int().argmax(dim=1)


class Encoder:
    """A tokenizer, and the model's limits that prompts must keep."""

    tokenizer: Any
    vocabulary: int  # tokens
    context: int  # positions

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        raise NotImplementedError

    def check_left_padding(self, mask: Tensor) -> bool:
        """Whether a real token comes after padding. Raises BadValue where the model cannot run with it."""
        raise NotImplementedError

    def encode(self, prompt: str | Sequence[str] | Tensor | Tokens, padding: str = "right") -> Tokens:
        """Token ids (batch, pos) of one prompt, of several (padded on the `padding` side), or of a tensor of ids, and their mask.

        Raises BadPrompt, PromptTooLong or BadValue.
        """
        if isinstance(prompt, Tokens):
            return self._checked(prompt)
        if type(prompt).__module__ == "numpy" and hasattr(prompt, "tolist"):
            array: Any = prompt
            prompt = array.tolist() if array.dtype.kind in "UO" else torch.as_tensor(array)
        if isinstance(prompt, Tensor):
            return self._from_ids(prompt)
        if padding not in ("left", "right"):
            raise errors.BadValue("padding {padding!r} is not a side: choose 'left' or 'right'.", padding=padding)
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise errors.BadPrompt(
                "a prompt must be text, a list of texts or a tensor of token ids, but this is {kind}.",
                kind=kind_of(prompt),
            )
        if not texts:
            raise errors.BadPrompt("the list of prompts is empty: give at least one text.")
        rows = []
        for text in texts:
            ids = self.token_ids(text)
            if not text or not ids:  # some tokenizers put a token of their own in front of nothing
                raise errors.BadPrompt(
                    "the prompt is empty: type at least one word, for example 'Berlin is the capital of'."
                )
            self._check_length(len(ids))
            if max(ids) >= self.vocabulary:
                raise errors.BadPrompt(
                    "the tokenizer made token {ids}, but this model has tokens 0 to {vocabulary}: it belongs to "
                    "another model. Pass this model's own.",
                    ids=max(ids),
                    vocabulary=self.vocabulary - 1,
                )
            rows.append(torch.tensor(ids, device=self.device))
        length = max(len(row) for row in rows)
        padded = torch.zeros(len(rows), length, dtype=torch.long, device=self.device)
        mask = torch.zeros(len(rows), length, dtype=torch.bool, device=self.device)
        for i, row in enumerate(rows):
            where = slice(length - len(row), length) if padding == "left" else slice(0, len(row))
            padded[i, where], mask[i, where] = row, True
        if padding == "left":
            self.check_left_padding(mask)
        return Tokens(padded, mask)

    def _from_ids(self, ids: Tensor) -> Tokens:
        if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.ndim not in (1, 2) or ids.numel() == 0:
            raise errors.BadPrompt(
                "token ids must be whole numbers of shape (pos,) or (batch, pos), but this is {shape} {dtype}: "
                "pass one row of ids for each prompt, for example torch.tensor([[5, 3, 8]]).",
                shape=tuple(ids.shape),
                dtype=ids.dtype,
            )
        # A copy: what is kept with results must not change when somebody writes into the given one.
        ids = ids.reshape(-1, ids.shape[-1]).to(self.device, torch.long, copy=True)
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0].item()
            raise errors.BadPrompt(
                "token id {wrong} does not exist: this model has tokens 0 to {vocabulary}; use ids that its own "
                "tokenizer made.",
                wrong=wrong,
                vocabulary=self.vocabulary - 1,
            )
        self._check_length(ids.shape[1])
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def _checked(self, tokens: Tokens) -> Tokens:
        ids, mask = self._from_ids(tokens.ids).ids, tokens.mask
        if mask.dtype != torch.bool or mask.shape != ids.shape or not mask.any(dim=1).all():
            raise errors.BadPrompt(
                "the mask must be bool, of the ids' shape {ids_shape}, with a real token in each row, but this "
                "is {mask_shape} {dtype}: make tokens with lm.encode(...).",
                ids_shape=tuple(ids.shape),
                mask_shape=tuple(mask.shape),
                dtype=mask.dtype,
            )
        return Tokens(ids, mask.to(ids.device, copy=True))

    def _check_length(self, length: int) -> None:
        if length > self.context:
            raise errors.PromptTooLong(
                "the prompt has {length} tokens, but this model has {context} positions: shorten it by at least "
                "{excess}.",
                length=length,
                context=self.context,
                excess=length - self.context,
            )

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise errors.BadPrompt(
                "this model was wrapped without a tokenizer, so it knows token ids only: pass a tensor of ids, "
                "or wrap(model, tokenizer)."
            )
        return self.tokenizer

    def token_ids(self, text: str) -> list[int]:
        """The ids of one text, with the special tokens that the tokenizer adds, of any length. Raises BadPrompt.

        A text that already begins with those that go in front, as `apply_chat_template(..., tokenize=False)` gives, does
        not get them twice.
        """
        ids = list(self._need_tokenizer()(text, verbose=False)["input_ids"])
        if any(text.startswith(special) for special in getattr(self.tokenizer, "all_special_tokens", ())):
            front, bare = self.front_and_text(text)
            if bare[: len(front)] == front:
                return ids[len(front) :]
        return ids

    def front_and_text(self, text: str) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts in front of a text, and the text's own. Raises BadPrompt."""
        tokenizer = self._need_tokenizer()
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids[: next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), 0)], bare

    def token_id(self, text: str) -> int:
        """The id of a text that is exactly one token, as " Germany"; special tokens that a tokenizer adds don't count.

        Raises TargetIsNotOneToken.
        """
        if not isinstance(text, str):
            raise errors.TargetIsNotOneToken(
                "a target must be text, for example ' Germany', but this is {kind}.", kind=kind_of(text)
            )

        def split(text: str) -> list[int]:
            return list(self._need_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])

        ids = split(text)
        if len(ids) != 1 and text.startswith(" "):  # some tokenizers put a space in front by themselves: don't give two
            without = split(text[1:])
            if len(without) == 1 and self.tokenizer.convert_ids_to_tokens(without)[0].startswith("▁"):
                ids = without
        if len(ids) != 1:
            pieces = ", ".join(repr(self.tokenizer.decode([i])) for i in ids)
            hint = "" if text.startswith(" ") else say(" A word inside a sentence begins with a space.")
            raise errors.TargetIsNotOneToken(
                "{text!r} is {n_tokens} tokens here ({pieces}); choose a target of one token, for example ' "
                "Germany'.{hint}",
                text=text,
                n_tokens=len(ids),
                pieces=pieces or "none",
                hint=hint,
            )
        unknown = getattr(self.tokenizer, "unk_token", None)
        if unknown is not None and ids[0] == self.tokenizer.unk_token_id and text.strip() != unknown:
            raise errors.TargetIsNotOneToken(
                "this tokenizer does not know {text!r} and makes it {unknown!r}: choose another target, or give "
                "its id.",
                text=text,
                unknown=unknown,
            )
        spaced = split(f" {text}") if text[0].isalpha() else []
        if len(spaced) == 1 and spaced != ids:
            warnings.warn(
                say(
                    "{text!r} is token {id}, as at the start of a line. Inside a sentence models write it with its space, "
                    "{spaced!r}, which is token {other}: if you mean that, give it so; if not, give the id.",
                    text=text,
                    id=ids[0],
                    spaced=f" {text}",
                    other=spaced[0],
                ),
                stacklevel=2,
            )
        return ids[0]

    def token_strings(self, prompt: str | Tensor) -> list[str]:
        """The text of each token of one prompt. Raises BadPrompt."""
        tokenizer, ids = self._need_tokenizer(), self.encode(prompt).ids
        if len(ids) != 1:
            raise errors.BadPrompt(
                "token_strings reads one prompt, but these are {n_tokens}: pass them one at a time.", n_tokens=len(ids)
            )
        return [tokenizer.decode([i]) for i in ids[0].tolist()]
