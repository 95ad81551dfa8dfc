# SPDX-License-Identifier: Apache-2.0
"""Uploads during training: the files that `scripts/publish_checkpoint.py` publishes, and no pickle.

`Trainer` also uploads `training_args.bin`, a pickle, and any other file in `output_dir`.
"""

from __future__ import annotations

import glob
import shutil
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from ..console.output_files import staged
from ..console.redaction import known_secrets, redact_text
from ..hub.published_files import PUBLISHED_PATTERNS, RESUME_PATTERNS, find_secret_files, sort_files


__all__ = ["push_checkpoint", "upload_checkpoint", "upload_published"]

logger = logging.get_logger(__name__)


def push_checkpoint(trainer: Any, folder: Path) -> None:
    """Push the model files of a checkpoint, in the background, by `args.hub_strategy`.

    The strategies "checkpoint" and "all_checkpoints" also send what `RESUME_PATTERNS` names of the checkpoint, pickles
    among them, since a run resumes from these. No saved file contains a token.
    """
    strategy = trainer.args.hub_strategy
    is_busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    is_left_out = strategy == HubStrategy.END or (is_busy and not trainer.args.hub_always_push)
    if is_left_out or not trainer.is_world_process_zero():
        return
    _copy_published(folder, Path(str(trainer.args.output_dir)))
    if trainer.card_writer is not None:
        trainer.create_model_card()
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    message = f"Training in progress, step {trainer.state.global_step}"
    jobs = [upload_published(trainer, message, run_as_future=True)]
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        jobs.append(upload_checkpoint(trainer, folder, f"{message}, checkpoint"))
    for job in jobs:
        job.add_done_callback(_report_failure)
    if is_busy:
        trainer.push_in_progress.jobs.extend(jobs)
    else:
        trainer.push_in_progress = PushInProgress(cast(Any, jobs))


def _report_failure(job: Any) -> None:
    """Warn of an upload in the background that failed; the next one sends its files too."""
    error = None if job.cancelled() else job.exception()
    if error is not None:
        logger.warning(f"A checkpoint was not uploaded: {redact_text(str(error), known_secrets())}")


def _copy_published(checkpoint: Path, output_dir: Path) -> None:
    """Copy the published files of a checkpoint to the folder of the run, which is what is uploaded."""
    with staged(output_dir) as staging:
        for name in sort_files(checkpoint).published:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, target)


def upload_checkpoint(trainer: Any, folder: Path, message: str) -> Any:
    """Upload what training resumes from, in the background.

    Its completion marker is not sent: it could arrive before the files that it lists, or be one of an earlier time.
    """
    is_last = trainer.args.hub_strategy == HubStrategy.CHECKPOINT
    return HfApi().upload_folder(
        repo_id=str(trainer.hub_model_id),
        folder_path=str(folder),
        path_in_repo="last-checkpoint" if is_last else folder.name,
        commit_message=message,
        token=trainer.args.hub_token,
        revision=trainer.args.hub_revision,
        allow_patterns=list(RESUME_PATTERNS),
        run_as_future=True,
    )


def upload_published(
    trainer: Any,
    message: str | None,
    token: str | None = None,
    revision: str | None = None,
    run_as_future: bool = False,
) -> Any:
    """Upload the published files of `args.output_dir`, and no other; one that holds a token is not sent."""
    folder = Path(str(trainer.args.output_dir))
    secrets = known_secrets(trainer.args) if token is None else (*known_secrets(trainer.args), token)
    withheld = find_secret_files(folder, sort_files(folder).published, secrets)
    for name, line in withheld.items():
        logger.warning(f"{folder / name} is not pushed: line {line} holds what looks like a token. Remove it there.")
    upload: Any = HfApi().upload_folder  # two overloads, by the value of `run_as_future`
    return upload(
        repo_id=str(trainer.hub_model_id),
        folder_path=str(folder),
        commit_message=message,
        token=trainer.args.hub_token if token is None else token,
        revision=trainer.args.hub_revision if revision is None else revision,
        allow_patterns=list(PUBLISHED_PATTERNS),
        # the star of an allowed pattern also matches slashes
        ignore_patterns=["checkpoint-*", "_*", ".*", "images/*/*", *map(glob.escape, withheld)],
        run_as_future=run_as_future,
    )
