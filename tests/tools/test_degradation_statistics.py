"""What the table of degradations says: measured values lie on their formulas."""

from __future__ import annotations

import pytest

from tools import degradation_statistics


@pytest.mark.parametrize("part", ["noise", "optics", "codec"])
def test_what_is_measured_follows_the_formula(part):
    for name, quantity, formula, measured in getattr(degradation_statistics, part)():
        near = pytest.approx(float(formula), rel=0.05, abs=0.3 if part == "codec" else 1e-5)
        assert float(measured) == near, (name, quantity)
