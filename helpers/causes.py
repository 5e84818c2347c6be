"""Why an edit or a reading did not run in a pass, and what no hook can work in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import errors
from .layout import module_at
from .say import say, translatable

if TYPE_CHECKING:
    from .models import LanguageModel


def stack_of(lm: LanguageModel) -> nn.Module:
    """The module that holds the list of blocks and calls them one by one."""
    return module_at(lm.parts.blocks.rpartition(".")[0], lm.model)


def missing(lm: LanguageModel, block: int, path: str) -> errors.DidNotRun:
    """What to raise for a part that a block does not have (any more)."""
    return errors.DidNotRun(
        "block {block} is of class {kind} now and has no {path!r} to edit or read: put the model's own block back, or "
        "choose the site 'block'.",
        block=block,
        kind=type(lm.blocks[block]).__name__,
        path=path,
    )


def did_not_run(lm: LanguageModel, what: str, site: str, block: int, number: int = 0) -> errors.DidNotRun:
    """What to raise for a place that ran `number` times in a pass and not once. what: how the sentence begins, said already.

    The sentence goes on with the place's name in code, the likely cause, and what to do.
    """
    path = _path(lm, site, block)
    place = f"lm.model.{lm.parts.blocks}[{block}]{path and '.'}{path}"
    if number > 1:
        return errors.DidNotRun(
            "{what}: {place} ran {number} times, since the same module stands at several places of the model, or a pass "
            "calls it again. Put copies of it there (copy.deepcopy).",
            what=what,
            place=place,
            number=number,
        )
    sentence, values = _cause(lm, block, path)
    return errors.DidNotRun(sentence, what=what, place=place, **values)


def norm_ran(number: int) -> errors.DidNotRun:
    """What to raise for a final norm that ran `number` times in a pass and not once."""
    return errors.DidNotRun(
        "the final norm ran {number} times in this pass and not once, so the stream's last point is not "
        "known: something calls the model's parts in another way (a wrapper, a replaced forward); undo "
        "that.",
        number=number,
    )


def _path(lm: LanguageModel, site: str, block: int) -> str:
    """Of the names that a part has in different versions of transformers, the one that this block knows."""
    *others, last = lm.parts.module_of(site).split("|")
    here = lm.blocks[block : block + 1] if others else []  # none if the model has fewer blocks now
    return next((other for other in others if here and hasattr(here[0], other.split(".")[0])), last)


def _cause(lm: LanguageModel, block: int, path: str) -> tuple[str, dict[str, Any]]:
    """The sentence of the likely cause, and its values."""
    compiled = compiled_part(lm.model)
    if compiled is not None:
        return translatable(
            "{what}: {place} did not run, since {compiled} is compiled, and compiled code calls no hooks. {plain_again}"
        ), {"compiled": compiled, "plain_again": say(PLAIN_AGAIN)}
    if block >= lm.n_blocks:
        return translatable(
            "{what}: {place} did not run, since the model has {n_blocks} blocks now: put the others back, or edit one of "
            "these."
        ), {"n_blocks": lm.n_blocks}
    limit = getattr(_text_config(lm), "num_hidden_layers", None)
    if isinstance(limit, int) and block >= limit:
        return translatable(
            "{what}: {place} did not run, since lm.model.config.num_hidden_layers is {limit} and the pass leaves there: set "
            "it back to {n_blocks}, or take the blocks from {limit} on out of {blocks}."
        ), {"limit": limit, "n_blocks": lm.n_blocks, "blocks": lm.parts.blocks}
    steps = _steps(lm, block, path)
    for name, module in steps:
        forward = vars(module).get("forward")
        # accelerate's offload replaces it, too, and calls the old one
        if forward is not None and not hasattr(module, "_hf_hook"):
            return translatable(
                "{what}: {place} did not run, since the forward of {name} was replaced by a function of its own: take it off "
                "(del {name}.forward)."
            ), {"name": name}
    if getattr(_text_config(lm), "layerdrop", 0) and stack_of(lm).training:
        return translatable(
            "{what}: {place} did not run, since layerdrop leaves out blocks at random in train mode: call lm.model.eval()."
        ), {}
    if any(parameter.device.type == "meta" for _, module in steps[-1:] for parameter in module.parameters()):
        return translatable(
            "{what}: {place} did not run, and its weights are offloaded to another place: load the model without a "
            "device_map to see whether that is why."
        ), {}
    owner = steps[-2][1] if path else stack_of(lm)
    return translatable(
        "{what}: {place} did not run, since it was replaced while the edit or reading hung on the old one, or since {owner} "
        "does its work in another way (another wrapper, a fused kernel): undo that, or begin the `with` after it."
    ), {"owner": type(owner).__name__}


def _text_config(lm: LanguageModel) -> Any:
    config = lm.model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _steps(lm: LanguageModel, block: int, path: str) -> list[tuple[str, nn.Module]]:
    """The modules on the way from the model to a part of a block, by their names in code."""
    steps = [f"[{step}]" if step.isdigit() else f".{step}" for step in _way(lm, block, path)]
    names = accumulate(steps, initial="lm.model")
    return list(zip(names, _on_the_way(lm, block, path), strict=False))


def _way(lm: LanguageModel, block: int, path: str) -> list[str]:
    return f"{lm.parts.blocks}.{block}{path and '.'}{path}".split(".")


def _on_the_way(lm: LanguageModel, block: int, path: str) -> Iterator[nn.Module]:
    """The model, and each module on the way from it to a part of a block, as far as it goes."""
    module: Any = lm.model
    yield module
    for step in _way(lm, block, path):
        inner = getattr(module, "_modules", {}).get(step)  # by no truth value: what torch.compile wraps has no length
        module = getattr(module, step, None) if inner is None else inner
        if not isinstance(module, nn.Module):
            return
        yield module


# ---- what no hook can work in

PLAIN_AGAIN = translatable(
    "Use the plain model, without torch.compile (load it again if it was compiled in place), and wrap that."
)


def compiled_part(model: nn.Module) -> str | None:
    """The name of a compiled module in `model`, None if all is plain."""
    found = [model]
    for module in found:  # grows on the way; model.modules() remembers what it has seen and takes four times as long
        if _compiled(module):
            return next((name for name, one in model.named_modules() if one is module and name), "the model")
        inner = module.__dict__["_modules"]
        if inner:
            found += [one for one in inner.values() if one is not None]
    return None


def _compiled(module: nn.Module) -> bool:
    """Whether this one module is compiled, in place or by a wrapper, as a whole or its forward."""
    state = module.__dict__
    if state.get("_compiled_call_impl") is not None or "_orig_mod" in state["_modules"]:
        return True
    forward = state.get("forward")  # torch.compiler.disable marks what it wraps in the same way, and more
    return hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable")


def refuse_compiled(model: nn.Module) -> None:
    """Raises DidNotRun: compiled code keeps the hooks that it was compiled with and calls no others."""
    found = compiled_part(model)
    if found is not None:
        raise errors.DidNotRun(
            "{found} is compiled by torch.compile, and compiled code calls no hooks that come later, so "
            "edits and traces would silently do nothing. {plain_again}",
            found=found,
            plain_again=say(PLAIN_AGAIN),
        )


def refuse_compiled_around(lm: LanguageModel, site: str, block: int) -> None:
    """Raises DidNotRun if a place or what contains it is compiled, BadValue if weights of its block are nowhere.

    That is all that an edit there needs, and a walk through the whole model would cost as much as the edit itself.
    """
    if any(map(_compiled, _on_the_way(lm, block, _path(lm, site, block)))):
        refuse_compiled(lm.model)
    if _on_meta(lm.part(block, "")):
        refuse_nowhere(lm.model)


def refuse_nowhere(model: nn.Module) -> None:
    """Raises BadValue for weights on the meta device that nothing brings back for a pass.

    A product with such a weight is no error in PyTorch: it gives memory that nobody wrote.
    """
    if not _on_meta(model):
        return
    for name in _nowhere(model, "", brought=False):
        raise errors.BadValue(
            "the weight {name} is on the meta device and nothing brings it back for a pass, so its numbers "
            "do not exist: load the model whole, or let accelerate offload it.",
            name=name,
        )


def _on_meta(model: nn.Module) -> bool:
    """Whether any weight or buffer is on the meta device now; a walk as in `compiled_part`."""
    found = [model]
    for module in found:
        state = module.__dict__
        for table in (state["_parameters"], state["_buffers"]):
            for value in table.values():
                if value is not None and value.is_meta:
                    return True
        if state["_modules"]:
            found += [one for one in state["_modules"].values() if one is not None]
    return False


def _nowhere(module: nn.Module, path: str, brought: bool) -> Iterator[str]:
    """Names of weights on the meta device that no hook of accelerate's fetches. brought: a module around it does."""
    hook = vars(module).get("_hf_hook")
    hooks = getattr(hook, "hooks", [hook] if hook else [])  # of several in a row, each
    bring = [one for one in hooks if getattr(one, "offload", True)]  # others only move what the module is called with
    if not (brought or bring):
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if value.is_meta:
                yield path + name
    brought = brought or any(getattr(one, "place_submodules", True) for one in bring)
    for name, inner in module.named_children():
        yield from _nowhere(inner, f"{path}{name}.", brought)


