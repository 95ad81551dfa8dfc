# SPDX-License-Identifier: Apache-2.0
"""Local windows: split and joined, blind to what lies outside, their loss, and the grouping of its targets."""

from __future__ import annotations

import pytest
import torch

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.ice_deit.adversarial_normalization import pool_patches
from transformers_ice.ice_deit.configuration_ice_deit import as_pair
from transformers_ice.ice_deit.local_windows import (
    every_nth,
    grouping_weights,
    join_windows,
    local_distillation_loss,
    patch_appearance,
    split_windows,
)
from transformers_ice.ice_deit.objective_ice_deit import ObjectiveInputs, ice_losses
from transformers_ice.training.objective_presets import OBJECTIVES


GRIDS = [((4, 4), 2), ((4, 6), 2), ((6, 3), 3), ((4, 4), 1), ((2, 2), 2)]


def build(**fields) -> IceDeiTForImageClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    fields = {"image_size": 32, "patch_size": 8, **OBJECTIVES["balanced"], **fields}
    config = IceDeiTConfig(**shape, num_labels=3, **fields)
    model = IceDeiTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("grid_size", "num_windows"), GRIDS)
def test_windows_are_rectangles_of_the_grid(grid_size, num_windows):
    rows, columns = grid_size
    patches = torch.arange(2 * rows * columns).view(2, rows * columns, 1)
    windows = split_windows(patches, grid_size, num_windows)
    height, width = rows // num_windows, columns // num_windows
    images = patches.view(2, rows, columns)
    expected = [
        image[top : top + height, left : left + width].flatten()
        for image in images
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]
    assert torch.equal(windows[..., 0], torch.stack(expected))
    assert torch.equal(join_windows(windows, grid_size, num_windows), patches)


def test_uneven_windows_are_refused():
    with pytest.raises(ValueError, match=r"num_local_windows.* got 2 for a grid of 3 x 4.*or 0"):
        split_windows(torch.zeros(1, 12, 1), (3, 4), 2)


def test_distillation_loss_is_smallest_at_the_smoothed_target():
    teacher = torch.randn(2, 9, 4, requires_grad=True)
    smoothing = torch.rand(2, 9, 9)
    smoothing = smoothing / smoothing.sum(-1, keepdim=True)
    target = torch.einsum("bij,bjc->bic", smoothing, teacher.detach().softmax(-1))
    learner = torch.randn(2, 9, 4, requires_grad=True)
    loss = local_distillation_loss(learner, teacher, smoothing)
    assert loss > local_distillation_loss(target.log(), teacher, smoothing)
    torch.testing.assert_close(
        local_distillation_loss(target.log(), teacher, smoothing), -(target * target.log()).sum(-1).mean()
    )
    loss.backward()
    assert teacher.grad is None
    assert learner.grad.abs().sum() > 0


@pytest.mark.parametrize(("share", "rows"), [(1.0, [0, 1, 2, 3, 4]), (0.5, [0, 2, 4]), (0.25, [0, 4]), (0.01, [0])])
def test_every_nth(share, rows):
    assert every_nth(torch.arange(5), share).tolist() == rows


