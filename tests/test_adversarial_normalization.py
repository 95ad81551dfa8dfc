# SPDX-License-Identifier: Apache-2.0
"""The ICE loss: by hand, and against a slow loop written from the equations."""

import math
from types import SimpleNamespace

import pytest
import torch

from transformers_ice import IceDeiTConfig
from transformers_ice.ice_deit.adversarial_normalization import (
    adversary_gate,
    background_weight,
    batch_mean,
    candidate_label_loss,
    evidence_of_parts,
    foreground_map,
    foreground_mask,
    foreground_ratio,
    label_evidence,
    log_normalizer,
    pool_background_logits,
    pool_foreground_logits,
    pool_patches,
    pool_softly,
    position_loss,
    soft_cross_entropy,
    soft_targets,
)
from transformers_ice.ice_deit.objective_ice_deit import ObjectiveInputs, ice_losses


# two images of four patches, two classes and background (last)
PATCH_LOGITS = torch.tensor(
    [
        [[3.0, 0.0, 1.0], [0.0, 0.0, 2.0], [1.0, 5.0, 0.0], [0.0, 0.0, 9.0]],
        [[0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 3.0]],
    ]
)


def loss_by_definition(patch_logits, targets, background_weight, scale, min_ratio):
    """Follow the equations one image and one patch at a time, in float64."""
    num_images, num_patches, num_columns = patch_logits.shape
    classification = background = ratio = 0.0
    for image in range(num_images):
        pooled, mean, count = [0.0] * num_columns, [0.0] * num_columns, 0
        for patch in range(num_patches):
            scores = patch_logits[image, patch].double().tolist()
            is_foreground = scores.index(max(scores)) != num_columns - 1
            count += is_foreground
            for column in range(num_columns):
                pooled[column] += scores[column] * is_foreground
                mean[column] += scores[column] / num_patches
        pooled = [value / (count + 1) for value in pooled]
        mean = [value * scale for value in mean]
        log_sum = math.log(sum(math.exp(value) for value in pooled))
        classification -= sum(t * (s - log_sum) for t, s in zip(targets[image].tolist(), pooled[:-1], strict=True))
        background -= mean[-1] - math.log(sum(math.exp(value) for value in mean))
        ratio += count / num_patches
    weight = background_weight if ratio / num_images >= min_ratio else 0.0
    return (classification + weight * background) / num_images, classification / num_images, background / num_images


def compute(patch_logits, targets, weight=0.2, scale=0.5, min_ratio=0.1):
    weights = {"background_loss_weight": weight, "background_logit_scale": scale, "min_foreground_ratio": min_ratio}
    config = IceDeiTConfig(num_labels=targets.shape[1], **weights)
    losses = ice_losses(ObjectiveInputs(config, patch_logits, pool_patches(patch_logits, scale), targets))
    return SimpleNamespace(
        total=losses["loss"], classification=losses["classification_loss"], background=losses["background_loss"]
    )


def test_foreground_patches_have_another_best_class_than_background():
    expected = torch.tensor([[True, False, True, False], [False] * 4])
    assert torch.equal(foreground_mask(PATCH_LOGITS), expected)
    assert foreground_ratio(PATCH_LOGITS).tolist() == [0.5, 0.0]


def test_foreground_logits_are_the_sum_over_the_foreground_by_their_number_plus_one():
    # patches 0 and 2: (3 + 1) / 3, (0 + 5) / 3, (1 + 0) / 3; the second image has no foreground patch
    expected = torch.tensor([[4 / 3, 5 / 3, 1 / 3], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(pool_foreground_logits(PATCH_LOGITS), expected)


def test_background_patches_do_not_change_the_foreground_logits():
    changed = PATCH_LOGITS.clone()
    changed[0, 1] = torch.tensor([-7.0, 4.0, 40.0])
    assert torch.equal(pool_foreground_logits(changed), pool_foreground_logits(PATCH_LOGITS))


def test_background_logits_are_the_scaled_mean_of_all_patches():
    expected = torch.tensor([[1.0, 1.25, 3.0], [-0.25, 0.0, 1.5]]) * 0.5
    torch.testing.assert_close(pool_background_logits(PATCH_LOGITS, 0.5), expected)


def test_soft_targets_of_indices_are_one_hot_and_soft_labels_pass():
    assert soft_targets(torch.tensor([1, 0]), 3).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    soft = torch.tensor([[0.4, 0.6]])
    assert torch.equal(soft_targets(soft, 2), soft)


def test_soft_cross_entropy_equals_torch_for_hard_and_soft_targets():
    logits = torch.randn(5, 4)
    labels = torch.tensor([0, 3, 1, 1, 2])
    hard = soft_cross_entropy(logits, soft_targets(labels, 4))
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(logits, labels))
    soft = torch.rand(5, 4).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft), torch.nn.functional.cross_entropy(logits, soft))


