# SPDX-License-Identifier: Apache-2.0
"""Names of ViT, DeiT and ICE weights: from each published naming to that of ICE-DeiT, and back.

Pure: tensors in, tensors out. Every key is accounted for; a model that starts half random looks healthy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..ice_deit.source_families import SOURCE_FAMILIES, key_pattern
from ..ice_deit.source_weights import scale_rows
from ..ice_deit.weight_checks import some_names
from .key_layouts import DROPPED_KEYS, KEY_TABLES, UNSUPPORTED_KEYS


__all__ = ["convert_keys", "revert_state_dict", "source_key"]

# fmt: off
# A group is there as a whole or not at all; everything else in a table has to be there.
_OPTIONAL_GROUPS = (
    re.compile(r".*\.attention\.(qkv|[qkv])_proj\.bias"),
    re.compile(r"deit\.embeddings\.distillation_token"),
    re.compile(r"deit\.embeddings\.register_tokens"),
    re.compile(r"deit\.layers\.\d+\.layer_scale1\..*"),
    re.compile(r"deit\.layers\.\d+\.layer_scale2\..*"),
    re.compile(r"distillation_classifier\..*"),
    re.compile(r"deit\.patch_head\.weight"),
    re.compile(r"deit\.patch_head\.fc[12]\..*"),
)
# fmt: on

_CLASSIFIER = re.compile(r"classifier\..*")  # optional where another number of classes was asked for
_WRAPPERS = ("module.", "_orig_mod.", "model.", "teacher.", "student.", "backbone.")
# stand beside `backbone.` in checkpoints of DINO and DINOv2, and are dropped
_PROJECTION_HEADS = ("head.mlp.", "head.last_layer.", "dino_head.", "ibot_head.")
# DINOv2 trains in chunks of layers that keep their number: `blocks.2.9.norm1.weight` is of layer 9
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
_FAMILY_PREFIX = re.compile("|".join(rf"^{re.escape(family.key_prefix)}" for family in SOURCE_FAMILIES.values()))
_LAYER_SCALE = re.compile(r"(deit\.layers\.\d+)\.layer_scale([12])\.lambda1")
_FUSED = re.compile(r"(.*\.attention\.)qkv_proj(\..*)")
_SPLIT = re.compile(r"(.*\.attention\.)([qkv])_proj(\..*)")


def convert_keys(
    state_dict: Mapping[str, Tensor], needs_classifier: bool = True
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Rename the weights of a ViT, DeiT or ICE checkpoint to those of `IceDeiTForImageClassification`.

    Returns the weights, the naming found, and the reason for each key that was dropped. A key that is unknown, missing
    or double is a `ValueError` that names all of them; without `needs_classifier` the classifier may be missing. A
    classifier that reads more than [CLS] is dropped.
    """
    names = _unwrap(state_dict)
    layout = _detect_layout(names)
    sources: dict[str, list[str]] = {}
    leftovers: dict[str, str | None] = {}
    for name, key in names.items():
        new = _translate(name, KEY_TABLES[layout])
        if new is None:
            leftovers[key] = _drop_reason(name)
        else:
            sources.setdefault(new, []).append(key)
    _refuse_unaccounted(
        layout,
        unknown=[key for key, reason in leftovers.items() if reason is None],
        missing=_missing_keys(sources, layout, needs_classifier),
        double=[" and ".join(keys) for keys in sources.values() if len(keys) > 1],
    )
    dropped = {key: reason for key, reason in leftovers.items() if reason is not None}
    by_source = {new: key for new, (key,) in sources.items()}
    weights = {new: state_dict[key] for new, key in by_source.items()}
    weights, accounts = _fold_layer_scale(weights, by_source)
    weights, dropped_heads = _drop_wide_classifier(weights)
    accounts.update({by_source[new]: reason for new, reason in dropped_heads.items()})
    return _split_qkv(weights), layout, {**dropped, **accounts}


