# SPDX-License-Identifier: Apache-2.0
"""A `Trainer` that pushes what `scripts/publish_checkpoint.py` publishes: model, code and card, and no pickle."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from ..hub.published_files import PUBLISHED_PATTERNS, RESUME_PATTERNS, find_secret_files, sort_files
from ..redaction import known_secrets, tokens_hidden


__all__ = ["HubTrainer"]

logger = logging.get_logger(__name__)


class HubTrainer(Trainer):
    """Push complete folders.

    Differences from `Trainer`: only the files of `PUBLISHED_PATTERNS` leave the machine (`Trainer` also sends
    `training_args.bin`, a pickle, and whatever else lies in `output_dir`); pushes while training carry the code too.
    The strategies "checkpoint" and "all_checkpoints" also send what `RESUME_PATTERNS` names of the checkpoint, pickles
    among them: it is what they are for. No file that is saved holds a token, `training_args.bin` included.

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

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model and arguments, these without tokens."""
        with tokens_hidden(self.args):
            super()._save(output_dir, state_dict)

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
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(message, run_as_future=True)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            jobs.append(self._upload_checkpoint(Path(checkpoint_folder), f"{message}, checkpoint"))
        if is_busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(cast(Any, jobs))

    def _upload_checkpoint(self, folder: Path, message: str) -> Any:
        """Upload what training resumes from, in the background.

        Its completion marker stays: it would be sent before the files it lists, or be left over from the last time.
        """
        is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        return HfApi().upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=str(folder),
            path_in_repo="last-checkpoint" if is_last else folder.name,
            commit_message=message,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            allow_patterns=list(RESUME_PATTERNS),
            run_as_future=True,
        )

    def _upload(
        self, message: str | None, token: str | None = None, revision: str | None = None, run_as_future: bool = False
    ) -> Any:
        folder = Path(str(self.args.output_dir))
        secrets = known_secrets(self.args) if token is None else (*known_secrets(self.args), token)
        withheld = find_secret_files(folder, sort_files(folder).published, secrets)
        for name, line in withheld.items():
            logger.warning(
                f"{folder / name} is not pushed: line {line} holds what looks like a token. Remove it there."
            )
        upload: Any = HfApi().upload_folder  # two overloads, by the value of `run_as_future`
        return upload(
            repo_id=str(self.hub_model_id),
            folder_path=str(folder),
            commit_message=message,
            token=self.args.hub_token if token is None else token,
            revision=self.args.hub_revision if revision is None else revision,
            allow_patterns=list(PUBLISHED_PATTERNS),
            # the star of an allowed pattern also stands for slashes
            ignore_patterns=["checkpoint-*", "_*", ".*", "images/*/*", *map(glob.escape, withheld)],
            run_as_future=run_as_future,
        )