def test_a_patch_in_a_window_is_blind_to_the_other_windows():
    model = build().eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 16:] += torch.randn(1, 3, 32, 16)  # the right half
    with torch.no_grad():
        before, after = (model.deit.encode_windows(pixels).view(4, 4, -1) for pixels in (images, changed))
        whole, whole_after = (model(pixels).patch_logits.view(4, 4, -1) for pixels in (images, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().amin(dim=-1).min() > 0
    assert (whole[:, :2] - whole_after[:, :2]).abs().max() > 1e-4


def test_one_window_is_the_whole_image():
    model = build(num_local_windows=1).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.deit.encode_windows(images), model(images).patch_logits)


def ice_loss_of(config, patch_logits, labels):
    pooled = pool_patches(patch_logits, config.background_logit_scale)
    return ice_losses(ObjectiveInputs(config, patch_logits, pooled, torch.eye(3)[labels]))["loss"]


def expected_local_loss(model, outputs, images, labels, step):
    """The ICE loss in the windows and the distillation, from their definitions, for evenly spaced images."""
    config = model.config
    rows, columns = model.deit.embeddings.grid_size_of(images)
    local = model.deit.encode_windows(images[::step])
    ice_loss = ice_loss_of(config, local, labels[::step])
    # features of the full image, in the same mode
    features = model.deit(images).last_hidden_state[::step, config.num_prefix_tokens :]
    appearance = patch_appearance(images[::step], as_pair(config.patch_size))
    weights = (config.local_feature_weight, config.local_appearance_weight)
    grouping = grouping_weights(features, appearance, (rows, columns), *weights)
    distillation = local_distillation_loss(outputs.patch_logits[::step], local, grouping)
    return ice_loss + config.local_distillation_weight * distillation


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_distillation_token": True},
        {"num_register_tokens": 4},
        {"local_image_share": 1.0},
        {"local_feature_weight": 0.0, "local_appearance_weight": 0.0, "local_distillation_weight": 1.0},
        {"local_distillation_weight": 0.0},
        {"image_size": [32, 48], "patch_size": [8, 6]},
    ],
)
def test_local_loss_is_the_ice_loss_of_the_windows_and_the_distillation(fields):
    model = build(min_evidence_lead=0.0, **fields).train()
    height, width = as_pair(model.config.image_size)
    images, labels = torch.randn(4, 3, height, width), torch.tensor([0, 1, 2, 0])
    outputs = model(images, labels=labels)
    expected = expected_local_loss(model, outputs, images, labels, 1 if fields.get("local_image_share") else 2)
    torch.testing.assert_close(outputs.local_loss, expected)
    config = model.config
    whole = ice_loss_of(config, outputs.patch_logits, labels)
    total = whole + config.cls_loss_weight * outputs.cls_loss + config.local_loss_weight * expected
    torch.testing.assert_close(outputs.loss, total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision_take_images_of_full_precision(dtype):
    model = build().to(dtype).train()
    outputs = model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 0]))
    outputs.loss.backward()
    assert outputs.local_loss.isfinite()
    assert model.deit.patch_head.weight.grad.dtype == dtype


def test_targets_sum_to_1_under_autocast():
    features, appearance, teachers = torch.randn(2, 64, 8), torch.randn(2, 64, 6), torch.randn(2, 64, 4)
    grouping = grouping_weights(features, appearance, (8, 8), 3.0, 2.0)
    learners = torch.zeros(2, 64, 4)  # whose cross-entropy is log(4) times the sum of the targets
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grouping_weights(features, appearance, (8, 8), 3.0, 2.0), grouping)
        loss = local_distillation_loss(learners, teachers, grouping)
    torch.testing.assert_close(loss, torch.tensor(4.0).log(), rtol=1e-6, atol=1e-6)


def test_no_gradient_flows_through_the_grouping():
    pixels, features = (torch.randn(shape, requires_grad=True) for shape in ((1, 3, 32, 32), (1, 16, 8)))
    weights = grouping_weights(features, patch_appearance(pixels, (8, 8)), (4, 4), 3.0, 2.0)
    assert not weights.requires_grad


def test_windows_are_for_training_only():
    model = build().eval()
    outputs = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1]))
    assert outputs.local_loss is None
    assert outputs.candidate_label_loss > 0
    # another grid than the windows fit is no matter then
    assert model(torch.randn(2, 3, 40, 24)).patch_logits.shape == (2, 15, 4)
    with pytest.raises(ValueError, match="num_local_windows"):
        model.train()(torch.randn(2, 3, 40, 24), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("prune_in_training", [False, True])
def test_with_pruning_heads(prune_in_training):
    fields = {"pruning_strategy": "background", "pruning_layers": [1], "pruning_head": "patch"}
    model = build(**fields, prune_in_training=prune_in_training).train()
    outputs = model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 0]))
    outputs.loss.backward()
    assert outputs.local_loss > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_appearance_is_mean_and_deviation_of_the_pixels_of_a_patch():
    pixels = torch.randn(2, 3, 17, 24)  # the last row of pixels belongs to no patch
    appearance = patch_appearance(pixels, (8, 6))
    assert appearance.shape == (2, 8, 6)
    for index in range(8):
        row, column = divmod(index, 4)
        patch = pixels[1, :, 8 * row : 8 * row + 8, 6 * column : 6 * column + 6].flatten(1)
        torch.testing.assert_close(appearance[1, index], torch.cat((patch.mean(1), patch.std(1, correction=0))))