def refuse_split(model: nn.Module) -> None:
    """Raises BadValue for tensor parallelism, where each device has some heads and some columns of each matrix only."""
    degree = getattr(model, "_tp_size", None)
    if (isinstance(degree, int) and degree > 1) or any(
        type(weight).__name__ == "DTensor" or type(weight.data).__name__ == "DTensor" for weight in model.parameters()
    ):
        raise errors.BadValue(
            "this model is split by tensor parallelism, so that a hook sees only some of a block's heads: "
            "load it without tp_plan; if one device cannot hold it, device_map='auto' puts whole blocks on "
            "several."
        )


def several_dtypes(model: nn.Module) -> str:
    """What to say of a model whose weights are not all of one dtype; "" of one whose weights are."""
    found = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in found)
    if len(names) < 2:
        return ""
    return say(
        "Its weights are of several dtypes, {names}, which may be the reason: give all of them one, for example "
        "model.to(torch.{name}), and wrap again.",
        names=" and ".join(names),
        name=names[-1],
    )


def refuse_while_compiling() -> None:
    """Raises DidNotRun inside torch.compile: it would bake a hook of today into the code."""
    if torch.compiler.is_compiling():  # a constant while code is compiled
        raise errors.DidNotRun(
            "torch.compile meets a hook of the helpers, which would stay in the compiled code. {plain_again}",
            plain_again=say(PLAIN_AGAIN),
        )


def refuse_checkpointing(lm: LanguageModel) -> None:
    """Raises BadEdit: a checkpointed block runs again in the backward pass, when edits may be gone and noise is drawn anew."""
    if not torch.is_grad_enabled():
        return
    if any(one.training and getattr(one, "gradient_checkpointing", False) for one in (stack_of(lm), *lm.blocks)):
        raise _checkpointed()


def refuse_own_checkpoint() -> None:
    """Raises BadEdit inside torch.utils.checkpoint, where this part of the model will run again in the backward pass."""
    saving = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # not public: it may go
    hooks = saving(True) if saving and torch.is_grad_enabled() else None
    if hooks and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise _checkpointed()


def _checkpointed() -> errors.BadEdit:
    return errors.BadEdit(
        "gradient checkpointing is on: backward would run the blocks again, perhaps without the edits and with other "
        "noise, and give wrong gradients. Switch it off first, for example with "
        "lm.model.gradient_checkpointing_disable()."
    )
