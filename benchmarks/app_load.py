# SPDX-License-Identifier: Apache-2.0
r"""Load of the app, or of one pipeline that threads share: answers, errors, seconds, memory, temporary files.

    python benchmarks/app_load.py --minutes 10
    python benchmarks/app_load.py --what pipeline --minutes 3

`app`: `transformers-ice app` runs on a free port, and each of `--visitors` uploads a picture (64 to 4000 pixels; PNG,
JPEG or WebP; no two uploads are equal), explains it, loads its figures, and begins again; one in ten compares other
explainers, too, and one in twenty prunes. `pipeline`: as many threads call one `pipeline("patch-explanation")`.
Printed are the requests, the errors, answers that differ from the first one to the same picture, median and 95th
percentile of the seconds beside those of the model alone, and the resident memory at each minute. The exit code is 1
where there was an error, or an answer that differs. docs/reliability.md shows what it printed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from app_visitors import FOREGROUND, ROOT, RunningApp, Visitor, draw_picture, resident_mb
from PIL import Image

from transformers_ice.speed import describe_machine


SIZES = ((64, 64), (512, 384), (640, 960), (1280, 1280), (2000, 1500), (4000, 3000))
FORMATS = ("PNG", "JPEG", "WEBP")
PICTURES = 48
METHODS = ["raw_attention", "rollout", "grad_cam", "token_grad_cam"]


@dataclass
class Record:
    """What happened, counted from several threads."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # by kind of request
    errors: list[str] = field(default_factory=list)
    num_different: int = 0
    memory: list[float] = field(default_factory=list)  # MB, at the start and after each minute
    _first: dict[tuple[str, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self.seconds.setdefault(kind, []).append(seconds)

    def compare(self, kind: str, picture: int, content: str) -> None:
        """Count an answer that differs from the first one to the same picture."""
        with self._lock:
            self.num_different += self._first.setdefault((kind, picture), content) != content

    def fail(self, problem: str) -> None:
        """Count an error."""
        with self._lock:
            self.errors.append(problem)


Step = Callable[[np.random.Generator, int], None]


def visit(visitor: Visitor, pictures: Sequence[bytes], record: Record) -> Step:
    """Return one round of a visitor: an upload with its explanation, sometimes a comparison or pruning."""

    def round_of(rng: np.random.Generator, number: int) -> None:
        index = int(rng.integers(len(pictures)))
        # decoders stop at the end of the picture: what comes after it makes the upload a new one
        upload = visitor.upload(pictures[index] + number.to_bytes(8, "big"))
        requests = [("explain", (upload, FOREGROUND))]
        chance = rng.random()
        if chance < 0.10:
            requests.append(("compare", (upload, FOREGROUND, METHODS)))
        elif chance < 0.15:
            requests.append(("prune", (upload, "attentiveness", 0.0, 0.7)))
        for kind, data in requests:
            answer = visitor.ask(kind, *data)
            record.add(kind, answer.seconds)
            if kind == "explain" and answer.model_seconds is None:
                record.fail(answer.status[:200])
            elif kind == "explain":
                record.add("explain, the model alone", answer.model_seconds or 0.0)
                record.compare(kind, index, answer.content)
                visitor.figures(answer)
            elif not any(str(value).count("<img") for value in answer.components.values()):
                record.fail(f"{kind}: {answer.status[:200]}")

    return round_of


def call_pipeline(model: str, pictures: Sequence[bytes], record: Record) -> Step:
    """Return one call of a pipeline, which all threads share."""
    from transformers import pipeline

    import transformers_ice  # noqa: F401 - registers the task

    explain = pipeline("patch-explanation", model=model)

    def round_of(rng: np.random.Generator, number: int) -> None:
        index = int(rng.integers(len(pictures)))
        image = Image.open(io.BytesIO(pictures[index]))
        start = time.monotonic()
        result = explain(image)
        record.add("call", time.monotonic() - start)
        digest = hashlib.sha256(repr([result["label"], result["score"], result["box"]]).encode())
        for name in ("heatmap", "class_map", "mask"):
            digest.update(np.asarray(result[name]).tobytes())
        record.compare("call", index, digest.hexdigest())

    return round_of


def run_load(step: Step, num_threads: int, minutes: float, memory: Callable[[], float], record: Record) -> None:
    """Repeat a step in several threads until the time is over, and note the memory each minute."""
    end = time.monotonic() + 60 * minutes

    def repeat(index: int) -> None:
        rng, number = np.random.default_rng(index), 0
        while time.monotonic() < end:
            try:
                step(rng, number * num_threads + index)
            except Exception as error:  # counted; the others continue
                record.fail(f"{type(error).__name__}: {error}"[:200])
            number += 1

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(num_threads)]
    record.memory.append(memory())
    for thread in threads:
        thread.start()
    while (remaining := end - time.monotonic()) > 0:
        time.sleep(min(60.0, remaining))
        record.memory.append(memory())
        print(f"{record.memory[-1]:.0f} MB", end=" ", flush=True)
    print()
    for thread in threads:
        thread.join()


def memory_in_use() -> float:
    """Return the resident memory in MB without what the C library keeps of the memory that was freed."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)
    return resident_mb()


def report(record: Record) -> str:
    """Return what was counted, as text."""
    lines = [f"{'seconds':<26}{'number':>7}{'median':>8}{'p95':>8}{'longest':>9}"]
    for kind, seconds in record.seconds.items():
        median, high, longest = np.quantile(seconds, [0.5, 0.95, 1.0]).tolist()
        lines.append(f"{kind:<26}{len(seconds):>7}{median:>8.2f}{high:>8.2f}{longest:>9.2f}")
    lines.append(f"errors: {len(record.errors)}; answers that differ: {record.num_different}")
    lines += [f"  {count} x {problem}" for problem, count in _counted(record.errors)[:5]]
    lines.append(f"memory, MB, at the start and each minute: {' '.join(f'{value:.0f}' for value in record.memory)}")
    return "\n".join(lines)


def _counted(problems: Sequence[str]) -> list[tuple[str, int]]:
    return sorted(((problem, problems.count(problem)) for problem in set(problems)), key=lambda pair: -pair[1])


def load_app(arguments: argparse.Namespace, pictures: Sequence[bytes], record: Record) -> None:
    """Let visitors use the app, stop it, and print what it leaves."""
    with tempfile.TemporaryDirectory(prefix="app-load-") as home:
        app = RunningApp(arguments.model, Path(home) / "tmp").wait_until_open()
        try:
            step = visit(Visitor(app.port), pictures, record)
            run_load(step, arguments.visitors, arguments.minutes, lambda: app.memory, record)
            sizes = [path.stat().st_size for path in app.files()]
            num_requests = len(record.seconds.get("explain", ()))
            print(f"temporary files: {len(sizes)}, {sum(sizes) / 2**20:.0f} MB, after {num_requests} uploads")
            print(f"CPU seconds of the app: {app.cpu_seconds:.0f}; largest memory: {app.peak_memory:.0f} MB")
            print(f"Ctrl-C: gone after {app.stop():.1f} s; left behind: {app.leftovers() or 'nothing'}")
        finally:
            app.process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("app", "pipeline"), default="app")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--visitors", type=int, default=8, help="Visitors, or threads.")
    parser.add_argument("--model", default=str(ROOT / "checkpoints/ice-deit-scenes-pruned"))
    arguments = parser.parse_args(argv)
    print(*(f"{name}: {value}" for name, value in describe_machine(torch.device("cpu")).items()), sep="\n", flush=True)
    kinds = [(SIZES[index % len(SIZES)], FORMATS[index // len(SIZES) % len(FORMATS)]) for index in range(PICTURES)]
    pictures = [draw_picture(*size, image_format, seed) for seed, (size, image_format) in enumerate(kinds)]
    record = Record()
    if arguments.what == "app":
        load_app(arguments, pictures, record)
    else:
        step = call_pipeline(arguments.model, pictures, record)
        run_load(step, arguments.visitors, arguments.minutes, resident_mb, record)
        print(f"memory after the threads have ended: {memory_in_use():.0f} MB")
    print(report(record))
    return 1 if record.errors or record.num_different else 0


if __name__ == "__main__":
    sys.exit(main())