@pytest.mark.parametrize(
    ("grid_size", "num_steps"), [((1, 1), 1), ((2, 4), 1), ((3, 4), 2), ((4, 4), 2), ((4, 7), 4), ((8, 8), 8)]
)
def test_grouping_is_a_random_walk_to_neighbours(grid_size, num_steps):
    rows, columns = grid_size
    count = rows * columns
    features, appearance = torch.randn(2, count, 5, dtype=torch.float64), torch.randn(2, count, 6, dtype=torch.float64)
    weights = grouping_weights(features, appearance, grid_size, 3.0, 2.0)
    assert weights.dtype == torch.float32
    for image in range(2):
        centred = features[image] - features[image].mean(0)
        looks = (appearance[image][:, None] - appearance[image]).square().sum(-1)
        step = torch.zeros(count, count, dtype=torch.float64)
        for i in range(count):
            for j in range(count):
                if max(abs(i // columns - j // columns), abs(i % columns - j % columns)) <= 1:
                    cosine = torch.cosine_similarity(centred[i], centred[j], dim=0)
                    step[i, j] = torch.exp(3 * cosine - 2 * looks[i, j] / looks.mean().clamp(min=1e-30))
        step = step / step.sum(-1, keepdim=True)
        expected = torch.linalg.matrix_power(step, num_steps)
        torch.testing.assert_close(weights[image].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_walk_goes_as_far_on_a_fine_grid_as_on_a_coarse_one():
    def distance(length):
        zeros = torch.zeros(1, length**2, 1)
        weights = grouping_weights(zeros, zeros, (length, length), 0.0, 0.0)[0]
        places = torch.cartesian_prod(torch.arange(length), torch.arange(length)).double() / length
        return (weights.double() * torch.cdist(places, places).square()).sum(-1).mean().sqrt().item()

    assert distance(16) == pytest.approx(distance(8), rel=0.05)
    assert distance(32) == pytest.approx(distance(8), rel=0.05)


def test_grouping_depends_on_no_unit():
    features, pixels = torch.randn(2, 16, 8), torch.randn(2, 3, 32, 32)
    weights = grouping_weights(features, patch_appearance(pixels, (8, 8)), (4, 4), 3.0, 2.0)
    # other scales of features, other normalisations of pixels, the same channel three times
    for pixels_, features_ in ((2 * pixels + 1, features), (pixels, 5 * features + torch.randn(8))):
        other = grouping_weights(features_, patch_appearance(pixels_, (8, 8)), (4, 4), 3.0, 2.0)
        torch.testing.assert_close(other, weights, rtol=1e-4, atol=1e-5)
    grey = patch_appearance(pixels[:, :1], (8, 8)), patch_appearance(pixels[:, :1].expand(-1, 3, -1, -1), (8, 8))
    one, three = (grouping_weights(features, appearance, (4, 4), 3.0, 2.0) for appearance in grey)
    torch.testing.assert_close(one, three)


def test_images_of_one_colour_and_of_one_feature_have_a_grouping():
    weights = grouping_weights(torch.ones(1, 16, 8), torch.zeros(1, 16, 6), (4, 4), 3.0, 2.0)
    plain = grouping_weights(torch.randn(1, 16, 8), torch.randn(1, 16, 6), (4, 4), 0.0, 0.0)
    torch.testing.assert_close(weights, plain)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 16))


@pytest.mark.parametrize("by", ["features", "looks"])
def test_a_walk_stays_on_what_is_alike(by):
    # the left three columns are one thing, the other five another; to the features or to the eye alone
    is_left = (torch.arange(64) % 8 < 3)[:, None]
    values = torch.where(is_left, 1.0, -1.0).expand(64, 6)[None]
    same = torch.zeros_like(values)
    features, appearance = (values, same) if by == "features" else (same, values)
    across = is_left != is_left.T
    plain = grouping_weights(features, appearance, (8, 8), 0.0, 0.0)[0]
    grouped = grouping_weights(features, appearance, (8, 8), 6.0, 6.0)[0]
    assert grouped[across].sum() < 0.01 * plain[across].sum()
    # and there it goes on as it would on an image of one thing
    inner = torch.arange(64) % 8 == 6
    torch.testing.assert_close(grouped[inner][:, is_left[:, 0]].sum(), torch.tensor(0.0), atol=1e-3, rtol=0)
    assert (grouped > 1e-3).sum() > 64 * 9  # farther than to the neighbours


def test_alike_patches_apart_from_each_other_are_not_averaged():
    # columns 0, 1 and 6, 7 are alike; the walk does not cross what lies between
    is_outer = (torch.arange(64) % 8 < 2) | (torch.arange(64) % 8 > 5)
    values = torch.where(is_outer[:, None], 1.0, -1.0).expand(64, 6)[None]
    weights = grouping_weights(values, values, (8, 8), 6.0, 6.0)[0].view(64, 8, 8)
    assert weights[0, :, 6:].sum() < 1e-4 < 0.99 < weights[0, :, :2].sum()
