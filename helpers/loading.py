"""Find a model by its name, and read it.

lm = load_model()                       # the pocket model that ships with the course: offline, float64
lm = load_model("gpt2")                 # a name on the model hub, from the network or the local cache
lm = load_model("folder/with/a/model")  # a local folder
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import errors, exact, smollm2
from .cache import place_in_float64
from .families import family_named
from .memory import give_back, need_memory
from .models import LanguageModel
from .say import say, translatable
from .wrapping import wrap

POCKET_FOLDER = Path(__file__).resolve().parent / "pocket"
# Below this many parameters one thread is faster than two on a busy machine: threads of a small pass wait for each other.
ONE_THREAD_BELOW = 50_000_000

# Any one of these makes a folder one with a tokenizer. Without this check transformers 5 makes up an empty tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
# The same ranges as in pyproject.toml, which need not be installed where the helpers run.
NEEDS = {"torch": ">=2.6", "transformers": ">=4.57,<6", "tokenizers": ">=0.22", "safetensors": ">=0.5"}
_WAY_OUT = translatable(
    "use load_model() for the model that ships with the course, or pass a folder that holds the model"
)


def load_model(
    name: str | Path = "pocket", *, dtype: torch.dtype | None = None, threads: int | None = None
) -> LanguageModel:
    """Load a model and its tokenizer, ready for lessons: eval mode, eager attention (so that attention patterns can be read),
    GPT-2's GELU in one kernel (equal up to rounding, and sweeps are faster).

    name: "pocket" (ships with the package; runs in float64, so that printed figures are the same on every machine),
    "smollm2" (the real model, float32; it is brought at the first call, see helpers/smollm2.py), a local folder, or the
    name of a model on the hub: from the cache if it is there, else from the network. Code that comes with a model is
    never run, and only safetensors are read. dtype: overrides the model's own; "smollm2" in float64 computes every part
    in float64 (helpers/exact.py), so that its printed figures too are the same on every machine. threads: PyTorch threads
    for this process; by default one for models below 50M parameters (unless OMP_NUM_THREADS is set), and unchanged
    for larger ones.

    Raises WrongVersion, UnknownModel, NoNetwork, DamagedWeights, CannotStore, NotEnoughMemory, UnsupportedFamily or BadValue.
    """
    _check_versions()  # first: an old library reads good weights as damaged ones
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise errors.BadValue(
            "dtype {dtype!r} cannot be used: give a floating dtype, for example torch.float32.", dtype=dtype
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise errors.BadValue("threads {threads!r} cannot be used: give a whole number, 1 or more.", threads=threads)
    if isinstance(name, str) and name.lower() in ("pocket", "smollm2") and not Path(name).is_dir():
        name = name.lower()  # SmolLM2, as people write it
    if name == "smollm2":
        source: str | Path = _real(dtype)
    else:
        source = _find(name)
    if source == POCKET_FOLDER and dtype in (None, torch.float64):
        dtype, shared = torch.float64, place_in_float64(POCKET_FOLDER)
        source = shared if os.path.isdir(shared) else source  # a class holds it once: helpers/classroom.py
    with _explained(str(name), source), quiet(download=not isinstance(source, Path)):
        model, tokenizer = _read(str(name), source, dtype or "auto")
        if name == "smollm2" and dtype == torch.float64:
            exact.own_dtype(model)
    if threads is not None:
        torch.set_num_threads(threads)
    elif model.num_parameters() < ONE_THREAD_BELOW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    give_back()
    return wrap(model, tokenizer)


def _check_versions() -> None:
    from packaging.specifiers import SpecifierSet

    for name, range_ in NEEDS.items():
        try:
            found = version(name)
        except PackageNotFoundError:  # a build of one's own may have no record of its version
            continue
        if not SpecifierSet(range_).contains(found, prereleases=True):
            raise errors.WrongVersion(
                "this notebook runs with {name} {found}, and the course needs {name}{range}: start it with make "
                "lab or python start.py, and choose the kernel of their environment; or pip install "
                "'{name}{range}' and restart the kernel.",
                name=name,
                found=found,
                range=range_,
            )


def _real(dtype: torch.dtype | None) -> Path:
    """The real model's folder. All processes that read it share the pages of its file, so a class holds it once."""
    double = dtype == torch.float64
    what = say("the real model in float64") if double else say("the real model")
    need_memory(1.4e9 if double else 0.8e9, what)
    try:
        return smollm2.bring_double(_tell) if double else smollm2.bring(tell=_tell)
    except errors.CannotStore:
        if double and smollm2.is_here():  # no room for a second file: this process computes a copy of its own
            return smollm2.bring()
        raise


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _find(name: str | Path) -> str | Path:
    """Where a model is: a folder that holds everything, or else a hub name that the hub has to be asked for."""
    if not isinstance(name, str | Path) or not str(name).strip():
        raise errors.UnknownModel(
            "{name!r} is not the name of a model: use 'pocket', 'smollm2', a hub name such as 'gpt2', or a folder.",
            name=name,
        )
    text, path = str(name), Path(name).expanduser()
    if text == "pocket":
        if not (POCKET_FOLDER / "model.safetensors").is_file():
            raise errors.UnknownModel(
                "the pocket model is not here: the package was installed without helpers/pocket. Install it "
                "again from a whole copy of the course, or name another model."
            )
        return POCKET_FOLDER
    if path.is_dir():
        _check_folder(text, path)
        return path
    if path.is_file():
        raise errors.UnknownModel("{text!r} is a file: pass the folder that it is in.", text=text)
    if isinstance(name, Path) or text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1:
        raise errors.UnknownModel(
            "there is no folder {text!r}: check the path, or {way_out}.", text=text, way_out=say(_WAY_OUT)
        )
    return _snapshot(text) or text


