"""What the checks of lesson 1 see that its own wrong answers do not show."""

from helpers.course.exercise import find, judge
from helpers.lesson1.exercises import solution_1_5


def test_a_search_that_stops_at_two_is_told_that_another_candidate_is_better():
    def short(lm, prompt, block, factor, later):
        return min(solution_1_5(lm, prompt, block, factor, later), 2.0)

    outcome = judge(find("1.5"), short)
    assert outcome.state == "almost" and "another candidate" in outcome.sentence
