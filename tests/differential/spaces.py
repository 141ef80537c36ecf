"""Hypothesis strategies: what users store in a study, with the odd cases that they also store."""

from __future__ import annotations

import warnings
from typing import Any

import hypothesis.strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

NUL, TOO_LONG, SURROGATE = "a\0b", "n" * 513, "\ud800"
numbers = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 2.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]
    ),
    st.floats(-2, 2),
)
steps = st.sampled_from([0, 1, 2, 7, 2**31 - 1, 2**31, -1, -(2**31) - 1])
names = st.sampled_from(["x", "y", "z", "c", "", "ä%s", "x" * 512, TOO_LONG, NUL, SURROGATE])
keys = st.sampled_from(["k", "constraints", "tpe:relative_params:0", "", "%(a)s", TOO_LONG, NUL])
json_values = st.one_of(
    st.sampled_from([None, True, 1, 1.0, 0.1, float("nan"), float("inf"), "", "ä\0", SURROGATE]),
    st.just([1, [None], {"a": 1}]),
    st.just("long" * 20),
    st.just({1, 2}),  # not JSON
)
CHOICES: list[tuple[Any, ...]] = [
    (0, 1),
    (False, True),
    (0.0, 1.0),
    ("a", "b"),
    (None, "a", 1.5),
    ([32], [64, 64]),
    ({"a": 1}, {"b": 2}),
    (float("nan"), 1.0),
    (float("inf"), -float("inf")),
    ("ä\0", "%s"),
]


def _categorical(choices: tuple[Any, ...]) -> CategoricalDistribution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CategoricalDistribution(choices)


distributions: st.SearchStrategy[BaseDistribution] = st.one_of(
    st.sampled_from(
        [
            FloatDistribution(0, 1),
            FloatDistribution(-0.0, 1),
            FloatDistribution(-1, 3),
            FloatDistribution(1e-3, 1, log=True),
            FloatDistribution(0, 1, step=0.25),
            IntDistribution(0, 1),
            IntDistribution(1, 64, log=True),
            IntDistribution(0, 9, step=3),
            IntDistribution(5, 5),
        ]
    ),
    st.sampled_from(CHOICES).map(_categorical),
)


@st.composite
def params(draw: st.DrawFn) -> tuple[str, float, BaseDistribution]:
    """A name, an internal value and a distribution."""
    distribution = draw(distributions)
    internal: st.SearchStrategy[float]
    if isinstance(distribution, CategoricalDistribution):
        internal = st.integers(0, len(distribution.choices) - 1)
    elif isinstance(distribution, IntDistribution):
        internal = st.integers(distribution.low, distribution.high)
    else:
        assert isinstance(distribution, FloatDistribution)
        internal = st.floats(distribution.low, distribution.high)
    return draw(names), draw(internal), distribution


states = st.sampled_from(list(TrialState))
directions = st.lists(st.sampled_from(list(StudyDirection)), min_size=1, max_size=3)


@st.composite
def templates(draw: st.DrawFn) -> FrozenTrial:
    """A trial as `Study.add_trial` and `Study.enqueue_trial` make it, whole or contradictory."""
    given = {name: (value, of) for name, value, of in draw(st.lists(params(), max_size=3))}
    state = draw(states)
    values = draw(st.none() | st.lists(numbers, min_size=1, max_size=3))
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        datetime_start=None,
        datetime_complete=None,
        params={name: of.to_external_repr(value) for name, (value, of) in given.items()},
        distributions={name: of for name, (_, of) in given.items()},
        user_attrs=draw(st.dictionaries(keys, json_values, max_size=2)),
        system_attrs=draw(st.dictionaries(keys, json_values, max_size=2)),
        intermediate_values=draw(st.dictionaries(steps, numbers, max_size=3)),
    )
