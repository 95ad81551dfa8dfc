# SPDX-License-Identifier: Apache-2.0
"""Published code of other pruning methods, run from a folder of the user and timed next to the ICE models.

EViT (Liang et al., ICLR 2022; repository youweiliang/evit) and ToMe (Bolya et al., ICLR 2023; facebookresearch/ToMe)
import timm as it was in 2021. `timm_stand_ins` has the few names that they use; the modules are replaced while their
files are imported, and restored afterwards. Their models get the weights of the ICE model, and must compute the same
class logits before they are timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conversion import revert_state_dict
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.token_pruning import AttentivenessStrategy, TokenCounts
from .macs import count_tokens, ideal_macs
from .timm_stand_ins import EVIT_IMPORTS, VisionTransformer, tome_imports
from .variants import Variant, share_weights


__all__ = ["EXTERNAL", "external_variants"]

_TOLERANCE = 1e-4  # of class logits; the two codes add in another order


@torch.no_grad()
def external_variants(
    model: IceDeiTForImageClassification, folders: Mapping[str, str], keep_rates: Sequence[float], pixel_values: Tensor
) -> list[Variant]:
    """Return variants that run published code: EViT at the keep rates, fused, and ToMe at about the same MACs.

    Args:
        model: In float32 and evaluation mode.
        folders: By name of the method, a key of `EXTERNAL`, a folder with its repository. Its code is run.
        keep_rates: Each is taken at every pruning layer of the model by EViT.
        pixel_values: `(batch_size, num_channels, height, width)`, float32: class logits are compared on them.

    Raises:
        ValueError: If a folder does not hold the code, the code computes something else than the ICE model with the
            same weights, or the model has parts that the published code lacks.
    """
    config = model.config
    height, width = as_pair(config.image_size)
    has_more = config.num_prefix_tokens != 1 or config.hidden_act != "gelu" or height != width
    if has_more:
        raise ValueError(
            "The published code runs square images, gelu, and [CLS] as the only prefix token, and this model differs. "
            "Leave out `--external`."
        )
    variants = []
    for name, folder in folders.items():
        variants += EXTERNAL[name](model, Path(folder), keep_rates, pixel_values)
    return variants


def _evit_variants(
    model: IceDeiTForImageClassification, folder: Path, keep_rates: Sequence[float], pixel_values: Tensor
) -> list[Variant]:
    evit = _load_evit(folder)
    _compare("EViT", _build_evit(evit, model, 1.0), share_weights(model, pruning_strategy=None), pixel_values)
    variants = []
    for rate in keep_rates:
        own, built = _as_attentiveness(model, rate), _build_evit(evit, model, rate)
        _compare(f"EViT at keep rate {rate:g}", built, own, pixel_values)
        variants.append(Variant(f"EViT's code {rate:g}, fused", built, own.config, counts=_evit_counts(own)))
    return variants


def _as_attentiveness(model: IceDeiTForImageClassification, rate: float) -> IceDeiTForImageClassification:
    """Return the ICE model that prunes as EViT does."""
    rates = [rate] * len(model.config.pruning_layers or ())
    fields = {"pruning_strategy": AttentivenessStrategy.name, "fuse_pruned_tokens": True, "keep_rates": rates}
    return share_weights(model, **fields)


def _evit_counts(model: IceDeiTForImageClassification) -> TokenCounts:
    """Return the tokens of one image; EViT has no patch head, and its attention is at hand when patches are ranked."""
    counts = count_tokens(model.config, np.zeros((1, _num_patches(model))))
    none = np.zeros(1, dtype=int)
    return TokenCounts(counts.tokens_per_layer, counts.mlp_tokens, none, none, none)


def _build_evit(evit: Callable[..., nn.Module], model: IceDeiTForImageClassification, rate: float) -> nn.Module:
    config = model.config
    rates = [rate if index in (config.pruning_layers or ()) else 1 for index in range(config.num_hidden_layers)]
    built = evit(
        img_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=config.qkv_bias,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        keep_rate=tuple(rates),
        fuse_token=True,
    )
    return _with_weights(built, model)


def _tome_variants(
    model: IceDeiTForImageClassification, folder: Path, keep_rates: Sequence[float], pixel_values: Tensor
) -> list[Variant]:
    apply_patch = _load_tome(folder)
    _compare("ToMe", _build_tome(apply_patch, model, 0), share_weights(model, pruning_strategy=None), pixel_values)
    numbers = [_number_to_merge(model, rate) for rate in keep_rates]
    return [
        Variant(f"ToMe's code, r = {number}", _build_tome(apply_patch, model, number), model.config, counts=counts)
        for number, counts in {number: _tome_counts(model, number) for number in numbers}.items()
    ]


def _number_to_merge(model: IceDeiTForImageClassification, rate: float) -> int:
    """Return how many tokens ToMe has to merge in every layer, so that its MACs are nearest to EViT's at a rate."""
    config = model.config
    wanted = float(ideal_macs(config, **vars(_evit_counts(_as_attentiveness(model, rate))))[0])
    numbers = range(1, 1 + _num_patches(model) // 2)
    return min(numbers, key=lambda r: abs(float(ideal_macs(config, **vars(_tome_counts(model, r)))[0]) - wanted))


def _tome_counts(model: IceDeiTForImageClassification, number: int) -> TokenCounts:
    """Return the tokens of one image; the similarities by which ToMe merges, 0.1 % of a layer, are not counted."""
    entering, after, tokens = [], [], _num_patches(model) + 1
    for _ in range(model.config.num_hidden_layers):
        entering.append(tokens)
        tokens -= min(number, (tokens - 1) // 2)  # ToMe merges at most half, and never [CLS]
        after.append(tokens)
    none = np.zeros(1, dtype=int)
    return TokenCounts(np.array([entering]), np.array([after]), none, none, none)


def _build_tome(apply_patch: Callable[[nn.Module], None], model: Any, number: int) -> nn.Module:
    built: Any = _with_weights(VisionTransformer(model.config), model)
    apply_patch(built)
    built.r = number
    return built


def _with_weights(built: nn.Module, model: IceDeiTForImageClassification) -> nn.Module:
    """Load the weights of the ICE model but for its patch and pruning heads; every other one must have its place."""
    heads = ("deit.patch_head", "deit.pruning_heads")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(heads)}
    try:
        built.load_state_dict(revert_state_dict(weights))
    except RuntimeError as error:
        raise ValueError(f"The published code has other parts than this model: {error}") from error
    return built.eval().to(model.device)


def _num_patches(model: IceDeiTForImageClassification) -> int:
    pairs = zip(as_pair(model.config.image_size), as_pair(model.config.patch_size), strict=True)
    return int(np.prod([side // patch for side, patch in pairs]))


def _compare(name: str, built: nn.Module, own: IceDeiTForImageClassification, pixel_values: Tensor) -> None:
    """Refuse code that computes other class logits than the ICE model with its weights."""
    difference = (built(pixel_values) - own(pixel_values).cls_logits).abs().max().item()
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"{name}: the class logits of the code in the folder differ from those of the ICE model with the same "
            f"weights by {difference:.1e}, and at most {_TOLERANCE:g} is rounding. Pass the published code, unchanged."
        )


def _load_evit(folder: Path) -> Callable[..., nn.Module]:
    with _replaced_modules({**EVIT_IMPORTS, "helpers": {}, "evit": {}}):
        _import_file("helpers", folder / "helpers.py")
        return _attribute(_import_file("evit", folder / "evit.py"), "EViT")


def _load_tome(folder: Path) -> Callable[[nn.Module], None]:
    # packages without their own `__init__`, which imports timm, swag and MAE models
    packages: dict[str, dict[str, Any]] = {
        "tome": {"__path__": [str(folder / "tome")]},
        "tome.patch": {"__path__": []},
    }
    with _replaced_modules({**tome_imports(), **packages}):
        return _attribute(_import_file("tome.patch.timm", folder / "tome/patch/timm.py"), "apply_patch")


def _import_file(name: str, file: Path) -> ModuleType:
    """Run a file as a module of a name; whatever goes wrong in it is an error of the folder."""
    if not file.is_file():
        raise ValueError(f"`external` must name a folder with the published code, and there is no {file}.")
    spec: Any = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # foreign code
        raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _attribute(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        raise ValueError(f"{module.__file__} must define {name}, as the published code does.")
    return getattr(module, name)


@contextmanager
def _replaced_modules(stand_ins: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let imports of some packages find stand-ins inside the block; afterwards all modules are as before."""
    roots, writes = {name.partition(".")[0] for name in stand_ins}, sys.dont_write_bytecode
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}
    for name in hidden:
        del sys.modules[name]
    for name, content in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    sys.dont_write_bytecode = True  # nothing is written into the user's folder
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(hidden)


EXTERNAL: dict[str, Callable[..., list[Variant]]] = {"evit": _evit_variants, "tome": _tome_variants}
"""Published code by the name of its option."""
