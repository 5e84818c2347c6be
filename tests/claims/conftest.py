"""`prove_verdicts(module, cases)`: each verdict function of a lesson has a case that holds and one that does not."""

import pytest

from helpers.claims.core import FAILS, HOLDS, Claim


@pytest.fixture
def prove_verdicts():
    """cases: claim number -> (arguments that hold, arguments that do not), each a dictionary of arguments."""

    def prove(module, cases):
        assert set(cases) == set(module.VERDICTS), "one pair of cases for each verdict function"
        for number, (holding, failing) in cases.items():
            verdict = module.VERDICTS[number]
            good, bad = verdict(**holding), verdict(**failing)
            assert isinstance(good, Claim)
            assert good.number == bad.number == number
            assert good.says == bad.says
            assert good.verdict == HOLDS, f"{number}: {good}"
            assert bad.verdict == FAILS, f"{number}: {bad}"
            assert good.why != bad.why
            for claim in (good, bad):
                assert all([claim.says, claim.measured, claim.why])

    return prove
