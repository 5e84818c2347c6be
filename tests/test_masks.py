"""On transformers 4.57 the tests make attention masks in another way than the library (`quick_masks`): both give the same bits."""

import pytest
import torch
from tiny import CONFIGS, MORE, here, tiny
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from transformers import __version__, masking_utils

IDS = torch.arange(2, 24).reshape(2, 11)  # longer than the windows
PADDED = torch.ones_like(IDS)
PADDED[1, 4:7] = 0  # after tokens that count, so that no token is left with nothing to see, whose pattern would be NaN


def outputs(lm):
    """Logits of plain, padded and packed prompts, and of two tokens that come after a cache."""
    places = (PADDED.cumsum(-1) - 1).clamp(min=0)
    yield lm.model(input_ids=IDS, use_cache=False).logits
    yield lm.model(input_ids=IDS, attention_mask=PADDED, position_ids=places, use_cache=False).logits
    yield lm.model(input_ids=IDS, position_ids=torch.arange(11).expand(2, -1) % 7, use_cache=False).logits
    cache = lm.model(input_ids=IDS[:, :9], attention_mask=PADDED[:, :9], use_cache=True).past_key_values
    yield lm.model(input_ids=IDS[:, 9:], attention_mask=PADDED, past_key_values=cache).logits


@pytest.mark.skipif(not __version__.startswith("4."), reason="transformers 5 makes its masks by broadcasting")
@pytest.mark.parametrize("family", [family for family in CONFIGS | MORE if here(family)])
@torch.no_grad()
def test_masks_by_broadcasting_are_those_of_the_library(family, monkeypatch):
    lm, asked = tiny(family), []
    own, quick = masking_utils._vmap_for_bhqkv.__wrapped__, masking_utils._vmap_for_bhqkv
    monkeypatch.setattr(masking_utils, "_vmap_for_bhqkv", lambda *a, **k: (asked.append(quick), quick(*a, **k))[1])
    found = [*outputs(lm)]
    monkeypatch.setattr(masking_utils, "_vmap_for_bhqkv", lambda *a, **k: (asked.append(own), own(*a, **k))[1])
    monkeypatch.setattr(masking_utils, "TransformGetItemToIndex", TransformGetItemToIndex)
    expected = [*outputs(lm)]
    assert all(map(torch.equal, found, expected)) and all(one.isfinite().all() for one in found)
    assert asked.count(own) == asked.count(quick), "each way was gone as often"
