# SPDX-License-Identifier: Apache-2.0
"""RandAugment: a few random operations on one image, under the policy strings of timm.

Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2020), in the
form that DeiT trains with: the policy `rand-m9-mstd0.5-inc1` of timm (`timm/data/auto_augment.py`), implemented
again from its numbers for PIL alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps


__all__ = ["DEIT_POLICY", "MAX_MAGNITUDE", "OPERATIONS", "RandAugment", "apply_operation", "parse_rand_augment"]

DEIT_POLICY = "rand-m9-mstd0.5-inc1"
"""The policy of DeiT."""

MAX_MAGNITUDE = 10.0
"""The magnitude at which an operation has its full strength; one at 0 changes little or nothing."""

_MAX_ROTATION = 30.0  # degrees
_MAX_SHEAR = 0.3  # tangent of the angle
_MAX_TRANSLATION = 0.45  # of the side of the image
_MAX_ENHANCEMENT = 0.9  # of the factor, around 1
_LEAST_FACTOR = 0.1  # timm: an enhancement never goes to a black or grey image
_MAX_SOLARIZE_ADDITION = 110
_SOLARIZE_THRESHOLD = 128  # grey levels below it are brightened

Fill = tuple[int, int, int]
Operation = Callable[[Image.Image, float, float, Fill], Image.Image]
"""Takes an RGB image, a strength in [0, 1], a direction (1 or -1), and the colour of what comes in from outside."""


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """Return the operation of the inverse map, output (x, y) -> input, for an image and a signed strength."""

    def operation(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
        rows = matrix(image, sign * strength)
        return image.transform(
            image.size, Image.Transform.AFFINE, rows, resample=Image.Resampling.BICUBIC, fillcolor=fill
        )

    return operation


def _rotate(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
    return image.rotate(sign * strength * _MAX_ROTATION, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
    # four bits are kept at magnitude 0, none (a black image) at the full magnitude
    kept_bits = 4 - int(strength * 4)
    return image.point([value & ~(0xFF >> kept_bits) & 0xFF for value in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
    # the threshold falls with the strength: 256 inverts nothing, 0 everything
    return ImageOps.solarize(image, 256 - min(256, int(strength * 256)))


def _solarize_add(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
    added = min(128, int(strength * _MAX_SOLARIZE_ADDITION))  # grey levels
    table = [min(255, value + added) if value < _SOLARIZE_THRESHOLD else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: type) -> Operation:
    def operation(image: Image.Image, strength: float, sign: float, fill: Fill) -> Image.Image:
        return enhancer(image).enhance(max(_LEAST_FACTOR, 1 + sign * strength * _MAX_ENHANCEMENT))

    return operation


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    # the rows of a 2 x 3 matrix: input x = x + shear * y, y = y + shear * x, and offsets in pixels
    "shear_x": _affine(lambda image, amount: (1, amount * _MAX_SHEAR, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, amount: (1, 0, 0, amount * _MAX_SHEAR, 1, 0)),
    "translate_x": _affine(lambda image, amount: (1, 0, amount * _MAX_TRANSLATION * image.width, 0, 1, 0)),
    "translate_y": _affine(lambda image, amount: (1, 0, 0, 0, 1, amount * _MAX_TRANSLATION * image.height)),
}
"""The fifteen operations whose strength grows with the magnitude ("inc1"), by name."""


def apply_operation(
    name: str, image: Image.Image, magnitude: float, sign: float = 1.0, fill: Fill = (128, 128, 128)
) -> Image.Image:
    """Apply one of `OPERATIONS` to an RGB image; the first three have no magnitude, some no sign."""
    return OPERATIONS[name](image, magnitude / MAX_MAGNITUDE, sign, fill)


@dataclass(frozen=True)
class RandAugment:
    """Random operations on an image, each with a random magnitude.

    Equal to timm's `rand-m9-mstd0.5-inc1` as DeiT calls it: the fifteen operations and their strengths; the number of
    operations, drawn with replacement, each then skipped with probability 1 - `probability`; a magnitude drawn for
    each from a normal distribution and clipped; a random direction; bicubic interpolation; the mean colour as fill.
    Different: the random numbers (here from one seeded `random.Random`, so the images of a seed are others), and the
    policies without "inc1" and with weights, which are refused.

    Args:
        magnitude: Mean of the magnitudes, in [0, `MAX_MAGNITUDE`].
        magnitude_std: Their standard deviation; infinity draws them uniformly from [0, magnitude].
        num_operations: Operations drawn for an image.
        probability: Probability that each of them is applied, in [0, 1].
        fill: Colour of what comes in from outside the image, 0 to 255.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_operations: int = 2
    probability: float = 0.5
    fill: Fill = (124, 116, 104)  # mean of ImageNet, 255 x (0.485, 0.456, 0.406)

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Return the augmented RGB image, in the same size."""
        # with replacement, as timm draws them: the same operation may come twice
        for name in generator.choices(list(OPERATIONS), k=self.num_operations):
            if generator.random() >= self.probability:
                continue
            magnitude, sign = self.draw_magnitude(generator), generator.choice((1.0, -1.0))
            image = apply_operation(name, image, magnitude, sign, self.fill)
        return image

    def draw_magnitude(self, generator: random.Random) -> float:
        """Return a magnitude in [0, `MAX_MAGNITUDE`]."""
        if self.magnitude_std == float("inf"):
            return generator.uniform(0.0, self.magnitude)
        # clipped, as in timm
        return min(max(generator.gauss(self.magnitude, self.magnitude_std), 0.0), MAX_MAGNITUDE)


_NUMBER = r"\d+(?:\.\d+)?"
_SECTIONS = {"m": "magnitude", "mstd": "magnitude_std", "n": "num_operations", "p": "probability", "inc": "increasing"}
_UNIFORM_STD = 100  # from here on timm draws uniformly


def parse_rand_augment(policy: str, mean: Sequence[float] = (0.485, 0.456, 0.406)) -> RandAugment:
    """Return the `RandAugment` that a policy string of timm names.

    Args:
        policy: `rand-` and sections joined by hyphens: `m9` (magnitude, 0 to 10), `mstd0.5` (deviation of the
            magnitude, above 100 or `inf`: uniform), `n2` (operations), `p0.5` (probability of each), `inc1`
            (required).
        mean: Mean of each channel, of pixels in [0, 1], as fill colour.

    Raises:
        ValueError: If the string is no such policy, or one that is not available here.
    """
    numbers: dict[str, float] = {}
    kind, *sections = policy.split("-")
    if kind != "rand":
        raise ValueError(f"`rand_augment` must be a policy like {DEIT_POLICY}, or none, got {policy!r}.")
    for section in sections:
        match = re.fullmatch(rf"([a-z]+?)({_NUMBER}|inf)", section)
        if match is None or match[1] not in _SECTIONS or (match[2] == "inf" and match[1] != "mstd"):
            raise ValueError(
                f"`rand_augment` may hold the sections m9, mstd0.5, n2, p0.5 and inc1, got {section!r} in {policy!r}."
            )
        numbers[_SECTIONS[match[1]]] = float(match[2])
    if numbers.pop("increasing", 0.0) != 1:
        raise ValueError(
            f"`rand_augment` knows the operations that grow with the magnitude only: add -inc1, got {policy!r}."
        )
    _check_numbers(policy, numbers)
    # two operations are timm's default
    options = {"num_operations": int(numbers.pop("num_operations", 2)), **numbers}
    if options.setdefault("magnitude_std", 0.0) > _UNIFORM_STD:
        options["magnitude_std"] = float("inf")
    # without an m section timm takes the full magnitude
    options.setdefault("magnitude", MAX_MAGNITUDE)
    red, green, blue = (min(255, round(255 * value)) for value in mean)  # [0, 1] -> 0 to 255
    return RandAugment(**options, fill=(red, green, blue))  # type: ignore[arg-type]


def _check_numbers(policy: str, numbers: dict[str, float]) -> None:
    """Raise for numbers of a policy that are out of their range."""
    for name, highest in (("magnitude", MAX_MAGNITUDE), ("probability", 1.0)):
        if numbers.get(name, 0.0) > highest:
            raise ValueError(
                f"The {name} of `rand_augment` is at most {highest:g}, got {numbers[name]:g} in {policy!r}."
            )
    count = numbers.get("num_operations", 1.0)
    if count < 1 or count != int(count):
        raise ValueError(f"`rand_augment` needs a whole number of operations from 1 on, got {count:g} in {policy!r}.")
