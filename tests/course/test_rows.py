"""A row never contradicts itself: whatever numbers a verdict function gets, its counts and comparisons are true of them.

What is true is computed here once more, from the claim's own words: `TRUE` lists, for each claim that is judged over prompts,
the statements of its parts as a test of one prompt.
"""

import re
from importlib import import_module
from itertools import pairwise
from math import comb, isclose
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, UNTESTED, VERSION
from helpers.tables import format_number

LESSONS = [import_module(f"helpers.lesson{lesson}.claims") for lesson in range(1, 6)]
VERDICTS = {number: function for lesson in LESSONS for number, function in lesson.VERDICTS.items()}
# Among them are the thresholds themselves and what lies next to them.
SIZES = st.one_of(
    st.sampled_from(
        [0.0, 0.05, 0.0999999, 0.1, 0.1000001, 1 / 3, 0.5, 0.95, 0.9999, 1.0, 1.0001, 9.9999, 10.0, 10.0001, 50.0]
    ),
    st.floats(1e-6, 1e4),
)
POSITIVE = SIZES.filter(bool)
SIGNED = st.builds(lambda size, sign: size * sign, SIZES, st.sampled_from([-1, 1]))
SHARE = st.floats(0, 1)
BOOLS = st.booleans()
FACTORS = 4


def rows(draw, element, *shape):
    """A nested list of this shape."""
    if not shape:
        return draw(element)
    return [rows(draw, element, *shape[1:]) for _ in range(shape[0])]


