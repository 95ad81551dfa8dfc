# SPDX-License-Identifier: Apache-2.0
"""Configuration of ICE-DeiT: every number of the paper stands here once, with its source, and is checked."""

import difflib
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import DeiTConfig

from .adversarial_normalization import CLASSIFICATION_LOSSES
from .token_pruning import EXECUTIONS, PRUNING_HEADS, STRATEGIES


LOGITS_SOURCES = ("patch", "cls")
FOREGROUND_POOLINGS = ("hard", "soft")

# Fields that DeiT does not have. A misspelt one would be stored silently (the parent accepts any keyword).
_ICE_FIELDS = (
    "use_distillation_token",
    "use_distillation_head",
    "drop_path_rate",
    "background_loss_weight",
    "background_logit_scale",
    "min_foreground_ratio",
    "max_foreground_ratio",
    "cls_loss_weight",
    "classification_loss_weight",
    "foreground_pooling",
    "candidate_label_loss_weight",
    "num_local_windows",
    "local_loss_weight",
    "local_distillation_weight",
    "local_image_share",
    "local_appearance_weight",
    "local_smoothing_steps",
    "classification_loss_type",
    "logits_source",
    "patch_head_hidden_size",
    "pruning_strategy",
    "pruning_layers",
    "keep_rates",
    "background_margin",
    "fuse_pruned_tokens",
    "pruning_execution",
    "pruning_head",
    "pruning_loss_weight",
    "prune_in_training",
)

_LOSS_WEIGHTS = (
    "background_loss_weight",
    "cls_loss_weight",
    "classification_loss_weight",
    "candidate_label_loss_weight",
    "local_loss_weight",
    "local_distillation_weight",
)

# Keys of old Hub configurations that only look like one of those.
_FOREIGN_FIELDS = ("pruned_heads",)

# Families whose folders load as ICE-DeiT: Hub DeiT models without a distillation token are of type "vit".
_SOURCE_MODEL_TYPES = ("vit", "deit")


