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


def _pruning_keys(loading_info: dict[str, Any]) -> list[str]:
    """Return the keys of pruning heads that a checkpoint lacked, or held in another shape."""
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in loading_info["mismatched_keys"]]
    return [key for key in (*loading_info["missing_keys"], *mismatched) if "pruning_heads." in key]


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
        """Load a model; as `PreTrainedModel.from_pretrained`, except for the pruning heads.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: Passed on.
            initialize_pruning_heads: Whether pruning heads that the checkpoint lacks are initialized, to be trained.
            **kwargs: Passed on.

        Raises:
            ValueError: If the strategy needs pruning heads that the checkpoint lacks: untrained ones decide nothing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        load: Any = super().from_pretrained  # what it returns depends on its arguments
        model, info = load(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = sorted({key.split("pruning_heads.")[1].split(".")[0] for key in _pruning_keys(info)}, key=int)
        if missing and not initialize_pruning_heads:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no trained pruning heads at the layers {', '.join(missing)}, by "
                f'which `pruning_strategy="{model.config.pruning_strategy}"` decides. Train them '
                "(scripts/run_train.py --pruning_strategy, or `initialize_pruning_heads=True` and your own loop), "
                'or use `pruning_strategy="attentiveness"`, which needs none.'
            )
        return (model, info) if wants_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, DeiTEmbeddings):
            for parameter in (module.cls_token, module.distillation_token, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=std)
        elif isinstance(module, nn.Linear) and getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
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