def made(draw, number):
    """Random arguments for a verdict function."""
    n, points, heads = (draw(st.integers(low, 5)) for low in (1, 2, 2))

    def table(element, *shape):
        return rows(draw, element, n, *shape)

    def sites(element, *shape):
        return {site: table(element, *shape) for site in ("block 5", "the strongest")}

    match number:
        case "1.1":
            return {"before": table(SIZES, FACTORS)}
        case "1.2":
            exact = {"at": [], "size": table(POSITIVE)}
            for size in exact["size"]:
                row = [abs(1 - factor) * size for factor in (0.5, 0.75, 1.25, 1.5)]
                exact["at"].append(row if draw(BOOLS) else rows(draw, SIZES, FACTORS))
            return exact
        case "1.3":
            return {"delta": table(SIZES, FACTORS, points), "relative": table(SIZES, FACTORS, points)}
        case "1.4":
            return {"ratio": table(SIZES, FACTORS), "length": table(SIZES)}
        case "1.5":
            names = ("relative", "delta", "survives", "with_first")
            return {name: table(SIZES, FACTORS, 2) for name in names} | {"normed": table(SIZES, FACTORS)}
        case "1.6":
            return {"miss": draw(SIZES), "moved": draw(SIZES)}
        case "1.7":
            return {
                "saved": draw(st.integers(0, 9999)),
                "weights": draw(st.integers(1, 10**9)),
                "corrupted": draw(SIZES),
            }
        case "1.8":
            return {name: table(SIZES) for name in ("unmarked", "marked", "second")}
        case "1.9":
            return {"divergence": table(SIZES, FACTORS), "probability": table(SHARE), "after": table(SHARE, FACTORS)}
        case "2.1":
            return {"misses": table(SIZES, points), "against_hidden_state": table(SIZES), "tolerance": draw(POSITIVE)}
        case "2.2":
            names = ("without_first", "without_outliers", "per_dimension", "by_chance", "step")
            found = {name: table(SIGNED) for name in names}
            return found | {"everywhere": table(SIGNED, points), "block": draw(st.integers(0, points - 1))}
        case "2.3":
            outliers = {"masked": table(st.integers(50, 99)), "at_first": table(st.integers(0, 50))}
            return outliers | {"filled": table(SHARE), "r": table(SIGNED), "r_masked": table(SIGNED)}
        case "2.4":
            return {name: draw(SIZES) for name in ("probability", "as_it_is", "with_dropout")}
        case "2.5":
            return {name: draw(BOOLS) for name in ("train", "evaluated", "train_no_grad")}
        case "3.1":
            column = st.sampled_from([None, 16, 8, 40])
            return {"d_model": 24, "d_head": 8, "head": 2, "in_k": draw(column), "fused": draw(column), "width": 72}
        case "3.2":
            names = ("reached", "relative", "divergence", "constant", "mean_alone")
            return {name: table(SIZES) for name in names} | {"distance": table(SIGNED)}
        case "3.3":
            found = {name: table(POSITIVE, points) for name in ("clean", "edited")}
            return found | {"with_first": table(SIZES, 2), "missing": table(SIGNED), "cosine": table(SIGNED)}
        case "3.4":
            found = {name: table(POSITIVE, points) for name in ("clean", "edited")}
            return found | {name: table(POSITIVE) for name in ("final_clean", "final_edited")}
        case "3.5":
            return {name: table(SIZES, points) for name in ("with_first", "without")}
        case "3.6":
            return {name: draw(st.integers(0, 3)) for name in ("plain", "asked", "attention")} | {"version": "5.9"}
        case "3.7":
            return {name: draw(SIZES) for name in ("others", "block", "attention", "mlp")} | {
                "heads": rows(draw, SIZES, heads)
            }
        case "3.8":
            return {name: table(SIZES) for name in ("left", "keys", "heads")} | {"hit": draw(st.integers(1, 4))}
        case "3.9":
            return {name: table(SHARE) for name in ("negative", "near")}
        case "4.1":
            return {"zero": sites(SIGNED, heads), "mean": sites(SIGNED, heads), "strongest": ["8.4", "9.1"]}
        case "4.2":
            return {"zero": sites(SIGNED, heads), "beyond": sites(SIGNED)}
        case "4.3":
            right = draw(st.integers(0, n))
            first = {site: table[:right] for site, table in sites(BOOLS, heads).items()}
            return {"first": first, "right": right, "tried": n}
        case "4.4":
            return {"changes": table(SIGNED, heads), "kept": table(BOOLS, heads)}
        case "4.5":
            found = {name: sites(SIGNED, heads) for name in ("single", "single_odds")}
            return found | {name: sites(SIGNED) for name in ("together", "together_odds", "zero")}
        case "4.6":
            damage = {
                site: {kind: table(SIZES) for kind in ("zero", "mean", "resample")}
                for site in ("block 5", "the strongest")
            }
            named = {site: dict.fromkeys(("zero", "mean", "resample"), "5.1") for site in damage}
            return {"damage": damage, "strongest": named}
        case "4.7":
            return {"gain": sites(SIGNED, heads)}
        case "4.8":
            return {"first": sites(BOOLS, heads), "together": sites(BOOLS)}
        case "5.1":
            return {"steps": rows(draw, SIZES, points)}
        case "5.2":
            return {"equal": [draw(st.sampled_from([[b + 1], [], [b]])) for b in range(points)]}
        case "5.3":
            line, repair = (draw(st.one_of(st.none(), SIZES)) for _ in range(2))
            return {
                "error": "TypeError" if line is None else "",
                "line": line,
                "repair": repair,
                "mended": draw(SIZES),
                "version": "5.9",
            }
        case "5.4":
            found = {"block": table(SIZES, points), "heads": table(SIZES, points, heads)}
            return found | {"share": rows(draw, st.floats(0.001, 0.5), points)}
        case "5.5":
            return {"rise": rows(draw, SIGNED, draw(st.integers(1, 12)), points)}
        case "5.6":
            return {}
    raise AssertionError(f"no arguments for {number}")


def each(*names):
    """The arguments of one prompt after another."""
    return lambda given: zip(*(given[name] for name in names), strict=True)


def at_sites(table, statement):
    """One statement for each site, of what the site's table says of a prompt."""
    return lambda given: [[statement(row) for row in rows] for rows in given[table].values()]


def statements(prompts, *tests):
    return lambda given: [[bool(test(*prompt)) for prompt in prompts(given)] for test in tests]


def ratio(whole, one):
    return whole / max(one, 1e-12)


