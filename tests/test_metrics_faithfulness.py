# SPDX-License-Identifier: Apache-2.0
"""Areas under curves by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc

from transformers_ice.evaluation.metrics import InsertionDeletionAuc, PerturbationAuc


TENTHS = np.arange(10) / 10


def perturbation(curves, **options):
    return PerturbationAuc(**options).compute(predictions=curves)["perturbation_auc"]


def test_perturbation_area_by_hand():
    # always right: 0.9 x 100; right on the clean image only: a triangle of width 0.1
    assert perturbation([[1] * 10]) == pytest.approx(90, abs=1e-12)
    assert perturbation([[1] + [0] * 9]) == pytest.approx(100 * 0.1 / 2, abs=1e-12)
    assert perturbation([[1] * 10, [1] + [0] * 9]) == pytest.approx(47.5, abs=1e-12)


def test_perturbation_area_is_a_trapezoid_and_not_the_mean_of_the_points():
    falling = np.linspace(0.9, 0.0, 10)
    assert perturbation([falling]) == pytest.approx(100 * 0.9 * 0.45, abs=1e-12)
    assert perturbation([falling]) != pytest.approx(100 * falling.mean())


def test_perturbation_area_agrees_with_scikit_learn_on_the_accuracy_of_the_set():
    right = np.random.default_rng(0).random((50, 10)) < np.linspace(0.9, 0.1, 10)
    assert perturbation(right) == pytest.approx(100 * auc(TENTHS, right.mean(axis=0)), abs=1e-12)


def test_other_fractions_weigh_steps_by_their_width():
    assert perturbation([[1, 1, 0]], fractions=(0, 0.25, 1)) == 100 * (0.25 + 0.75 / 2)


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
def test_insertion_and_deletion_by_hand(kind):
    metric = InsertionDeletionAuc(kind, fractions=(0, 0.5, 1))
    assert metric.compute(predictions=[[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]]) == {f"{kind}_auc": 0.75}


def test_insertion_agrees_with_scikit_learn_on_uneven_steps():
    # steps of 17 pixels of 100, and the rest
    fractions = np.array([*range(0, 100, 17), 100]) / 100
    curves = np.random.default_rng(0).random((7, len(fractions)))
    score = InsertionDeletionAuc(fractions=fractions).compute(predictions=curves)["insertion_auc"]
    assert score == pytest.approx(np.mean([auc(fractions, curve) for curve in curves]), abs=1e-12)


def test_default_numbers_of_steps_of_insertion_and_perturbation():
    assert InsertionDeletionAuc().fractions.tolist() == [step / 20 for step in range(21)]
    np.testing.assert_allclose(PerturbationAuc().fractions, TENTHS, atol=1e-15)


@pytest.mark.parametrize(
    ("metric", "curves", "message"),
    [
        (PerturbationAuc, [[1] * 9], r"shape \(batch_size, 10\), one for each of the fractions, got shape \(1, 9\)"),
        (PerturbationAuc, [[1] * 9 + [np.nan]], r"finite numbers of shape"),
        (PerturbationAuc, [1.0], r"got shape \(1,\)"),
        (InsertionDeletionAuc, [[1.5] * 21], r"probabilities in \[0, 1\], got values from 1.5 to 1.5"),
    ],
)
def test_unfit_curves_are_refused(metric, curves, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=curves)


def test_unfit_fractions_and_kinds_are_refused():
    for fractions in ((0.0,), (0.5, 0.5), (0.0, 1.5), (-0.1, 1.0), (0.3, 0.1)):
        with pytest.raises(ValueError, match=r"must be at least two rising numbers in \[0, 1\], got \["):
            PerturbationAuc(fractions=fractions)
    for fractions in ((0.1, 1.0), (0.0, 0.9), (0.0,)):
        with pytest.raises(ValueError, match="must rise from 0 to 1"):
            InsertionDeletionAuc(fractions=fractions)
    with pytest.raises(ValueError, match="`kind` must be 'insertion' or 'deletion', got 'removal'"):
        InsertionDeletionAuc("removal")
