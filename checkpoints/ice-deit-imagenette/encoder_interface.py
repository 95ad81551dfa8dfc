# SPDX-License-Identifier: Apache-2.0
"""Parts of an encoder that other modules use: the objective, the measurement of speed, and the explainers.

They need no more of it than what is named here, so another plain pre-norm encoder can take its place.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .token_pruning import KeepPolicy


class Encoder(Protocol):
    """Pre-norm encoder of images, as the ViT and DeiT of transformers are and that of ICE-DeiT is."""

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration: sizes of images and patches, number of layers."""

    @property
    def embeddings(self) -> Any:
        """Maps pixel values to tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`."""

    @property
    def layers(self) -> Any:
        """`ModuleList` of the layers. Like the embeddings untyped: transformers does not type its parts."""

    @property
    def layernorm(self) -> nn.Module:
        """Layer norm after the last layer."""


class IceEmbeddings(Protocol):
    """Embeddings of ICE-DeiT, which know the grid of an image of any size."""

    num_prefix_tokens: int
    patch_size: tuple[int, int]

    def grid_size_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of images `(..., height, width)`."""


class IceEncoder(Encoder, Protocol):
    """Encoder of ICE-DeiT: one that also prunes patches and runs in local windows."""

    keep_policy: KeepPolicy | None

    @property
    def embeddings(self) -> IceEmbeddings:
        """Maps pixel values to tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`."""

    def encode_windows(self, pixel_values: Tensor) -> Tensor:
        """Return patch logits within local windows, `(batch_size, num_patches, num_labels + 1)`."""


__all__ = ["Encoder", "IceEmbeddings", "IceEncoder"]
