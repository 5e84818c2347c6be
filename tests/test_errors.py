"""Each class of mistakes has its entry in docs/errors.md, and a traceback leads to it."""

import copy
import pickle
import re
import traceback
from pathlib import Path

import pytest

from helpers import errors

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_the_page_has_an_entry_for_each_class_and_no_other():
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == [kind.__name__ for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_entry_begins_as_the_class_does_and_says_how_to_mend(kind):
    entry = PAGE.split(f"## {kind.__name__}\n")[1].split("\n## ")[0]
    assert entry.strip().splitlines()[0] == kind.__doc__
    assert all(word in entry for word in ("**Symptom**", "**Cause", "ending**"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_traceback_names_the_entry_and_the_sentence_stays_short(kind):
    with pytest.raises(kind) as caught:
        raise kind("block 9 does not exist.")
    error = caught.value
    assert str(error) == "block 9 does not exist."
    assert f"docs/errors.md#{kind.__name__.lower()}" in "".join(traceback.format_exception(error))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind and other.__notes__ == error.__notes__ and len(other.__notes__) == 1
