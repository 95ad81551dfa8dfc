# SPDX-License-Identifier: Apache-2.0
"""`training.batch_augmentation` and `training.repeated_augmentation`: erasing, mixing, soft labels, repeats."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import BatchSamplerShard
from test_training import SHAPE, SIZE, losses_of, make_args, make_model, make_processor, make_table
from torch.utils.data import BatchSampler, DataLoader
from transformers import ViTConfig, ViTForImageClassification, set_seed

from transformers_ice.data.augmentation.batch_augmentation import (
    AUGMENTATION_SEED,
    AugmentingCollator,
    BatchMixing,
    RandomErasing,
    draw_cut_box,
    smooth_labels,
)
from transformers_ice.data.augmentation.rand_augment import RandAugment
from transformers_ice.data.augmentation.repeated_augmentation import RepeatedAugmentationSampler
from transformers_ice.training import ImageCollator, LabelledImages, TrainingAugmentation, build_trainer
from transformers_ice.training.classifier_losses import use_soft_label_loss


DEIT_MIXING = BatchMixing(0.8, 1.0)


def make_collator(**fields) -> AugmentingCollator:
    defaults = {"erasing": RandomErasing(0.25), "mixing": DEIT_MIXING, "label_smoothing": 0.1}
    return AugmentingCollator(ImageCollator.from_image_processor(make_processor()), 3, **{**defaults, **fields})


def make_images(num_images: int = 8) -> LabelledImages:
    augmentation = TrainingAugmentation((SIZE, SIZE), scale=(0.08, 1.0), rand_augment=RandAugment())
    return LabelledImages(make_table(num_images), make_processor(), augmentation)


def make_trainer(output_dir, model=None, collator=None, num_images: int = 8, **fields):
    args = make_args(output_dir, **fields)
    set_seed(args.seed)
    model = make_model(drop_path_rate=0.3) if model is None else model
    evaluation = LabelledImages(make_table(6), make_processor())
    collator = make_collator() if collator is None else collator
    return build_trainer(model, args, make_images(num_images), evaluation, make_processor(), train_collator=collator)


def make_plain_model() -> ViTForImageClassification:
    set_seed(0)
    model = ViTForImageClassification(ViTConfig(**SHAPE, problem_type="single_label_classification"))
    use_soft_label_loss(model)
    return model


# --- labels --------------------------------------------------------------------------------------------------------


def test_smooth_labels_give_the_loss_that_torch_smooths_itself():
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    targets = smooth_labels(labels, 5, 0.1)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    torch.testing.assert_close(F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert torch.equal(smooth_labels(labels, 5, 0.0), F.one_hot(labels, 5).float())


# --- mixing --------------------------------------------------------------------------------------------------------


def make_batch(size: int = 4, height: int = 6, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    # one class an image: the targets then say the shares
    return torch.randn(size, 3, height, width), torch.eye(size)


@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_mixup_equals_its_definition(batch_size):
    for seed in range(20):
        pixels, targets = make_batch(batch_size)
        mixed, mixed_targets = BatchMixing(mixup_alpha=0.8)(pixels.clone(), targets, random.Random(seed))
        share = float(mixed_targets[0, 0]) if batch_size > 1 else 1.0
        for i in range(batch_size):
            j = batch_size - 1 - i
            expected = share * pixels[i].double() + (1 - share) * pixels[j].double()
            torch.testing.assert_close(mixed[i].double(), expected, rtol=1e-5, atol=1e-6)
            for c in range(batch_size):
                expected_target = share * (c == i) + (1 - share) * (c == j)
                assert float(mixed_targets[i, c]) == pytest.approx(expected_target, abs=1e-6)


@pytest.mark.parametrize("batch_size", [2, 4, 5])
def test_cutmix_equals_its_definition(batch_size):
    areas = set()
    for seed in range(40):
        pixels, targets = make_batch(batch_size)
        mixed, mixed_targets = BatchMixing(cutmix_alpha=1.0)(pixels.clone(), targets, random.Random(seed))
        boxes = set()
        for i in range(batch_size // 2):
            partner = batch_size - 1 - i
            cut = torch.tensor(
                [[bool((mixed[i, :, y, x] == pixels[partner, :, y, x]).all()) for x in range(9)] for y in range(6)]
            )
            kept = torch.tensor(
                [[bool((mixed[i, :, y, x] == pixels[i, :, y, x]).all()) for x in range(9)] for y in range(6)]
            )
            assert torch.equal(cut, ~kept), "every pixel is of one of the two"
            rows, columns = cut.any(1).nonzero().flatten().tolist(), cut.any(0).nonzero().flatten().tolist()
            assert int(cut.sum()) == len(rows) * len(columns), "what was cut is a box"
            boxes.add((tuple(rows), tuple(columns)))
            area = float(cut.sum()) / 54
            assert float(mixed_targets[i, i]) == pytest.approx(1 - area, abs=1e-6)
            assert float(mixed_targets[i, partner]) == pytest.approx(area, abs=1e-6)
            areas.add(area)
        assert len(boxes) == 1, "one box for the whole batch"
        if batch_size % 2:
            assert torch.equal(mixed[batch_size // 2], pixels[batch_size // 2])
    assert len(areas) > 10


def test_cut_boxes_have_the_proportions_and_are_cut_off_at_the_border():
    generator = random.Random(0)
    boxes = [draw_cut_box(100, 60, 0.75, generator) for _ in range(2000)]
    for top, left, bottom, right in boxes:
        assert 0 <= top <= bottom <= 100
        assert 0 <= left <= right <= 60
        assert bottom - top <= 50
        assert right - left <= 30
    assert max(bottom - top for top, _, bottom, _ in boxes) == 50
    assert min(bottom - top for top, _, bottom, _ in boxes) < 30
    top, left, bottom, right = draw_cut_box(10, 10, 1.0, generator)
    assert (bottom - top) * (right - left) == 0


def test_half_of_the_batches_get_each_kind_and_some_none():
    kinds = Counter()
    mixing = BatchMixing(0.8, 1.0, switch_probability=0.25, probability=0.8)
    for seed in range(1500):
        pixels, targets = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16).clone(), torch.eye(2)
        mixed, mixed_targets = mixing(pixels, targets, random.Random(seed))
        # mixup makes values between the two images, cutmix keeps both
        is_mixed = bool(((mixed != 0) & (mixed != 1)).any())
        kinds["mixup" if is_mixed else "none" if torch.equal(mixed_targets, targets) else "cutmix"] += 1
    # 0.8 * 0.75 of 1500, five standard deviations; a few boxes are empty and count as none
    assert abs(kinds["mixup"] - 900) < 95
    assert abs(kinds["cutmix"] - 300) < 80
    assert kinds["none"] > 200


def test_share_is_beta_distributed():
    shares = []
    for seed in range(1000):
        _, targets = BatchMixing(mixup_alpha=0.8)(*make_batch(2, 1, 1), random.Random(seed))
        shares.append(float(targets[0, 0]))
    shares = torch.tensor(shares)
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(shares.var()) == pytest.approx(1 / 10.4, abs=0.01)


# --- erasing -------------------------------------------------------------------------------------------------------


def test_erasing_puts_noise_into_one_box_of_a_quarter_of_the_images():
    erased, values, areas = 0, [], []
    for seed in range(600):
        pixels = torch.full((3, 40, 30), 9.0)
        RandomErasing(0.25)(pixels, random.Random(seed))
        changed = (pixels != 9.0).any(0)
        if not changed.any():
            continue
        erased += 1
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(changed.sum()) == height * width == len(rows) * len(columns)
        # 0.3 and its inverse, and half a pixel of rounding on each side
        assert (height - 0.5) / (width + 0.5) < 1 / 0.3
        assert (height + 0.5) / (width - 0.5) > 0.3
        areas.append(height * width / 1200)
        values.append(pixels[:, changed].flatten())
    # 600 coins: five standard deviations
    assert abs(erased - 150) < 53
    assert 0.012 < min(areas) < 0.06
    assert 0.25 < max(areas) < 0.36
    noise = torch.cat(values)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (2, 2)])
def test_erasing_of_tiny_images_leaves_them_or_a_part(size):
    for seed in range(50):
        pixels = torch.zeros(3, *size)
        RandomErasing(1.0)(pixels, random.Random(seed))
        assert min(size) > 1 or not pixels.any()
        assert not pixels.any(0).all()


# --- batches -------------------------------------------------------------------------------------------------------


def test_batch_is_what_its_parts_make():
    images, collator = make_images(), make_collator()
    rows = images.__getitems__([5, 2, 7])
    batch = collator(rows)
    plain = ImageCollator.from_image_processor(make_processor())(rows)
    seeds = [row[AUGMENTATION_SEED] for row in rows]
    assert seeds == ["0/0/5", "0/0/2", "0/0/7"]
    for pixels, seed in zip(plain["pixel_values"], seeds, strict=True):
        RandomErasing(0.25)(pixels, random.Random(f"{seed} erasing"))
    targets = smooth_labels(plain["labels"], 3, 0.1)
    pixels, labels = DEIT_MIXING(plain["pixel_values"], targets, random.Random("0/0/5 0/0/2 0/0/7 mixing"))
    assert torch.equal(batch["pixel_values"], pixels)
    assert torch.equal(batch["labels"], labels)
    assert (labels.shape, labels.dtype) == ((3, 3), torch.float32)
    torch.testing.assert_close(labels.sum(1), torch.ones(3))


def test_labels_stay_hard_where_nothing_softens_them():
    batch = make_collator(mixing=BatchMixing(), label_smoothing=0.0)(make_images().__getitems__([0, 4]))
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.int64


def batches_of(num_workers: int, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    images = make_images()
    images.set_epoch(epoch)
    return list(DataLoader(images, batch_size=4, num_workers=num_workers, collate_fn=make_collator()))


def test_batches_depend_on_seed_epoch_and_rows_alone():
    first, second = batches_of(0), batches_of(0, epoch=1)
    torch.manual_seed(7), random.seed(7)
    for batch, again, other in zip(first, batches_of(0), second, strict=True):
        assert torch.equal(batch["pixel_values"], again["pixel_values"])
        assert torch.equal(batch["labels"], again["labels"])
        assert not torch.equal(batch["pixel_values"], other["pixel_values"])
        assert not torch.equal(batch["labels"], other["labels"])


def test_batches_do_not_depend_on_the_number_of_workers():
    for batch, again in zip(batches_of(0), batches_of(2), strict=True):
        assert torch.equal(batch["pixel_values"], again["pixel_values"])
        assert torch.equal(batch["labels"], again["labels"])


def test_evaluation_batches_stay_as_they_are(tmp_path):
    trainer = make_trainer(tmp_path)
    train, evaluation = next(iter(trainer.get_train_dataloader())), next(iter(trainer.get_eval_dataloader()))
    assert train["labels"].shape == (4, 3)
    assert evaluation["labels"].dtype == torch.int64
    rows = trainer.eval_dataset.__getitems__(range(6))
    expected = ImageCollator.from_image_processor(make_processor())(rows)["pixel_values"]
    assert torch.equal(evaluation["pixel_values"], expected)


@pytest.mark.parametrize("kind", ["ice_deit", "vit"])
def test_loss_of_a_mixed_batch_is_that_of_its_soft_labels(tmp_path, kind):
    model = make_plain_model() if kind == "vit" else make_model()
    trainer = make_trainer(tmp_path, model, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    outputs = model(**batch)
    logits = outputs.logits if kind == "vit" else outputs.foreground_logits
    loss = outputs.loss if kind == "vit" else outputs.classification_loss
    targets = batch["labels"] if kind == "vit" else F.pad(batch["labels"], (0, 1))
    expected = sum(
        -(targets[i, c].double() * logits[i].double().log_softmax(0)[c])
        for i in range(len(logits))
        for c in range(logits.shape[1])
    ) / len(logits)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert model.config.problem_type in (None, "single_label_classification")


def test_accumulated_soft_labels_give_the_gradients_of_their_mean(tmp_path):
    # a plain classifier of transformers divides by all numbers of soft labels, unless told otherwise
    def weights(**fields):
        collator = make_collator(mixing=BatchMixing(), erasing=RandomErasing(0.0), label_smoothing=0.1)
        options = {"max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 0.1, "optim": "sgd"}
        trainer = make_trainer(tmp_path, make_plain_model(), collator, **options, **fields)
        trainer.train()
        return trainer.model.state_dict()

    whole = weights(per_device_train_batch_size=8)
    parts = weights(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["ice_deit", "vit"])
def test_resumed_run_of_the_whole_recipe_equals_the_uninterrupted_one(tmp_path, kind):
    def run(folder, **fields):
        model = make_plain_model() if kind == "vit" else make_model(drop_path_rate=0.3)
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "ema_decay": 0.9, "layer_decay": 0.7}
        trainer = make_trainer(tmp_path / folder, model, repeated_augmentation=3, **options)
        trainer.train(**fields)
        return trainer

    # two steps an epoch: the checkpoint after three lies inside the second epoch
    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(losses_of(whole)) == 6
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


# --- repeats -------------------------------------------------------------------------------------------------------


class Rows:
    """As many images, in one epoch."""

    def __init__(self, num_images: int, epoch: int = 0):
        self.num_images, self.epoch = num_images, epoch

    def __len__(self) -> int:
        return self.num_images


def dealt(num_images: int, batch_size: int, num_processes: int, process: int, seed: int = 0) -> list[list[int]]:
    """Batches of one process, as accelerate deals them."""
    sampler = RepeatedAugmentationSampler(Rows(num_images), 3, seed, batch_size, num_processes)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    return list(BatchSamplerShard(batches, num_processes, process))


@pytest.mark.parametrize(("num_images", "expected"), [(7, 7), (255, 255), (256, 256), (700, 512)])
def test_epoch_has_the_length_and_the_repeats_of_deit(num_images, expected):
    order = list(RepeatedAugmentationSampler(Rows(num_images), 3))
    assert len(order) == expected == len(RepeatedAugmentationSampler(Rows(num_images), 3))
    images = [index % num_images for index in order]
    counts = Counter(images)
    assert len(counts) == -(-expected // 3)
    assert sorted(counts.values())[1:] == [3] * (len(counts) - 1)
    # side by side, and every one with a repeat of its own
    assert all(len({*images[i : i + 3]}) == 1 for i in range(0, expected - 2, 3))
    assert len({*order}) == expected


def test_processes_share_out_the_repeats_as_rasampler_does():
    single = [row for batch in dealt(768, 8, 1, 0) for row in batch]
    for num_processes in (2, 4):
        batch_size = 8 // num_processes
        shards = [dealt(768, batch_size, num_processes, process) for process in range(num_processes)]
        # the definition: process r takes every num_processes-th row of the common order, from r on
        for process, batches in enumerate(shards):
            assert [row for batch in batches for row in batch] == single[process::num_processes]
        # so the same rows make the same step, whatever the number of processes
        for step in range(768 // 8):
            together = {row for batches in shards for row in batches[step]}
            assert together == {*single[8 * step : 8 * step + 8]}


def test_epoch_that_ends_within_a_step_loses_no_row():
    order = list(RepeatedAugmentationSampler(Rows(50), 3, 0, 4, 2))
    assert sorted(order) == sorted(RepeatedAugmentationSampler(Rows(50), 3))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return list(RepeatedAugmentationSampler(Rows(30, epoch), 3, seed))

    first = order(0, 0)
    torch.manual_seed(9)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_repeats_of_an_image_differ_and_keep_their_label():
    images = make_images(8)
    rows = images.__getitems__([3, 11, 19])
    assert [row["labels"] for row in rows] == [0, 0, 0]
    assert len({row["pixel_values"].numpy().tobytes() for row in rows}) == 3
    assert rows[0]["pixel_values"].equal(images[3]["pixel_values"])


def test_data_without_an_epoch_cannot_be_repeated():
    with pytest.raises(ValueError, match=r"needs images with a length and an epoch .*, got a list"):
        RepeatedAugmentationSampler([1, 2], 3)


def test_trainer_repeats_where_it_is_told_to(tmp_path):
    trainer = make_trainer(tmp_path, repeated_augmentation=3, max_steps=1)
    assert isinstance(trainer.get_train_dataloader().batch_sampler.sampler, RepeatedAugmentationSampler)
    other = make_trainer(tmp_path).get_train_dataloader()
    assert not isinstance(other.batch_sampler.sampler, RepeatedAugmentationSampler)
