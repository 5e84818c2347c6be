"""Find and load a causal language model, and say where its parts are.

    lm = load_model()                       # the pocket model that ships with the course: offline, float64
    lm = load_model("gpt2")                 # a name on the model hub, from the network or the local cache
    lm = load_model("folder/with/a/model")  # a local folder
    lm = wrap(model, tokenizer)             # a transformers model that you loaded yourself

`lm.model` is the plain transformers model and stays plain. FAMILIES is the one table that says where each architecture
keeps its parts; nothing else in this package knows a module's name.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import errors

POCKET_FOLDER = Path(__file__).resolve().parent / "pocket"
# Below this many parameters one thread is faster than two on a busy machine: threads of a small pass wait for each other.
ONE_THREAD_BELOW = 50_000_000


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts. Paths of the second group are relative to a block."""

    blocks: str
    final_norm: str
    attention: str
    mlp: str
    attention_delta: str  # the module whose output is added to the residual stream
    mlp_delta: str
    heads_out: str  # the output projection: its input is the heads, side by side
    keys: str  # the module whose output holds the keys ...
    keys_layout: str  # ... "alone", "q|k|v" (all queries, all keys, all values) or "per head" (q, k, v of each head)
    preactivation: str  # the module whose output goes into the activation function
    neurons_out: str  # the projection back to the stream: its input is the neurons after the activation
    functional_dropout: bool = False  # dropout between a delta and the stream that is no module, so no hook can see it
    before_mlp: str = ""  # only for those: the norm that reads the stream between attention and MLP


