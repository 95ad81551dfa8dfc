# SPDX-License-Identifier: Apache-2.0
"""Images into the model, patch predictions back onto the images.

There is one backend, PIL, so that the same picture gives the same pixels with and without torchvision. This file
travels with a checkpoint as remote code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    is_valid_image,
)

from .explanation_ice_deit import (
    ImagePatches,
    PatchExplanation,
    classify_image,
    describe_outputs,
    explain_patches,
    find_objects,
    read_class_logits,
    read_object_thresholds,
    read_output,
    read_patch_logits,
)
from .image_conversion import MAX_PIXELS, convert_to_rgb, grey_to_pil, is_unit_float, load_image, read_rgb
from .patch_maps import ImageGeometry
from .preprocessing_checks import check_preprocessing, check_size_kinds


__all__ = ["IceDeiTImageProcessor"]

_CHECKED = ("image_mean", "image_std", "do_rescale", "rescale_factor", "resample", "size", "crop_size")


class IceDeiTImageProcessor(PilBackend):
    """Prepare images for ICE-DeiT, and carry its patch predictions back to the images.

    Differences from the processor of DeiT: every image becomes 8-bit RGB first (`convert_to_rgb` says how: 16 bits are
    scaled, transparency is composited over `image_mean`); the whole image is squashed to `size`, so that nothing of it
    is outside the patch grid; the mean and deviation are those of ImageNet, with which DeiT was trained.

    `size` may also be `{"shortest_edge": n}`, and `do_center_crop=True` with a `crop_size` cuts as DeiT's evaluation
    does; then the maps cover the crop only, and the rest of the image counts as background. The `post_process_*`
    methods assume the settings of this object, not of a call that overrode them.

    PIL images and arrays are taken as their pixels stand, paths are loaded upright (`load_image`).

    Example:
        >>> image_processor = AutoImageProcessor.from_pretrained("checkpoints/ice-deit-scenes")
        >>> outputs = model(**image_processor(image, return_tensors="pt"))
        >>> mask = image_processor.post_process_foreground(outputs, target_sizes=[(image.height, image.width)])[0]
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: Any = {"height": 224, "width": 224}
    crop_size: Any = None
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("do_convert_rgb") is None:  # as files on the Hub say it; it would switch conversion off
            kwargs["do_convert_rgb"] = True
        check_size_kinds(kwargs)
        super().__init__(**kwargs)
        check_preprocessing({name: getattr(self, name, None) for name in _CHECKED})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Read the settings of a folder or Hub id, which an error names where no image can be prepared with them."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            where = f"The preprocessor_config.json of {str(pretrained_model_name_or_path)!r} cannot be used"
            # it may quote a value of any length
            raise ValueError(f"{where}: {shorten(str(error), 800)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Serialize the settings.

        `video_processor_type` names a class that does not exist. Without it, pipelines look for a video processor in
        the code that `auto_map` names, and ask in a terminal whether to run it although this package is installed.
        """
        return {**super().to_dict(), "video_processor_type": "IceDeiTVideoProcessor"}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load what is a path, URL or bytes; leave images as they are."""
        images = image_url_or_urls
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if not is_valid_image(images):
            return load_image(images)
        if not isinstance(images, Image.Image) and images.ndim == 2:
            return grey_to_pil(images)
        return images

    def process_image(  # type: ignore[override]  # a PIL image is resized as it is
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        do_resize: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray | Image.Image:
        """Return one image as `(channels, height, width)`, or as what `resize` takes; called by `preprocess`."""
        if do_convert_rgb is False:
            return super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        is_rescaled = do_rescale is False and is_unit_float(image)  # before, so it stays so
        rgb = convert_to_rgb(image, input_data_format, self._backdrop(image_mean))
        if do_resize and not is_rescaled:
            return rgb
        pixels = np.moveaxis(np.array(rgb), -1, 0)  # (height, width, channels) -> (channels, height, width)
        return pixels.astype(np.float32) / 255 if is_rescaled else pixels

    def convert_to_rgb(
        self,
        image: Any,
        input_data_format: str | ChannelDimension | None = None,
        image_mean: float | Sequence[float] | None = None,
    ) -> np.ndarray:
        """Return any image as `(height, width, 3)`, uint8; transparency shows `image_mean`."""
        return np.array(convert_to_rgb(image, input_data_format, self._backdrop(image_mean)))

    def read_image(self, source: Any, timeout: float | None = 30.0) -> Image.Image:
        """Read an image of any kind as upright 8-bit RGB, which this object takes as it is.

        Transparency shows `image_mean`; otherwise as `read_rgb`, which names a source that cannot be read in a
        `ValueError`.
        """
        return read_rgb(source, self._backdrop(), timeout)

    def _backdrop(self, image_mean: float | Sequence[float] | None = None) -> Sequence[float]:
        """Return the RGB colour in [0, 1] that shows through transparent pixels."""
        mean = self.image_mean if image_mean is None else image_mean
        mean = IMAGENET_DEFAULT_MEAN if mean is None else mean
        return (float(mean),) * 3 if isinstance(mean, int | float) else mean

    def resize(
        self,
        image: np.ndarray | Image.Image,
        size: SizeDict,
        resample: Any = None,
        reducing_gap: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Resize an RGB image, or `(channels, height, width)`, to `(channels, height, width)`.

        The one rule for sizes is also that of the way back.
        """
        own_size = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[1:]
        height, width = _resized_size(own_size, size)
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"An image of {own_size[0]} x {own_size[1]} pixels becomes {height} x {width} by `size`. Crop it, or "
                "give `size` a height and a width."
            )
        resized = super().resize(
            image,  # type: ignore[arg-type]  # an image is taken too, and else made of the array
            SizeDict(height=height, width=width),
            resample,
            reducing_gap,
            **kwargs,
        )
        return np.ascontiguousarray(resized)  # with strides across channels, `normalize` takes ten times as long

    def normalize(  # type: ignore[override]  # the two parents differ from each other
        self, image: np.ndarray, mean: Any, std: Any, **kwargs: Any
    ) -> np.ndarray:
        """Normalize `(channels, height, width)`: the parent's values, without its strides across channels."""
        if image.dtype != np.float32 or np.shape(mean) != (len(image),) or np.shape(std) != (len(image),):
            return super().normalize(image, mean, std, **kwargs)
        means, deviations = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        return (image - means) / deviations

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what has no way back to the image."""
        if kwargs.get("do_pad"):
            raise ValueError("`do_pad` must be False, got True: explanations could not be put back. Use `do_resize`.")
        check_preprocessing(kwargs)
        super()._validate_preprocess_kwargs(*args, **kwargs)

    def image_geometry(self, image_size: tuple[int, int]) -> ImageGeometry:
        """Return where the pixels of an image of `(height, width)` end up, with the settings of this processor."""
        resized_size = _resized_size(image_size, self.size) if self.do_resize else image_size
        if not self.do_center_crop:
            return ImageGeometry.from_resize(image_size, resized_size)
        return ImageGeometry.from_center_crop(image_size, resized_size, (self.crop_size.height, self.crop_size.width))

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None) -> list[Tensor]:
        """Return the class of every pixel: that of the patch its centre lies in.

        Args:
            outputs: What any of the three ICE-DeiT classes returned.
            target_sizes: `(height, width)` of each original image, a list or a `(batch_size, 2)` tensor. `None` gives
                one pixel per patch.

        Returns:
            Per image `(height, width)`, int64, in [0, num_labels]; `num_labels` is background, also outside a crop.

        Raises:
            ValueError: If the outputs hold no patch logits, or `target_sizes` does not fit the batch.
        """
        return [patches.class_map() for patches in self._patches(outputs, target_sizes)]

    def post_process_foreground(self, outputs: Any, target_sizes: Any = None) -> list[Tensor]:
        """Return which pixels are foreground: the segmentation, where it is not background.

        Arguments and errors as for `post_process_semantic_segmentation`. Per image `(height, width)`, bool.
        """
        segmentation = self.post_process_semantic_segmentation(outputs, target_sizes)
        background_index = read_patch_logits(outputs)[0].shape[-1] - 1
        return [labels != background_index for labels in segmentation]

    def post_process_heatmap(
        self, outputs: Any, target_sizes: Any = None, target: int | Sequence[int] | Tensor | None = None
    ) -> list[Tensor]:
        """Return a probability for every pixel, interpolated between the patches; nothing is stretched to [0, 1].

        Args:
            outputs: As for `post_process_semantic_segmentation`, like the next.
            target_sizes: As there.
            target: `None` for the foreground, 1 - p(background); a class index, or one per image, for p(class).

        Returns:
            Per image `(height, width)`, float32, in [0, 1], 0 outside a crop.

        Raises:
            ValueError: As `post_process_semantic_segmentation`, or if `target` is no class.
        """
        images = self._patches(outputs, target_sizes)
        targets = _read_targets(target, len(images))
        return [patches.heatmap(label) for patches, label in zip(images, targets, strict=True)]

    def post_process_object_localization(self, outputs: Any, target_sizes: Any = None) -> list[dict[str, Tensor]]:
        """Return one box per image: around the largest 4-connected component of foreground patches.

        Of a multi-label model one for each class that was found, see `post_process_explanation`, also none. Arguments
        and errors as for `post_process_semantic_segmentation`; without `target_sizes` boxes are in patches.

        Returns:
            Per image `boxes` `(1, 4)`, int64, half-open `xyxy` pixels of the original image, the whole image where
            nothing is foreground; `labels` `(1,)`, int64, the best class of the image (of `outputs.logits` where they
            are class scores, else of the pooled foreground patches); `scores` `(1,)`, float32, its softmax probability
            among the classes; of a multi-label model `(num_found, 4)` and `(num_found,)`, and the sigmoid. An image
            without a foreground patch and without class scores has the label `num_labels` (background) and as score
            the mean p(background) of its patches.
        """
        images = self._patches(outputs, target_sizes)
        logits, thresholds = read_class_logits(outputs), read_object_thresholds(outputs, len(images))
        results = []
        for patches, image_logits, scores_from in zip(images, logits, thresholds, strict=True):
            if scores_from is None:
                label, score = classify_image(image_logits, patches.logits)
                height, width = patches.geometry.image_size
                found = {int(label.item()): (score.item(), patches.box() or (0, 0, width, height))}
            else:
                found = find_objects(image_logits, patches, scores_from)
            device = patches.logits.device
            results.append(
                {
                    "scores": torch.tensor([score for score, _ in found.values()], device=device),
                    "labels": torch.tensor(list(found), dtype=torch.long, device=device),
                    "boxes": torch.tensor([box for _, box in found.values()], device=device).reshape(-1, 4),
                }
            )
        return results

    def post_process_exit_layers(self, outputs: Any, target_sizes: Any = None) -> list[Tensor]:
        """Return for every pixel the layer before which its patch was pruned.

        Arguments and errors as for `post_process_semantic_segmentation`; the outputs must also hold
        `patch_exit_layer`. Per image `(height, width)`, int64: the layer, 0-based, or the number of layers where the
        patch was kept; 0 outside a crop, which is not in the input.
        """
        exit_layers = read_output(outputs, "patch_exit_layer")
        images = self._patches(outputs, target_sizes)
        if exit_layers is None:
            raise ValueError(
                f"`outputs` must hold `patch_exit_layer` (batch_size, num_patches), got {describe_outputs(outputs)}. "
                "Pass what an ICE-DeiT model returned."
            )
        return [patches.exit_layers(layers) for layers, patches in zip(exit_layers, images, strict=True)]

    def post_process_explanation(
        self,
        outputs: Any,
        target_sizes: Any = None,
        target: int | Sequence[int] | Tensor | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> list[PatchExplanation]:
        """Return the explanation of each image, as numpy arrays and numbers.

        Arguments and errors as for `post_process_heatmap`; without `target_sizes` maps and boxes are in patches.
        `id2label` is `model.config.id2label`; by default classes are "LABEL_0" and so on, as transformers names them.
        """
        images = self._patches(outputs, target_sizes)
        targets, class_logits = _read_targets(target, len(images)), read_class_logits(outputs)
        thresholds = read_object_thresholds(outputs, len(images))
        exit_layers = read_output(outputs, "patch_exit_layer")
        return [
            explain_patches(
                patches,
                class_logits[i],
                thresholds[i],
                lambda label: f"LABEL_{label}" if id2label is None else id2label[label],
                targets[i],
                None if exit_layers is None else patches.exit_layers(exit_layers[i]).cpu().numpy(),
            )
            for i, patches in enumerate(images)
        ]

    def _patches(self, outputs: Any, target_sizes: Any) -> list[ImagePatches]:
        """Return the patches of each image."""
        patch_logits, grid_sizes = read_patch_logits(outputs)
        if target_sizes is None:
            geometries = [ImageGeometry.from_resize(grid_size, grid_size) for grid_size in grid_sizes]
        else:
            geometries = [self.image_geometry(size) for size in _read_target_sizes(target_sizes, len(patch_logits))]
        return [ImagePatches(*own) for own in zip(patch_logits, grid_sizes, geometries, strict=True)]


def _resized_size(image_size: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to, by the rules of transformers but never below 1."""
    if size.shortest_edge and size.longest_edge:
        resized = get_size_with_aspect_ratio(image_size, size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        height, width = (int(size.shortest_edge * side / min(image_size)) for side in image_size)
        resized = (height, width)
    elif size.max_height and size.max_width:
        resized = get_image_size_for_max_height_width(image_size, size.max_height, size.max_width)
    elif size.height and size.width:
        resized = (size.height, size.width)
    else:
        raise ValueError(
            f"`size` must hold `height` and `width`, `max_height` and `max_width`, or `shortest_edge`, got {size}."
        )
    return max(1, resized[0]), max(1, resized[1])


def _read_target_sizes(target_sizes: Any, batch_size: int) -> list[tuple[int, int]]:
    """Check the sizes of the original images."""
    try:
        sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor | np.ndarray) else list(target_sizes)
        # from other libraries the numbers come as floats, too
        pairs = [(int(height), int(width)) for height, width in sizes if (height % 1, width % 1) == (0, 0)]
    except (TypeError, ValueError):
        sizes, pairs = [], []
    if len(sizes) != batch_size or len(pairs) != batch_size:
        raise ValueError(
            f"`target_sizes` must hold one (height, width) for each of the {batch_size} images, got {target_sizes}. "
            "For a PIL image pass [(image.height, image.width)]."
        )
    if any(min(pair) < 1 for pair in pairs):
        raise ValueError(f"`target_sizes` must be positive, got {target_sizes}.")
    return pairs


def _read_targets(target: Any, batch_size: int) -> Sequence[int | None]:
    """Return the target class of each image."""
    if target is None:
        return [None] * batch_size
    values = target.tolist() if isinstance(target, Tensor | np.ndarray) else target
    values = values if isinstance(values, list | tuple) else [values] * batch_size
    try:
        targets = [index(value) for value in values]
    except TypeError as error:
        raise ValueError(f"`target` must be None, a class index or one per image, got {target!r}.") from error
    if len(targets) != batch_size:
        raise ValueError(
            f"`target` must be one class index or one for each of the {batch_size} images, got {len(targets)}."
        )
    return targets


# `save_pretrained` then writes the code and its `auto_map` entry too.
IceDeiTImageProcessor.register_for_auto_class()
