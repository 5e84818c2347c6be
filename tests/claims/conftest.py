"""`prove_verdicts(module, cases)`: each verdict function of a lesson has a case for each verdict that it can give."""

import pytest

from helpers.claims import core
from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim, Verdict

NAMES = {name: value for name, value in vars(core).items() if isinstance(value, Verdict)}


def reachable(function):
    """The verdicts that a function's code names; `judge` gives the three of a count."""
    code = function.__code__
    names = set(code.co_names)
    counted = {HOLDS, PARTLY, FAILS} if "judge" in names else set()
    return counted | {NAMES[name] for name in names & set(NAMES)}


@pytest.fixture
def prove_verdicts():
    """cases: claim number -> verdict -> (arguments, words that the reason must hold)."""

    def prove(module, cases):
        assert set(cases) == set(module.VERDICTS), "cases for each verdict function"
        for number, by_verdict in cases.items():
            function = module.VERDICTS[number]
            assert set(by_verdict) == reachable(function), f"{number}: a case for each verdict"
            claims = []
            for verdict, (arguments, words) in by_verdict.items():
                claim = function(**arguments)
                assert isinstance(claim, Claim)
                assert claim.number == number
                assert claim.verdict == verdict, f"{number}: {claim}"
                assert words in claim.why, f"{number}: {claim.why}"
                claims.append(claim)
            assert len({claim.says for claim in claims}) == 1
            assert len({claim.software for claim in claims}) == 1
            assert len({claim.why for claim in claims}) == len(claims)

    return prove
