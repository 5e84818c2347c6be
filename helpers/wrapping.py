"""wrap: use the helpers on a model that you loaded yourself, after they have been tried on it.

    lm = wrap(model, tokenizer)
    print(lm.certificate)        # what was verified on this very model, to how many digits

A row of FAMILIES is a claim about somebody else's code, and that code changes. So each model gets one short pass of three
prompts of three tokens, and every claim of its row is checked against what the modules really computed: the stream is the
sum of the deltas, the heads go through the output projection, zeroed keys make a head look evenly. A model that fails is
refused with the identity and the block. What one pass cannot show costs one more call of each block's attention and of
one whole block, all together less than two plain passes of 8 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import errors, hooks, passes
from .checks import kind_of
from .families import Family
from .models import LanguageModel, Tokens

TRIED = 4  # blocks whose parts also run alone, spread from the first to the last
SIZE = 3  # prompts, and tokens of each: rolled by 0, 1 and 2, each of three tokens is once the first and once the last

# What is checked, in the words of the certificate.
STREAM = "each block adds attention's and the MLP's delta to the stream"
CHAIN = "what leaves a block enters the next one"
HEADS = "the heads through the output projection are attention's delta"
NEURONS = "the neurons through their projection are the MLP's delta"
LOGITS = "read_out of the last stream gives the logits"
CAUSAL = "no token sees a later one"
KEYS = "a head whose keys are zeroed looks evenly"
OTHERS = "zeroed keys of one head leave the others as they are"
PREACTIVATION = "a very low preactivation shuts its neuron"


@dataclass(frozen=True)
class Certificate:
    """What `wrap` verified on a model, in its own dtype. print() gives one line for each identity.

    digits: by identity, the decimal digits to which it holds in the worst block; passing means as many as the dtype can
    promise (sums exact to its last bits, softmax and logits up to the order of summation). unchecked: by identity, why
    it could not be tried.
    """

    dtype: torch.dtype
    digits: dict[str, int] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        missing = f", {len(self.unchecked)} not checked" if self.unchecked else ""
        return f"certified: {len(self.digits)} identities to {min(self.digits.values())} digits{missing}"

    def __str__(self) -> str:
        lines = [f"certificate, in {self.dtype}:"]
        lines += [f"  {identity}: to {digits} digits" for identity, digits in self.digits.items()]
        lines += [f"  {identity}: not checked ({why})" for identity, why in self.unchecked.items()]
        return "\n".join(lines)


def wrap(
    model: Any, tokenizer: Any = None, *, family: Family | str | None = None, certify: bool = True
) -> LanguageModel:
    """Use the helpers on a transformers causal language model that you loaded yourself; it is put into eval mode.

    Without a tokenizer prompts are tensors of token ids. family: a row of your own for an architecture that is not in
    the table, or the name of another family whose row may fit; by default the row that the model's config names.
    certify: try the row on the model (less than two passes of 8 tokens; `lm.certificate` says what was found). Without
    it a wrong row, or a library that changed, gives wrong numbers: only for models whose every pass is dear.

    Raises UnsupportedFamily, with the identity that fails and where, DidNotRun for a compiled model, or BadValue.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise errors.BadValue(
            f"wrap needs a transformers model, for example AutoModelForCausalLM.from_pretrained(...), not {kind_of(model)}."
        )
    passes.refuse_compiled(model)
    if tokenizer is not None and not callable(tokenizer):
        raise errors.BadValue(
            f"the tokenizer must be a tokenizer and not {kind_of(tokenizer)}: make one with AutoTokenizer.from_pretrained(...)."
        )
    passes.refuse_compiled(model)
    lm = LanguageModel(model, tokenizer, family)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        lm.certificate = _certified(lm) if certify else None
    except BaseException:  # refused, or interrupted: the model is as it was
        for module in training:
            module.training = True
        raise
    return lm


# ---- the short pass