@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 0.9])
def test_loss_follows_the_definition(min_ratio):
    patch_logits = torch.randn(6, 9, 5) * 2
    targets = torch.rand(6, 4).softmax(-1)
    loss = compute(patch_logits, targets, min_ratio=min_ratio)
    expected = loss_by_definition(patch_logits, targets, 0.2, 0.5, min_ratio)
    # float32 against float64
    for got, want in zip((loss.total, loss.classification, loss.background), expected, strict=True):
        assert got.item() == pytest.approx(want, rel=1e-5)


def test_the_gate_closes_below_the_minimum_and_is_open_at_it():
    targets = soft_targets(torch.tensor([0, 1]), 2)
    # mean foreground ratio of the batch: 0.25
    closed = compute(PATCH_LOGITS, targets, min_ratio=0.26)
    assert torch.equal(closed.total, closed.classification)
    opened = compute(PATCH_LOGITS, targets, min_ratio=0.25)
    torch.testing.assert_close(opened.total, opened.classification + 0.2 * opened.background)


def test_an_image_without_foreground_learns_from_the_background_loss_alone():
    patch_logits = PATCH_LOGITS[1:].clone().requires_grad_()
    targets = soft_targets(torch.tensor([0]), 2)
    compute(patch_logits, targets, min_ratio=0.0).classification.backward()
    assert patch_logits.grad.abs().sum() == 0
    compute(patch_logits, targets, min_ratio=0.0).background.backward()
    assert patch_logits.grad.abs().sum() > 0


def test_the_batch_ratio_has_no_gradient():
    ratio = torch.tensor([0.5, 0.25], requires_grad=True)
    mean = batch_mean(ratio, across_ranks=True)  # one process: no group to reduce over
    assert mean.item() == 0.375
    assert not mean.requires_grad


def test_the_loss_is_computed_in_float32_for_half_precision_logits():
    targets = soft_targets(torch.tensor([0, 1]), 2)
    loss = compute(PATCH_LOGITS.bfloat16(), targets)
    assert loss.total.dtype == torch.float32
    # bfloat16 keeps 8 bits of the pooled logits
    torch.testing.assert_close(loss.total, compute(PATCH_LOGITS, targets).total, atol=0.02, rtol=0.02)


def test_soft_pooling_weighs_each_patch_by_its_foreground():
    expected = []
    for image in PATCH_LOGITS.double():
        weights = [1 - patch.exp()[-1] / patch.exp().sum() for patch in image]
        pooled = sum(weight * patch for weight, patch in zip(weights, image, strict=True))
        expected.append(pooled / (sum(weights) + 1))
    torch.testing.assert_close(pool_softly(PATCH_LOGITS), torch.stack(expected).float())


def test_soft_pooling_of_certain_patches_is_the_hard_one():
    logits = 50 * PATCH_LOGITS
    torch.testing.assert_close(pool_softly(logits), pool_foreground_logits(logits))


@pytest.mark.parametrize(
    ("targets", "shares"),
    [
        ([[1.0, 0.0, 0.0]], {0: 1.0}),
        ([[0.0, 0.3, 0.7]], {1: 0.3, 2: 0.7}),
        ([[0.1, 0.6, 0.3]], {1: 2 / 3, 2: 1 / 3}),
    ],
    ids=["one class", "mixed", "smoothed"],
)
def test_candidate_label_loss_by_definition(targets, shares):
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 4)
    expected = 0.0
    for patch in logits[0].double().softmax(-1).tolist():
        expected -= sum(share * math.log(patch[label] + patch[-1]) for label, share in shares.items()) / 5
    assert candidate_label_loss(logits, torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-5)


