"""LanguageModel: a transformers model, its tokenizer, and where its parts are.

    lm = load_model()             # helpers/loading.py finds and reads one
    lm = wrap(model, tokenizer)   # or one that you loaded yourself

`lm.model` is the plain transformers model and stays plain. helpers/families.py says where each architecture keeps its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import errors
from .checks import check_indices, kind_of, whole
from .families import family_named


@dataclass(frozen=True)
class Tokens:
    """Encoded prompts: ids (batch, pos) and mask (batch, pos), False where a shorter prompt is padded."""

    ids: Tensor
    mask: Tensor

    @property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @property
    def last(self) -> Tensor:
        """(batch,) the position of each prompt's last real token."""
        return self.mask.shape[1] - 1 - self.mask.flip(1).int().argmax(dim=1)


class LanguageModel:
    """A transformers causal language model, its tokenizer, and where its parts are.

    Plain attributes: model, tokenizer, family (a key of FAMILIES), n_blocks, n_heads, n_key_heads (fewer than n_heads
    with grouped-query attention), d_model, d_head, d_mlp, context (positions), vocabulary (tokens). The modules' shapes
    are checked once, here.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        config = model.config
        self.family = getattr(config, "model_type", type(model).__name__)
        self.parts = family_named(self.family)
        self.model, self.tokenizer = model, tokenizer
        # Edits that are on now, in groups, outermost `with` first, and their handles: helpers/edits.py keeps them here.
        self.live_edits: list[Any] = []
        self.edit_handles: list[RemovableHandle] = []
        self.passes: dict[int, list[Any]] = {}  # by thread, the edited passes that it is in: helpers/passes.py
        self.d_model: int = config.hidden_size
        self.n_heads: int = config.num_attention_heads
        self.n_key_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.context: int = config.max_position_embeddings
        self.vocabulary: int = config.vocab_size
        if self.family == "opt" and not config.do_layer_norm_before:
            raise errors.UnsupportedFamily(
                "this OPT model normalises after its sub-layers (do_layer_norm_before=False, as opt-350m), so no plain sum "
                "of deltas exists in it; every other OPT size works."
            )
        try:
            _ = self.final_norm
            self.d_mlp = _features(self.part(0, self.parts.neurons_out), 0)
            self._check_shapes()
        except (AttributeError, IndexError) as error:
            raise errors.UnsupportedFamily(
                f"this {self.family!r} model does not keep its parts where the table says ({error}); "
                "pass the language model with its head, for example AutoModelForCausalLM."
            ) from None

    def _check_shapes(self) -> None:
        for index in range(self.n_blocks):
            width = _features(self.part(index, self.parts.heads_out), 0)
            if width != self.n_heads * self.d_head:
                raise errors.UnsupportedFamily(
                    f"block {index}: the output projection reads {width} numbers per token, but {self.n_heads} heads of "
                    f"{self.d_head} make {self.n_heads * self.d_head}; this model's heads are laid out in another way."
                )
            outputs = _features(self.part(index, self.parts.keys), 1)
            expected = self.n_key_heads * self.d_head * (1 if self.parts.keys_layout == "alone" else 3)
            if outputs != expected:
                raise errors.UnsupportedFamily(
                    f"block {index}: the keys' projection writes {outputs} numbers per token where {expected} were "
                    "expected; this model's keys are laid out in another way."
                )
        if self.unembed is None:
            raise AttributeError("no output embeddings")

    def __repr__(self) -> str:
        names = ", ".join(repr(one) for group in self.live_edits for one in group) or "none"
        return (
            f"LanguageModel({self.family}: {self.n_blocks} blocks of {self.n_heads} heads, d_model {self.d_model}, "
            f"{self.vocabulary} tokens, {self.context} positions, {self.dtype}; live edits: {names})"
        )

    # ---- parts

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that the model has now: looked up each time, since a user may put another one in."""
        return list(self.model.get_submodule(self.parts.blocks))

    @property
    def n_blocks(self) -> int:
        return len(self.model.get_submodule(self.parts.blocks))

    @property
    def final_norm(self) -> nn.Module:
        return self.model.get_submodule(self.parts.final_norm)

    @property
    def unembed(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.unembed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembed.weight.dtype

    def part(self, block: int, path: str) -> nn.Module:
        return self.model.get_submodule(f"{self.parts.blocks}.{block}").get_submodule(path)

    def attention(self, block: int) -> nn.Module:
        return self.part(self.check_block(block), self.parts.attention)

    def mlp(self, block: int) -> nn.Module:
        return self.part(self.check_block(block), self.parts.mlp)

    def read_out(self, stream: Tensor) -> Tensor:
        """Logits (…, vocabulary) from the residual stream (…, d_model) after the last block, as the model itself makes them."""
        state = self.final_norm(stream)
        if self.family == "opt" and self.model.model.decoder.project_out is not None:
            state = self.model.model.decoder.project_out(state)
        logits = self.unembed(state)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # ---- checks that everybody shares

    def check_block(self, block: int) -> int:
        """The block as an int. Raises BlockOutOfRange."""
        found = whole(block)
        if found is None:
            raise errors.BlockOutOfRange(
                f"block {kind_of(block)} is not a whole number: choose one from 0 to {self.n_blocks - 1}."
            )
        if not 0 <= found < self.n_blocks:
            raise errors.BlockOutOfRange(
                f"block {found} does not exist: this model has blocks 0 to {self.n_blocks - 1}; choose one of them "
                f"(hidden state {self.n_blocks} is the output of block {self.n_blocks - 1})."
            )
        return found

    def check_heads(self, heads: Sequence[int] | int, of_keys: bool = False) -> list[int]:
        """The heads (or, with `of_keys`, the key heads) as a list of ints. Raises HeadOutOfRange."""
        number = self.n_key_heads if of_keys else self.n_heads
        return check_indices(heads, number, errors.HeadOutOfRange, "key head" if of_keys else "head", "each block has")

    # ---- text and tokens

    def encode(self, prompt: str | Sequence[str] | Tensor | Tokens, padding: str = "right") -> Tokens:
        """Token ids (batch, pos) of one prompt, of several (padded on the `padding` side), or of a tensor of ids, and their mask.

        Raises BadPrompt, PromptTooLong or BadValue.
        """
        if isinstance(prompt, Tokens):
            return self._checked(prompt)
        if isinstance(prompt, Tensor):
            return self._from_ids(prompt)
        if padding not in ("left", "right"):
            raise errors.BadValue(f"padding {padding!r} is not a side: choose 'left' or 'right'.")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise errors.BadPrompt(
                f"a prompt must be text, a list of texts or a tensor of token ids, but this is {kind_of(prompt)}."
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
                    f"the tokenizer made token {max(ids)}, but this model has tokens 0 to {self.vocabulary - 1}: "
                    "it belongs to another model. Pass this model's own."
                )
            rows.append(torch.tensor(ids, device=self.device))
        length = max(len(row) for row in rows)
        padded = torch.zeros(len(rows), length, dtype=torch.long, device=self.device)
        mask = torch.zeros(len(rows), length, dtype=torch.bool, device=self.device)
        for i, row in enumerate(rows):
            where = slice(length - len(row), length) if padding == "left" else slice(0, len(row))
            padded[i, where], mask[i, where] = row, True
        return Tokens(padded, mask)

    def _from_ids(self, ids: Tensor) -> Tokens:
        if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.ndim not in (1, 2) or ids.numel() == 0:
            raise errors.BadPrompt(
                f"token ids must be whole numbers of shape (pos,) or (batch, pos), but this is {tuple(ids.shape)} {ids.dtype}: "
                "pass one row of ids for each prompt, for example torch.tensor([[5, 3, 8]])."
            )
        ids = ids.reshape(-1, ids.shape[-1]).long().to(self.device)
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0].item()
            raise errors.BadPrompt(
                f"token id {wrong} does not exist: this model has tokens 0 to {self.vocabulary - 1}; "
                "use ids that its own tokenizer made."
            )
        self._check_length(ids.shape[1])
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def _checked(self, tokens: Tokens) -> Tokens:
        ids, mask = self._from_ids(tokens.ids).ids, tokens.mask
        if mask.dtype != torch.bool or mask.shape != ids.shape or not mask.any(dim=1).all():
            raise errors.BadPrompt(
                f"the mask must be bool, of the ids' shape {tuple(ids.shape)}, with a real token in each row, but this is "
                f"{tuple(mask.shape)} {mask.dtype}: make tokens with lm.encode(...)."
            )
        return Tokens(ids, mask.to(ids.device))

    def _check_length(self, length: int) -> None:
        if length > self.context:
            raise errors.PromptTooLong(
                f"the prompt has {length} tokens, but this model has {self.context} positions: "
                f"shorten it by at least {length - self.context}."
            )

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise errors.BadPrompt(
                "this model was wrapped without a tokenizer, so it knows token ids only: pass a tensor of ids, or "
                "wrap(model, tokenizer)."
            )
        return self.tokenizer

    def token_ids(self, text: str) -> list[int]:
        """The ids of one text, with the special tokens that the tokenizer adds, of any length. Raises BadPrompt."""
        return list(self._need_tokenizer()(text, verbose=False)["input_ids"])

    def token_id(self, text: str) -> int:
        """The id of a text that is exactly one token, as " Germany"; special tokens that a tokenizer adds don't count.

        Raises TargetIsNotOneToken.
        """
        if not isinstance(text, str):
            raise errors.TargetIsNotOneToken(
                f"a target must be text, for example ' Germany', but this is {kind_of(text)}."
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
            hint = "" if text.startswith(" ") else " A word inside a sentence begins with a space."
            raise errors.TargetIsNotOneToken(
                f"{text!r} is {len(ids)} tokens here ({pieces or 'none'}); choose a target of one token, for example ' Germany'.{hint}"
            )
        return ids[0]

    def token_strings(self, prompt: str | Tensor) -> list[str]:
        """The text of each token of one prompt. Raises BadPrompt."""
        tokenizer, ids = self._need_tokenizer(), self.encode(prompt).ids
        if len(ids) != 1:
            raise errors.BadPrompt(
                f"token_strings reads one prompt, but these are {len(ids)}: pass them one at a time."
            )
        return [tokenizer.decode([i]) for i in ids[0].tolist()]

    # ---- running it

    def inputs(self, tokens: Tokens) -> dict[str, Tensor | bool]:
        """Keyword arguments for `lm.model`: without padding on the left just the ids, as one would write by hand.

        Padding on the right needs no mask: a causal model's real tokens never look at what comes after them. Raises BadValue.
        """
        found: dict[str, Tensor | bool] = {"input_ids": tokens.ids, "use_cache": False}
        if bool((tokens.mask[:, 1:] & ~tokens.mask[:, :-1]).any()):  # a real token after padding
            eager = self.model.config._attn_implementation == "eager"
            if eager and self.dtype == torch.float64 and self.family not in ("gpt2", "gpt_neo"):
                # Their softmax runs in float32, where the mask's lowest float64 number is minus infinity: rows of NaN.
                raise errors.BadValue(
                    "padding on the left gives NaN in float64 with eager attention in this family (transformers computes "
                    "the softmax in float32): pad on the right, or load the model with attn_implementation='sdpa'."
                )
            found["attention_mask"] = tokens.mask.long()
            # Without these, padding on the left would shift the positions of the real tokens.
            found["position_ids"] = (tokens.mask.long().cumsum(1) - 1).clamp(min=0)
        return found

    @torch.no_grad()
    def logits(self, prompt: str | Sequence[str] | Tensor | Tokens) -> Tensor:
        """(batch, pos, vocabulary) logits of a plain pass, in the mode and with the hooks that the model has now."""
        return self.model(**self.inputs(self.encode(prompt))).logits


def _features(module: Any, side: int) -> int:
    """Numbers per token that a projection reads (side 0) or writes (side 1)."""
    if isinstance(module, nn.Linear):
        return (module.in_features, module.out_features)[side]
    return module.weight.shape[side]  # transformers' Conv1D: (in, out)


def wrap(model: Any, tokenizer: Any = None) -> LanguageModel:
    """Use the helpers on a transformers causal language model that you loaded yourself; it is put into eval mode.

    Without a tokenizer prompts are tensors of token ids. Raises UnsupportedFamily or BadValue.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise errors.BadValue(
            f"wrap needs a transformers model, for example AutoModelForCausalLM.from_pretrained(...), not {kind_of(model)}."
        )
    lm = LanguageModel(model, tokenizer)
    model.eval()
    return lm


def check_model(lm: object) -> None:
    """Raises BadValue unless this is a LanguageModel."""
    if not isinstance(lm, LanguageModel):
        raise errors.BadValue(
            f"the first argument must be a model of the helpers, not {kind_of(lm)}: make one with load_model() or wrap(model)."
        )