_LLAMA = Family(
    "model.layers", "model.norm", "self_attn", "mlp", "self_attn", "mlp", "self_attn.o_proj",
    "self_attn.k_proj", "alone", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip
_GEMMA = Family(
    "model.layers", "model.norm", "self_attn", "mlp", "post_attention_layernorm", "post_feedforward_layernorm",
    "self_attn.o_proj", "self_attn.k_proj", "alone", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.c_proj",
        "attn.c_attn", "q|k|v", "mlp.c_fc", "mlp.c_proj",
    ),
    "gpt_neo": Family(
        "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.attention.out_proj",
        "attn.attention.k_proj", "alone", "mlp.c_fc", "mlp.c_proj",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "post_attention_dropout",
        "post_mlp_dropout", "attention.dense", "attention.query_key_value", "per head", "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "opt": Family(
        "model.decoder.layers", "model.decoder.final_layer_norm", "self_attn", "fc2", "self_attn", "fc2",
        "self_attn.out_proj", "self_attn.k_proj", "alone", "fc1", "fc2",
        functional_dropout=True, before_mlp="final_layer_norm",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
}  # fmt: skip


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise errors.UnsupportedFamily(
            f"{name!r} models are not in the table of families; it has {', '.join(FAMILIES)}. "
            "Choose a model of one of these, or add a row to helpers.models.FAMILIES that says where the parts are."
        )
    return FAMILIES[name]


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
        self.parts = _family(self.family)
        self.model, self.tokenizer = model, tokenizer
        # Edits that are on now, in groups, outermost `with` first, and their handles: helpers/edits.py keeps them here.
        self.live_edits: list[list[Any]] = []
        self.edit_handles: list[RemovableHandle] = []
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
            self.blocks: list[nn.Module] = list(model.get_submodule(self.parts.blocks))
            self.final_norm = model.get_submodule(self.parts.final_norm)
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
    def n_blocks(self) -> int:
        return len(self.blocks)

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
        return self.blocks[block].get_submodule(path)

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
                f"block {_kind(block)} is not a whole number: choose one from 0 to {self.n_blocks - 1}."
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
                f"a prompt must be text, a list of texts or a tensor of token ids, but this is {_kind(prompt)}."
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
                f"a target must be text, for example ' Germany', but this is {_kind(text)}."
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


def _kind(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if len(repr(value)) < 60 else f"a {type(value).__name__}"


def check_model(lm: object) -> None:
    """Raises BadValue unless this is a LanguageModel."""
    if not isinstance(lm, LanguageModel):
        raise errors.BadValue(
            f"the first argument must be a model of the helpers, not {_kind(lm)}: make one with load_model() or wrap(model)."
        )


def whole(value: object) -> int | None:
    """The int that a whole number stands for, NumPy's and PyTorch's included; None for anything else, bools too."""
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def whole_numbers(values: object, kind: type[errors.HelpersError], name: str) -> tuple[int, ...]:
    """Whole numbers from a single one or several. Raises `kind`."""
    single = whole(values)
    given = [values] if single is not None else list(values) if isinstance(values, Iterable) else []
    found = [whole(value) for value in given]
    if not found or None in found:
        raise kind(f"{values!r} does not name {name}s: give whole numbers, counted from 0, for example 3 or [0, 3].")
    return tuple(value for value in found if value is not None)


def check_indices(
    values: Sequence[int] | int, number: int, kind: type[errors.HelpersError], name: str, owner: str
) -> list[int]:
    """A list of indices in 0 … number − 1, without repeats; a single index counts as a list of one."""
    found = list(whole_numbers(values, kind, name))
    for value in found:
        if not 0 <= value < number:
            raise kind(f"{name} {value} does not exist: {owner} {name}s 0 to {number - 1}; choose from them.")
    if len(set(found)) < len(found):
        raise kind(f"{name}s {found} name one more than once: give each only once.")
    return found


# ---- loading

# Any one of these makes a folder one with a tokenizer. Without this check transformers 5 makes up an empty tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
_WAY_OUT = "use load_model() for the model that ships with the course, or pass a folder that holds the model"


def load_model(
    name: str | Path = "pocket", *, dtype: torch.dtype | None = None, threads: int | None = None
) -> LanguageModel:
    """Load a model and its tokenizer, ready for lessons: eval mode, eager attention (so that attention patterns can be read),
    GPT-2's GELU in one kernel (equal up to rounding, and sweeps are faster).

    name: "pocket" (ships with the package; runs in float64, so that printed figures are the same on every machine), a
    local folder, or the name of a model on the hub: from the cache if it is there, else from the network. Code that
    comes with a model is never run, and only safetensors are read. dtype: overrides the model's own. threads: PyTorch
    threads for this process; by default one for models below 50M parameters (unless OMP_NUM_THREADS is set), and
    unchanged for larger ones.

    Raises UnknownModel, NoNetwork, DamagedWeights, UnsupportedFamily or BadValue.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise errors.BadValue(f"dtype {dtype!r} cannot be used: give a floating dtype, for example torch.float32.")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise errors.BadValue(f"threads {threads!r} cannot be used: give a whole number, 1 or more.")
    source = _find(name)
    with _explained(str(name), source), _quiet(download=not isinstance(source, Path)):
        model, tokenizer = _read(str(name), source, dtype or (torch.float64 if source == POCKET_FOLDER else "auto"))
    if threads is not None:
        torch.set_num_threads(threads)
    elif model.num_parameters() < ONE_THREAD_BELOW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return wrap(model, tokenizer)


def wrap(model: Any, tokenizer: Any = None) -> LanguageModel:
    """Use the helpers on a transformers causal language model that you loaded yourself; it is put into eval mode.

    Without a tokenizer prompts are tensors of token ids. Raises UnsupportedFamily or BadValue.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise errors.BadValue(
            f"wrap needs a transformers model, for example AutoModelForCausalLM.from_pretrained(...), not {_kind(model)}."
        )
    lm = LanguageModel(model, tokenizer)
    model.eval()
    return lm


def _find(name: str | Path) -> str | Path:
    """Where a model is: a folder that holds everything, or else a hub name that the hub has to be asked for."""
    if not isinstance(name, str | Path) or not str(name).strip():
        raise errors.UnknownModel(
            f"{name!r} is not the name of a model: use 'pocket', a hub name such as 'gpt2', or a folder."
        )
    text, path = str(name), Path(name).expanduser()
    if text == "pocket":
        if not (POCKET_FOLDER / "model.safetensors").is_file():
            raise errors.UnknownModel(
                "the pocket model is not here: the package was installed without helpers/pocket. Install it again from a "
                "whole copy of the course, or name another model."
            )
        return POCKET_FOLDER
    if path.is_dir():
        _check_folder(text, path)
        return path
    if path.is_file():
        raise errors.UnknownModel(f"{text!r} is a file: pass the folder that it is in.")
    if isinstance(name, Path) or text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1:
        raise errors.UnknownModel(f"there is no folder {text!r}: check the path, or {_WAY_OUT}.")
    return _snapshot(text) or text


def _check_folder(name: str, folder: Path) -> None:
    def has(*files: str) -> bool:
        return any((folder / file).is_file() for file in files)

    if not has("config.json"):
        raise errors.UnknownModel(
            f"the folder {name!r} holds no model (no config.json): save one there with save_pretrained, or {_WAY_OUT}."
        )
    if not has(*_WEIGHTS_FILES):
        raise errors.UnknownModel(
            f"the folder {name!r} holds no model.safetensors (other formats can run code when they are read and are not "
            f"loaded here): save it again with save_pretrained, or {_WAY_OUT}."
        )
    if not has(*_TOKENIZER_FILES):
        raise errors.UnknownModel(
            f"the folder {name!r} holds no tokenizer (no tokenizer.json): save it there with tokenizer.save_pretrained."
        )


def _snapshot(name: str) -> Path | None:
    """The folder in the hub's cache that holds all of a model. Read as a folder it needs no network, not even to ask."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise errors.UnknownModel(
            f"{name!r} is not the name of a model: hub names look like 'gpt2' or 'EleutherAI/pythia-70m'. Or {_WAY_OUT}."
        ) from None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        _check_folder(name, folder)
    except errors.UnknownModel:
        return None  # fetched in part only
    return folder


def _ask_hub(name: str) -> None:
    """Raise NoNetwork within seconds if the hub does not answer: transformers would try again and again for most of a minute."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session

    try:
        answer = get_session().head(hf_hub_url(name, "config.json"), timeout=5)
    except Exception:  # every HTTP library has its own, and offline mode another
        reachable = False
    else:
        reachable = answer.status_code < 500
    if not reachable:
        raise errors.NoNetwork(
            f"{name!r} is not on this machine and the model hub does not answer: connect once so that it is cached, {_WAY_OUT}."
        )


def _read(name: str, source: str | Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and tokenizer, checked to be whole. No code that comes with the model is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

    if not isinstance(source, Path):
        _ask_hub(name)
    config, _ = PretrainedConfig.get_config_dict(str(source))
    _family(config.get("model_type", "unknown"))  # before gigabytes are fetched
    # GPT-2's GELU is spelt out in eight operations; PyTorch has the same formula as one, and a sweep waits for it.
    same = {"activation_function": "gelu_pytorch_tanh"} if config.get("activation_function") == "gelu_new" else {}
    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(source), dtype=dtype, attn_implementation="eager", use_safetensors=True, trust_remote_code=False,
        output_loading_info=True, **same,
    )  # fmt: skip
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would fill them with random numbers and only warn
        raise errors.DamagedWeights(
            f"the weights of {name!r} lack {len(missing)} tensors ({missing[0]}, …): the file is not whole or belongs to "
            "another model. Fetch it again."
        )
    blocks = f"{_family(model.config.model_type).blocks.split('.')[-1]}.{model.config.num_hidden_layers}."
    if any(blocks in key for key in info["unexpected_keys"]):  # transformers would leave the rest of the model out
        raise errors.DamagedWeights(
            f"the weights of {name!r} hold more than the {model.config.num_hidden_layers} blocks that its config.json "
            "names: the two files do not belong together. Fetch them again."
        )
    return model, tokenizer


@contextmanager
def _quiet(download: bool):
    """No bars and no reports while a folder is read: they differ from run to run. The learner's own settings come back."""
    from transformers.utils import logging

    if download:  # here a bar is welcome
        yield
        return
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _explained(name: str, source: str | Path):
    """Turn what the loading libraries raise into one sentence."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from safetensors import SafetensorError

    try:
        yield
    except errors.HelpersError:
        raise
    except SafetensorError:
        raise errors.DamagedWeights(
            f"the weights of {name!r} cannot be read: the file is damaged or was cut off while it was copied. Fetch it again."
        ) from None
    except Exception as error:
        # transformers wraps the hub's own exceptions, so the reason may lie further down the chain.
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        if any(isinstance(e, RepositoryNotFoundError) for e in chain):
            raise errors.UnknownModel(
                f"the hub has no public model {name!r}: check the spelling, or {_WAY_OUT}."
            ) from None
        if isinstance(source, Path):
            raise errors.DamagedWeights(
                f"the model in {name!r} cannot be loaded: its files are damaged or do not belong together. Copy it again."
            ) from error
        raise errors.UnknownModel(
            f"{name!r} cannot be loaded as a language model ({str(error).splitlines()[0]}): {_WAY_OUT}."
        ) from error
