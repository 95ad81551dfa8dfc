# SPDX-License-Identifier: Apache-2.0
"""A `Trainer` that pushes what `scripts/publish_checkpoint.py` publishes: model, code and card, and no pickle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..hub.published_files import PUBLISHED_PATTERNS, sort_files


__all__ = ["HubTrainer"]


class HubTrainer(Trainer):
    """Push complete folders.

    Differences from `Trainer`: only the files of `PUBLISHED_PATTERNS` leave the machine (`Trainer` also sends
    `training_args.bin`, a pickle, and whatever else lies in `output_dir`); pushes while training carry the code too.
    The strategies "checkpoint" and "all_checkpoints" do send the state of the training, as `Trainer` does: it is what
    they are for.

    Attributes:
        card_writer: Writes `README.md` into `args.output_dir`; None leaves the card to `Trainer`.
    """

    card_writer: Callable[[Any], None] | None = None
    hub_model_id: Any  # the type of `Trainer` is that of its first value, None
    push_in_progress: Any
    _is_push_deferred = False

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card, by `card_writer` where there is one."""
        if self.card_writer is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.card_writer(self)

    @contextmanager
    def push_deferred(self) -> Iterator[None]:
        """Let `save_model` only save: what it would push has no final numbers yet."""
        self._is_push_deferred = True
        try:
            yield
        finally:
            self._is_push_deferred = False

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, write the card and upload; as `Trainer.push_to_hub`."""
        if self._is_push_deferred:
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        kwargs.setdefault("model_name", str(self.hub_model_id).split("/")[-1])
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._upload(commit_message, token, revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what a checkpoint holds of the model, in the background."""
        strategy = self.args.hub_strategy
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        is_left_out = strategy == HubStrategy.END or (is_busy and not self.args.hub_always_push)
        if is_left_out or not self.is_world_process_zero():
            return
        for name in sort_files(Path(checkpoint_folder)).published:
            target = Path(str(self.args.output_dir), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(checkpoint_folder, name), target)
        if self.card_writer is not None:
            self.create_model_card()
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            super()._push_from_checkpoint(checkpoint_folder)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        job = self._upload(f"Training in progress, step {self.state.global_step}", run_as_future=True)
        if is_busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress(cast(Any, [job]))

    def _upload(
        self, message: str | None, token: str | None = None, revision: str | None = None, run_as_future: bool = False
    ) -> Any:
        upload: Any = HfApi().upload_folder  # two overloads, by the value of `run_as_future`
        return upload(
            repo_id=str(self.hub_model_id),
            folder_path=str(self.args.output_dir),
            commit_message=message,
            token=self.args.hub_token if token is None else token,
            revision=self.args.hub_revision if revision is None else revision,
            allow_patterns=list(PUBLISHED_PATTERNS),
            # the star of an allowed pattern also stands for slashes
            ignore_patterns=["checkpoint-*", "_*", ".*", "images/*/*"],
            run_as_future=run_as_future,
        )