def maps_to_logits(maps):
    """Return patch logits `(batch_size, num_patches, 2)` whose p(foreground) are the maps."""
    maps = torch.tensor(maps)
    return torch.stack((maps, 1 - maps), dim=-1).log()


def test_position_loss_is_the_share_of_the_maps_that_different_images_have_in_common():
    first, second, third = [0.1, 0.9, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5], [0.3, 0.7, 0.7, 0.3]
    below = [[0.1, 0.1, 0.9, 0.9]] * 3
    assert position_loss(maps_to_logits(below), 0.2).item() == pytest.approx(0.16 / (0.16 + 0.01) - 0.2, abs=1e-5)
    # one pair: 0.4 * 0.2 + 0.4 * 0.2 over four places; the variances of the two are 0.08 and 0.04
    expected = 0.04 / (0.06 + 0.01) - 0.2
    assert position_loss(maps_to_logits([first, third]), 0.2).item() == pytest.approx(expected, abs=1e-5)
    assert position_loss(maps_to_logits([first, third]), 0.5).item() == pytest.approx(expected - 0.3, abs=1e-5)
    assert position_loss(maps_to_logits([first, third]), 0.6).item() == 0
    # three pairs, whose covariances -0.08, 0.04 and -0.04 have a negative mean
    assert position_loss(maps_to_logits([first, second, third]), 0.2).item() == 0


def test_position_loss_does_not_mind_maps_that_are_alike_for_the_same_image_alone():
    logits = torch.randn(1, 6, 4, requires_grad=True)
    loss = position_loss(logits, 0.4)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_position_loss_moves_a_common_map_towards_an_even_one():
    logits = maps_to_logits([[0.1, 0.1, 0.9, 0.9]] * 4).requires_grad_()
    position_loss(logits, 0.4).backward()
    downhill = -(logits.grad[..., 0] - logits.grad[..., 1])
    assert (downhill[:, :2] > 0).all()
    assert (downhill[:, 2:] < 0).all()


def test_parts_that_share_the_normalizer_and_the_map_are_those_by_themselves():
    logits, targets = 3 * torch.randn(4, 6, 5), torch.eye(4)
    normalizer = log_normalizer(logits)
    maps = foreground_map(logits, normalizer)
    torch.testing.assert_close(normalizer, logits.exp().sum(-1).log())
    torch.testing.assert_close(maps, 1 - logits.softmax(-1)[..., -1])
    assert torch.equal(pool_softly(logits, maps), pool_softly(logits))
    assert torch.equal(position_loss(logits, 0.0, maps), position_loss(logits, 0.0))
    assert torch.equal(candidate_label_loss(logits, targets, normalizer), candidate_label_loss(logits, targets))


def test_soft_pooling_multiplies_in_full_precision_under_autocast():
    logits = torch.randn(2, 64, 5)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool_softly(logits)
    assert torch.equal(pooled, pool_softly(logits))


def test_candidate_label_loss_sends_what_looks_like_another_class_to_background():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    candidate_label_loss(logits, torch.tensor([[1.0, 0.0]])).backward()
    downhill = -logits.grad[0, 0]
    assert downhill[1] < 0 < downhill[0]
    assert downhill[0] == downhill[2]
    assert candidate_label_loss(torch.randn(1, 2, 2), torch.ones(1, 1)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("ratio", "extra"), [(0.0, 0.0), (0.7, 0.0), (0.85, 0.5), (1.0, 1.0)])
def test_background_weight_grows_where_too_much_is_foreground(ratio, extra):
    weight = background_weight(torch.tensor(ratio), 0.2, 0.0, max_foreground_ratio=0.7)
    assert weight.item() == pytest.approx(0.2 + extra, rel=1e-4)


