"""Verdicts are computed, travel in the notebook, and carry paired statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from helpers.claims import MIME, Claims, from_notebook, paired

ROW = {"paper": "p", "criterion": "c", "measured": "1.23"}


@pytest.mark.parametrize("holds", [True, np.bool_(True), torch.tensor(1.0) > 0])
def test_verdict_follows_the_condition(holds):
    claims = Claims("x")
    assert claims.check("C1", "s", **ROW, holds=holds) == "reproduced"
    assert claims.check("C2", "s", **ROW, holds=not holds) == "not reproduced"
    assert claims.check("C3", "s", **ROW, holds=holds, testable=False) == (
        "not testable at this scale"
    )


@pytest.mark.parametrize("holds", [1, 0.0, None, "yes", np.float64(1.0)])
def test_a_condition_that_is_no_boolean_is_refused(holds):
    with pytest.raises(TypeError, match="C1"):
        Claims("x").check("C1", "s", **ROW, holds=holds)


def test_an_id_is_judged_once():
    claims = Claims("x")
    claims.check("C1", "s", **ROW, holds=True)
    with pytest.raises(ValueError, match="C1"):
        claims.check("C1", "s", **ROW, holds=False)


def test_show_prints_no_measured_number(capsys):
    claims = Claims("x")
    claims.check("C1", "s", **ROW, holds=True)
    claims.show()
    out = capsys.readouterr().out
    assert out.split() == ["C1", "reproduced", "c"]


def test_rows_travel_in_the_bundle_and_the_last_table_wins(monkeypatch):
    import IPython.display

    bundles = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: bundles.append(data))
    claims = Claims("x")
    claims.check("C1", "a < b & c", **ROW, holds=True)
    claims.table()
    claims.check("C2", "s", **ROW, holds=False)
    claims.table()
    assert "a &lt; b &amp; c" in bundles[0]["text/html"]
    cells = [new_code_cell(outputs=[new_output("display_data", data)]) for data in bundles]
    rows = from_notebook(new_notebook(cells=cells))
    assert [(r["id"], r["verdict"]) for r in rows] == [
        ("C1", "reproduced"),
        ("C2", "not reproduced"),
    ]
    assert bundles[1][MIME]["notebook"] == "x"
    assert from_notebook(new_notebook()) == []


def test_paired_against_scipy():
    from scipy import stats

    a, b = [3.0, 5.0, 4.0, 6.0], [2.0, 4.5, 4.0, 4.0]
    ours = paired(a, b)
    reference = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert ours.mean == pytest.approx(0.875)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high))
    assert str(ours).startswith("+0.88 [")


def test_one_pair_decides_nothing():
    ours = paired([2.0], [1.0])
    assert (ours.mean, ours.low, ours.high) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_input_is_refused(a, b):
    with pytest.raises(ValueError, match="equally many"):
        paired(a, b)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=2, max_size=20))
def test_paired_is_antisymmetric(pairs):
    a, b = zip(*pairs, strict=True)
    forth, back = paired(a, b), paired(b, a)
    assert forth.low <= forth.mean <= forth.high
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), abs=1e-6)
