"""`--where`: what it means, what it refuses, and that nothing is passed over by statistics which it would keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardkit.errors import UsageError
from shardkit.sources.bounds import Statistics, may_keep
from shardkit.sources.where import TextValue, parse_where

ROW = {"score": 3, "p": 0.5, "lang": "en", "ok": True, "none": None, "a b": 1, "m.t": "x"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("score >= 3 and lang == 'en'", True),
        ("3 <= score", True),
        ("0.2 < p < 0.5", False),
        ("lang in ('de', \"en\")", True),
        ("lang not in ['de', 'fr']", True),
        ("not (score == 3 or p > 1)", False),
        ("ok", True),
        ("not ok", False),
        ("ok == false or score == -3", False),
        ("none is null and score is not null", True),
        ("none is None", True),
        ("none == 1", False),
        ("not (none == 1)", False),  # neither true nor false
        ("none == 1 or score == 3", True),
        ("none == 1 and score != 3", False),
        ("not (none == 1 and score != 3)", True),
        ("col('a b') == 1", True),
        ("m.t == 'x'", True),
        ("score > +2.5", True),
    ],
)
def test_what_an_expression_means(text: str, kept: bool) -> None:
    assert parse_where(text).keeps(ROW) is kept


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("score = 3", "(equality is written ==)"),
        ("score >= 3 AND lang == 'en'", "(and, or, not are written so)"),
        ("score >= 3 & ok", "3 & ok is neither a column nor text"),
        ("(score >= 3) & (ok)", "& and | are written `and` and `or`"),
        ("score >= p", "score >= p is not a column and a value"),
        ("1 < 2", "1 < 2 is not a column and a value"),
        ("score == None", "write `score is null` or `score is not null`"),
        ("len(text) > 3", "is not a column and a value"),
        ("__import__('os').system('true')", "is no comparison"),
        ("score in (1, 'a')", "a list holds values of several kinds"),
        ("score in ()", "`in` is for a column and a list"),
        ("score > 1e999", "is no finite number"),
        ("score > 'a' + 'b'", "is neither a column nor text"),
        ("", "expected comparisons"),
        ("(" * 500 + "ok" + ")" * 500, "expected comparisons"),
        ("not " * 200 + "ok", "nested too deep"),
        ("ok or " * 2_000 + "ok", "has 12,002 characters"),
        ("score > 1\0", "expected comparisons"),
    ],
)
def test_what_is_no_comparison_of_columns_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_where(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["3", True, [1], {"a": 1}])
def test_a_value_of_another_kind_is_an_error_and_not_a_no(value: Any) -> None:
    with pytest.raises(ValueError, match="'score' is .*, --where compares it with a number"):
        parse_where("score >= 3").keeps({"score": value})


def test_a_value_of_a_csv_file_is_what_it_is_compared_with() -> None:
    def keeps(text: str, value: str) -> bool:
        return parse_where(text).keeps({"x": TextValue(value)})

    for text, value in (("x >= 3", "3.5"), ("x == 3", "3"), ("x", "True"), ("x == '3'", "3"), ("x is null", "")):
        assert keeps(text, value)
    assert not keeps("x >= 3", "")
    for text, value in (("x >= 3", "three"), ("x", "yes")):
        with pytest.raises(ValueError, match=f"'x' is '{value}', --where compares it with"):
            keeps(text, value)


Case = tuple[str, Callable[[pa.Array], pa.Array]]  # an expression, and what pyarrow computes for it
NUMBERS = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, -0.5, float("nan"), float("inf")])
OPS = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}


def within(x: pa.Array) -> pa.Array:
    return pc.or_kleene(pc.equal(x, 1), pc.equal(x, 2))


COMPARISONS: st.SearchStrategy[Case] = st.builds(
    lambda op, value: (f"x {op} {value}", lambda x: OPS[op](x, value)), st.sampled_from([*OPS]), st.integers(-3, 3)
) | st.sampled_from(
    [
        ("x is null", pc.is_null),
        ("x is not null", pc.is_valid),
        ("x in (1, 2)", within),
        ("x not in (1, 2)", lambda x: pc.invert(within(x))),
        ("0 < x <= 2", lambda x: pc.and_kleene(pc.greater(x, 0), pc.less_equal(x, 2))),
    ]
)
EXPRESSIONS: st.SearchStrategy[Case] = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(lambda a, b: (f"({a[0]} and {b[0]})", lambda x: pc.and_kleene(a[1](x), b[1](x))), inner, inner)
        | st.builds(lambda a, b: (f"({a[0]} or {b[0]})", lambda x: pc.or_kleene(a[1](x), b[1](x))), inner, inner)
        | inner.map(lambda a: (f"not ({a[0]})", lambda x: pc.invert(a[1](x))))
    ),
    max_leaves=5,
)


@given(values=st.lists(NUMBERS, min_size=1, max_size=5), case=EXPRESSIONS)
@example(values=[float("nan")], case=("not (x < 3)", pc.is_null))
@example(values=[1.0, float("nan")], case=("x != 1", pc.is_null))
def test_no_row_is_passed_over_by_statistics_that_would_be_kept(values: list[Any], case: Case) -> None:
    where = parse_where(case[0])
    kept = any(where.keeps({"x": value}) for value in values)
    ordered = sorted(value for value in values if value is not None and value == value)  # parquet leaves NaN out
    bounds = {"least": ordered[0], "most": ordered[-1]} if ordered else {}
    as_floats = {name: float(bound) for name, bound in bounds.items()}
    whole = all(value is None or isinstance(value, int) for value in values)
    for stated in [as_floats, bounds, {}] if whole else [as_floats, {}]:
        known = Statistics(rows=len(values), nulls=values.count(None), **stated)
        assert may_keep(where, {"x": known}) or not kept
    assert may_keep(where, {})


@given(values=st.lists(st.none() | st.text("abé", max_size=2), min_size=1), bound=st.text("abé", max_size=2))
def test_text_is_compared_and_bounded_as_parquet_orders_it(values: list[str | None], bound: str) -> None:
    ordered = sorted((value for value in values if value is not None), key=str.encode)
    bounds = {"least": ordered[0], "most": ordered[-1]} if ordered else {}
    known = Statistics(rows=len(values), nulls=values.count(None), **bounds)
    for op in OPS:
        for text in (f"x {op} {bound!r}", f"not (x {op} {bound!r})"):
            where = parse_where(text)
            assert may_keep(where, {"x": known}) or not any(where.keeps({"x": value}) for value in values)


@given(values=st.lists(NUMBERS, min_size=1, max_size=6), case=EXPRESSIONS)
def test_it_keeps_what_pyarrow_computes(values: list[Any], case: Case) -> None:
    column = pa.array([None if value is None else float(value) for value in values], pa.float64())
    where = parse_where(case[0])
    assert [where.keeps({"x": value}) for value in column.to_pylist()] == [
        kept is True for kept in case[1](column).to_pylist()
    ]
