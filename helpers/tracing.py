"""One forward pass, and everything the lessons look at.

    clean = trace(lm, "Berlin is the capital of")
    clean.resid[3]        # the residual stream that enters block 3, (batch, pos, d_model)

    loss = lambda found: found.last_logits[:, berlin].sum()
    trace(lm, prompt, gradients=loss).gradients.heads[5]     # of one number, with respect to the heads of block 5

The recorders are hooks of our own, registered last and only for this pass, so they see every edit and every hook of the
learner's, whatever ran before; `output.hidden_states` is never read (helpers/hooks.py explains why). Each must be called
exactly once, else the pass raises DidNotRun: what a trace holds was written in this pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import causes, errors, hooks, passes
from .models import LanguageModel, Tokens, check_model
from .say import say
from .sites import hides_deltas


@dataclass(frozen=True)
class Gradients:
    """The gradient of one number with respect to what a pass computed, in the model's dtype: shapes as in Trace.

    Each is taken at its own place, with all that comes later depending on it: at a skipped block attn and mlp have none.
    """

    value: float  # the number itself
    resid: Tensor  # (n_blocks + 1, batch, pos, d_model)
    attn: Tensor  # (n_blocks, batch, pos, d_model)
    mlp: Tensor  # (n_blocks, batch, pos, d_model)
    heads: Tensor  # (n_blocks, batch, pos, n_heads, d_head)


@dataclass(frozen=True)
class Trace:
    """What one pass left behind. All tensors are copies without gradient, in the model's dtype.

    resid[l], (batch, pos, d_model), enters block l and resid[n_blocks] leaves the last block, before the final norm. In a
    pass without edits resid[l + 1] == resid[l] + attn[l] + mlp[l]. At a skipped block attn and mlp are what it computed
    in vain. Inside torch.autocast what the model computes in 16 bits is exact to those only, this sum too, and logits are of
    autocast's dtype.
    """

    tokens: Tensor  # (batch, pos) ids
    mask: Tensor  # (batch, pos) False where padded
    resid: Tensor  # (n_blocks + 1, batch, pos, d_model)
    attn: Tensor  # (n_blocks, batch, pos, d_model): what attention adds to the stream
    mlp: Tensor  # (n_blocks, batch, pos, d_model): what the MLP adds
    heads: Tensor  # (n_blocks, batch, pos, n_heads, d_head): the input of the output projection
    final: Tensor | None  # (batch, pos, d_model) after the final norm; None if the pass stopped before
    logits: Tensor | None  # (batch, pos, vocabulary); None if the pass stopped before
    gradients: Gradients | None = None  # only if they were asked for

    @property
    def last_logits(self) -> Tensor:
        """(batch, vocabulary) logits at each prompt's last real token. Raises BadValue if the pass stopped before."""
        if self.logits is None:
            raise errors.BadValue("this trace stopped at a block and has no logits: trace again without stop_after.")
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        return self.logits[rows, Tokens(self.tokens, self.mask).last]


Prompt = str | Sequence[str] | Tensor | Tokens