def revert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an ICE-DeiT classifier to those of timm, facebook DeiT and the ICE authors.

    Args:
        state_dict: `IceDeiTForImageClassification.state_dict()`.

    Returns:
        Name -> tensor, with `q`, `k` and `v` fused: the inverse of `convert_keys` for that naming.

    Raises:
        ValueError: If a tensor has no name there, such as an MLP patch head or a lone `q_proj`.
    """
    fused = _fuse_qkv(state_dict)
    reverted = {key: _invert(key, KEY_TABLES["timm"]) for key in fused}
    strangers = [key for key, name in reverted.items() if name is None]
    if strangers:
        raise ValueError(
            f"`state_dict` must be that of an `IceDeiTForImageClassification` with a linear patch head, got "
            f"{', '.join(strangers)}, for which timm has no name. Leave them out to convert the rest."
        )
    return {name: fused[key] for key, name in reverted.items() if name is not None}


def source_key(key: str, layout: str) -> str:
    """Return the name that a weight of ICE-DeiT has in a published naming, without prefix; `key` if it has none."""
    table = KEY_TABLES[layout]
    return _invert(key, table) or _invert(_SPLIT.sub(r"\1qkv_proj\3", key), table) or key


def _unwrap(keys: Iterable[str]) -> dict[str, str]:
    """Return name without wrapper and family prefix -> key as in the file."""
    names = {key: key for key in keys}
    while names:
        wrapped = [name for name in names if not name.startswith(_PROJECTION_HEADS)]
        wrapper = next((w for w in _WRAPPERS if wrapped and all(name.startswith(w) for name in wrapped)), None)
        if wrapper is None:
            break
        names = {name.removeprefix(wrapper): key for name, key in names.items()}
    unwrapped = {_FAMILY_PREFIX.sub("", name): key for name, key in names.items()}
    if all(_CHUNKED.match(name) for name in unwrapped if name.startswith("blocks.")):
        unwrapped = {_CHUNKED.sub(r"blocks.\1.", name): key for name, key in unwrapped.items()}
    # two keys that differ by their prefix only would hide one another
    return unwrapped if len(unwrapped) == len(names) else names


def _detect_layout(names: Iterable[str]) -> str:
    """Return the naming that knows most of the names."""
    names = [name for name in names if _drop_reason(name) is None] or list(names)
    known = {
        layout: sum(_translate(name, table) is not None for name in names) for layout, table in KEY_TABLES.items()
    }
    layout = max(known, key=lambda candidate: known[candidate])
    if 2 * known[layout] < len(names) or not known[layout]:
        raise ValueError(
            f"The checkpoint must be a ViT or DeiT of timm, facebook or transformers, or an ICE model of the authors, "
            f"got {len(names)} tensors of which {known[layout]} have a known name; the first are "
            f"{', '.join(names[:4]) or 'none'}."
        )
    return layout


# compiled once: a checkpoint has some hundred keys, each tried on every row
_PATTERNS = {
    template: key_pattern(template)
    for template in [name for table in KEY_TABLES.values() for row in table for name in row] + list(DROPPED_KEYS)
}


def _translate(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """Return the second column of the row whose first matches a name."""
    for left, right in rows:
        match = _PATTERNS[left].fullmatch(name)
        if match:
            return right.format(**match.groupdict())
    return None


def _invert(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    """Return the first column of the row whose second matches a key."""
    return _translate(key, [(right, left) for left, right in table])


def _drop_reason(name: str) -> str | None:
    """Return why a tensor may be left behind, None if it may not."""
    return next((reason for template, reason in DROPPED_KEYS.items() if _PATTERNS[template].fullmatch(name)), None)


def _missing_keys(found: Iterable[str], layout: str, needs_classifier: bool) -> list[str]:
    """Return the published names of the weights that should be there and are not."""
    found = set(found)
    layers = [int(match["n"]) for key in found if (match := re.match(r"deit\.layers\.(?P<n>\d+)\.", key))]
    expected = list(_expand([right for _, right in KEY_TABLES[layout]], 1 + max(layers, default=0)))
    for group in (*_OPTIONAL_GROUPS, *(() if needs_classifier else (_CLASSIFIER,))):
        if not any(group.fullmatch(key) for key in found):
            expected = [key for key in expected if not group.fullmatch(key)]
    return [source_key(key, layout) for key in dict.fromkeys(expected) if key not in found]


def _expand(templates: Iterable[str], num_layers: int) -> Iterator[str]:
    """Return every name that templates stand for."""
    for template in templates:
        for layer in range(num_layers) if "{n}" in template else (0,):
            for parameter in ("weight", "bias") if "{p}" in template else ("",):
                yield template.format(n=layer, p=parameter)


def _refuse_unaccounted(layout: str, unknown: list[str], missing: list[str], double: list[str]) -> None:
    """Raise if a key is unknown, missing or double, with all of their names."""
    problems = []
    if unknown:
        problems.append("unknown: " + some_names(map(_explain, unknown)))
    if missing:
        problems.append("missing: " + some_names(missing, 12))
    if double:
        problems.append("two names of one tensor: " + some_names(double))
    if problems:
        raise ValueError(
            f"The checkpoint (naming: {layout}) must hold the weights of a ViT or DeiT classifier and nothing else, "
            f"got {'; '.join(problems)}. Remove or rename what is unknown and save the file again. For an encoder "
            "without a classifier pass `num_labels`, the number of classes of a new one."
        )


def _explain(key: str) -> str:
    """Return an unknown key, with what it stands for if that is known."""
    meaning = next((text for pattern, text in UNSUPPORTED_KEYS.items() if re.search(pattern, key)), None)
    return f"{key} ({meaning})" if meaning else key


def _fold_layer_scale(
    weights: Mapping[str, Tensor], sources: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Multiply the LayerScale of DINOv2 and DeiT III into the layer before it, which is exact.

    gamma * (W x + b) = (gamma W) x + gamma b. `sources` is the key in the file by the name of a weight. Returns the
    weights without the scales, and what became of each scale by its key in the file.
    """
    folded, accounts = dict(weights), {}
    for name, gamma in weights.items():
        match = _LAYER_SCALE.fullmatch(name)
        if match is None:
            continue
        target = f"{match[1]}.{'attention.o_proj' if match[2] == '1' else 'mlp.fc2'}"
        weight = folded[f"{target}.weight"]
        published = sources[f"{target}.weight"].removesuffix(".weight")
        if weight.ndim != 2 or gamma.shape != weight.shape[:1]:
            raise ValueError(
                f"`{sources[name]}` of shape {tuple(gamma.shape)} does not scale the rows of `{published}.weight`."
            )
        for parameter in ("weight", "bias"):
            folded[f"{target}.{parameter}"] = scale_rows(gamma, folded[f"{target}.{parameter}"])
        del folded[name]
        accounts[sources[name]] = f"LayerScale, multiplied into {published}"
    return folded, accounts


