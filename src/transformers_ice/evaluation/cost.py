# SPDX-License-Identifier: Apache-2.0
"""Cost of an explanation: time and memory per image, relative to one forward pass of the classifier."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ..explainers import explain
from ..speed import interleave, summarize_spread, time_call
from .checkpoints import class_logits


__all__ = ["Cost", "measure_costs", "peak_tensor_bytes"]


@dataclass(frozen=True)
class Cost:
    """Cost of one explanation.

    Attributes:
        milliseconds: Median time per image.
        forward_passes: Median over the repeats of its time divided by that of a forward pass of the same batch.
        forward_passes_spread: Half the distance between the quartiles of that ratio.
        peak_megabytes: Peak memory of its tensors per image, without the weights.
        memory_ratio: The same, divided by that of a forward pass.
    """

    milliseconds: float
    forward_passes: float
    forward_passes_spread: float
    peak_megabytes: float
    memory_ratio: float


def measure_costs(
    model: PreTrainedModel, pixel_values: Tensor, methods: Sequence[str], num_repeats: int = 7
) -> dict[str, Cost]:
    """Measure time and memory of methods on one batch.

    The methods and the plain forward pass alternate in every repeat, so a slowdown of the machine affects all of them.

    Args:
        model: A classifier of `FAMILIES`.
        pixel_values: `(batch_size, num_channels, height, width)`, on the model's device.
        methods: Names in `EXPLAINERS`.
        num_repeats: Timed repeats, after one that is not counted.
    """

    def seconds(call: Callable[[], Any], repeat: int) -> float:
        return time_call(call, pixel_values.device)

    calls: dict[str, Callable[[], Any]] = {"": partial(class_logits, model, pixel_values)}
    calls |= {method: partial(explain, model, pixel_values, method) for method in methods}
    peaks = {name: peak_tensor_bytes(call) for name, call in calls.items()}  # the run that is not timed
    times = interleave({name: partial(seconds, call) for name, call in calls.items()}, num_repeats, num_warmups=0)
    batch_size = pixel_values.shape[0]
    costs = {}
    for method in methods:
        ratios = [taken / base for taken, base in zip(times[method], times[""], strict=True)]
        spread = summarize_spread(ratios)
        costs[method] = Cost(
            # seconds of the batch -> milliseconds per image
            milliseconds=1000 * summarize_spread(times[method]).median / batch_size,
            forward_passes=spread.median,
            forward_passes_spread=(spread.high - spread.low) / 2,
            peak_megabytes=peaks[method] / batch_size / 1e6,  # bytes of the batch -> megabytes per image
            memory_ratio=peaks[method] / peaks[""],
        )
    return costs


def peak_tensor_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that the tensors made by a call take at one moment.

    Storages are counted once, from the operation that makes them until nothing refers to them; tensors that existed
    before the call, such as weights and images, are not counted, nor is the workspace inside an operation.
    """
    with _LiveStorages() as live:
        call()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Dispatch mode that tracks the storages of new tensors and the largest sum of their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._seen: set[int] = set()  # addresses of the storages that exist now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # addresses of the storages of the inputs
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # views and in-place results share the storage of an input
            if _has_storage(leaf) and leaf.untyped_storage().data_ptr() not in old:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._seen:
            self._seen.add(address)
            self.current += size
            self.peak = max(self.peak, self.current)
            # called when the last tensor of the storage is freed
            weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.current -= size


def _has_storage(leaf: Any) -> bool:
    # sparse tensors have no single storage, meta tensors no memory
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.device.type != "meta"
