# SPDX-License-Identifier: Apache-2.0
"""Configuration of ICE-DeiT: every number of the paper stands here once, with its source, and is checked."""

from dataclasses import fields
from textwrap import shorten
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import DeiTConfig
from transformers.activations import ACT2FN

from .adversarial_normalization import CLASSIFICATION_LOSSES
from .configuration_fields import (
    DEIT_INTERVALS,
    as_pair,
    check_choice,
    check_class_names,
    check_fields,
    check_grid,
    check_inherited_fields,
    check_interval,
    check_thresholds,
    ice_field,
    refuse_near_misses,
)
from .local_windows import check_num_windows
from .objective_ice_deit import LOSS_PARTS
from .pruning_checks import check_pruning
from .source_families import SOURCE_FAMILIES
from .token_pruning import EXECUTIONS, PRUNING_HEADS, STRATEGIES


# A larger factor on a loss is a slip, and from 1e38 on infinite in float32.
_WEIGHT = "[0, 1e6]"

_MOST_LABELS = 100_000


@strict
class IceDeiTConfig(DeiTConfig):
    """Configuration of an ICE-DeiT model.

    Extends `DeiTConfig`; the defaults of the fields below are the published method. A field is declared here and
    nowhere else: its check, the refusal of misspellings, and the option of `run_train.py` follow from `ice_field`.

    Args:
        **kwargs: The fields below and those of `DeiTConfig`. Foreign keys are stored, near-misses of the fields below
            are refused.

    Raises:
        ValueError: If a field is out of its range, contradicts another one, or is a misspelling of a field below.

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
        "object_thresholds",
        *LOSS_PARTS,
        "hidden_states",
        "attentions",
    ]

    use_distillation_token: bool = ice_field(False, "Whether a distillation token follows [CLS].")
    """The paper's DeiT-S has none."""

    use_distillation_head: bool | None = ice_field(None, "Whether the distillation token has a classifier of its own.")
    """Its logits are averaged with those of [CLS]. `None`: whenever there is a distillation token."""

    num_register_tokens: int = ice_field(
        0, "Number of register tokens between [CLS] (and the distillation token) and the patches.", within="[0, 1024]"
    )
    """Tokens without a position, whose outputs nothing reads (Darcet et al., "Vision Transformers Need Registers",
    ICLR 2024; DINOv2 has 4). The order is [CLS], distillation token, registers, patches."""

    interpolate_antialias: bool = ice_field(False, "Whether positions for another image size are low-pass filtered.")
    """As DINOv2 with registers was trained; ViT, DeiT and DINOv2 without them interpolate unfiltered."""

    layer_norm_eps: float | int = ice_field(1e-6, "Number added to the variance in layer norms.", within="[1e-30, 1]")
    """1e-6 as in timm and DeiT (HF's DeiT default is 1e-12; Hub files state their own). 0 could give NaN."""

    drop_path_rate: float | int = ice_field(
        0.0, "Stochastic depth: the drop rate of the last layer, growing linearly to it.", within="[0, 1)"
    )
    """DeiT's recipe: 0.1."""

    background_loss_weight: float | int = ice_field(
        0.025, "Weight of the loss that pulls every patch to background; larger masks less.", within=_WEIGHT
    )
    """Authors' `engine_ICE.py`: 0.025."""

    background_logit_scale: float | int = ice_field(
        0.5, "Factor on the mean patch logits inside the background loss.", within=_WEIGHT
    )
    """0.5 in `models_ICE.py`."""

    min_foreground_ratio: float | int = ice_field(
        0.1, "The background loss is off while a smaller ratio of the patches is foreground.", within="[0, 1]"
    )
    """The mean ratio of the batch counts (0.1 in `engine_ICE.py`)."""

    max_foreground_ratio: float | int = ice_field(
        1.0, "From this ratio of foreground patches on the background loss gains weight; 1: never.", within="[0, 1]"
    )
    """The mean ratio of the batch counts. Up to 1 more where every patch is foreground. Published: 1, never."""

    cls_loss_weight: float | int = ice_field(
        0.0, "Weight of the [CLS] classifier's own cross-entropy; 0 leaves it untrained.", within=_WEIGHT
    )
    """0.0 in `engine_ICE.py`."""

    classification_loss_weight: float | int = ice_field(
        1.0, "Weight of the cross-entropy of the foreground patches; 0 trains [CLS] alone.", within=_WEIGHT
    )
    """Published: 1. With 0 here and for the background loss, [CLS] trains alone, as in DeiT and EViT."""

    foreground_pooling: str = ice_field(
        "hard",
        "What the loss pools: hard (foreground patches), soft (by 1 - p(background)).",
        choices=("hard", "soft"),
    )
    """Of the classification loss. "hard" (published): patches whose best class is not background; "soft": all. The
    outputs of the model are the hard ones in any case."""

    min_evidence_lead: float | int = ice_field(
        0.0, "How much better foreground than background names the label before patches are pulled.", within="[0, 1]"
    )
    """Published: 0. Difference of evidence (0: chance, 1: surely). Up to half of it background loss, candidate labels
    and distillation count nothing, from it on fully. Not for several classes an image."""

    candidate_label_loss_weight: float | int = ice_field(
        0.0, "Weight of the loss that lets a patch be only the image's class or background.", within=_WEIGHT
    )

    position_loss_weight: float | int = ice_field(
        0.0, "Weight of the loss against maps that go by the place of a patch, alike in all images.", within=_WEIGHT
    )

    max_common_map_share: float | int = ice_field(
        0.4, "Share of the maps' variance over places that may be common to all images.", within="[0, 1]"
    )
    """Objects are more often in the middle than in a corner: true masks of drawn scenes share 0.19, of Oxford Pets on
    a grid of 8 x 8 patches 0.39. Maps that go by the place alone share 1."""

    num_local_windows: int = ice_field(
        0, "Also train on windows: their number along each side of the patch grid; 0: do not.", within="[0, inf)"
    )
    """In training, some images are also run in windows, and patches learn from the predictions there. Must divide the
    patch grid of `image_size`, and that of the training images if it is another one. Published: none, 0."""

    local_loss_weight: float | int = ice_field(1.0, "Weight of the loss in windows.", within=_WEIGHT)
    """The ICE loss in the windows, and the distillation from them to patches that attend to the whole image."""

    local_distillation_weight: float | int = ice_field(
        1.0, "Weight, inside that loss, of the cross-entropy with predictions in windows.", within=_WEIGHT
    )

    local_image_share: float | int = ice_field(0.5, "Ratio of images that are also run in windows.", within="(0, 1]")

    local_feature_weight: float | int = ice_field(
        0.0, "How much more neighbours of like features count in the average of windows; 0: no more.", within=_WEIGHT
    )
    """Predictions in windows are averaged over patches that belong together before they are learnt, by a random walk
    to neighbours with probability proportional to exp(local_feature_weight * cosine - local_appearance_weight * d^2).
    The cosine is of the last hidden states, less their mean over the image."""

    local_appearance_weight: float | int = ice_field(
        0.0, "How much less neighbours of other looks count in that average; 0: no less.", within=_WEIGHT
    )
    """d^2 is the squared distance in mean and deviation of the pixels of both patches, 1 on average over an image."""

    classification_loss_type: str = ice_field(
        "cross_entropy",
        "How logits are compared with labels: cross_entropy, or bce (each class alone).",
        choices=CLASSIFICATION_LOSSES,
    )
    """Of the foreground and of the [CLS] logits. "cross_entropy" is published; "bce" is binary, the mean over classes,
    where background is one more class with target 0."""

    logits_source: str = ice_field(
        "patch", "Which logits the model returns as `logits`; ICE training writes patch.", choices=("patch", "cls")
    )
    """What `outputs.logits` holds: "patch" (pooled foreground patches) or "cls" ([CLS] classifier)."""

    object_thresholds: list[float | int] | None = ice_field(
        None, "Score from which each class counts as found, for several classes an image."
    )
    """In [0, 1], one for each class; `None` is 0.5 each. A multi-label run of `transformers-ice train` chooses them on
    its validation images. Only read where `problem_type` is "multi_label_classification"."""

    patch_head_hidden_size: int | None = ice_field(
        None, "Makes the patch head an MLP with this many hidden units.", within="[1, 262144]"
    )
    """`None` is the published single linear map."""

    pruning_strategy: str | None = ice_field(
        None, "Prune patches: background (ICE), top_k (fixed number), attentiveness (EViT).", choices=STRATEGIES
    )
    """`None` prunes nothing. "background" prunes what the pruning heads predict to be background; "top_k" a fixed
    number, ranked by the same heads; "attentiveness" a fixed number, ranked by the attention of [CLS] (EViT)."""

    pruning_layers: list[int] | None = ice_field(None, "0-based layers before which patches are pruned, e.g. 3 6 9.")
    """Ascending; `None` is [3, 6, 9] (EViT). Under "attentiveness" they are pruned inside the layer, before its MLP.
    Like `keep_rates`, checked only with a strategy."""

    keep_rates: list[float | int] | None = ice_field(
        None, "Ratio of tokens that a pruning layer keeps, e.g. 0.7 0.7 0.7."
    )
    """Of the tokens that enter the layer, in (0, 1], rounded up; `None` is 0.7 at each (EViT). Not used under
    "background"."""

    background_margin: float | int = ice_field(
        0.0, "Prune a patch when background wins by more than this; larger keeps more.", within="[-inf, inf]"
    )
    """Under "background": by how much the background score must exceed the best class, of a gate 0."""

    fuse_pruned_tokens: bool = ice_field(False, "Keep the sum of pruned patches as one token (attentiveness only).")
    """Their sum is weighted by attention (EViT)."""

    pruning_execution: str = ice_field(
        "auto", "How pruned patches are left out: auto, packed (cost nothing) or masked.", choices=EXECUTIONS
    )
    """"masked": pruned patches are computed but not attended to; "packed", which "auto" stands for today: they cost
    nothing. Masked in any case while pruning heads train, where hidden states or attentions are returned, and under
    "background" where `torch.compile` takes fixed shapes only."""

    pruning_head: str = ice_field(
        "gate", "What decides: gate (one logit a patch) or patch (a patch head).", choices=PRUNING_HEADS
    )
    """Of each pruning layer, under "background" and "top_k"."""

    pruning_loss_weight: float | int = ice_field(1.0, "Weight of the pruning heads' loss.", within=_WEIGHT)

    prune_in_training: bool = ice_field(False, "Prune in training too; by default the heads only learn.")
    """docs/pruning.md compares the two. Under "attentiveness", which has no heads, training prunes in any case."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse misspelt fields, fill the parent's derived fields, check the values."""
        refuse_near_misses(kwargs, ICE_FIELDS)
        if not __name__.startswith("transformers_modules"):
            # Where the package is installed the task is registered; this entry of a saved folder would make `pipeline`
            # insist on running the folder's code instead.
            kwargs.pop("custom_pipelines", None)
        check_inherited_fields(self, kwargs.get("torch_dtype"))
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
        """Read a configuration; that of a family in `SOURCE_FAMILIES` becomes that of the ICE model it starts.

        Such a checkpoint has no trained patch head, so its `logits_source` is "cls": it classifies as before. As in
        `PreTrainedConfig.get_config_dict`; an override that is a misspelling of an ICE field is a `ValueError`.
        """
        refuse_near_misses(kwargs, ICE_FIELDS)
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        family = SOURCE_FAMILIES.get(config_dict.get("model_type", ""))
        if family is not None:
            config_dict = {**family.adopt_config(config_dict), "model_type": cls.model_type}
        return {**config_dict, "name_or_path": str(pretrained_model_name_or_path)}, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the configuration of a `config.json`, which an error names: hence `name_or_path` above."""
        name = kwargs.get("name_or_path") or config_dict.get("name_or_path")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ValueError) as error:
            where = f"The configuration of {str(name)!r} cannot be used: " if name else ""
            raise ValueError(where + shorten(str(error), 800)) from error  # it may quote a value of any length

    @property
    def num_labels(self) -> int:
        """Number of image classes; background is never one of them."""
        if self.id2label is None:  # only while the parent's constructor fills in the default labels
            return None  # type: ignore[return-value]
        return len(self.id2label) - ("_background_label" in self.__dict__)

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or not 1 <= num_labels <= _MOST_LABELS:
            raise ValueError(
                f"ICE needs at least one image class, and at most {_MOST_LABELS:,}: `num_labels` is {num_labels!r}."
            )
        if self.num_labels != num_labels:
            self.__dict__.pop("_background_label", None)
            if self.num_labels is not None:  # not while the constructor fills in the labels
                self.object_thresholds = None  # they belong to the old classes
            self.id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
            self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes, or none: by `problem_type`, as in transformers."""
        return self.problem_type == "multi_label_classification"

    @property
    def background_index(self) -> int:
        """Position of the background class on the last axis of `patch_logits`."""
        return self.num_labels

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the first patch: [CLS], then the distillation token and the registers, if any."""
        return self.num_prefix_positions + self.num_register_tokens

    @property
    def num_prefix_positions(self) -> int:
        """Number of tokens before the first patch that have a position embedding: all but the registers."""
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
        check_pruning(self)  # fields may be changed one by one after construction
        return STRATEGIES[self.pruning_strategy].schedule(self.pruning_layers or (), self.keep_rates or ())

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
        """Check every ICE field, alone and against the others; raise a `ValueError` that names the field.

        Overrides given to `from_pretrained` are set after construction, so the models call this once more.
        """
        check_fields(self)
        for name, interval in DEIT_INTERVALS.items():
            check_interval(name, getattr(self, name), interval)
        check_choice("hidden_act", self.hidden_act, ACT2FN)
        if self.has_distillation_head and not self.use_distillation_token:
            raise ValueError("`use_distillation_head=True` needs `use_distillation_token=True`, which the head reads.")
        check_class_names({int(index): name for index, name in (self.id2label or {}).items()})
        check_thresholds(self.object_thresholds, self.num_labels)
        self._check_sizes()
        if self.pruning_strategy is not None:
            check_pruning(self)

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        grid_size = check_grid(self.image_size, self.patch_size)
        check_num_windows(grid_size, self.num_local_windows)


ICE_FIELDS = {field.name: field for field in fields(IceDeiTConfig) if not hasattr(DeiTConfig, field.name)}
"""Fields that ICE adds to DeiT, by name; `metadata` holds what `ice_field` was given."""

__all__ = ["ICE_FIELDS", "IceDeiTConfig", "as_pair"]