def straight(d):
    """Do the points lie on a line, up to 1 % of their variance? None where that is too close to say."""
    if len(d) < 3 or len(set(d)) == 1:
        return True
    n, mean = len(d), sum(d) / len(d)
    slope = sum((i - (n - 1) / 2) * v for i, v in enumerate(d)) / sum((i - (n - 1) / 2) ** 2 for i in range(n))
    rest = sum((v - mean - slope * (i - (n - 1) / 2)) ** 2 for i, v in enumerate(d)) / sum((v - mean) ** 2 for v in d)
    return None if isclose(rest, 0.01, rel_tol=1e-6) else rest <= 0.01


def half_of_all(changes):
    sizes, gathered = sorted((abs(c) for c in changes), reverse=True), 0.0
    for number, size in enumerate(sizes, 1):
        gathered += size
        if gathered >= sum(sizes) / 2:
            return number
    return 1


def redundancy(given):
    cores, rest = [], []
    for site in given["single"]:
        prompts = list(
            zip(*(given[name][site] for name in ("single", "together", "single_odds", "together_odds")), strict=True)
        )
        cores.append([t < 0 for _, t, _, _ in prompts])
        rest.append([4 * half_of_all(row) >= len(row) for row, *_ in prompts])
        rest.append([t < sum(row) and o < sum(odds) for row, t, odds, o in prompts])
    return [*cores, *rest]


def small_shifts(given):
    small = [all(all(row) for row in prompt) for prompt in zip(*given["first"].values(), strict=True)]
    return [[not k for k, s in zip(kept, small, strict=True) if s] for kept in given["together"].values()]


TRUE = {
    "1.3": statements(
        each("delta", "relative"),
        lambda delta, _: all(d[-1] > d[0] for d in delta),
        lambda delta, _: all(b > a for d in delta for a, b in pairwise(d)),
        lambda delta, _: all(straight(d) is False for d in delta),
        lambda _, relative: all(r[0] <= r[-1] for r in relative),
    ),
    "1.4": statements(each("ratio"), lambda r: any(x >= 10 for x in r), lambda r: all(x >= 10 for x in r)),
    "1.5": statements(
        each("relative", "delta"),
        lambda relative, _: all(after < before for before, after in relative),
        lambda _, delta: all(after < before for before, after in delta),
    ),
    "1.8": statements(each("unmarked", "marked"), lambda word, mark: mark >= 10 and not word >= 10),
    "1.9": statements(each("divergence"), lambda d: d[0] > 1, lambda d: d[3] > 1),
    "2.2": lambda given: statements(
        each("everywhere", "without_first", "without_outliers", "per_dimension", "step"),
        lambda r, *_: r[given["block"]] >= 0.95,
        lambda r, *_: all(x >= 0.95 for x in r),
        lambda _r, first, *_: first >= 0.95,
        lambda _r, _f, outliers, *_: outliers >= 0.95,
        lambda *found: found[3] >= 0.95,
        lambda *found: found[4] <= 1 / 3,
    )(given),
    "2.3": statements(each("filled"), lambda filled: filled <= 0.1),
    "3.2": statements(
        each("distance", "reached", "relative", "divergence"),
        lambda far, reached, *_: abs(far) > 3 and reached <= 0.001,
        lambda _f, _r, relative, divergence: relative > 0.1 and divergence > 0.1,
    ),
    "3.3": statements(
        each("clean", "edited", "missing"),
        lambda c, e, _: e[0] / c[0] <= 0.5 and e[-1] / c[-1] >= 2 * (e[0] / c[0]),
        lambda _c, e, _m: all(b > a for a, b in pairwise(e)),
        lambda _c, _e, missing: missing <= 0.5,
    ),
    "3.4": statements(
        each("clean", "edited", "final_clean", "final_edited"),
        lambda c, e, fc, fe: 2 * abs(fe / fc - 1) <= abs(e[-1] / c[-1] - 1),
        lambda c, e, *_: e[-1] / e[-2] <= 0.5 and e[-1] / e[-2] < c[-1] / c[-2],
    ),
    "3.5": statements(
        each("with_first", "without"),
        lambda _w, without: without[-1] > without[0],
        lambda with_first, _: with_first[-1] > with_first[0],
        lambda _w, without: all(b > a for a, b in pairwise(without)),
        lambda with_first, _: all(b > a for a, b in pairwise(with_first)),
    ),
    "3.8": statements(each("left"), lambda left: left <= 0.1),
    "3.9": statements(each("negative", "near"), lambda negative, _: negative > 0.5, lambda _, near: near > 0.08),
    "4.1": at_sites("zero", lambda row: sum(v < 0 for v in row) > len(row) / 2),
    "4.2": at_sites("zero", lambda row: sum(v > 0 for v in row) > len(row) / 2),
    "4.3": at_sites("first", all),
    "4.4": statements(
        each("changes", "kept"),
        lambda c, k: sum(abs(v) for v, stays in zip(c, k, strict=True) if stays) / (sum(map(abs, c)) or 1) >= 0.5,
    ),
    "4.5": redundancy,
    "4.6": lambda given: [
        [max(a, b) >= 1.5 * min(a, b) and a != b for a, b in zip(kinds["zero"], kinds["mean"], strict=True)]
        for kinds in given["damage"].values()
    ],
    "4.7": at_sites("gain", lambda row: sum(row) > 0),
    "4.8": small_shifts,
    "5.4": lambda given: statements(
        each("block", "heads"),
        lambda block, heads: median(ratio(b, h) for b, row in zip(block, heads, strict=True) for h in row) >= 4,
        lambda block, heads: all(b > h for b, row in zip(block, heads, strict=True) for h in row),
        lambda block, heads: median(
            s * ratio(b, h) for b, row, s in zip(block, heads, given["share"], strict=True) for h in row
        ) > 1,
    )(given),
}  # fmt: skip


