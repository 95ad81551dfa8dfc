# SPDX-License-Identifier: Apache-2.0
"""How ICE-DeiT models are read, initialised and written; importing it teaches transformers the layouts of the Hub."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.deit.modeling_deit import DeiTEmbeddings, DeiTPreTrainedModel

from .configuration_ice_deit import IceDeiTConfig
from .remote_code import copy_remote_code, remote_code_entries
from .source_families import encoder_renamings, prefix_renamings
from .source_weights import (
    fold_layer_scales,
    load_at_own_size,
    read_source_config,
    refuse_other_classifier,
    resize_positions,
)
from .weight_checks import describe_damage, refuse_broken_folder, refuse_incomplete, refuse_not_finite


def _refuse_untrained_pruning(model: Any, info: dict[str, Any], name: Any, initialize: bool) -> None:
    """Refuse a strategy whose pruning heads the checkpoint lacks, or holds in another shape."""
    keys = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    missing = sorted(
        {key.split("pruning_heads.")[1].split(".")[0] for key in keys if "pruning_heads." in key}, key=int
    )
    if missing and not initialize:
        raise ValueError(
            f"{name} has no trained pruning heads at the layers {', '.join(missing)}, by which "
            f'`pruning_strategy="{model.config.pruning_strategy}"` decides. Train them '
            "(scripts/run_train.py --pruning_strategy, or `initialize_pruning_heads=True` and your own loop), "
            'or use `pruning_strategy="attentiveness"`, which needs none.'
        )


class IceDeiTPreTrainedModel(DeiTPreTrainedModel):
    """Load, initialise and save ICE-DeiT models.

    Differences from `DeiTPreTrainedModel`: parameters start as timm and DeiT start them (HF DeiT's zero tokens and
    positions do not train); files hold the names of `state_dict()`, so the Trainer's resume finds them; a saved
    folder holds the code, the `auto_map` and the pipeline.
    """

    config: IceDeiTConfig
    # not the embeddings, as DeiT: accelerate shards the patch embeddings inside them (FSDP 2), and twice is an error.
    # `device_map` could now split them between devices; they come first and are small, so it has no reason to
    _no_split_modules = ["IceDeiTLayer"]
    # the Trainer may not assume that the loss was divided by `num_items_in_batch`: it is a mean over the batch
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, initialize_pruning_heads: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does, if the checkpoint holds its weights, all finite.

        The checkpoint may also be one of transformers' `vit` (DINO and AugReg are), `deit`, `vit_mae`, `vit_msn`,
        `dinov2` or `dinov2_with_registers`: the encoder then gives the same hidden states. LayerScale is multiplied
        into the layer before it, which is exact. The classifier of DINOv2 reads the patches too, so it is replaced,
        only with `ignore_mismatched_sizes=True`.

        With another `image_size` than the checkpoint's, the position embeddings are interpolated once and for all, as
        the source's own class does at that size: bicubic, and with antialias for `dinov2_with_registers`. At still
        other sizes the model interpolates by itself from there, with antialias if `config.interpolate_antialias`.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: Passed on.
            initialize_pruning_heads: Whether pruning heads that the checkpoint lacks are initialized, to be trained.
            **kwargs: Passed on. With `ignore_mismatched_sizes=True` heads may be new or of other classes, and no other
                part.

        Raises:
            ValueError: If weights are missing, surplus, of another shape, not finite, or cannot be read; or if the
                strategy needs pruning heads that the checkpoint lacks: untrained ones decide nothing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        new_heads = kwargs.pop("ignore_mismatched_sizes", False)
        load: Any = super().from_pretrained  # what it returns depends on its arguments
        name = pretrained_model_name_or_path
        refuse_broken_folder(name)
        family, content = read_source_config(name, kwargs)
        wanted = load_at_own_size(kwargs, family, content)
        if family is not None and family.has_layer_scale:
            kwargs["load_layer_scale"] = True
        try:
            # shapes are compared below, in one sentence
            model, info = load(name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        except Exception as error:  # a damaged file can fail anywhere inside a reader
            damage = describe_damage(error)
            if damage is None:
                raise
            raise ValueError(
                f"The weights in {str(name)!r} cannot be read: {damage}. Is the download complete?"
            ) from error
        _refuse_untrained_pruning(model, info, name, initialize_pruning_heads)
        refuse_other_classifier(model, info, name, family, new_heads)
        refuse_incomplete(model, info, name, new_heads, new_heads or initialize_pruning_heads)
        refuse_not_finite(model, name)
        if family is not None and family.has_layer_scale:
            fold_layer_scales(model.base_model.layers)
        if wanted is not None:
            resize_positions(model, family, wanted)
        return (model, info) if wants_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, DeiTEmbeddings):
            for name in ("cls_token", "distillation_token", "register_tokens", "position_embeddings"):
                parameter = getattr(module, name)
                if parameter is not None:
                    init.trunc_normal_(parameter, std=std)
        elif isinstance(module, nn.Linear) and getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # timm leaves the patch projection at PyTorch's default
            init.kaiming_uniform_(module.weight, a=5**0.5)
            bound = module.weight[0].numel() ** -0.5
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """Save a complete folder: weights, configuration, and the code that loads them without this package.

        `save_original_format=True` writes the key names of old transformers versions; they differ from `state_dict()`,
        and the Trainer cannot resume from them. The others are those of `PreTrainedModel.save_pretrained`.
        """
        if is_main_process and not Path(save_directory).is_file():
            # before the parent, which may upload the folder
            copy_remote_code(Path(save_directory), self.config.name_or_path)
        with remote_code_entries(self.config):
            super().save_pretrained(
                save_directory, is_main_process=is_main_process, save_original_format=save_original_format, **kwargs
            )
        if is_main_process:
            _open_to_others(Path(save_directory))


def _open_to_others(folder: Path) -> None:
    """Give the weights the mode of the files next to them: safetensors writes files that only their owner can read."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _register_for_loading() -> None:
    """Tell transformers how to read Hub checkpoints into these classes; its tables skip code outside transformers."""
    # the encoder inside a classifier is renamed by the table of `IceDeiTModel`
    of_classifiers = [*prefix_renamings(), (r"^cls_classifier\.", "classifier.")]
    for class_name, renamings in (
        ("IceDeiTModel", encoder_renamings()),
        ("IceDeiTForImageClassification", of_classifiers),
        ("IceDeiTForSemanticSegmentation", of_classifiers),
    ):
        # the type allows for converters too, which these layouts do not need
        table: list[WeightConverter | WeightRenaming] = [WeightRenaming(old, new) for old, new in renamings]
        register_checkpoint_conversion_mapping(class_name, table, overwrite=True)
    # the image-segmentation pipeline compares with this plain table, which `register` does not fill
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("ice_deit", "IceDeiTForSemanticSegmentation")


_register_for_loading()

__all__ = ["IceDeiTPreTrainedModel"]