def test_label_evidence_is_0_by_chance_and_1_where_the_targets_are_met():
    targets = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.7, 0.3, 0], [0, 0, 1.0]])
    # background is left out, however large
    logits = torch.tensor([[2.0, 2, 2, 50], [99.0, 0, 0, 120], [99.0, 0, 0, 0], [99.0, 0, 0, 0]], requires_grad=True)
    evidence = label_evidence(logits, targets)
    torch.testing.assert_close(evidence, torch.tensor([0.0, 1, 1, -0.5]))
    assert not evidence.requires_grad
    assert label_evidence(torch.zeros(1, 2), torch.ones(1, 1)).item() == 0  # one class is always named


@pytest.mark.parametrize("num_columns", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_foreground_is_where_the_best_class_is_not_background(num_columns, dtype):
    # few values, so that many are equal: then the first of them counts, as `argmax` has it
    patch_logits = torch.randint(-1, 2, (8, 50, num_columns), generator=torch.Generator().manual_seed(0)).to(dtype)
    is_foreground = patch_logits.argmax(-1) != num_columns - 1
    assert 0 < is_foreground.sum() < is_foreground.numel()
    assert torch.equal(foreground_mask(patch_logits), is_foreground)


def test_evidence_of_foreground_and_of_background():
    targets, large = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), 60.0
    # two patches name class 0, one of them is surely background; nothing is background in the second image
    logits = torch.tensor([[[large, 0, 0, -large], [large, 0, 0, 2 * large]], [[0, large, 0, 0], [0, large, 0, 0]]])
    logits.requires_grad_()
    evidence = evidence_of_parts(logits, targets)
    torch.testing.assert_close(evidence, torch.ones(2, 2))
    assert not evidence.requires_grad
    # the patch of the ground names the wrong class, or none
    logits = torch.tensor([[[large, 0, 0, -large], [0, large, 0, 2 * large]], [[0, large, 0, 0], [0, 0, 0, large]]])
    evidence = evidence_of_parts(logits, targets)
    torch.testing.assert_close(evidence, torch.tensor([[1.0, 1.0], [-0.5, 0.0]]))


def test_evidence_by_definition():
    targets = torch.tensor([[0.9, 0.1], [0.0, 1.0]])
    maps = foreground_map(PATCH_LOGITS)
    expected = [
        [
            label_evidence((weight[:, None] * logits).sum(0, keepdim=True) / weight.sum(), target[None]).item()
            for logits, weight, target in zip(PATCH_LOGITS, weights, targets, strict=True)
        ]
        for weights in (maps, 1 - maps)
    ]
    torch.testing.assert_close(evidence_of_parts(PATCH_LOGITS, targets), torch.tensor(expected))


def test_evidence_of_background_where_hardly_anything_is_background():
    # one patch names the class and is less like background than the other, which names none; p(background) < 1e-40
    logits = torch.tensor([[[8.0, 0.0, -100.0], [0.0, 0.0, -96.0]]])
    foreground, background = evidence_of_parts(logits, torch.tensor([[1.0, 0.0]]))
    assert foreground.item() == pytest.approx(math.tanh(2), rel=1e-4)  # of both patches
    assert background.item() < 0.01  # of the second


@pytest.mark.parametrize(("lead", "gate"), [(-0.7, 0), (0.0, 0), (0.125, 0), (0.1875, 0.5), (0.25, 1), (0.8, 1)])
def test_the_adversary_waits_until_the_foreground_names_the_label_better(lead, gate):
    assert adversary_gate(torch.tensor(lead), 0.25).item() == gate


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pools_of_many_patches_are_finite_in_half_precision(dtype):
    patch_logits = torch.zeros(1, 4096, 11)
    patch_logits[..., 3] = 20.0  # their sum, 81920, is beyond float16
    expected = pool_patches(patch_logits, 0.5)
    pooled = pool_patches(patch_logits.to(dtype), 0.5)
    assert expected.foreground_logits[0, 3].item() == pytest.approx(20 * 4096 / 4097)
    # of half precision: 2^-9 of the value at most
    torch.testing.assert_close(pooled.foreground_logits.float(), expected.foreground_logits, rtol=2e-3, atol=0)
    torch.testing.assert_close(pooled.background_logits.float(), expected.background_logits, rtol=2e-3, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        autocast = pool_patches(patch_logits, 0.5)
    torch.testing.assert_close(autocast.foreground_logits, expected.foreground_logits, rtol=0, atol=0)