def counts(text):
    return [(int(k), int(n)) for k, n in re.findall(r"(\d+) of (\d+)", text)]


def share_of_signs(values, bound):
    """The p of a sign test, from Pascal's triangle."""
    ups, downs = sum(v > bound for v in values), sum(v < bound for v in values)
    tail = sum(comb(ups + downs, k) for k in range(min(ups, downs) + 1)) / 2 ** (ups + downs)
    return min(1.0, 2 * tail)


def one_way(columns, bound=0.0):
    """(significantly below, above) of the columns, by stepping down as Holm does."""
    p = [share_of_signs(column, bound) for column in columns]
    left, sure = set(range(len(columns))), set()
    while left and p[best := min(left, key=p.__getitem__)] <= 0.05 / len(left):
        sure.add(best)
        left.remove(best)
    below = {i for i in sure if sum(v < bound for v in columns[i]) > sum(v > bound for v in columns[i])}
    return below, sure - below


@pytest.mark.parametrize("number", VERDICTS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_says_what_is_true_of_its_numbers(number, data):
    given_ = made(data.draw, number)
    claim = VERDICTS[number](**given_)
    assert claim.number == number
    for k, n in counts(f"{claim.verdict_text} {claim.why} {claim.measured}"):
        assert k <= n
    if claim.over is not None:
        check_counts(number, given_, claim)
    else:
        assert number not in TRUE or claim.verdict == UNTESTED
    check_words(number, given_, claim)


def check_counts(number, given, claim):
    parts = TRUE[number](given)
    n = len(parts[0])
    assert counts(claim.why)[: len(parts)] == [(sum(part), n) for part in parts]
    whole = sum(all(prompt) for prompt in zip(*parts, strict=True))
    assert claim.over == (whole, n)
    places = {"4.4": 1}.get(number, 2 if number.startswith("4") else 1)
    if claim.verdict == HOLDS:
        assert 10 * whole >= 9 * n
    elif claim.verdict == FAILS:
        assert all(2 * sum(core) < n for core in parts[:places])
    else:
        assert claim.verdict == PARTLY
        assert 10 * whole < 9 * n and any(2 * sum(core) >= n for core in parts[:places])


def check_words(number, given, claim):
    """What a row says beside its counts."""
    words = f"{claim.why} {claim.measured}"
    match number:
        case "1.1":
            assert (claim.verdict == CONSTRUCTION) == all(v == 0 for row in given["before"] for v in row)
            moved = [v for row in given["before"] for v in row if v]
            assert claim.verdict == CONSTRUCTION or (
                f"in {len(moved)} of" in words and format_number(max(moved), 3) in words
            )
        case "1.2":
            (right, n), *_ = counts(claim.why)
            assert (claim.verdict == CONSTRUCTION) == (right == n == 4 * len(given["at"]))
        case "1.4" | "1.8":
            if claim.verdict == UNTESTED:
                ((special, n),) = counts(claim.why)
                assert 2 * special < n
                longest = given["length"] if number == "1.4" else map(max, given["unmarked"], given["marked"])
                assert special == sum(v >= 10 for v in longest)
        case "1.6":
            assert (claim.verdict == FAILS) == (given["miss"] > 0)
            assert (claim.verdict == HOLDS) == (given["miss"] == given["moved"] == 0)
        case "1.7":
            assert (claim.verdict == FAILS) == (given["saved"] == 0)
            assert "spoils" not in words or given["corrupted"] > 0
        case "2.1":
            misses = [m for row in given["misses"] for m in row]
            assert (claim.verdict == FAILS) == any(m > given["tolerance"] for m in misses)
            if "largest miss <" in words:
                assert all(m < given["tolerance"] for m in misses)
            assert claim.verdict == FAILS or ("final norm" in words) == any(
                v > given["tolerance"] for v in given["against_hidden_state"]
            )
        case "2.4":
            assert claim.verdict == (HOLDS if given["as_it_is"] else FAILS if given["probability"] else UNTESTED)
        case "3.1":
            assert (claim.verdict == HOLDS) == ((given["in_k"], given["fused"]) == (16, 40))
            assert ("nothing is fused" in words) == ((given["in_k"], given["fused"]) == (16, 16))
        case "3.6":
            assert (claim.verdict == VERSION) == ((given["plain"], given["asked"]) in ((0, 0), (1, 2)))
        case "3.7":
            assert (claim.verdict == CONSTRUCTION) == (given["others"] == 0)
        case "4.1" | "4.2" | "4.7":
            table = given["gain" if number == "4.7" else "zero"]
            told = re.findall(r"(\d+) (?:fall|lose) and (\d+) (?:rise|gain) of", claim.measured)[: len(table)]
            for (down, up), rows_ in zip(told, table.values(), strict=True):
                below, above = one_way([list(column) for column in zip(*rows_, strict=True)])
                assert (int(down), int(up)) == (len(below), len(above))
        case "4.4" if claim.verdict == UNTESTED:
            assert all(all(row) for row in given["kept"])
        case "5.1":
            assert (claim.verdict == CONSTRUCTION) == (not any(given["steps"]))
        case "5.2":
            ((right, n),) = counts(claim.measured)
            assert right == sum(found == [b + 1] for b, found in enumerate(given["equal"]))
            assert (claim.verdict == HOLDS) == (right == n) and (claim.verdict != FAILS or 2 * right <= n)
        case "5.3":
            assert (claim.verdict == PARTLY) == (given["line"] not in (None, 0))
            assert ("mends it" in words) == (given["line"] is None and bool(given["repair"]) and given["mended"] == 0)
        case "5.5":
            below, above = one_way([list(column) for column in zip(*given["rise"], strict=True)], 0.1)
            said = re.search(r"Holm\): (.*); above it: (.*); of (\d+) blocks", claim.why)
            assert [named(said[1]), named(said[2])] == [below, above]
            expected = HOLDS if below and above else PARTLY if 0 < len(below | above) < int(said[3]) else FAILS
            assert claim.verdict == expected


def named(text):
    """The blocks that a list such as "blocks 0 to 2 and 5" names."""
    found = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_claim_over_prompts_has_its_statements():
    counted = {number for number, function in VERDICTS.items() if "judge" in function.__code__.co_names}
    assert counted == set(TRUE)