def _check_folder(name: str, folder: Path) -> None:
    def has(*files: str) -> bool:
        return any((folder / file).is_file() for file in files)

    if not has("config.json"):
        raise errors.UnknownModel(
            "the folder {name!r} holds no model (no config.json): save one there with save_pretrained, or {way_out}.",
            name=name,
            way_out=say(_WAY_OUT),
        )
    if not has(*_WEIGHTS_FILES):
        raise errors.UnknownModel(
            "the folder {name!r} holds no model.safetensors (other formats can run code when they are read "
            "and are not loaded here): save it again with save_pretrained, or {way_out}.",
            name=name,
            way_out=say(_WAY_OUT),
        )
    if not has(*_TOKENIZER_FILES):
        raise errors.UnknownModel(
            "the folder {name!r} holds no tokenizer (no tokenizer.json): save it there with tokenizer.save_pretrained.",
            name=name,
        )


def _snapshot(name: str) -> Path | None:
    """The folder in the hub's cache that holds all of a model. Read as a folder it needs no network, not even to ask."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise errors.UnknownModel(
            "{name!r} is not the name of a model: hub names look like 'gpt2' or 'EleutherAI/pythia-70m'. Or {way_out}.",
            name=name,
            way_out=say(_WAY_OUT),
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
            "{name!r} is not on this machine and the model hub does not answer: connect once so that it is "
            "cached, {way_out}.",
            name=name,
            way_out=say(_WAY_OUT),
        )


def _read(name: str, source: str | Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and tokenizer, checked to be whole. No code that comes with the model is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

    if not isinstance(source, Path):
        _ask_hub(name)
    config, _ = PretrainedConfig.get_config_dict(str(source))
    family_named(config.get("model_type", "unknown"))  # before gigabytes are fetched
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
            "the weights of {name!r} lack {n_missing} tensors ({missing}, …): the file is not whole or "
            "belongs to another model. Fetch it again.",
            name=name,
            n_missing=len(missing),
            missing=missing[0],
        )
    blocks = f"{family_named(model.config.model_type).blocks.split('.')[-1]}.{model.config.num_hidden_layers}."
    if any(blocks in key for key in info["unexpected_keys"]):  # transformers would leave the rest of the model out
        raise errors.DamagedWeights(
            "the weights of {name!r} hold more than the {num_hidden_layers} blocks that its config.json "
            "names: the two files do not belong together. Fetch them again.",
            name=name,
            num_hidden_layers=model.config.num_hidden_layers,
        )
    return model, tokenizer


@contextmanager
def quiet(download: bool = False):
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
            "the weights of {name!r} cannot be read: the file is damaged or was cut off while it was copied. "
            "Fetch it again.",
            name=name,
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
                "the hub has no public model {name!r}: check the spelling, or {way_out}.",
                name=name,
                way_out=say(_WAY_OUT),
            ) from None
        if isinstance(source, Path):
            raise errors.DamagedWeights(
                "the model in {name!r} cannot be loaded: its files are damaged or do not belong together. Copy "
                "it again.",
                name=name,
            ) from error
        raise errors.UnknownModel(
            "{name!r} cannot be loaded as a language model ({error}): {way_out}.",
            name=name,
            error=str(error).splitlines()[0],
            way_out=say(_WAY_OUT),
        ) from error
