# SPDX-License-Identifier: Apache-2.0
"""Cached features: frozen layers run once for each distinct input, and their outputs are kept in host memory.

An input is known by its content, a digest of the tokens that enter the first layer. So full images, local windows,
flipped images and images of evaluation need no bookkeeping, and an input that was never seen is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, TrainingArguments
from transformers.utils import logging

from ..data.augmentation.arguments import AugmentationArguments


__all__ = ["FeatureCache", "build_feature_cache", "check_cached_features"]

logger = logging.get_logger(__name__)

# what changes no output: options that `Trainer` passes and layers of images ignore, and the model's own attention
_OPTIONS_WITHOUT_EFFECT = ("num_items_in_batch", "use_cache", "attend")


def _check_repeated_images(data_args: AugmentationArguments) -> None:
    """Raise a `ValueError` if the augmentation draws new pixels each time: a cache would never be of use."""
    faults = [] if data_args.augmentation in ("none", "flip") else [f"`--augmentation {data_args.augmentation}`"]
    if data_args.rand_augment not in (None, "none"):
        faults.append(f"`--rand_augment {data_args.rand_augment}`")
    for name in ("color_jitter", "random_erasing_prob", "mixup_alpha", "cutmix_alpha"):
        if getattr(data_args, name):
            faults.append(f"`--{name} {getattr(data_args, name)}`")
    if faults:
        raise ValueError(
            "`--cache_features true` needs training images that come again as they were, which they do not with "
            f"{', '.join(faults)}. Use `--augmentation none` or flip, with 0 for each of the others (none for "
            "`--rand_augment`), or remove `--cache_features`."
        )


def check_cached_features(
    args: TrainingArguments,
    config: PreTrainedConfig,
    data_args: AugmentationArguments | None = None,
    is_sharded: bool = False,
) -> None:
    """Raise a `ValueError` if `args.cache_features` is set and a run of this model cannot reuse frozen layers.

    Args:
        args: Arguments of the run.
        config: Configuration of the model.
        data_args: Augmentation of the training images, where it is known.
        is_sharded: Whether no process has all weights (FSDP, DeepSpeed).
    """
    num_frozen = getattr(args, "freeze_layers", None)
    if not getattr(args, "cache_features", False) or not num_frozen:
        return
    if data_args is not None:
        _check_repeated_images(data_args)
    if is_sharded or args.n_gpu > 1 or args.torch_compile:
        raise ValueError(
            "`cache_features` needs whole layers that run in Python, one device for each process: neither FSDP, "
            "DeepSpeed, `nn.DataParallel` nor `torch_compile`. Remove it, or train with DDP."
        )
    inside = [index for index in getattr(config, "pruning_schedule", ()) if index < num_frozen]
    if inside:
        raise ValueError(
            f"`cache_features` keeps the outputs of all patches after {num_frozen} frozen layers, got pruning at "
            f"the layers {inside} among them. Set `pruning_layers` to at least {num_frozen}, `freeze_layers` to at "
            f"most {inside[0]}, or remove `cache_features`."
        )
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            raise ValueError(
                f"`cache_features` skips frozen layers, whose outputs `config.{name}` wants, got "
                f"{getattr(config, name)}. Set it to False, or remove `cache_features`."
            )


def build_feature_cache(model: Any, args: TrainingArguments, is_sharded: bool = False) -> FeatureCache:
    """Return the cache of a model whose layers `args.freeze_layers` has frozen; without `cache_features` one of none.

    Raises a `ValueError` as `check_cached_features`.
    """
    if not getattr(args, "cache_features", False):
        return FeatureCache((), 0.0)
    check_cached_features(args, model.config, is_sharded=is_sharded)
    options = cast(Any, args)
    return FeatureCache(model.base_model.layers[: options.freeze_layers], options.cache_features_gb)


class FeatureCache:
    """Outputs of the last of some frozen layers, for each distinct input of the first.

    Args:
        layers: The first layers of an encoder, which run one after the other and must neither train nor draw random
            numbers: frozen and in evaluation mode. None: no cache.
        limit_gb: GiB of host memory for the outputs. Once it is full, no more are added.

    Attributes:
        num_bytes: Size of the outputs that are kept.
    """

    def __init__(self, layers: Sequence[Any], limit_gb: float) -> None:
        self.layers, self.limit_gb, self.num_bytes = list(layers), limit_gb, 0
        self._outputs: dict[bytes, Tensor] = {}
        self._is_full = False

    def clear(self) -> None:
        """Forget all outputs; for other weights."""
        self._outputs, self._is_full, self.num_bytes = {}, False, 0

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Take known outputs for those of the layers inside the block; outside the model is as it was."""
        if not self.layers:
            yield
            return
        own = [vars(layer).get("forward") for layer in self.layers]  # accelerate sets some
        forwards = [layer.forward for layer in self.layers]
        skips = False  # whether the first layer has done the work of the others

        def first(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal skips
            # an attention mask, packed images, recorded hidden states, ...: the output depends on more than the tokens
            options = (*args, *(value for name, value in kwargs.items() if name not in _OPTIONS_WITHOUT_EFFECT))
            skips = not hidden_states.requires_grad and all(option is None for option in options)
            if not skips:
                return forwards[0](hidden_states, *args, **kwargs)
            return self._look_up(hidden_states, forwards)

        def follow(forward: Any) -> Any:
            return lambda hidden_states, *args, **kwargs: (
                hidden_states if skips else forward(hidden_states, *args, **kwargs)
            )

        for layer, forward in zip(self.layers, [first, *map(follow, forwards[1:])], strict=True):
            layer.forward = forward
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def _look_up(self, hidden_states: Tensor, forwards: Sequence[Any]) -> Tensor:
        """Return the outputs for tokens `(batch_size, num_tokens, hidden_size)`, computing those that are unknown."""
        keys = _digests(hidden_states)
        rows = {key: row for row, key in reversed([*enumerate(keys)])}  # the first row of each distinct input
        outputs = {key: self._outputs[key] for key in rows if key in self._outputs}
        unknown = [key for key in rows if key not in outputs]
        if unknown:
            computed = hidden_states[[rows[key] for key in unknown]]
            for forward in forwards:
                computed = forward(computed)
            # clones: a view would keep the memory of its whole batch
            outputs |= {key: row.clone() for key, row in zip(unknown, computed.cpu(), strict=True)}
            self._add({key: outputs[key] for key in unknown})
        return torch.stack([outputs[key] for key in keys]).to(hidden_states.device)

    def _add(self, outputs: dict[bytes, Tensor]) -> None:
        """Keep outputs as long as they fit, and warn once if one does not."""
        for key, output in outputs.items():
            if self._is_full:
                return
            if self.num_bytes + output.nbytes > self.limit_gb * 2**30:
                self._is_full = True
                logger.warning(
                    f"The cache of features is full: {len(self._outputs):,} images and windows in "
                    f"`--cache_features_gb {self.limit_gb:g}`. Others are computed each time."
                )
                return
            self._outputs[key] = output
            self.num_bytes += output.nbytes


def _digests(hidden_states: Tensor) -> list[bytes]:
    """Return a digest of the tokens of each image, and of what else decides the output: type, shape, autocast."""
    device = hidden_states.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    start = hashlib.sha256(f"{hidden_states.dtype} {tuple(hidden_states.shape[1:])} {precision}".encode())
    digests = []
    for row in hidden_states.detach().cpu().flatten(1).contiguous().view(torch.uint8).numpy():
        digest = start.copy()
        digest.update(row)
        digests.append(digest.digest())
    return digests
