"""wrap: use the helpers on a model that you loaded yourself, after they have been tried on it.

    lm = wrap(model, tokenizer)
    print(lm.certificate)        # what was verified on this very model, to how many digits

A row of FAMILIES is a claim about somebody else's code, and that code changes. So each model gets one short pass of three
prompts of three tokens, and every claim of its row is checked against what the modules really computed
(helpers/certificate.py). A model that fails is refused with the identity and the block.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from . import causes, errors
from .certificate import verify
from .checks import kind_of
from .families import Family
from .models import LanguageModel


def wrap(
    model: Any, tokenizer: Any = None, *, family: Family | str | None = None, certify: bool = True
) -> LanguageModel:
    """Use the helpers on a transformers causal language model that you loaded yourself; it is put into eval mode.

    Without a tokenizer prompts are tensors of token ids. family: a row of your own for an architecture that is not in
    the table, or the name of another family whose row may fit; by default the row that the model's config names.
    certify: try the row on the model (from four blocks on less than two passes of 8 tokens); `lm.certificate` says what
    was found. Without it a wrong row, or a library that changed, gives wrong numbers: only for models whose every pass is dear.

    Raises UnsupportedFamily, with the identity that fails and where, DidNotRun for a compiled model, or BadValue, also
    for a model whose heads are split over devices (tensor parallelism), or whose weights are nowhere (the meta device).
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise errors.BadValue(
            "wrap needs a transformers model, for example AutoModelForCausalLM.from_pretrained(...), not {value}.",
            value=kind_of(model),
        )
    causes.refuse_compiled(model)
    causes.refuse_split(model)
    causes.refuse_nowhere(model)
    if tokenizer is not None and not callable(tokenizer):
        raise errors.BadValue(
            "the tokenizer must be a tokenizer and not {value}: make one with AutoTokenizer.from_pretrained(...).",
            value=kind_of(tokenizer),
        )
    lm = LanguageModel(model, tokenizer, family)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        lm.certificate = verify(lm) if certify else None
    except BaseException:  # refused, or interrupted: the model is as it was
        for module in training:
            module.training = True
        raise
    return lm
