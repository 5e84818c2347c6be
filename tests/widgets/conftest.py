"""Two models for one panel: the pocket model, and a random llama with grouped-query attention that reads the same tokens."""

import pytest
from tiny import tiny

from helpers import load_model


@pytest.fixture(scope="package")
def pocket():
    return load_model()


@pytest.fixture(scope="package")
def llama(pocket):
    lm = tiny("llama", vocab_size=pocket.vocabulary, max_position_embeddings=128)
    lm.tokenizer = pocket.tokenizer
    return lm
