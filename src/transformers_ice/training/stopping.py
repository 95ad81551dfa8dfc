# SPDX-License-Identifier: Apache-2.0
"""Early ends of a run: stop signals, losses that are not finite, a full disk.

Each raises a `TrainingStoppedError` with what happened, the checkpoint to resume from, and the exit code of the
program.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from accelerate.utils import reduce
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..console.redaction import PLACEHOLDER, is_secret_name, redact_arguments
from .checkpoints import last_complete_checkpoint


__all__ = [
    "LOST_PROCESS_EXIT_CODE",
    "NOT_FINITE_EXIT_CODE",
    "NOT_WRITTEN_EXIT_CODE",
    "FiniteLossCallback",
    "StopCallback",
    "StopRequest",
    "TrainingStoppedError",
    "check_weights",
    "lost_process",
    "resume_command",
    "start_worker",
    "writing_to",
]

NOT_FINITE_EXIT_CODE = 3
"""Exit code where the loss or a weight became NaN or infinite: the same command would end the same way."""
NOT_WRITTEN_EXIT_CODE = 4
"""Exit code where a file could not be written, e.g. since the disk is full."""
LOST_PROCESS_EXIT_CODE = 5
"""Exit code where another process of the run was killed, or nothing reads the output any more."""

# space, quota, size of a file, read-only: none of them comes from reading
_WRITING_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# torch wraps the failure of the disk in a RuntimeError without a number
_TORCH_WRITING_FAILED = ("PytorchStreamWriter failed", "file write failed", "unexpected pos")

_CONNECTION_LOST = (
    r"gloo/transport|ncclRemoteError"  # what the backends of torch.distributed say where a process ended
)


class TrainingStoppedError(Exception):
    """Error raised when training is stopped deliberately.

    Args:
        reason: What happened, as a sentence.
        output_dir: Folder of the run; its last complete checkpoint is named in the message.
        exit_code: Exit code of the program.
    """

    def __init__(self, reason: str, output_dir: str | Path | None, exit_code: int) -> None:
        checkpoint = last_complete_checkpoint(output_dir)
        where = f"The last complete checkpoint is {checkpoint}." if checkpoint else "There is no complete checkpoint."
        super().__init__(f"{reason} {where}")
        self.checkpoint = checkpoint
        self.exit_code = exit_code


# SIGHUP: a terminal or a connection was closed; SIGUSR1: a scheduler's warning that time is nearly up
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Request to stop the run by SIGTERM, Ctrl-C, SIGHUP or SIGUSR1.

    After the first signal the run saves a checkpoint at the end of its current step, then ends. Another SIGTERM or
    Ctrl-C kills. A SIGHUP that is ignored (`nohup`) remains so.

    Example:
        >>> with StopRequest().listening() as request:
        ...     trainer.add_callback(StopCallback(request))
        ...     trainer.train()
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._group: torch.distributed.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals until the end of the block; only the main thread of Python gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._take) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        """Store the first signal; let the second one have its usual effect."""
        if self.signal_number and number in (signal.SIGTERM, signal.SIGINT):  # the second signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = self.signal_number or number  # a closed terminal may send several

    def agreed_signal(self) -> int:
        """Return the signal that any process got, or 0, the same in all; each process must call it equally often."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signal_number
        if self._group is None:
            # over the CPU: no accelerator has to wait for its queue
            self._group = torch.distributed.new_group(backend="gloo")
        number = torch.tensor(self.signal_number)
        # the largest number: any signal is above 0, so one process stops all of them
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(number)


