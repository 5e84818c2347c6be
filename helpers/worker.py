"""What a process does that works for a study: it loads the model once, and sweeps shard after shard.

A worker is a process of its own, started by joblib or by a cluster, and lives as long as that wants. Between two shards it
keeps its model: the one thing in `helpers` that outlives a call, since loading takes longer than many a shard. A study that
runs in your own process keeps nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import cloudpickle
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from . import errors, sweeps
from .copies import check_values_per_prompt, copy_of, for_prompts
from .families import Family
from .fingerprint import of_model, of_names
from .loading import quiet
from .measures import Measure, Outcome, log_prob_change, token_ids
from .models import LanguageModel
from .replacements import CHUNK, from_the_end, mean_heads, padded, prompt_rows
from .snapshot import of_process
from .wrapping import wrap


@dataclass(frozen=True)
class Work:
    """What all shards of a study have in common. options: of the sweep, besides prompts, target, measure and progress."""

    name: str  # of this one call: what a worker keeps is loaded anew for another, since files may have changed
    load: bytes  # the function that loads the model
    sweep: str
    total: int  # prompts
    measure: Measure | None
    options: dict[str, Any]
    asks: int = 0  # the process that the study runs in
    names: tuple[str, ...] = ()  # what it uses of modules of the user's own, which a process imports from their files
    own: str = ""  # the fingerprint of these in the study's process
    process: Any = None  # what is set there for the whole process


@dataclass(frozen=True)
class Looked:
    """What one look at the model says, before the first shard."""

    model: str  # its fingerprint
    said: str
    n_blocks: int
    n_heads: int
    rows: list[np.ndarray]  # (pos,) ids of each prompt
    targets: int | list[int] | None
    means: torch.Tensor | None  # what ablated heads become, if that is a mean
    pool: list[np.ndarray]  # (pos,) ids of each prompt that it is taken over


@dataclass(frozen=True)
class Shard:
    """Some prompts of a study: their numbers, their ids (pos,), the targets of each, and the model that they are for."""

    numbers: list[int]
    rows: list[np.ndarray]
    targets: int | list[int] | None
    model: str


@dataclass(frozen=True)
class Saved:
    """Loads a model that a study has saved, as its owner had it.

    experts: how a mixture of experts computes, where transformers lets one choose. dtypes: of the parameters and buffers, by
    name; a model may have several.
    """

    folder: Path
    kind: str  # its class in transformers
    dtype: torch.dtype
    attention: str
    family: Family
    experts: str | None = None
    dtypes: Mapping[str, torch.dtype] | None = None

    def __call__(self) -> LanguageModel:
        kind, dtypes = getattr(transformers, self.kind), self.dtypes or {}
        chosen = {} if self.experts is None else {"experts_implementation": self.experts}
        widest = reduce(torch.promote_types, (one for one in dtypes.values() if one.is_floating_point), self.dtype)
        with quiet():
            model = kind.from_pretrained(
                self.folder, dtype=widest, attn_implementation=self.attention, use_safetensors=True,
                local_files_only=True, trust_remote_code=False, **chosen,
            )  # fmt: skip
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
        computed = load_file(self.folder / _COMPUTED)
        for module, name, whole, _ in _tensors(model):
            if whole in computed:
                setattr(module, name, computed[whole])
            elif name in module._buffers and whole in dtypes:
                setattr(module, name, getattr(module, name).to(dtypes[whole]))
        return wrap(model, family=self.family)


_COMPUTED = "computed.safetensors"


def save(lm: LanguageModel, folder: Path) -> None:
    """For `Saved`: what save_pretrained keeps, and what a model computes when it is made and a later `.double()` changes."""
    lm.model.save_pretrained(folder)
    kept = lm.model.state_dict()
    computed = {
        whole: value.detach().clone().contiguous()
        for _, _, whole, value in _tensors(lm.model)
        if whole not in kept and value.is_floating_point()
    }
    save_file(computed, folder / _COMPUTED)


def _tensors(model: Any) -> Iterator[tuple[Any, str, str, torch.Tensor]]:
    """(module, name, name in the whole model, value) of buffers, and of tensors that a module keeps without registering them."""
    for path, module in model.named_modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            if isinstance(value, torch.Tensor):
                yield module, name, f"{path}.{name}".removeprefix("."), value


def saved(lm: LanguageModel, folder: Path) -> Saved:
    """What loads a live model again from the folder that it was saved in."""
    config = lm.model.config
    dtypes = {name: value.dtype for name, value in (*lm.model.named_parameters(), *lm.model.named_buffers())}
    may_choose = hasattr(transformers.PretrainedConfig, "_experts_implementation")  # not in transformers 4
    experts = config._experts_implementation if may_choose else None
    return Saved(folder, type(lm.model).__name__, lm.dtype, config._attn_implementation, lm.parts, experts, dtypes)


# ---- in the process


def loaded(load: Callable[[], LanguageModel]) -> tuple[LanguageModel, str]:
    """The model and its fingerprint. Raises what its loading raises, and BadValue if that gives something else."""
    lm = load()
    if not isinstance(lm, LanguageModel):
        raise errors.BadValue(
            "the function that loads the model must return a model of the helpers, not a {kind}: end it with "
            "return load_model(...) or return wrap(model, tokenizer).",
            kind=type(lm).__name__,
        )
    return lm, of_model(lm)


_ONE_AT_A_TIME = Lock()  # a worker of Dask may have several threads, and an edit is on the whole model
_kept: dict[str, tuple[LanguageModel, str]] = {}  # one model at most, by the study's name


_watching: list[int] = []  # the process that started this one, once it is watched


def _end_with_the_study(parent: int) -> None:
    """joblib's processes wait for ever for one that was killed, each with its model in memory."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def there(kind: str, work: bytes, given: bytes) -> Any:
    """`look` or `run` in a worker. All comes as bytes: a cluster would keep larger objects on one machine, which may die."""
    with _ONE_AT_A_TIME:
        plan: Work = cloudpickle.loads(work)
        if os.getppid() == plan.asks and not _watching:
            _watching.append(plan.asks)
            Thread(target=_end_with_the_study, args=(plan.asks,), daemon=True).start()
        if plan.name not in _kept:
            _kept.clear()
            _check_process(plan)
            _check_code(plan)
            _kept[plan.name] = loaded(cloudpickle.loads(plan.load))
        does: Callable[..., Any] = look if kind == "look" else run
        return does(*_kept[plan.name], plan, cloudpickle.loads(given))