@dataclass
class _Seen:
    """What one pass showed, by name and block: tensors of (prompts, pos, …) in the model's dtype."""

    at: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: dict[str, list[tuple[tuple, dict[str, Any]]]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def keep(self, name: str) -> Callable[..., None]:
        return lambda value, _=None: self.at.setdefault(name, []).append(value.detach().clone())

    def call(self, name: str) -> Callable[[tuple, dict], None]:
        return lambda args, kwargs: self.calls.setdefault(name, []).append((args, kwargs))

    def stacked(self, name: str) -> Tensor:
        """(n_blocks, prompts, pos, width) in float64 on the CPU."""
        found = [value.reshape(SIZE, SIZE, -1).cpu().double() for value in self.at[name]]
        return torch.stack(found)


@torch.no_grad()
def _certified(lm: LanguageModel) -> Certificate:
    cuda = sorted({p.device.index for p in lm.model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        seen = _short_pass(lm)
        judge = _Judge(lm)
        _judge_pass(lm, seen, judge)
        _judge_read_out(lm, seen, judge)
        offloaded = any(parameter.device.type == "meta" for parameter in lm.model.parameters())
        if offloaded:
            # A part of a block called alone may find no weights, and PyTorch then returns memory that nobody wrote.
            judge.unchecked |= dict.fromkeys(
                (KEYS, OTHERS, PREACTIVATION), "weights are offloaded: parts cannot run alone"
            )
        else:
            _judge_keys(lm, seen, judge)
            _judge_preactivation(lm, seen, judge)
    return Certificate(lm.dtype, judge.digits, judge.unchecked)


def _short_pass(lm: LanguageModel) -> _Seen:
    step = max(1, lm.vocabulary // 11)
    # Row 1 differs from row 0 in the last token alone: what is equal in both comes from a causal model.
    ids = torch.tensor([[1, 2, 3], [1, 2, 4], [5, 6, 7]]).mul(step).add(1).remainder(lm.vocabulary)
    parts, seen, handles = lm.parts, _Seen(), []
    through = {"heads": (parts.heads_out, parts.attention_delta), "neurons": (parts.neurons_out, parts.mlp_delta)}
    try:
        for block, module in enumerate(lm.blocks):
            handles.append(hooks.on_input(module, seen.keep("entered")))
            handles.append(hooks.on_output(module, seen.keep("left")))
            for site in ("attention", "mlp"):
                handles += hooks.on_site(lm, site, block, seen.keep(site))
        for block in _tried(lm):
            handles += hooks.on_site(lm, "heads", block, seen.keep("heads"))
            handles.append(hooks.on_call(lm.part(block, parts.attention), seen.call("attention")))
            for name, (projection, delta) in through.items():
                if projection:
                    handles.append(hooks.on_output(lm.part(block, projection), seen.keep(f"{name} projected")))
                    last = delta in (parts.attention, parts.mlp, projection)  # else a norm or dropout that follows
                    see = seen.keep(f"{name} delta")
                    handles.append((hooks.on_output if last else hooks.on_input)(lm.part(block, delta), see))
        handles.append(hooks.on_call(lm.part(0, ""), seen.call("block 0")))
        handles.append(hooks.on_input(lm.final_norm, seen.keep("last")))
        inputs = lm.inputs(Tokens(ids.to(lm.device), torch.ones_like(ids, dtype=torch.bool)))
        # Not even if the config asks for them: transformers would install recorders that stay.
        found = lm.model(**inputs, output_hidden_states=False, output_attentions=False)
        seen.logits = found.logits.cpu().double()
    except errors.HelpersError:
        raise
    except Exception as error:
        raise errors.UnsupportedFamily(
            f"this {lm.family!r} model cannot run a pass of {SIZE} prompts of {SIZE} tokens "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}): mend that first, "
            "or give the model that can."
        ) from error
    finally:
        hooks.remove(handles)
    return seen


# ---- the identities

_WAY_OUT = "Give a row that fits it, wrap(model, tokenizer, family=Family(...)), as docs/families.md shows."


def _tried(lm: LanguageModel) -> list[int]:
    return sorted({round(k * (lm.n_blocks - 1) / (TRIED - 1)) for k in range(TRIED)})


class _Judge:
    """Collects how far each identity holds, and refuses the model where one does not."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.dtype = lm, lm.dtype
        self.digits: dict[str, int] = {}
        self.unchecked: dict[str, str] = {}
        eps = torch.finfo(self.dtype).eps
        self.exact = 2 * eps  # a sum of three numbers, in whatever order it was made
        # The same product in another shape (half precision adds up in float32, so it strays by fewer of its own last bits),
        # or a softmax that transformers makes in float32 also in float64.
        self.close = {torch.float64: 2e-6, torch.float32: 1e-5}.get(self.dtype, 8 * eps)
        if getattr(lm.model, "is_quantized", False):  # 8-bit products depend on what else is in the batch
            self.close = max(self.close, 0.05)

    def near(
        self, identity: str, found: Tensor, expected: Tensor, scale: Tensor | None = None, blocks: Sequence[int] = ()
    ) -> None:
        """Axis 0 is blocks, all or these. scale: of each number, where the identity is exact; else of each block."""
        far = (found - expected).abs().flatten(1)
        size = expected.abs().flatten(1).amax(1, keepdim=True) if scale is None else scale.flatten(1)
        off = torch.where(far == 0, 0.0, far / size.clamp(min=1e-300)).amax(1)
        bound = self.close if scale is None else self.exact
        for block in (~(off <= bound)).nonzero().flatten().tolist():
            self.refuse(identity, f"block {blocks[block] if blocks else block}", off[block].item(), bound)
        self.note(identity, off.max().item())

    def note(self, identity: str, off: float) -> None:
        digits = math.floor(-math.log10(max(off, torch.finfo(self.dtype).eps)))
        self.digits[identity] = min(digits, self.digits.get(identity, digits))

    def refuse(self, identity: str, place: str, off: float, bound: float) -> None:
        lm = self.lm
        watched = hooks.has_other_hooks(lm.model, [])
        way_out = (
            "A hook hangs on the model, which may be the reason: take it off and wrap again." if watched else _WAY_OUT
        )
        raise errors.UnsupportedFamily(
            f"the row for this {lm.family!r} model is wrong at {place}: it says that {identity}, but that is off by {off:.2g} of "
            f"its size, and {str(lm.dtype).removeprefix('torch.')} allows {bound:.1g}. {way_out}"
        )


def _judge_pass(lm: LanguageModel, seen: _Seen, judge: _Judge) -> None:
    tried = _tried(lm)
    all_of = {
        "entered": "blocks",
        "attention": "attention_delta modules",
        "mlp": "mlp_delta modules",
        "heads": "heads_out modules",
    }
    for name, what in all_of.items():
        number, ran = len(tried) if name == "heads" else lm.n_blocks, len(seen.at.get(name, []))
        if ran != number:
            raise errors.UnsupportedFamily(
                f"in a plain pass of this {lm.family!r} model {number} {what} ran {ran} times in all, and each should run once: "
                f"the row names modules that do not run, or the model skips or repeats some. {_WAY_OUT}"
            )
    for name, values in seen.at.items():
        width = lm.d_head if name == "heads" else lm.d_model
        wrong = next((value.shape[-1] for value in values if value.shape[-1] != width), None)
        if wrong is not None:
            raise errors.UnsupportedFamily(
                f"the row for this {lm.family!r} model is wrong: {wrong} numbers per token where {width} were expected, at "
                f"{all_of.get(name, name)!r}. {_WAY_OUT}"
            )
    entered, left, attention, mlp = (seen.stacked(name) for name in ("entered", "left", "attention", "mlp"))
    handed_on = torch.cat([entered[1:], seen.stacked("last")])
    judge.near(CHAIN, handed_on, left, left.abs())
    judge.near(STREAM, left, entered + attention + mlp, entered.abs() + attention.abs() + mlp.abs() + left.abs())
    for name, identity in (("heads", HEADS), ("neurons", NEURONS)):
        if f"{name} projected" in seen.at:
            found, expected = seen.stacked(f"{name} delta"), seen.stacked(f"{name} projected")
            judge.near(identity, found, expected, expected.abs(), tried)
    judge.near(CAUSAL, left[:, 1, :2], left[:, 0, :2])


def _judge_read_out(lm: LanguageModel, seen: _Seen, judge: _Judge) -> None:
    found = lm.read_out(seen.at["left"][-1][:, -1:]).cpu().double()[:, 0]
    expected = seen.logits[:, -1]
    off = (found - expected).norm() / expected.norm().clamp(min=1e-300)
    if not off <= judge.close:
        judge.refuse(LOGITS, "the end", off.item(), judge.close)
    judge.note(LOGITS, off.item())


def _judge_keys(lm: LanguageModel, seen: _Seen, judge: _Judge) -> None:
    """Some blocks' attention again, on the first prompt rolled by 0, 1 and 2, with the keys of one head at zero.

    A row's first token sees itself alone, so the three rows show each token's values by itself; the last token of each
    row must have their mean.
    """
    for number, block in enumerate(_tried(lm)):
        key_head = number % lm.n_key_heads
        call = seen.calls["attention"][number]
        heads = _alone(lm, lm.attention(block), block, call, "heads", ("keys", _shut(key_head)))
        clean = seen.at["heads"][number][0].cpu().double()
        mine = torch.arange(lm.n_heads) // (lm.n_heads // lm.n_key_heads) == key_head
        share = _share_of_tokens(lm, block)[:, mine, None]  # (pos, heads, 1): all, without a sink
        values, last = heads[:, 0, mine] / share[0], heads[:, -1, mine] / share[-1]
        judge.near(KEYS, last[None], values.mean(0).expand_as(last)[None], blocks=[block])
        alone, before = (
            heads[0, 0, mine],
            clean[0, mine],
        )  # a token that sees itself alone has its own value, keys or not
        if lm.parts.sinks:  # and the sink's share of nothing, which keys do change
            alone, before = (nn.functional.normalize(value, dim=-1) for value in (alone, before))
        judge.near(KEYS, alone[None], before[None], blocks=[block])
        if not mine.all():
            judge.near(OTHERS, heads[0, :, ~mine][None], clean[:, ~mine][None], blocks=[block])


def _judge_preactivation(lm: LanguageModel, seen: _Seen, judge: _Judge) -> None:
    """Block 0 again, with every preactivation at −1000, where the usual activation functions are 0."""
    names = [lm.setting(name) for name in ("hidden_act", "activation_function", "hidden_activation", "activation")]
    if not lm.parts.neurons_out:
        return
    if any(name in ("linear", "tanh", "leaky_relu", "xielu") for name in names):
        judge.unchecked[PREACTIVATION] = "this activation function is not 0 there"
    else:
        widths = []

        def low(value: Tensor, _: Tensor) -> Tensor:
            widths.append(value.shape[-1])
            return torch.full_like(value, -1000.0)

        neurons = _alone(lm, lm.blocks[0], 0, seen.calls["block 0"][0], "neurons", ("preactivation", low))
        off = neurons.abs().max().item() if widths == [lm.d_mlp] else math.inf
        if not off <= judge.close:
            judge.refuse(PREACTIVATION, "block 0", off, judge.close)
        judge.note(PREACTIVATION, off)


def _shut(key_head: int) -> Callable[[Tensor, Tensor], Tensor]:
    def zero(keys: Tensor, _: Tensor) -> Tensor:
        new = keys.clone()
        new[:, :, key_head] = 0
        return new

    return zero


def _share_of_tokens(lm: LanguageModel, block: int) -> Tensor:
    """(pos, n_heads): what zeroed keys leave to the tokens, the rest going to the sink."""
    if not lm.parts.sinks:
        return torch.ones(SIZE, lm.n_heads, dtype=torch.float64)
    sink = getattr(lm.attention(block), lm.parts.sinks).detach().cpu().double().exp()
    tokens = torch.arange(1, SIZE + 1, dtype=torch.float64)[:, None]
    return tokens / (tokens + sink)


def _alone(
    lm: LanguageModel, module: nn.Module, block: int, call: tuple[tuple, dict], site: str, edit: tuple[str, Callable]
) -> Tensor:
    """The value at a site when a part of the model runs by itself, on the first prompt rolled, with an edit."""
    args, kwargs = call
    stream = hooks.entering(args, kwargs)[0]
    rolled = torch.stack([stream.roll(-shift, dims=0) for shift in range(SIZE)])
    # Without a cache: a filled one would show the old keys. Masks and positions are the same for every prompt.
    named = {name: None if hasattr(value, "get_seq_length") else value for name, value in kwargs.items()}
    given = (rolled, *args[1:]) if args else ()
    named = named if args else {**named, "hidden_states": rolled}
    found: list[Tensor] = []
    handles: list[RemovableHandle] = []
    try:
        handles += hooks.on_site(lm, edit[0], block, edit[1], prepend=True)
        handles += hooks.on_site(lm, site, block, lambda value, _: found.append(value.detach().cpu().double()))
        module(*given, **named)
    finally:
        hooks.remove(handles)
    return found[0]