def _drop_wide_classifier(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights without a classifier of DINOv2, and the reason for each of its parts.

    ICE-DeiT's [CLS] classifier is linear in [CLS] alone: no weights of it give the same answers.
    """
    classifier, norm = weights.get("classifier.weight"), weights.get("deit.layernorm.weight")
    if classifier is None or norm is None or classifier.ndim != 2 or classifier.shape[1] != 2 * norm.shape[0]:
        return dict(weights), {}
    reason = "the classifier reads [CLS] and the mean of the patches, that of ICE-DeiT reads [CLS]"
    dropped = {key: reason for key in weights if _CLASSIFIER.fullmatch(key)}
    return {key: value for key, value in weights.items() if key not in dropped}, dropped


def _split_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split every fused `qkv_proj` into its three parts, in the order query, key, value."""
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        match = _FUSED.fullmatch(key)
        if match is None:
            converted[key] = tensor
            continue
        if tensor.ndim == 0 or tensor.shape[0] % 3:
            raise ValueError(
                f"`{source_key(key, 'timm')}` must have 3 x hidden_size rows (query, key, value), got shape "
                f"{tuple(tensor.shape)}."
            )
        # (3 * hidden_size, ...) -> three of (hidden_size, ...)
        for name, part in zip("qkv", tensor.chunk(3), strict=True):
            converted[f"{match[1]}{name}_proj{match[2]}"] = part
    return converted


def _fuse_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join every complete triple of `q_proj`, `k_proj` and `v_proj`; leave what is incomplete as it is."""
    fused: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        match = _SPLIT.fullmatch(key)
        parts = [f"{match[1]}{name}_proj{match[3]}" for name in "qkv"] if match else []
        if not match or any(part not in state_dict for part in parts):
            fused[key] = tensor
        elif match[2] == "q":
            # three of (hidden_size, ...) -> (3 * hidden_size, ...)
            fused[f"{match[1]}qkv_proj{match[3]}"] = torch.cat([state_dict[part] for part in parts])
    return fused