@strict
class IceDeiTConfig(DeiTConfig):
    """Store the configuration of an ICE-DeiT model.

    Extends `DeiTConfig`; the defaults of the fields below are the published method.

    Args:
        use_distillation_token: Whether a distillation token follows [CLS]. The paper's DeiT-S has none.
        use_distillation_head: Whether the distillation token has a classifier of its own, whose logits are averaged
            with those of [CLS]. `None` means: whenever there is a distillation token.
        layer_norm_eps: 1e-6 as in timm and DeiT (HF's DeiT default is 1e-12; Hub files state their own).
        drop_path_rate: Stochastic depth of the last layer, in [0, 1), growing linearly from 0 (DeiT recipe: 0.1).
        background_loss_weight: Weight of the adversarial background loss, >= 0 (authors' `engine_ICE.py`: 0.025).
        background_logit_scale: Factor on the mean patch logits before the background loss (0.5 in `models_ICE.py`).
        min_foreground_ratio: The background loss counts only while the batch's mean share of foreground patches is at
            least this, in [0, 1] (0.1 in `engine_ICE.py`).
        max_foreground_ratio: From this mean share of foreground patches on, in [0, 1], the background loss gains
            weight, up to 1 more where every patch is foreground; published: 1, which adds nothing.
        cls_loss_weight: Weight of the [CLS] classifier's cross-entropy, >= 0 (0.0 in `engine_ICE.py`).
        classification_loss_weight: Weight of the foreground logits' cross-entropy, >= 0 (published: 1). With 0 here
            and for the background loss, the [CLS] classifier trains alone, as in DeiT and EViT.
        foreground_pooling: Which patches the classification loss pools: "hard" (published), those whose best class is
            not background, or "soft", all, each by 1 - p(background). The outputs of the model are the hard ones.
        candidate_label_loss_weight: Weight, >= 0, of the loss that lets a patch be only the image's class or
            background (published: none, 0).
        num_local_windows: In training, some images are also run in windows, so many along each side of the patch grid,
            and patches learn from what they say there (published: none, 0).
        local_loss_weight: Weight, >= 0, of what is learnt from the windows: the ICE loss in them, and that patches
            which see everything say the same.
        local_distillation_weight: Weight, >= 0, of the cross-entropy with what is said in windows, inside that loss.
        local_image_share: Share of the images, in (0, 1], that are run in windows.
        local_appearance_weight: What patches say in windows is averaged with what their neighbours say before it is
            learnt. A neighbour counts by 4 : 2 : 1 (itself, beside, across) times exp(-weight * d^2), >= 0, d the
            distance in mean and deviation of the normalised pixels of both, over all channels.
        local_smoothing_steps: How often it is averaged, at least 1.
        classification_loss_type: How foreground and [CLS] logits are compared with the labels: "cross_entropy"
            (published) or "bce" (binary, the mean over classes; background is one more class with target 0).
        logits_source: What `outputs.logits` holds: "patch" (pooled foreground patches) or "cls" ([CLS] classifier).
        patch_head_hidden_size: Width of the hidden layer of the patch head; `None` is the published single linear map.
        pruning_strategy: Which patches leave: none (`None`), "background" (as many as the pruning heads call
            background), "top_k" (a fixed number, ranked by the same heads) or "attentiveness" (a fixed number, ranked
            by the attention of [CLS]: EViT).
        pruning_layers: Layers, 0-based and ascending, before which patches leave; under "attentiveness" they leave
            inside it, between attention and MLP. The fields from here on are checked only with a strategy.
        keep_rates: Share of the tokens entering each pruning layer that stays, in (0, 1], rounded up; not used under
            "background".
        background_margin: Under "background" a patch leaves when its background score exceeds its best class, of a
            gate 0, by more than this.
        fuse_pruned_tokens: Whether the patches that leave go on as one token, their sum weighted by attention
            ("attentiveness" only).
        pruning_execution: "masked" (patches that left are computed but not attended to), or "packed" (they cost
            nothing), which "auto" stands for today. Masked in any case while pruning heads train, where hidden states
            or attentions are asked for, and under "background" where `torch.compile` takes fixed shapes only.
        pruning_head: What decides early: "gate" (one logit a patch) or "patch" (a patch head at each pruning layer).
        pruning_loss_weight: Weight of the pruning heads' loss, >= 0.
        prune_in_training: Whether patches leave in training too, or the heads only learn to tell which would
            (docs/pruning.md compares the two). Under "attentiveness", which has no heads, they leave in any case.
        **kwargs: Fields of `DeiTConfig`. Foreign keys are stored, near-misses of the fields above are refused.

    Raises:
        ValueError: If a field is out of its range, contradicts another one, or is a misspelling of a field above.

    Source: Choi, Jin, Han, "Adversarial Normalization: I Can Visualize Everything (ICE)", CVPR 2023, and the authors'
    repository Hanyang-HCC-Lab/ICE. "attentiveness": Liang et al., "Not All Patches are What You Need" (EViT), ICLR
    2022; its layers and keep rates are the defaults.
    """

    model_type = "ice_deit"
    keys_to_ignore_at_inference = [
        "cls_logits",
        "patch_logits",
        "foreground_logits",
        "background_logits",
        "foreground_ratio",
        "patch_exit_layer",
        "grid_size",
        "classification_loss",
        "background_loss",
        "cls_loss",
        "pruning_loss",
        "candidate_label_loss",
        "local_loss",
        "hidden_states",
        "attentions",
    ]

    use_distillation_token: bool = False
    use_distillation_head: bool | None = None
    layer_norm_eps: float | int = 1e-6
    drop_path_rate: float | int = 0.0
    background_loss_weight: float | int = 0.025
    background_logit_scale: float | int = 0.5
    min_foreground_ratio: float | int = 0.1
    max_foreground_ratio: float | int = 1.0
    cls_loss_weight: float | int = 0.0
    classification_loss_weight: float | int = 1.0
    foreground_pooling: str = "hard"
    candidate_label_loss_weight: float | int = 0.0
    num_local_windows: int = 0
    local_loss_weight: float | int = 1.0
    local_distillation_weight: float | int = 1.0
    local_image_share: float | int = 0.5
    local_appearance_weight: float | int = 0.0
    local_smoothing_steps: int = 1
    classification_loss_type: str = "cross_entropy"
    logits_source: str = "patch"
    patch_head_hidden_size: int | None = None
    pruning_strategy: str | None = None
    pruning_layers: list[int] | None = None
    keep_rates: list[float | int] | None = None
    background_margin: float | int = 0.0
    fuse_pruned_tokens: bool = False
    pruning_execution: str = "auto"
    pruning_head: str = "gate"
    pruning_loss_weight: float | int = 1.0
    prune_in_training: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse misspelt fields, fill the parent's derived fields, check the values."""
        refuse_near_misses(kwargs)
        if not __name__.startswith("transformers_modules"):
            # Where the package is installed the task is registered; this entry of a saved folder would make `pipeline`
            # insist on running the folder's code instead.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if self.pruning_layers is None:
            self.pruning_layers = [3, 6, 9]
        if self.keep_rates is None:
            self.keep_rates = [0.7] * len(self.pruning_layers)
        if self.label2id is None:
            self.label2id = {str(label): int(i) for i, label in (self.id2label or {}).items()}
        self.check_values()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read a configuration; one of an HF ViT or DeiT classifier becomes that of the ICE model it starts.

        Such a checkpoint has no trained patch head, so its `logits_source` is "cls": it classifies as before.

        Args:
            pretrained_model_name_or_path: Folder, file or Hub id, as for `PreTrainedConfig.get_config_dict`.
            **kwargs: Loading options and overrides of configuration fields.

        Returns:
            The configuration as a dict, and the options that were not used.

        Raises:
            ValueError: If an override is a misspelling of an ICE field.
        """
        refuse_near_misses(kwargs)
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in _SOURCE_MODEL_TYPES:
            config_dict = _adopt_source_config(config_dict)
        return config_dict, unused

    @property
    def num_labels(self) -> int:
        """Number of image classes; background is never one of them."""
        if self.id2label is None:  # only while the parent's constructor fills in the default labels
            return None  # type: ignore[return-value]
        return len(self.id2label) - self._counts_background

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        if self.num_labels != num_labels:
            self.__dict__.pop("_background_label", None)
            self.id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
            self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def background_index(self) -> int:
        """Position of the background class on the last axis of `patch_logits`."""
        return self.num_labels

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the first patch: [CLS], and the distillation token where there is one."""
        return 2 if self.use_distillation_token else 1

    @property
    def has_distillation_head(self) -> bool:
        """Whether the distillation token has a classifier: `use_distillation_head` with its default resolved."""
        return self.use_distillation_token if self.use_distillation_head is None else self.use_distillation_head

    @property
    def has_pruning_heads(self) -> bool:
        """Whether the strategy needs a head at each pruning layer."""
        strategy = STRATEGIES.get(self.pruning_strategy or "")
        return strategy is not None and strategy.needs_heads

    @property
    def pruning_schedule(self) -> dict[int, float]:
        """Keep rate by pruning layer, empty without a strategy; 1 where the images decide."""
        if self.pruning_strategy is None:
            return {}
        self._check_pruning()  # fields may be changed one by one after construction
        return STRATEGIES[self.pruning_strategy].schedule(self.pruning_layers or (), self.keep_rates or ())

    @property
    def _counts_background(self) -> bool:
        return "_background_label" in self.__dict__

    def with_background_label(self) -> "IceDeiTConfig":
        """Return a copy whose `id2label` names the background class too, for `pipeline("image-segmentation")`.

        `num_labels` stays the number of image classes, and `to_dict()` leaves the extra label out: no file holds it.
        """
        config = type(self)(**self.to_dict())
        config._attn_implementation = self._attn_implementation
        labels = [str(label) for _, label in sorted((config.id2label or {}).items())]
        background_label = "background" if "background" not in labels else "background (no class)"
        config._background_label = background_label
        config.id2label = dict(enumerate([*labels, background_label]))
        config.label2id = {label: i for i, label in config.id2label.items()}
        return config

    def to_dict(self) -> dict[str, Any]:
        """Serialize the configuration, without the background label."""
        output = super().to_dict()
        background_label = output.pop("_background_label", None)
        if background_label is not None:
            output["id2label"] = {i: label for i, label in output["id2label"].items() if label != background_label}
            output["label2id"] = {label: i for label, i in output["label2id"].items() if label != background_label}
        return output

    def check_values(self) -> None:
        """Check every ICE field, alone and against the others.

        Overrides given to `from_pretrained` are set after construction, so the models call this once more.

        Raises:
            ValueError: If a value is out of range or contradicts another one.
        """
        for name in _LOSS_WEIGHTS:
            _check_range(name, getattr(self, name), 0.0, float("inf"))
        _check_range("min_foreground_ratio", self.min_foreground_ratio, 0.0, 1.0)
        _check_range("max_foreground_ratio", self.max_foreground_ratio, 0.0, 1.0)
        if self.foreground_pooling not in FOREGROUND_POOLINGS:
            raise ValueError(
                f"`foreground_pooling` must be one of {list(FOREGROUND_POOLINGS)}, got {self.foreground_pooling!r}."
            )
        if self.num_local_windows < 0:
            raise ValueError(f"`num_local_windows` must be at least 0, got {self.num_local_windows}.")
        if not 0.0 < self.local_image_share <= 1.0:
            raise ValueError(f"`local_image_share` must be in (0, 1], got {self.local_image_share}.")
        _check_range("local_appearance_weight", self.local_appearance_weight, 0.0, float("inf"))
        if self.local_smoothing_steps < 1:
            raise ValueError(f"`local_smoothing_steps` must be at least 1, got {self.local_smoothing_steps}.")
        _check_range("background_logit_scale", self.background_logit_scale, 0.0, float("inf"))
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"`drop_path_rate` must be in [0, 1), got {self.drop_path_rate}.")
        if self.logits_source not in LOGITS_SOURCES:
            raise ValueError(f"`logits_source` must be one of {list(LOGITS_SOURCES)}, got {self.logits_source!r}.")
        if self.classification_loss_type not in CLASSIFICATION_LOSSES:
            raise ValueError(
                f"`classification_loss_type` must be one of {list(CLASSIFICATION_LOSSES)}, got "
                f"{self.classification_loss_type!r}."
            )
        if self.patch_head_hidden_size is not None and self.patch_head_hidden_size < 1:
            raise ValueError(f"`patch_head_hidden_size` must be positive or None, got {self.patch_head_hidden_size}.")
        if self.has_distillation_head and not self.use_distillation_token:
            raise ValueError(
                "`use_distillation_head=True` needs `use_distillation_token=True`: the head reads that token."
            )
        if self.num_labels < 1:
            raise ValueError("ICE needs at least one image class: set `num_labels` or `id2label`, got none.")
        self._check_sizes()
        if self.pruning_strategy is not None:
            self._check_pruning()

    def _check_pruning(self) -> None:
        for name, choices in (
            ("pruning_strategy", STRATEGIES),
            ("pruning_execution", EXECUTIONS),
            ("pruning_head", PRUNING_HEADS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        strategy = STRATEGIES[self.pruning_strategy or ""]
        layers, rates = list(self.pruning_layers or ()), list(self.keep_rates or ())
        if not layers or layers != sorted({*layers}) or layers[0] < 0 or layers[-1] >= self.num_hidden_layers:
            raise ValueError(
                f"`pruning_layers` must be ascending layers in [0, {self.num_hidden_layers - 1}], for a model of "
                f"{self.num_hidden_layers} layers, got {self.pruning_layers}."
            )
        has_rates = len(rates) == len(layers) and all(0 < rate <= 1 for rate in rates)
        if strategy.has_fixed_counts and not has_rates:
            raise ValueError(
                f"`keep_rates` must be one number in (0, 1] for each of the pruning layers {layers}, got {rates}."
            )
        if self.fuse_pruned_tokens and not strategy.can_fuse:
            names = " or ".join(f'"{name}"' for name, other in STRATEGIES.items() if other.can_fuse)
            raise ValueError(
                f"`fuse_pruned_tokens` weights tokens by attention and needs `pruning_strategy={names}`, got "
                f"{self.pruning_strategy!r}."
            )
        if self.background_margin != self.background_margin:
            raise ValueError("`background_margin` must be a number, got nan.")
        _check_range("pruning_loss_weight", self.pruning_loss_weight, 0.0, float("inf"))

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        for image_side, patch_side in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True):
            if patch_side < 1 or image_side < patch_side or image_side % patch_side:
                raise ValueError(
                    f"`image_size` must be a positive multiple of `patch_size`, got {self.image_size} and "
                    f"{self.patch_size}."
                )


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """Return a size as (height, width)."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"A size must be one number or [height, width], got {size}.")
    return size[0], size[1]


def refuse_near_misses(names: Any) -> None:
    """Raise if a name looks like a misspelt ICE field.

    Args:
        names: Iterable of keyword names that are no field of the configuration.

    Raises:
        ValueError: If one is close to, but not equal to, a field that ICE adds to DeiT.
    """
    for name in names:
        if name in _ICE_FIELDS or name in _FOREIGN_FIELDS:
            continue
        # 0.75 catches dropped words and letters ("background_weight") and no key of the ViT and DeiT configurations
        close = difflib.get_close_matches(name.lower(), _ICE_FIELDS, n=1, cutoff=0.75)
        if close:
            raise ValueError(f"Unknown configuration field `{name}`. Did you mean `{close[0]}`?")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low:g}, {high:g}], got {value}.")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def _adopt_source_config(config_dict: dict) -> dict:
    has_token = config_dict["model_type"] == "deit"
    with_teacher = "DeiTForImageClassificationWithTeacher" in (config_dict.get("architectures") or [])
    return {
        # `ViTConfig` and `DeiTConfig` leave their default eps out of no file, but be exact if one did
        "layer_norm_eps": 1e-12,
        **config_dict,
        "use_distillation_token": has_token,
        "use_distillation_head": has_token and with_teacher,
        "logits_source": "cls",
        "model_type": IceDeiTConfig.model_type,
    }


__all__ = ["LOGITS_SOURCES", "IceDeiTConfig", "as_pair", "refuse_near_misses"]
