"""The only file that registers a PyTorch hook. How hooks, their order and recorders work:

A *forward hook* is a function that PyTorch calls when a module has finished: `hook(module, args, output)`. If it returns
something other than None, that replaces the output. A *pre-hook* is called before the module runs and may replace its
input. Both come from `module.register_forward_hook(...)`, which gives back a handle; `handle.remove()` takes the hook off.

Hooks on one module run in the order in which they were registered, and each sees what the one before it returned. That
is harmless until somebody *records* with a hook: a recorder that was registered before an edit stores the state from
before that edit. transformers 5 fills `output.hidden_states` in just this way, with hooks that it installs at the first
call that asks for hidden states and never removes. An edit that is registered later is real (the next block sees it) but
does not show in `hidden_states`, and nothing warns.

Two rules make the order right whatever ran before:

* edits are registered with `prepend=True`, so that they run ahead of every recorder that is a hook, transformers' own
  included (transformers 4.57 records Llama, Mistral, Qwen and Gemma by wrapping `forward`: there no hook's edit shows);
* our recorders are registered at the end, for one pass, so that they see edits, a learner's raw hooks, everything.

A block returns a plain tensor on transformers 5 and a tuple on 4.57, attention modules return tuples on both: `first` and
`with_first` are the one code path for all of these. Handles are kept by those who made them, and only those are removed.
Hooks receive tensors and return new ones; nothing is edited in place, since others may have recorded the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import causes, passes
from .models import LanguageModel
from .sites import site_of

Seen = Callable[[Tensor, Tensor], Tensor | None]


def first(output: Any) -> Tensor:
    """The hidden state in what a module received or returned: a tensor, or the first element of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first(output: Any, state: Tensor) -> Any:
    """The same form as `output`, with another hidden state in it."""
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


def entering(args: tuple, kwargs: dict) -> Tensor:
    """The residual stream that a block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def remove(handles: list[RemovableHandle]) -> None:
    """Take these hooks off, and no others."""
    while handles:
        handles[-1].remove()  # first off, then forgotten: an interrupt in between must not lose a handle
        handles.pop()


def on_input(module: nn.Module, see: Callable[[Tensor], Tensor | None], prepend: bool = False) -> RemovableHandle:
    """Call `see(input)` before `module` runs; what it returns, unless None, becomes the input."""

    def hook(module: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
        if kwargs is None:
            return None  # taken off while another thread was about to call it
        causes.refuse_while_compiling()
        new = see(entering(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    _mark(hook, see)
    return module.register_forward_pre_hook(hook, prepend=prepend, with_kwargs=True)


def on_call(module: nn.Module, see: Callable[[tuple, dict], None]) -> RemovableHandle:
    """Call `see(args, kwargs)` with everything that this thread calls `module` with, before any other pre-hook changes it."""
    look = only_here(see)

    def hook(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is not None:  # else taken off while another thread was about to call it
            look(args, kwargs)

    _mark(hook, look)
    return module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)


def only_here(see: Callable[..., Any]) -> Callable[..., Any]:
    """`see`, blind to passes of other threads: a recorder's hooks hang on a model that others may run at the same time."""
    here = get_ident()

    def look(*values: Any) -> Any:
        return see(*values) if get_ident() == here else None

    look.only_looks = True  # type: ignore[attr-defined]
    return look


def _mark(hook: Callable[..., Any], see: Callable[..., Any]) -> None:
    """What `only_here` blinds is nothing that other threads must beware of: `lm.hooks_of_others` does not name it."""
    if hasattr(see, "only_looks"):
        hook.only_looks = True  # type: ignore[attr-defined]


def to_the_front(handles: list[RemovableHandle]) -> None:
    """As if each were put on again with `prepend`, the last one last, but with no moment without them: other threads may
    be in a pass.
    """
    for handle in handles:
        table = handle.hooks_dict_ref()
        if table is not None and handle.id in table:
            table.move_to_end(handle.id, last=False)


def on_pass(lm: LanguageModel, handles: list[RemovableHandle]) -> None:
    """Tell helpers/passes.py where passes begin and end; adds the handles to `handles` one by one."""

    def begin(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        causes.refuse_while_compiling()
        passes.begin(lm, module, args, kwargs or {})

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        passes.end(lm, module, output)

    begin.only_looks = end.only_looks = True  # type: ignore[attr-defined]
    begin.lm = lm  # type: ignore[attr-defined]
    for module in {id(one): one for one in (lm.model, causes.stack_of(lm))}.values():
        handles.append(module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True))
        # also after an exception, then with no output: what is left of that pass must not be taken for another
        handles.append(module.register_forward_hook(end, prepend=True, always_call=True))


def on_output(module: nn.Module, see: Seen, prepend: bool = False) -> RemovableHandle:
    """Call `see(output, input)` when `module` has run; what it returns, unless None, becomes the output."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, *outputs: Any) -> Any:
        if not outputs:
            return None  # taken off while another thread was about to call it, without kwargs then
        causes.refuse_while_compiling()
        (output,) = outputs
        new = see(first(output), entering(args, kwargs) if args or "hidden_states" in kwargs else first(output))
        return None if new is None else with_first(output, new)

    _mark(hook, see)
    return module.register_forward_hook(hook, prepend=prepend, with_kwargs=True)


def on_site(lm: LanguageModel, site: str, block: int, see: Seen, prepend: bool = False) -> list[RemovableHandle]:
    """Show one place of the model to `see(value, stream)`; what it returns, unless None, replaces the value there.

    value, by site: "block" the stream after the block, "attention" and "mlp" what they add to it, (batch, pos, d_model);
    "heads" the heads' outputs before the output projection, (batch, pos, n_heads, d_head); "keys" (batch, pos,
    n_key_heads, d_head); "neurons" and "preactivation" the MLP after and before its activation function, (batch, pos,
    d_mlp). stream: the residual stream that entered the block, for "block"; the value itself elsewhere.
    """
    found = site_of(lm, site, block)
    try:
        module = lm.part(block, found.path)
    except AttributeError:
        raise causes.missing(lm, block, found.path) from None
    if site == "block":
        return [on_output(module, see, prepend)]
    shapes: dict[int, Any] = {}  # by thread
    handles: list[RemovableHandle] = []

    def remember(stream: Tensor) -> None:
        shapes[get_ident()] = stream.shape[:2]

    def apply(passed: Tensor, _: Tensor | None = None) -> Tensor | None:
        shape = shapes.get(get_ident()) if passed.ndim == 2 else None
        whole = passed.reshape(*shape, passed.shape[-1]) if shape else passed
        value = found.view(whole)
        new = see(value, value)
        return None if new is None else found.back(new, whole).reshape(passed.shape)

    _mark(apply, see)
    _mark(remember, see)
    try:
        if found.flat:
            handles.append(on_input(lm.blocks[block], remember))
        handles.append((on_input if found.side == "input" else on_output)(module, apply, prepend))
        return handles
    except BaseException:  # an interrupt in here: the caller never sees these handles
        remove(handles)
        raise