class StopCallback(TrainerCallback):
    """End of training, with a checkpoint, after the step in which a signal came."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self._signal = 0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check, but not after the last step of an epoch: a resumed run would skip what is due at the epoch's end."""
        if not float(state.epoch or 0).is_integer():
            self._check(control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check at the end of an epoch."""
        self._check(control)

    def _check(self, control: TrainerControl) -> None:
        self._signal = self.request.agreed_signal()
        control.should_save |= bool(self._signal)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise `TrainingStoppedError` if a signal has stopped the run."""
        if self._signal:
            reason = f"Training stopped after step {state.global_step}, by {signal.Signals(self._signal).name}."
            raise TrainingStoppedError(reason, args.output_dir, 128 + self._signal)  # the shell's convention

    # where an evaluation decides that nothing is saved (`save_strategy="best"`), `on_save` is not called
    on_step_begin = on_epoch_begin = on_train_end = on_save


class FiniteLossCallback(TrainerCallback):
    """End of training, in all processes alike, where the mean loss since the last line of the log is not finite."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the loss of a line of the log."""
        logs = kwargs["logs"]
        loss = logs.get("loss", logs.get("train_loss", 0.0))
        if not math.isfinite(loss):
            raise _not_finite(f"the loss is {loss}", state.global_step, args.output_dir)


def check_weights(model: nn.Module, step: int, args: TrainingArguments) -> None:
    """Raise, in all processes, if a weight is NaN or infinite in any; of a sharded tensor each checks its own part."""
    # on the device: nothing waits for it before the one sum
    num_bad: Any = torch.zeros((), dtype=torch.int64, device=args.device)
    for tensor in chain[Any](model.parameters(), model.buffers()):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        num_bad += (~local.isfinite()).sum().to(num_bad.device)
    if int(reduce(num_bad, reduction="sum")):
        raise _not_finite("weights of the model are NaN or infinite", step, args.output_dir)


def _not_finite(fault: str, step: int, output_dir: str | None) -> TrainingStoppedError:
    reason = (
        f"Training stopped at step {step}: {fault}. This step was not saved. Resuming would end the same way: start a "
        "new run with a lower `--learning_rate` or a higher `--warmup_steps`."
    )
    return TrainingStoppedError(reason, output_dir, NOT_FINITE_EXIT_CODE)


def start_worker(initialize: Callable[[int], None] | None, worker_id: int) -> None:
    """Start a worker outside the process group of the run, out of reach of its signals, such as Ctrl-C.

    A worker killed by such a signal would end the run before its checkpoint is saved. Workers end with their run.

    Args:
        initialize: Further `worker_init_fn` to call.
        worker_id: Its number.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if initialize is not None:
        initialize(worker_id)


@contextmanager
def writing_to(output_dir: str | Path | None) -> Iterator[None]:
    """Turn failures of the disk and lost processes in the block into `TrainingStoppedError`; other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        stopped = lost_process(error, lambda: None, output_dir)
        if stopped is not None:
            raise stopped from error
        if not _is_failure_to_write(error):
            raise
        reason = f"A file of {output_dir} could not be written (is the disk full?): {error}.".replace("\n", " ")
        raise TrainingStoppedError(reason, output_dir, NOT_WRITTEN_EXIT_CODE) from error


def lost_process(
    error: BaseException, save: Callable[[], None], output_dir: str | Path | None
) -> TrainingStoppedError | None:
    """Save and return how the run ends if another process of it, or the reader of the output, is gone."""
    reason = _lost_process(error)
    if reason is None:
        return None
    save()  # the weights are whole: those of the last step
    return TrainingStoppedError(reason, output_dir, LOST_PROCESS_EXIT_CODE)


def _lost_process(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError) and re.search(r"DataLoader worker \(pid", str(error)):
        return f"A process that loads images was killed (is the memory full?): {error}.".replace("\n", " ")
    if isinstance(error, RuntimeError) and re.search(_CONNECTION_LOST, str(error)):
        return (
            "Another process of the run has ended, or cannot be reached (its own message says why, unless it was "
            "killed). Resume with as many processes as before."
        )
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and error.filename is None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                _discard_if_broken(stream)
        return "The output of the run can no longer be written: its terminal or the program that read it has ended."
    return None


def _discard_if_broken(stream: Any) -> None:
    """Let a stream that nothing reads any more write into nothing: saving must not fail by it."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_failure_to_write(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _WRITING_FAILED
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error) or "IoError" in str(error)
    return any(text in str(error) for text in _TORCH_WRITING_FAILED)


def resume_command(program: str, argv: Sequence[str]) -> str:
    """Return the command that resumes a run, without tokens and passwords; what has to be added comes after it.

    Args:
        program: What the run was started with, e.g. "python scripts/run_train.py".
        argv: The arguments after it.
    """
    arguments = redact_arguments(argv)
    has_token = any(argument.startswith("-") and is_secret_name(argument) for argument in argv)
    has_credentials = any(PLACEHOLDER in text for text in arguments) and not any(PLACEHOLDER in text for text in argv)
    for index in reversed(range(len(arguments))):
        name, separator, _ = arguments[index].partition("=")
        if name.replace("-", "_") == "__resume_from_checkpoint":
            del arguments[index : index + (1 if separator else 2)]
    command = f"{program} {shlex.join([*arguments, '--resume_from_checkpoint', 'auto'])}"
    command += " (and your token)" if has_token else ""
    return command + (f" (with your credentials for {PLACEHOLDER})" if has_credentials else "")
