# SPDX-License-Identifier: Apache-2.0
"""Mask images as foreground, background and pixels that do not count."""

from __future__ import annotations

import numpy as np
from PIL import Image


__all__ = ["binary_mask"]

_BORDER = 255  # of PASCAL VOC and its successors: pixels between object and background that do not count
_FEW = 128  # class indices are below, grey levels of a soft edge are not


def binary_mask(image: Image.Image, where: str, ignore_value: int | None = None) -> np.ndarray:
    """Return a mask image as `(height, width)`, int8: 1 where it is not 0, -1 where it is `ignore_value`, else 0.

    Palette images count by index. In colours black is background, and `ignore_value` is refused.

    Raises:
        ValueError: If the alpha channel varies, a value is no number, or 255 could be an object or its border.
    """
    if "A" in image.getbands() or ("transparency" in image.info and image.mode != "P"):
        alpha = image.convert("RGBA").getchannel("A").getextrema()
        if alpha[0] != alpha[1]:
            raise ValueError(
                f"The mask {where} has an alpha channel from {alpha[0]} to {alpha[1]}, but its colours would count: "
                "an object in the alpha channel would be lost. Save the mask as one channel, 0 for background."
            )
    # opaque alpha is no annotation: editors add it by themselves
    mode = image.mode if len(image.getbands()) == 1 else "L" if image.mode == "LA" else "RGB"
    values = np.asarray(image.convert(mode))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"The mask {where} holds values that are no numbers (NaN or infinity).")
    if values.ndim == 3:
        if ignore_value is not None:
            raise ValueError(f"The mask {where} has mode {image.mode}; `ignore_value` needs a grey or palette image.")
        return np.asarray(values.any(axis=-1), dtype=np.int8)
    mask = np.zeros(values.shape, dtype=np.int8)
    mask[values != 0] = 1
    if ignore_value is not None:
        # last, since `ignore_value` may be 0 or any foreground value
        mask[values == ignore_value] = -1
    elif values.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[1:]) + 1
        if len(found) > 1 and found[-1] == _BORDER and found[-2] < _FEW:
            raise ValueError(
                f"The mask {where} holds {', '.join(map(str, found[:-1][:5]))} and {_BORDER}: is that a border that "
                f"does not count? Then pass `ignore_value={_BORDER}`. Otherwise save all of the object as one value."
            )
    return mask
