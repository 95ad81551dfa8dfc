# SPDX-License-Identifier: Apache-2.0
"""Rules that move the cut between foreground and background of one image."""

from __future__ import annotations

from pathlib import Path

import foreground_cuts
import pytest
import torch


MARGINS = torch.tensor([[-4.0, -3.0, -1.0, 2.0, 3.0, 4.0]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    # midway: (3 - 8/3) / 2 = 1/6; then it stays; the middle of the gap between -1 and 2
    [("the model's", 0.0), ("midway", 1 / 6), ("two means", 1 / 6), ("Otsu", 0.5)],
)
def test_cuts_by_hand(rule: str, expected: float):
    assert foreground_cuts.RULES[rule](MARGINS, torch.zeros(1)).item() == pytest.approx(expected)


def test_two_means_goes_on_until_the_groups_stay():
    margins = torch.tensor([[-6.0, -5.0, -1.0, -0.8, 1.0]])
    assert foreground_cuts.midway(margins, torch.zeros(1)).item() == pytest.approx((1 - 3.2) / 2)
    assert foreground_cuts.two_means(margins, torch.zeros(1)).item() == pytest.approx((-5.5 + -0.8 / 3) / 2)


@pytest.mark.parametrize("rule", foreground_cuts.RULES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_image_of_one_kind_keeps_its_cut(rule: str, sign: int):
    margins = sign * torch.tensor([[1.0, 2.0, 9.0]])
    assert foreground_cuts.foreground(margins, foreground_cuts.RULES[rule]).tolist() == [[sign > 0] * 3]


def test_the_cut_of_the_model_scores_as_the_benchmark_does(capsys: pytest.CaptureFixture[str]):
    checkpoint = str(Path(__file__).parents[1] / "checkpoints" / "ice-deit-scenes")
    foreground_cuts.main(["--models", checkpoint, "--dataset_name", "scenes", "--limit", "50"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines[2:]] == list(foreground_cuts.RULES)
    assert 0.7 < float(lines[2][2]) < 0.8
