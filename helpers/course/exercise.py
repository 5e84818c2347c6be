"""The frame of every exercise: a check that says what is wrong, a hint, a solution that stays hidden until asked for.

In a lesson:                       In helpers/lessonN/exercises.py:

    def top_dimensions(…):             EXERCISES = (Exercise("1.3", "Who carries the difference?", …),)
        return ...                     check_1_3 = checker(EXERCISES[2])

    check_1_3(top_dimensions)
    # hint("1.3")
    # show_solution("1.3")

A check never raises: an answer is not tried yet (`...`), almost right (one sentence says why not), or right.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import torch

from helpers.models import LanguageModel
from helpers.say import say, translatable
from helpers.wrapping import wrap

NOT_TRIED_FUNCTION = translatable("Not tried yet. Fill in the function above and run this cell again.")
NOT_TRIED_VALUE = translatable(
    "Not tried yet. Write your answer in place of the three dots above and run this cell again."
)


class Almost(Exception):
    """Raised inside a check: the answer is not right, for the reason that the sentence gives."""


class NotTried(Exception):
    """Raised inside a check: the learner has not answered yet."""


@dataclass(frozen=True)
class Outcome:
    """What a check found: `state` is "right", "almost" or "not tried"; `sentence` is what the learner reads."""

    state: str
    sentence: str


@dataclass(frozen=True)
class Exercise:
    """One exercise. `check(answer)` returns None for a right answer or one sentence that says what is wrong.

    number: "1.3". difficulty: 1 to 3. stub: what the notebook gives, a function that returns `...` or `...` itself.
    solution: a right answer; a function is named solution_1_3, so that nothing of the learner's is overwritten.
    wrong: three or more typical wrong answers, each with a sentence of its own in `check`; the tests try them all.
    right: other ways to write it that `check` accepts; the tests try them too.
    payoff: runs a right answer on a model and returns what the learner has just found, in two sentences with their numbers.
    """

    number: str
    title: str
    difficulty: int
    minutes: int
    stub: Any
    check: Callable[[Any], str | None]
    hint: str
    solution: Any
    wrong: tuple[Any, ...]
    right: tuple[Any, ...] = ()
    payoff: Callable[[Any], str] | None = None

    @property
    def not_tried(self) -> str:
        """What a learner reads who has not answered yet: some exercises ask for a function, others for a value."""
        return say(NOT_TRIED_FUNCTION if callable(self.stub) else NOT_TRIED_VALUE)

    @property
    def heading(self) -> str:
        """The two facts over each exercise, as its notebook prints them."""
        dots = "●" * self.difficulty + "○" * (3 - self.difficulty)
        return say(
            "**Exercise {number} · {title}** difficulty {dots} · {minutes} minutes",
            number=self.number,
            title=say(self.title),
            dots=dots,
            minutes=self.minutes,
        )


def judge(exercise: Exercise, answer: Any) -> Outcome:
    """Try an answer and say how it went. Raises nothing, whatever the answer does, short of an interrupt."""
    try:
        if answer is ...:
            raise NotTried
        complaint = exercise.check(_ask(answer) if inspect.isfunction(answer) or inspect.ismethod(answer) else answer)
    except NotTried:
        return Outcome("not tried", exercise.not_tried)
    except Almost as reason:
        complaint = str(reason)
    except Exception as error:  # an answer of a shape that the check did not expect
        complaint = say(
            "this cannot be checked: what came back led to {error_kind}: {error}",
            error_kind=type(error).__name__,
            error=error,
        )
    if complaint is None:
        return Outcome("right", say("✓ Exercise {number}", number=exercise.number))
    return Outcome("almost", say("Almost: {complaint}", complaint=say(complaint)))


def found(exercise: Exercise, answer: Any) -> str:
    """What a right answer finds out about a model. Raises nothing: a machine without the real model still gives its ✓."""
    assert exercise.payoff is not None
    try:
        return exercise.payoff(_without_graph(answer))
    except Exception as error:
        return say(
            "(What it finds on a model cannot be shown here: {error_kind}: {error})",
            error_kind=type(error).__name__,
            error=str(error).splitlines()[0],
        )


def a_model() -> tuple[LanguageModel, str]:
    """The model for a payoff and its name in a sentence: the real one where it has been brought, else the pocket model."""
    from helpers import smollm2
    from helpers.loading import load_model

    return (load_model("smollm2"), "SmolLM2") if smollm2.is_here() else (load_model(), say("the pocket model"))


def checker(exercise: Exercise) -> Callable[[Any], None]:
    """Return the function that a lesson calls with an answer; it prints one sentence, or a few."""

    def check(answer: Any) -> None:
        outcome = judge(exercise, answer)
        print(_wrapped(outcome.sentence))
        if outcome.state == "right" and exercise.payoff is not None:
            print(_wrapped(found(exercise, answer)))

    check.__name__ = f"check_{exercise.number.replace('.', '_')}"
    check.__doc__ = f"Check an answer to exercise {exercise.number}, {exercise.title}, and print what is wrong or ✓."
    return check


def find(number: str) -> Exercise:
    """Return the exercise with this number. Raises ValueError with the numbers that exist."""
    lesson = str(number).split(".")[0]
    name = f"helpers.lesson{lesson}.exercises"
    if not lesson.isdigit() or util.find_spec(f"helpers.lesson{lesson}") is None:
        raise ValueError(
            say(
                "exercise {number!r} does not exist: write the lesson and the exercise, for example '1.3'.",
                number=number,
            )
        )
    exercises: tuple[Exercise, ...] = import_module(name).EXERCISES
    for exercise in exercises:
        if exercise.number == str(number):
            return exercise
    raise ValueError(
        say(
            "exercise {number!r} does not exist: lesson {lesson} has {numbers}.",
            number=number,
            lesson=lesson,
            numbers=", ".join(e.number for e in exercises),
        )
    )


def hint(number: str) -> None:
    """Print the hint of an exercise: `hint("1.3")`."""
    print(_wrapped(say(find(number).hint)))


def show_solution(number: str) -> None:
    """Print the solution of an exercise, under a name of its own: `show_solution("1.3")`."""
    print(solution_source(find(number)))


def own_or_solution(number: str, answer: Any) -> Any:
    """Return the learner's answer if its check passes, else the course's: what a later cell goes on with."""
    exercise = find(number)
    return answer if judge(exercise, answer).state == "right" else exercise.solution


def solution_source(exercise: Exercise) -> str:
    """Return the source of a solution function, or an assignment for a solution that is a value."""
    if callable(exercise.solution):
        return textwrap.dedent(inspect.getsource(exercise.solution)).rstrip()
    return f"solution_{exercise.number.replace('.', '_')} = {exercise.solution!r}"


def tiny_model(seed: int = 0, n_blocks: int = 4, n_heads: int = 4, d_model: int = 32) -> LanguageModel:
    """Return a small random GPT-2 in float64 and eval mode, new at each call: a model that the learner has not seen.

    It has 50 tokens, 32 positions and no tokenizer: prompts are tensors of ids, for example `torch.arange(6)`.
    Its weights are enlarged so that every part visibly matters.
    """
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(
        vocab_size=50, n_positions=32, n_layer=n_blocks, n_head=n_heads, n_embd=d_model, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return wrap(model.double())


def hooks_on(model: torch.nn.Module) -> int:
    """Count the forward hooks and pre-hooks of a model: a learner's function must leave as many as it found."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _ask(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the learner's function: what goes wrong inside it becomes one sentence."""
    name = getattr(answer, "__name__", "your function")

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = answer(*args, **kwargs)
        except NotImplementedError:
            raise NotTried from None
        except Exception as error:
            said = str(error).strip().split("\n")[0]
            raise Almost(
                say(
                    "{name} raised {error_kind}{reason}",
                    name=name,
                    error_kind=type(error).__name__,
                    reason=": " + said if said else "",
                )
            ) from None
        if result is ...:
            raise NotTried
        if result is None:
            raise Almost(say("{name} returned None; is a `return` missing?", name=name))
        return result

    return call


def _without_graph(answer: Any) -> Any:
    """Detach what a learner's function returns: PyTorch warns when a payoff makes a plain number of what carries a graph."""
    if not inspect.isfunction(answer):
        return answer

    @functools.wraps(answer)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _detached(answer(*args, **kwargs))

    return call


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(map(_detached, value))
    return {key: _detached(one) for key, one in value.items()} if type(value) is dict else value


def _wrapped(text: str) -> str:
    """Short lines: Jupyter breaks a long one in the middle of a word."""
    return "\n".join(textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False))
