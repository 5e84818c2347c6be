"""What is verified on a model before it is used: every claim that its row of FAMILIES makes about somebody else's code.

The stream is the sum of the deltas, the heads go through the output projection, zeroed keys make a head look evenly. Most
of it shows in one short pass (helpers/shortpass.py). What one pass cannot show costs another call of four blocks'
attention, two of the first one's, and one of a whole block: from four blocks on less than two plain passes of 8 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import errors, foreign
from .causes import several_dtypes
from .models import LanguageModel
from .say import say, translatable
from .shortpass import SIZE, Seen, run_alone, short_pass, tried_blocks

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


@torch.no_grad()
def verify(lm: LanguageModel) -> Certificate:
    cuda = sorted({p.device.index for p in lm.model.parameters() if p.device.type == "cuda"})
    # In the model's own dtype: in autocast, which may be on around `wrap`, nothing holds to more than its 16 bits.
    with torch.random.fork_rng(devices=cuda), torch.autocast(lm.device.type, enabled=False):
        seen = short_pass(lm)
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
            _refuse_queries(lm, seen)
            _judge_preactivation(lm, seen, judge)
    return Certificate(lm.dtype, judge.digits, judge.unchecked)


# ---- the identities

_WAY_OUT = translatable(
    "Give a row that fits it, wrap(model, tokenizer, family=Family(...)), as docs/families.md shows."
)


class _Judge:
    """Collects how far each identity holds, and refuses the model where one does not."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.dtype = lm, lm.dtype
        self.digits: dict[str, int] = {}
        self.unchecked: dict[str, str] = {}
        self.exact = 2 * torch.finfo(self.dtype).eps  # a sum of three numbers, in whatever order it was made
        self.close = self.close_in(self.dtype)

    def close_in(self, dtype: torch.dtype) -> float:
        """The same product in another shape (half precision adds up in float32, so it strays by fewer of its own last bits),
        or a softmax that transformers makes in float32 also in float64.
        """
        close = {torch.float64: 2e-6, torch.float32: 1e-5}.get(dtype, 8 * torch.finfo(dtype).eps)
        # 8-bit products depend on what else is in the batch
        return max(close, 0.05) if getattr(self.lm.model, "is_quantized", False) else close

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
        hooked = (lm.hooks_of_others or foreign.hooks_on_all_modules()) and say(
            "A hook hangs on the model, which may be the reason: take it off and wrap again."
        )
        way_out = several_dtypes(lm.model) or hooked or say(_WAY_OUT)
        raise errors.UnsupportedFamily(
            "the row for this {family!r} model is wrong at {place}: it says that {identity}, but that is off "
            "by {off} of its size, and {dtype} allows {bound}. {way_out}",
            family=lm.family,
            place=place,
            identity=identity,
            off=f"{off:.2g}",
            dtype=str(lm.dtype).removeprefix("torch."),
            bound=f"{bound:.1g}",
            way_out=way_out,
        )


def _judge_pass(lm: LanguageModel, seen: Seen, judge: _Judge) -> None:
    tried = tried_blocks(lm)
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
                "in a plain pass of this {family!r} model {number} {what} ran {ran} times in all, and each "
                "should run once: the row names modules that do not run, or the model skips or repeats some. "
                "{way_out}",
                family=lm.family,
                number=number,
                what=what,
                ran=ran,
                way_out=say(_WAY_OUT),
            )
    for name, values in seen.at.items():
        width = lm.d_head if name == "heads" else lm.d_model
        wrong = next((value.shape[-1] for value in values if value.shape[-1] != width), None)
        if wrong is not None:
            raise errors.UnsupportedFamily(
                "the row for this {family!r} model is wrong: {wrong} numbers per token where {width} were "
                "expected, at {part!r}. {way_out}",
                family=lm.family,
                wrong=wrong,
                width=width,
                part=all_of.get(name, name),
                way_out=say(_WAY_OUT),
            )
    other = next((value.dtype for value in seen.at["entered"] + seen.at["left"] if value.dtype != lm.dtype), None)
    if other is not None:
        raise errors.UnsupportedFamily(
            "the residual stream of this {family!r} model begins in {dtype} and goes on in {other}, and the helpers keep it "
            "in one. {way_out}",
            family=lm.family,
            dtype=str(lm.dtype).removeprefix("torch."),
            other=str(other).removeprefix("torch."),
            way_out=several_dtypes(lm.model) or say(_WAY_OUT),
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


def _judge_read_out(lm: LanguageModel, seen: Seen, judge: _Judge) -> None:
    found = lm.read_out(seen.at["left"][-1][:, -1:])[:, 0]
    close = max(judge.close, judge.close_in(found.dtype))  # the unembedding may compute in another dtype
    expected = seen.logits[:, -1]
    off = (found.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-300)
    if not off <= close:
        judge.refuse(LOGITS, "the end", off.item(), close)
    judge.note(LOGITS, off.item())


def _judge_keys(lm: LanguageModel, seen: Seen, judge: _Judge) -> None:
    """Some blocks' attention again, on the first prompt rolled by 0, 1 and 2, with the keys of one head at zero.

    A row's first token sees itself alone, so the three rows show each token's values by itself; the last token of each
    row must have their mean.
    """
    for number, block in enumerate(tried_blocks(lm)):
        key_head = number % lm.n_key_heads
        call = seen.calls["attention"][number]
        heads = run_alone(lm, lm.attention(block), block, call, "heads", ("keys", _shut(key_head)))
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


def _refuse_queries(lm: LanguageModel, seen: Seen) -> None:
    """Zeroed queries make a head look evenly, too. But a first token's query says nothing to later tokens, and its key does."""

    def first_at_zero(keys: Tensor, _: Tensor) -> Tensor:
        new = keys.clone()
        new[:, 0] = 0
        return new

    block = tried_blocks(lm)[0]
    heads = run_alone(lm, lm.attention(block), block, seen.calls["attention"][0], "heads", ("keys", first_at_zero))
    if torch.equal(heads[0, 1:], seen.at["heads"][0][0, 1:].cpu().double()):
        raise errors.UnsupportedFamily(
            "the row for this {family!r} model is wrong: what it calls keys, {path!r}, changes nothing at later tokens when "
            "that of the first token is zeroed, as if it were queries. {way_out}",
            family=lm.family,
            path=lm.parts.keys,
            way_out=say(_WAY_OUT),
        )


def _judge_preactivation(lm: LanguageModel, seen: Seen, judge: _Judge) -> None:
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

        neurons = run_alone(lm, lm.blocks[0], 0, seen.calls["block 0"][0], "neurons", ("preactivation", low))
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