def _check_process(plan: Work) -> None:
    if plan.process is not None and of_process() != plan.process:
        raise errors.BadValue(
            "autocast, the default dtype, or the precision of matrix products is set otherwise in the study's process than in its "
            "workers, which would measure other numbers: set it in none of them, or use jobs=1."
        )


def _check_code(plan: Work) -> None:
    """Raises BadValue unless this process has imported what the study's has, which may be older, or changed by hand."""
    with suppress(ImportError):
        if not plan.names or of_names(plan.names) == plan.own:
            return
    raise errors.BadValue(
        "your code in {modules} is not the same in a worker process as in the study's own, where it was loaded from an older "
        "file or changed by hand: restart Python there and in the workers, or use jobs=1.",
        modules=", ".join(sorted({name.partition(":")[0] for name in plan.names})),
    )


def look(lm: LanguageModel, model: str, work: Work, given: tuple[Any, Any]) -> Looked:
    """given: the prompts and the target. Raises what the sweep would raise for them."""
    prompts, target = given
    tokens = lm.encode(prompts)
    rows = prompt_rows(lm, tokens)
    measure = work.measure if target is None else log_prob_change(lm, target)
    if measure is not None:
        measure.check_number(len(rows))
    targets = None if target is None else token_ids(lm, target)
    if "edits" in work.options:
        check_values_per_prompt([copy_of(lm, one) for one in work.options["edits"]], tokens)
    replacement, reference = work.options.get("replacement"), work.options.get("reference")
    means = None
    pool: list[torch.Tensor] = []
    if (
        isinstance(replacement, str)
        and replacement in ("mean", "pooled mean")
        and (reference is not None or len(rows) > 1)
    ):
        pool = rows if reference is None else prompt_rows(lm, reference)
        chunk = work.options.get("chunk", CHUNK)
        means = mean_heads(lm, padded(pool), pooled=replacement == "pooled mean", chunk=chunk)
        if replacement == "mean":
            means = from_the_end(means, max(len(row) for row in rows))  # a sweep's own tensor must reach all positions
    ids = [row.cpu().numpy().astype(np.int32) for row in rows]
    said = f"{lm!r}, torch {torch.__version__}, transformers {transformers.__version__}"
    over = [row.cpu().numpy() for row in pool]
    return Looked(model, said, lm.n_blocks, lm.n_heads, ids, targets, means, over)


def run(lm: LanguageModel, model: str, work: Work, shard: Shard) -> tuple[list[int], np.ndarray]:
    """The shard's numbers, and the (prompts, ...) that the sweep measures on them."""
    if model != shard.model:
        raise errors.BadValue(
            "the model in a worker process is not the one that the study began with (other files, other "
            "versions of the libraries, or a live model that its saved weights do not make again): give all "
            "workers the same, or give a function that loads it, or use jobs=1."
        )
    options = dict(work.options)
    if "edits" in options:
        longest = max(len(row) for row in shard.rows)
        options["edits"] = [list(copy) for copy in for_prompts(options["edits"], shard.numbers, work.total, longest)]
    if work.measure is not None:
        options["measure"] = _of_the_whole_list(work.measure, shard.numbers)
    rows = [torch.from_numpy(row.astype(np.int64)) for row in shard.rows]  # a copy: Ray hands out what nobody may write
    found = getattr(sweeps, work.sweep)(lm, padded(rows), target=shard.targets, progress=False, **options)
    return shard.numbers, (found.float() if found.dtype is torch.bfloat16 else found).numpy()


def here(lm: LanguageModel, model: str, work: Work, shards: Sequence[Shard]) -> Iterator[Any]:
    """Shard after shard in a study's own process."""
    for shard in shards:
        yield run(lm, model, work, shard)


def _of_the_whole_list(measure: Measure, numbers: list[int]) -> Measure:
    """The measure with each prompt's number in the study's list, whatever the shard."""

    def compute(outcome: Outcome) -> torch.Tensor:
        return measure.compute(replace(outcome, prompt=numbers[outcome.prompt]))

    return replace(measure, compute=compute, prompts=None)