def trace(
    lm: LanguageModel,
    prompt: Prompt,
    stop_after: int | None = None,
    *,
    gradients: Callable[[Trace], Tensor] | None = None,
) -> Trace:
    """Run one pass and record the residual stream, both deltas and the heads of every block, the final state and logits.

    prompt: text, a list of texts (padded on the right), ids, or Tokens from `lm.encode`. stop_after: leave the pass after
    this block, without the work of the later ones; resid then ends with the output of that block, and final and logits
    are None. The model's mode and hooks stay as they are.

    gradients: a function that makes one number from the trace, for example a logit difference; `Trace.gradients` then
    holds its gradient with respect to every recorded value, as attribution patching needs it (Nanda 2023, Syed et al.
    2023). No parameter's `grad` is touched.

    Raises BadPrompt, PromptTooLong, BlockOutOfRange; DidNotRun if a part is compiled, replaced or left out; BadValue for
    gradients of no number.
    """
    check_model(lm)
    causes.refuse_compiled(lm.model)
    tokens = lm.encode(prompt)
    n = lm.n_blocks if stop_after is None else lm.check_block(stop_after) + 1
    if gradients is None:
        with torch.no_grad():
            return _Recorder(lm, tokens, n, learning=False).run(stop_after is not None)
    if not callable(gradients):
        raise errors.BadValue(
            "gradients must be a function that makes one number from a trace, not {gradients!r}: for example "
            "lambda found: found.last_logits[0, 5].",
            gradients=gradients,
        )
    if torch.is_inference_mode_enabled():
        raise errors.BadValue("inside torch.inference_mode() nothing has a gradient: trace outside of it.")
    with torch.enable_grad():
        causes.refuse_checkpointing(lm)
        recorder = _Recorder(lm, tokens, n, learning=True)
        return recorder.differentiated(recorder.run(stop_after is not None), gradients)


