"""LanguageModel: a transformers model, its tokenizer, and where its parts are.

    lm = load_model()             # helpers/loading.py finds and reads one
    lm = wrap(model, tokenizer)   # or one that you loaded yourself (helpers/wrapping.py tries it before you do)

`lm.model` is the plain transformers model and stays plain. helpers/families.py says where each architecture keeps its
parts, helpers/encoding.py turns text into tokens.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import causes, errors, foreign, passes
from .checks import check_indices, kind_of, whole
from .encoding import Encoder
from .encoding import Tokens as Tokens
from .families import Family, row_of
from .layout import check_parts, features, inside_peft, longrope_limit, module_at
from .live import live_here
from .say import translatable


class LanguageModel(Encoder):
    """A transformers causal language model, its tokenizer, and where its parts are. `wrap` and `load_model` make one.

    Plain attributes: model, tokenizer, family (the model's own name of its architecture), parts (the row of FAMILIES, or
    the user's own), n_heads, n_key_heads (fewer than n_heads with grouped-query attention), d_model, d_head, d_mlp (0 in
    a mixture of experts), context (positions), vocabulary (tokens), certificate (what was verified on this very model, or
    None). The modules' shapes are checked once, here.
    """

    def __init__(self, model: Any, tokenizer: Any, family: Family | str | None = None) -> None:
        self.family, self.parts = row_of(family, model.config)
        if hasattr(model, "get_base_model"):  # PEFT's wrapper, around the model that has the parts
            self.parts = inside_peft(model, self.parts)
        self.model, self.tokenizer = model, tokenizer
        self.config = model.config.get_text_config()  # of a multimodal model, its language model's
        self.certificate: Any = None  # helpers/wrapping.py writes it
        # Edits that are on now, in groups, outermost `with` first, and their handles: helpers/applying.py keeps them here.
        self.live_edits: list[Any] = []
        self.edit_handles: list[RemovableHandle] = []
        self.passes: dict[int, list[Any]] = {}  # by thread, the edited passes that it is in: helpers/passes.py
        self.stamps: dict[int, object] = {}  # by thread, a new one for each time that it put edits on
        self.d_model: int = self.config.hidden_size
        self.n_heads: int = self.config.num_attention_heads
        self.d_head: int = getattr(self.config, "head_dim", None) or self.d_model // self.n_heads
        self.context: int = getattr(self.config, "max_position_embeddings", None) or sys.maxsize
        self.vocabulary: int = self.config.vocab_size
        self.longrope_limit = longrope_limit(self.config)
        try:
            self.n_key_heads = check_parts(self)
            self.d_mlp = features(self.part(0, self.parts.neurons_out), 0) if self.parts.neurons_out else 0
        except (AttributeError, IndexError, TypeError) as error:
            raise errors.UnsupportedFamily(
                "this {family!r} model does not keep its parts where its row says ({error}); pass the language "
                "model with its head, for example AutoModelForCausalLM, or a row of its own: wrap(model, "
                "tokenizer, family=Family(...)).",
                family=self.family,
                error=error,
            ) from None

    def __repr__(self) -> str:
        names = ", ".join(repr(one) for group in live_here(self) for one in group) or "none"
        proven = "not certified" if self.certificate is None else self.certificate.short
        return (
            f"LanguageModel({self.family}: {self.n_blocks} blocks of {self.n_heads} heads, d_model {self.d_model}, "
            f"{self.vocabulary} tokens, {self.context} positions, {self.dtype}; {proven}; live edits: {names}"
            f"{foreign.named(self.model, self.hooks_of_others)})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """A model of its own, without the edits that are live on this one: their `with` could not take them off there."""
        found = object.__new__(type(self))
        memo[id(self)] = found
        own = {name: value for name, value in vars(self).items() if name not in ("live_edits", "passes")}
        vars(found).update(copy.deepcopy(own, memo), live_edits=[], passes={})
        for handle in found.edit_handles:  # copied along with the model, they are the handles of its hooks
            handle.remove()
        found.edit_handles = []
        return found

    def __getstate__(self) -> dict[str, Any]:
        if self.live_edits:
            raise errors.BadEdit(
                "edits are on this model, and neither pickle nor torch.save nor copy.copy can take their hooks along: do it "
                "outside of the `with`, or with copy.deepcopy(lm), which leaves them out."
            )
        return vars(self)

    @property
    def hooks_of_others(self) -> dict[str, nn.Module]:
        """By name, the modules with hooks that are not the live edits' and may change what the model computes; "" is all of it."""
        ours = {handle.id for handle in self.edit_handles}
        return {name: module for name, module in self.model.named_modules() if foreign.has_other_hooks(module, ours)}

    # ---- parts

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that the model has now: looked up each time, since a user may put another one in."""
        return list(module_at(self.parts.blocks, self.model))

    @property
    def n_blocks(self) -> int:
        return len(module_at(self.parts.blocks, self.model))

    @property
    def final_norm(self) -> nn.Module:
        return module_at(self.parts.final_norm, self.model)

    @property
    def unembed(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """Where the unembedding computes: for weights that wait elsewhere (accelerate's offload), where they will run.

        Raises BadValue for weights that are nowhere.
        """
        weight = self.unembed.weight
        if not isinstance(weight, Tensor):  # torch.ao's int8 modules have a method of that name, and run on the CPU
            return torch.device("cpu")
        found = weight.device
        if found.type != "meta":
            return found
        causes.refuse_nowhere(self.model)  # every prompt comes by here
        there = getattr(getattr(self.unembed, "_hf_hook", None), "execution_device", None)
        return torch.device("cpu" if there is None else there)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream, which begins as embeddings. An unembedding may compute in another one."""
        return self.model.get_input_embeddings().weight.dtype

    def part(self, block: int, path: str) -> nn.Module:
        """A module inside a block, by its path there; the block itself for an empty path."""
        there = f"{self.parts.blocks}.{block}"
        if "|" not in path:
            return module_at(f"{there}.{path}" if path else there, self.model)
        found = module_at(there, self.model)
        *others, last = path.split("|")
        path = next((other for other in others if hasattr(found, other.split(".")[0])), last)
        return module_at(path, found)

    def attention(self, block: int) -> nn.Module:
        return self._own_part(block, self.parts.attention)

    def mlp(self, block: int) -> nn.Module:
        return self._own_part(block, self.parts.mlp)

    def _own_part(self, block: int, path: str) -> nn.Module:
        try:
            return self.part(self.check_block(block), path)
        except AttributeError:  # a user put another module in the block's place
            raise causes.missing(self, block, path) from None

    def setting(self, name: str, user: nn.Module | None = None) -> Any:
        """What the model's config says under a name that a row gives; None if the row gives none, or the config has none.

        user: the module that computes with it. Some keep a copy from when they were made, and that is what counts then.
        """
        copied = getattr(user, name, None) if name and user is not None else None
        return copied if copied is not None or not name else getattr(self.config, name, None)

    def delta_factor(self, block: int) -> float:
        """What both deltas of a block are multiplied by on their way into the stream: 1 in most families."""
        found = self.setting(self.parts.delta_factor, self.part(block, "")) if self.parts.delta_factor else None
        return 1.0 if found is None else float(found)

    def read_out(self, stream: Tensor) -> Tensor:
        """Logits (…, vocabulary) from the residual stream (…, d_model) after the last block, as the model itself makes them."""
        state = self.final_norm(stream)
        if self.parts.after_norm:
            *path, name = self.parts.after_norm.split(".")
            module = getattr(module_at(".".join(path), self.model), name, None)
            state = state if module is None else module(state)
        logits = self.unembed(state)
        factor, divisor, cap = (
            self.setting(name, self.model)
            for name in (self.parts.logit_factor, self.parts.logit_divisor, self.parts.logit_cap)
        )
        logits = logits if factor is None else logits * factor
        logits = logits if divisor is None else logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # ---- checks that everybody shares

    def check_block(self, block: int) -> int:
        """The block as an int. Raises BlockOutOfRange."""
        found = whole(block)
        if found is None:
            raise errors.BlockOutOfRange(
                "block {value} is not a whole number: choose one from 0 to {last_block}.",
                value=kind_of(block),
                last_block=self.n_blocks - 1,
            )
        if not 0 <= found < self.n_blocks:
            raise errors.BlockOutOfRange(
                "block {found} does not exist: this model has blocks 0 to {last_block}; choose one of them "
                "(hidden state {n_blocks} is the output of block {last_block}).",
                found=found,
                last_block=self.n_blocks - 1,
                n_blocks=self.n_blocks,
            )
        return found

    def check_heads(self, heads: Sequence[int] | int, of_keys: bool = False) -> list[int]:
        """The heads (or, with `of_keys`, the key heads) as a list of ints. Raises HeadOutOfRange."""
        number = self.n_key_heads if of_keys else self.n_heads
        return check_indices(
            heads, number, errors.HeadOutOfRange, "key head" if of_keys else "head", translatable("each block has")
        )

    # ---- running it

    def inputs(self, tokens: Tokens, right_padding: bool = False) -> dict[str, Tensor | bool]:
        """Keyword arguments for `lm.model`: without padding on the left just the ids, as one would write by hand.

        right_padding: allow prompts that are padded on the right. A pass of them needs no mask, since a causal model's real
        tokens never look at what comes after them; but `generate` would go on after the padding. Raises BadValue.
        """
        padded = not tokens.mask.all()
        if padded and not (right_padding or bool(tokens.mask[:, -1].all())):
            raise errors.BadValue(
                "these prompts are padded on the right, and generate would go on after the padding: for "
                "generate, encode them with padding='left' and give it tokens.ids and "
                "attention_mask=tokens.mask.long(); for a pass of which you read real tokens alone, say "
                "lm.inputs(tokens, right_padding=True)."
            )
        if self.longrope_limit is not None:
            self._refuse_both_ropes(tokens.mask.sum(1), self.longrope_limit)
        ids = tokens.ids.view_as(tokens.ids)
        if padded:  # a mask would be NaN in rows of padding alone: edits learn by this what is padding
            ids.real_tokens = tokens.mask  # type: ignore[attr-defined]
        found: dict[str, Tensor | bool] = {"input_ids": ids, "use_cache": False}
        if padded and self.check_left_padding(tokens.mask):
            found["attention_mask"] = tokens.mask.long()
            # Without these, padding on the left would shift the positions of the real tokens.
            found["position_ids"] = (tokens.mask.long().cumsum(1) - 1).clamp(min=0)
        return found

    def _refuse_both_ropes(self, lengths: Tensor, limit: int) -> None:
        if bool((lengths <= limit).any()) and bool((lengths > limit).any()):
            raise errors.BadValue(
                "these prompts have {shortest} to {longest} tokens, and in a batch with one of more than {limit} this model "
                "gives all the rotary positions of long prompts: run those of up to {limit} tokens apart from the longer ones.",
                shortest=int(lengths.min()),
                longest=int(lengths.max()),
                limit=limit,
            )

    def check_left_padding(self, mask: Tensor) -> bool:
        """Whether a real token comes after padding. Raises BadValue where the model cannot run with it."""
        if not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            return False
        eager = self.config._attn_implementation == "eager"
        if eager and self.dtype == torch.float64 and not self.parts.exact_softmax:
            # Their softmax runs in float32, where the mask's lowest float64 number is minus infinity: rows of NaN.
            raise errors.BadValue(
                "padding on the left gives NaN in float64 with eager attention in this family (transformers computes the "
                "softmax in float32), and a generated text would be nonsense: pad on the right for a pass, and load the "
                "model in float32 to generate."
            )
        return True

    @torch.no_grad()
    def logits(self, prompt: str | Sequence[str] | Tensor | Tokens) -> Tensor:
        """(batch, pos, vocabulary) logits of a plain pass, in the mode and with the hooks that the model has now.

        In the dtype that the model gives them: inside torch.autocast, in autocast's.
        """
        tokens = self.encode(prompt)
        return passes.run(self, self.inputs(tokens, right_padding=True), mask=tokens.mask).logits


def check_model(lm: object) -> None:
    """Raises BadValue unless this is a LanguageModel."""
    if not isinstance(lm, LanguageModel):
        raise errors.BadValue(
            "the first argument must be a model of the helpers, not {kind}: make one with load_model() or wrap(model).",
            kind=kind_of(lm),
        )
