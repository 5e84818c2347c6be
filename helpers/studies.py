"""A sweep over many prompts, in several processes or on a cluster, which can be killed and goes on where it was.

    found = study(sweep_heads, "smollm2", prompts, targets, folder="capitals", jobs=8)
    found.mean("prompt").sel(block=23)         # an xarray.DataArray with the axes prompt, block, head

    with joblib.parallel_config(backend="dask"):        # the same on a cluster
        found = study(sweep_heads, "smollm2", prompts, targets, folder="capitals")

One process needs none of this: a sweep's memory does not grow with the number of prompts. A study cuts the prompts into
shards and gives them to joblib (https://joblib.readthedocs.io), whose backends run them. Each result is written by this
process when it is there, so workers need not share a disk, and a worker that dies costs its shard, which runs again. A file
belongs to a shard by a fingerprint of all that its numbers depend on (helpers/fingerprint.py), so nothing stale is read.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from . import engines, errors, foreign, recording, sweeps
from .checks import kind_of, whole
from .copies import check_list
from .edits import Edit
from .encoding import Tokens
from .loading import load_model, quiet
from .measures import Measure, Targets
from .models import LanguageModel
from .progress import Progress
from .shards import AXES, cut, labelled, measured, no_room, targets_of, texts_of, write_whole

if TYPE_CHECKING:
    from xarray import DataArray

SHARD = 32  # prompts
_NOT_AN_OPTION = ("lm", "prompts", "target", "progress", "generator")
Model = str | Path | LanguageModel | Callable[[], LanguageModel]


def study(
    sweep: Callable[..., Tensor],
    model: Model,
    prompts: Sequence[str] | Tensor | Tokens,
    *given: Any,
    target: Targets | None = None,
    folder: str | Path,
    jobs: int | None = None,
    shard: int = SHARD,
    progress: Progress = None,
    **options: Any,
) -> DataArray:
    """A sweep over any number of prompts, (prompt, block, head, …), labelled; the numbers are those of one plain call.

    sweep: sweep_heads, sweep_blocks, sweep_block_pairs, sweep_factors or sweep_edits. What comes after the prompts is its own,
    in its order or by name, with the same meaning: one target or one for each prompt, `measure=`, `replacement=`, `edits=`,
    also with a row for each prompt, `block=` and `factors=`.
    model: a name or folder for `load_model`; a function without arguments that returns a LanguageModel (for a dtype, a
    `device_map`, adapters); or a LanguageModel without hooks and edits, which is saved in the folder for other processes.
    folder: where each finished shard is kept, and the whole as netCDF 4 in the end. A second call goes on where the first was
    killed; shards of other models, options, code or versions stay and are not used. jobs: processes on this machine, each
    with its own model; None leaves it to `joblib.parallel_config`, which also chooses a Dask or Ray cluster. shard: prompts in
    a shard: what is lost at most when a process dies. It decides which prompts share a batch, and so their last digits, which
    the number of processes doesn't. progress: as in a sweep, over prompts.

    Coordinates: the prompts' texts as `text` and targets of their own as `target`, along `prompt`; blocks, heads, factors or
    edits by name; a measure's columns. Attributes say what was computed with which model and versions.

    Raises what the sweep raises; BadValue also for `replacement="resample"` and `noise_neurons`, whose one stream of random
    numbers no shard can continue; WorkerDied when a process of this machine is killed.
    """
    _need_packages()
    import cloudpickle

    from . import worker
    from .fingerprint import names_in, of_model, of_names, of_value
    from .snapshot import of_process

    _check_sweep(sweep)
    target, options = _by_name(sweep, given, target, options)
    measure = _check(sweep, prompts, target, options, shard)
    if foreign.hooks_on_all_modules():
        raise _hooked()
    place = _place(folder)
    elsewhere = engines.by_joblib(jobs)
    held: tuple[LanguageModel, str] | None = None
    if isinstance(model, LanguageModel):
        held = _checked(model), of_model(model)
    loads = _loader(model, place, held[1] if held and elsewhere else None)
    if held is None and not elsewhere:
        held = worker.loaded(loads)
    code = None if isinstance(model, str | Path | LanguageModel) else model  # it may hang hooks on what it loads
    packed = cloudpickle.dumps(loads) if elsewhere else b""
    work = worker.Work(uuid4().hex, packed, sweep.__name__, 0, measure, options, os.getpid(), process=of_process())
    if elsewhere and (own := names_in((options, measure, code))):
        work = replace(work, names=own, own=of_names(own))
        engines.end_old_processes()
    looked = worker.look(*held, work, (prompts, target)) if held else engines.look(jobs, work, prompts, target)
    used = dict(options)
    # In the sweep's own order, with what was left out. A mean by the prompts that it is over; how many copies run at once may
    # change when memory has run out.
    whole_call = {name: options.get(name, one.default) for name, one in inspect.signature(sweep).parameters.items()}
    told = {
        name: value
        for name, value in whole_call.items()
        if name not in (*_NOT_AN_OPTION, "chunk", "reference", "measure")
    }
    asked = of_value((sweep.__name__, told, measure, looked.model, code, looked.pool))
    if looked.means is not None:
        used["replacement"] = looked.means
        used.pop("reference", None)
    work = replace(work, total=len(looked.rows), options=used)
    shards = cut(looked, shard)
    numbered = measure is not None or "edits" in options  # these may ask which prompt of the list it is
    names = [of_value((asked, one.rows, one.targets, (one.numbers, work.total) if numbered else 0)) for one in shards]
    labels = texts_of(prompts), targets_of(looked, target)
    file = place / f"{sweep.__name__}-{of_value([names, [one.numbers for one in shards], labels])[:16]}.nc"
    with suppress(OSError, ValueError, KeyError, RuntimeError):  # not there, or damaged
        return _read(file)
    run = partial(engines.run, jobs) if elsewhere else partial(worker.here, *held)  # type: ignore[misc]
    files = [place / "shards" / f"{name[:32]}.npy" for name in names]
    values = measured(partial(run, work), shards, files, progress)
    found = labelled(values, sweep.__name__, looked, *labels, measure, options)
    write_whole(file, lambda part: found.to_netcdf(part, engine="h5netcdf"))
    return _read(file)


def _read(file: Path) -> DataArray:
    import xarray

    with xarray.open_dataarray(file, engine="h5netcdf") as kept:
        return kept.load()


# ---- the door


def _need_packages() -> None:
    lacking = [name for name in ("joblib", "cloudpickle", "xarray", "h5netcdf", "h5py") if find_spec(name) is None]
    if lacking:
        raise errors.BadValue(
            "a study needs {lacking}, which is not installed: pip install '.[study]' in the course's folder.",
            lacking=", ".join(lacking),
        )


def _check_sweep(sweep: object) -> None:
    if getattr(sweeps, getattr(sweep, "__name__", ""), None) is not sweep or getattr(sweep, "__name__", "") not in AXES:
        raise errors.BadValue(
            "a study runs one of {axes}, and not {value}: name one of these first.",
            axes=", ".join(AXES),
            value=kind_of(sweep),
        )


def _by_name(
    sweep: Callable[..., Tensor], given: Sequence[Any], target: Targets | None, options: dict[str, Any]
) -> tuple[Targets | None, dict[str, Any]]:
    """The target and the options, those that were given without a name among them: in the order of the sweep's own."""
    named = {"lm", "prompts", *options} if target is None else {"lm", "prompts", "target", *options}
    parameters = inspect.signature(sweep).parameters.values()
    names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in named]
    if len(given) > len(names):
        raise errors.BadValue(
            "after the prompts this study of {sweep} takes {names} without a name, and {number} values stand there: pass "
            "the others by name.",
            sweep=sweep.__name__,
            names=" and ".join(names) or "nothing",
            number=len(given),
        )
    options = options | dict(zip(names, given, strict=False))
    target = options.pop("target", target)
    return list(target) if isinstance(target, Iterator) else target, options  # it is read more than once


