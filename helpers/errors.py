"""One exception class for each kind of mistake, so that code can tell them apart; the sentence is written where the mistake is found.

    raise errors.BadValue("chunk {chunk!r} cannot be used: give a number of tokens, 1 or more.", chunk=chunk)

Every sentence names the value, says what is allowed and what to do. It is said in the reader's language (helpers/say.py).
docs/errors.md has an entry for each class: a traceback names it in a note below the sentence, so that the sentence itself stays short.
"""

from .say import say


class HelpersError(ValueError):
    """Parent of all mistakes that this package reports."""

    def __init__(self, text: str = "", /, **values: object) -> None:
        super().__init__(say(text, **values))
        self.add_note(say("What this means and how to mend it: {page}", page=self.page))

    @property
    def page(self) -> str:
        """Where the documentation explains this kind of mistake."""
        return f"docs/errors.md#{type(self).__name__.lower()}"


class UnknownModel(HelpersError):
    """No model of that name or at that place."""


class NoNetwork(HelpersError):
    """The model is not on this machine, and the hub cannot be reached."""


class WrongVersion(HelpersError):
    """A library is older or newer than what the course runs on."""


class DamagedWeights(HelpersError):
    """The weights file is truncated or does not fit the model."""


class CannotStore(HelpersError):
    """The real model cannot be kept: no room on the disk, or no right to write there."""


class NotEnoughMemory(HelpersError):
    """What was asked for needs more memory than is left."""


class UnsupportedFamily(HelpersError):
    """The architecture is not in the table of families."""


class BadPrompt(HelpersError):
    """The prompt is empty or not text."""


class PromptTooLong(HelpersError):
    """The prompt has more tokens than the model has positions."""


class TargetIsNotOneToken(HelpersError):
    """A target must be exactly one token."""


class BlockOutOfRange(HelpersError):
    """The model has no such block."""


class HeadOutOfRange(HelpersError):
    """The block has no such head."""


class NeuronOutOfRange(HelpersError):
    """The MLP has no such neuron."""


class PositionOutOfRange(HelpersError):
    """The prompt has no such token position."""


class BadFactor(HelpersError):
    """A factor, mean or standard deviation that is no finite number."""


class BadEdit(HelpersError):
    """An edit that cannot be applied: no edit at all, or a change that does not return what it must."""


class DidNotRun(HelpersError):
    """The part of the model that an edit or a reading needs is not there, or did not run once in a pass."""


class WorkerDied(HelpersError):
    """A process that worked for a study was killed."""


class BadValue(HelpersError):
    """A tensor or option of the wrong kind, shape, dtype or device."""
