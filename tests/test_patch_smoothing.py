# SPDX-License-Identifier: Apache-2.0
"""Smoothing over the patch grid: plain means of neighbours, which stop where the picture changes."""

from __future__ import annotations

import math

import pytest
import torch

from transformers_ice.ice_deit.patch_smoothing import neighbor_weights, patch_appearance, smoothing_weights


def test_neighbors_count_as_in_a_loop():
    values = torch.rand(12, 5)
    grid = values.view(3, 4, 5)
    expected = torch.zeros_like(grid)
    for row in range(3):
        for column in range(4):
            for down, weight in ((-1, 1), (0, 2), (1, 1)):
                for right, other in ((-1, 1), (0, 2), (1, 1)):
                    near = grid[min(max(row + down, 0), 2), min(max(column + right, 0), 3)]
                    expected[row, column] += weight * other / 16 * near
    torch.testing.assert_close(neighbor_weights((3, 4)) @ values, expected.flatten(0, 1))


@pytest.mark.parametrize("grid_size", [(1, 1), (1, 3), (2, 2)])
def test_small_grids(grid_size):
    weights = neighbor_weights(grid_size)
    assert weights.shape == (math.prod(grid_size),) * 2
    torch.testing.assert_close(weights.sum(-1), torch.ones(math.prod(grid_size)))


def test_appearance_is_mean_and_deviation_of_the_pixels_of_a_patch():
    pixels = torch.randn(2, 3, 17, 24)  # the last row of pixels belongs to no patch
    appearance = patch_appearance(pixels, (8, 6))
    assert appearance.shape == (2, 8, 6)
    for index in range(8):
        row, column = divmod(index, 4)
        patch = pixels[1, :, 8 * row : 8 * row + 8, 6 * column : 6 * column + 6].flatten(1)
        torch.testing.assert_close(appearance[1, index], torch.cat((patch.mean(1), patch.std(1, correction=0))))


def test_a_weight_of_0_sees_only_distances():
    appearance = torch.randn(2, 12, 6)
    once = neighbor_weights((3, 4))
    torch.testing.assert_close(smoothing_weights(appearance, (3, 4), 0.0, 1), once.expand(2, -1, -1))
    torch.testing.assert_close(smoothing_weights(appearance, (3, 4), 0.0, 3)[1], once @ once @ once)


def test_one_step_is_that_of_a_loop():
    appearance = torch.randn(1, 4, 2)
    weights = smoothing_weights(appearance, (2, 2), 1.5, 1)[0]
    near = neighbor_weights((2, 2))
    for i in range(4):
        counts = [near[i, j] * math.exp(-1.5 * (appearance[0, i] - appearance[0, j]).square().sum()) for j in range(4)]
        torch.testing.assert_close(weights[i], torch.stack(counts) / sum(counts))


@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_means_stay_on_their_side_of_an_edge(weight):
    # left half black, right half white
    pixels = torch.full((1, 3, 32, 32), -1.0)
    pixels[..., 16:] = 1.0
    weights = smoothing_weights(patch_appearance(pixels, (8, 8)), (4, 4), weight, 4)
    is_left = torch.tensor([True, True, False, False]).repeat(4)
    across = weights[0][is_left][:, ~is_left].sum(-1)
    assert (across.max() < 1e-9) == (weight > 0)
    # on its side it goes as far as there are steps
    assert weights[0, 0, 12] > 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 16))
    if weight == 0:
        assert across.min() > 0.1