def _check(
    sweep: Callable[..., Tensor], prompts: object, target: object, options: dict[str, Any], shard: object
) -> Measure | None:
    """Checks what needs no model, takes the measure out of the options and returns it, and puts the edits into one form."""
    if isinstance(prompts, str) or getattr(prompts, "ndim", 2) != 2:
        raise errors.BadPrompt("a study takes several prompts: give a list of texts, or ids of shape (n_prompts, pos).")
    if (whole(shard) or 0) < 1:
        raise errors.BadValue(
            "shard {shard!r} cannot be used: give a number of prompts, 1 or more, for example {example}.",
            shard=shard,
            example=SHARD,
        )
    if isinstance(options.get("replacement"), str) and options["replacement"] == "resample":
        raise errors.BadValue(
            "resample draws from one stream of random numbers over the whole list, which shards cannot "
            "share: use a plain sweep_heads, or a tensor, a mean or zero as replacement."
        )
    parameters = inspect.signature(sweep).parameters
    allowed = [name for name in parameters if name not in _NOT_AN_OPTION]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise errors.BadValue(
            "a study of {sweep} has no option {unknown!r}: choose from {allowed}.",
            sweep=sweep.__name__,
            unknown=unknown[0],
            allowed=", ".join(allowed),
        )
    needed = [name for name in allowed if parameters[name].default is inspect.Parameter.empty and name not in options]
    if needed:
        raise errors.BadValue(
            "{sweep} needs {needed}: pass {first}=… by name.",
            sweep=sweep.__name__,
            needed=" and ".join(needed),
            first=needed[0],
        )
    if "edits" in options:
        check_list(options["edits"])
        options["edits"] = [_together(one) for one in options["edits"]]
    measure = options.pop("measure", None)
    if (target is None) == (measure is None):
        raise errors.BadValue("give a target, for example ' Germany', or a measure, and not both.")
    return measure if measure is None or isinstance(measure, Measure) else Measure(measure)