class _Recorder:
    """The hooks of one trace. Without gradients each copies into memory of its own; with them each keeps the value itself."""

    def __init__(self, lm: LanguageModel, tokens: Tokens, n: int, learning: bool) -> None:
        self.lm, self.tokens, self.n, self.learning = lm, tokens, n, learning
        shape = tokens.ids.shape
        room = {"dtype": lm.dtype, "device": lm.device}
        self.shapes = {
            "resid": (n + 1, *shape, lm.d_model),
            "attn": (n, *shape, lm.d_model),
            "mlp": (n, *shape, lm.d_model),
            "heads": (n, *shape, lm.n_heads, lm.d_head),
        }
        self.rooms: dict[str, Tensor] = (
            {} if learning else {name: torch.empty(s, **room) for name, s in self.shapes.items()}  # type: ignore[call-overload]
        )
        self.kept: dict[tuple[str, int], Tensor] = {}  # only while learning: the values, still in the pass' graph
        self.times: dict[tuple[str, int], int] = {
            (name, at): 0 for name, s in self.shapes.items() for at in range(s[0])
        }
        self.final: list[Tensor] = []

    def keep(self, name: str, block: int) -> Callable[..., Tensor | None]:
        times, key = self.times, (name, block)
        if self.learning:

            def hold(value: Tensor, _: Tensor | None = None) -> Tensor:
                times[key] += 1
                # A node of its own, which all that follows is computed from; by way of a copy, since some models (Falcon)
                # write into what they are handed.
                self.kept[key] = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
                return self.kept[key].clone()

            return hooks.only_here(hold)
        into = self.rooms[name][block]

        def see(value: Tensor, _: Tensor | None = None) -> None:
            times[key] += 1
            into.copy_(value.reshape(into.shape))  # a copy: a hook that edits in place later must not reach it

        return hooks.only_here(see)

    def run(self, stop: bool) -> Trace:
        lm, n, hidden = self.lm, self.n, hides_deltas(self.lm)
        inputs = lm.inputs(self.tokens, right_padding=True)
        handles: list[RemovableHandle] = []

        def leave(value: Tensor) -> None:
            self.keep("resid", n)(value)
            raise passes.Left

        try:
            try:
                for block in range(n):
                    handles.append(hooks.on_input(lm.part(block, ""), self.keep("resid", block)))
                    if hidden:
                        self._differences(block, handles)
                    else:
                        handles += hooks.on_site(lm, "attention", block, self.keep("attn", block))
                        handles += hooks.on_site(lm, "mlp", block, self.keep("mlp", block))
                    handles += hooks.on_site(lm, "heads", block, self.keep("heads", block))
                after = lm.part(n, "") if n < lm.n_blocks else lm.final_norm
                if stop:
                    handles.append(hooks.on_input(after, hooks.only_here(leave)))
                else:
                    handles.append(hooks.on_input(after, self.keep("resid", n)))
                    keep_final = hooks.only_here(lambda value, _: self.final.append(value.clone()))
                    handles.append(hooks.on_output(after, keep_final))
                output = passes.run(
                    lm, inputs, n, self.tokens.mask
                )  # no `try:` here: CPython 3.11 leaves it open to an interrupt
            finally:
                hooks.remove(handles)
        finally:
            hooks.remove(handles)  # once more: an interrupt may arrive during the first
        self._check()
        resid, attn, mlp, heads = (self._whole(name) for name in self.shapes)
        final = self.final[0] if self.final else None
        logits = None if output is None else output.logits
        return Trace(self.tokens.ids, self.tokens.mask, resid, attn, mlp, heads, final, logits)

    def _whole(self, name: str) -> Tensor:
        if not self.learning:
            return self.rooms[name]
        number, *shape = self.shapes[name]
        return torch.stack([self.kept[name, at].reshape(shape) for at in range(number)])

    def _check(self) -> None:
        """Each recorder was called once: nothing that is handed out is memory which nobody wrote. Raises DidNotRun."""
        sites = {"resid": "block", "attn": "attention", "mlp": "mlp", "heads": "heads"}
        for (name, block), number in sorted(self.times.items(), key=lambda item: item[0][1]):
            if number == 1:
                continue
            if block == self.lm.n_blocks:
                raise causes.norm_ran(number)
            if number == 0 and block == self.n and name == "resid":
                what = say("the pass could not stop before block {block}", block=block)
            else:
                what = say("{site!r} of block {block} could not be traced", site=sites[name], block=block)
            raise causes.did_not_run(self.lm, what, sites[name], block, number)

    def _differences(self, block: int, handles: list[RemovableHandle]) -> None:
        """Where dropout is no module, what is added to the stream is only visible as a difference of the stream itself."""
        if self.learning:
            raise errors.BadValue(
                "in train mode this family's dropout is a function that no hook can see, so its deltas have no "
                "gradients of their own: call lm.model.eval() first."
            )
        lm, resid, times = self.lm, self.rooms["resid"][block], self.times
        attn, mlp = self.rooms["attn"][block], self.rooms["mlp"][block]
        middle = torch.empty_like(resid)

        def before_mlp(value: Tensor) -> None:
            times["attn", block] += 1
            middle.copy_(value.reshape(middle.shape))
            attn.copy_(middle - resid)

        def after(value: Tensor, _: Tensor) -> None:
            times["mlp", block] += times["attn", block]
            mlp.copy_(value - middle)

        handles.append(hooks.on_input(lm.part(block, lm.parts.before_mlp), hooks.only_here(before_mlp)))
        # Ahead of the edits: their change to the block's output is not the MLP's.
        handles.append(hooks.on_output(lm.part(block, ""), hooks.only_here(after), prepend=True))

    def differentiated(self, found: Trace, function: Callable[[Trace], Tensor]) -> Trace:
        """The trace without its graph, and with the gradients of `function(found)`."""
        value = function(found)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise errors.BadValue(
                "gradients must make one number from a trace, but its function made {got}: sum it.", got=got
            )
        if not value.requires_grad:
            raise errors.BadValue(
                "the number that gradients made does not depend on the pass: make it from the trace it is given, "
                "without .detach(), .item() or torch.no_grad()."
            )
        places = list(self.kept)
        slopes = torch.autograd.grad(value.reshape(()), [self.kept[place] for place in places], allow_unused=True)
        grads = {name: torch.zeros(s, dtype=self.lm.dtype, device=self.lm.device) for name, s in self.shapes.items()}
        for (name, block), slope in zip(places, slopes, strict=True):
            if slope is not None:
                grads[name][block] = slope.reshape(grads[name][block].shape)
        plain = {name: tensor.detach() for name, tensor in vars(found).items() if isinstance(tensor, Tensor)}
        return replace(found, **plain, gradients=Gradients(value.item(), **grads))