def _together(edits: object) -> tuple[Edit, ...]:
    """One intervention, an edit or several at once, earliest block first."""
    found = (edits,) if isinstance(edits, Edit) else tuple(edits) if isinstance(edits, Sequence) else ()
    if not found or not all(isinstance(one, Edit) for one in found):
        raise errors.BadEdit(
            "{edits!r} is not an edit: give edits such as skip_block(0), each alone or in a list with others.",
            edits=edits,
        )
    for one in found:
        given = one.given if isinstance(one.given, tuple) else (one.given,)
        if any(isinstance(part, torch.Generator) for part in given):
            raise errors.BadEdit(
                "{one!r} draws from one stream of random numbers over the whole list, which shards cannot share: "
                "use a plain sweep_edits.",
                one=one,
            )
    return tuple(sorted(found, key=lambda one: one.block))


def _place(folder: str | Path) -> Path:
    try:
        place = Path(folder).expanduser().absolute()
        (place / "shards").mkdir(parents=True, exist_ok=True)
    except (TypeError, OSError) as error:
        raise errors.BadValue(
            "folder {folder!r} cannot be made ({error}): name a folder that you can write to, for example 'capitals'.",
            folder=folder,
            error=error,
        ) from None
    return place


_BY_FUNCTION = (
    "Give a function without arguments that loads it as you did, or run the study in this process with jobs=1."
)


def _checked(lm: LanguageModel) -> LanguageModel:
    """A model that is the same in another process and on a later day. Raises BadValue."""
    recording.refuse_what_a_walk_cannot_do(lm)
    if lm.live_edits or lm.hooks_of_others:
        raise _hooked()
    return lm


def _hooked() -> errors.BadValue:
    return errors.BadValue(
        "edits or hooks are on this model, which neither other processes nor a later day would have: "
        "take them off, or give a function without arguments that loads the model and hangs them on it."
    )


def _loader(model: Model, place: Path, fingerprint: str | None) -> Callable[[], LanguageModel]:
    """A function that loads the model in any process. fingerprint: of a live model that has to be saved for that."""
    from . import worker

    if isinstance(model, str | Path):
        found = Path(model).absolute() if Path(model).is_dir() else model  # a worker may stand elsewhere
        return partial(load_model, found)
    if not isinstance(model, LanguageModel):
        if not callable(model) or isinstance(model, nn.Module):
            raise errors.BadValue(
                "the model must be a name, a folder, a LanguageModel such as wrap(model, tokenizer), or a function that loads "
                "one, and not {value}.",
                value=kind_of(model),
            )
        return model
    if fingerprint is None:
        return lambda: model
    kind, weights = type(model.model), model.model.parameters()
    plain = not getattr(model.model, "is_quantized", False) and all(one.device.type == "cpu" for one in weights)
    if not plain or not kind.__module__.startswith("transformers."):
        raise errors.BadValue(
            "this {kind} cannot be saved for other processes, since it is quantised, wrapped, or not on the "
            "CPU: give a function without arguments that loads it, or run the study in this process with "
            "jobs=1.",
            kind=kind.__name__,
        )
    there = place / f"model-{fingerprint[:16]}"
    if not there.is_dir():
        with no_room(there), tempfile.TemporaryDirectory(dir=place) as part, quiet():
            worker.save(model, Path(part) / "model")
            try:
                (Path(part) / "model").rename(there)
            except OSError:  # it is there: another study in this folder saved the same model
                if not there.is_dir():
                    raise
    return worker.saved(model, there)
