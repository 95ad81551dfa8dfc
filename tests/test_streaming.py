# SPDX-License-Identifier: Apache-2.0
"""Streamed shards: every row once an epoch, the same order from seed and epoch, and a resumed run like a whole one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Value, load_dataset
from streaming_shards import NAMES, png_of, row_of, write_parquet, write_tars
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from transformers_ice.data.images.labels import Labels
from transformers_ice.data.images.loading import load_images
from transformers_ice.data.images.shards import count_rows, find_shards
from transformers_ice.data.images.streams import (
    ShardedRows,
    ShardSpan,
    buffer_order,
    open_shards,
    piece_of_reader,
    rows_of_process,
    shard_order,
    spans_of,
)
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import (
    DataArguments,
    LabelledImages,
    StreamedImages,
    TrainingAugmentation,
    parse_arguments,
)


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "run_train.py"
SIZES = [5, 0, 9, 3, 7]
TINY = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,image_size=16,patch_size=8"
RUN = ["--model_type", "ice_deit", "--config_overrides", TINY, "--streaming", "true", "--shuffle_buffer_size", "6"]
RUN += ["--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "true", "--num_panel_images", "0"]
RUN += ["--learning_rate", "1e-3", "--seed", "1", "--logging_steps", "1", "--augmentation", "deit"]
RUN += ["--save_strategy", "steps", "--eval_strategy", "no", "--save_steps", "4", "--metric_for_best_model", "loss"]
RUN += ["--ema_decay", "0.9"]


def make_processor(size: int = 8) -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": size, "width": size}, do_center_crop=False)


def make_stream(pattern: str, buffer_size: int = 4, **options) -> StreamedImages:
    rows = open_shards(find_shards(pattern))
    if "cls" in rows.column_names:
        rows = rows.rename_column("png", "image").rename_column("cls", "label")
    return StreamedImages(rows, Labels.from_names(NAMES), make_processor(), shuffle_buffer_size=buffer_size, **options)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    return write_parquet(tmp_path_factory.mktemp("parquet"), SIZES)


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> str:
    return write_tars(tmp_path_factory.mktemp("tars"), [5, 9, 3, 7])


@pytest.fixture(scope="module")
def run_train():
    from transformers_ice.cli import train

    return train


# --- who reads what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("counts", [[24], [5, 0, 9, 3, 7], [1] * 24])
def test_every_row_has_one_reader(counts, num_workers, num_processes):
    order, read = shard_order(len(counts), 0, 3), Counter()
    for process in range(num_processes):
        begin, end = rows_of_process(24, process, num_processes)
        for worker in range(num_workers):
            start, stop = piece_of_reader(end - begin, 2, worker, num_workers)
            for span in spans_of(counts, order, begin + start, begin + stop):
                read.update((span.shard, row) for row in range(span.start, span.stop))
    assert read == {(shard, row): 1 for shard, count in enumerate(counts) for row in range(count)}


def test_pieces_by_hand():
    # 11 rows in batches of 2 for three workers: batches 0 3 | 1 4 | 2 5, the last of one row
    assert [piece_of_reader(11, 2, worker, 3) for worker in range(3)] == [(0, 4), (4, 8), (8, 11)]
    assert [rows_of_process(10, process, 4) for process in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]


def test_order_of_shards_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(shard_order(9, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert all(tuple(shard_order(9, *key)) == order for key, order in orders.items())
    assert shard_order(3, 0, 1, shuffle=False) == [0, 1, 2]


@pytest.mark.parametrize("buffer_size", [1, 2, 7, 100, 1000])
def test_buffer_gives_out_every_row_and_looks_no_further_ahead(buffer_size):
    order = buffer_order(100, buffer_size, "seed")
    assert sorted(order) == list(range(100))
    assert all(position < place + buffer_size for place, position in enumerate(order))
    assert (order == list(range(100))) == (buffer_size == 1)


# --- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_counted_rows_are_those_that_datasets_reads(kind, parquet, tars):
    files = find_shards(parquet if kind == "parquet" else tars)
    read = [len(load_dataset(kind, data_files={"a": [file]}, split="a")) for file in files if count_rows([file])[0]]
    assert [count for count in count_rows(files) if count] == read


def test_rewritten_shards_are_counted_again(tmp_path):
    assert count_rows(find_shards(write_tars(tmp_path, [2, 3]))) == [2, 3]
    assert count_rows(find_shards(write_tars(tmp_path, [4, 3]))) == [4, 3]


def test_files_that_are_no_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`--train_files .*names no file"):
        find_shards(str(tmp_path / "*.parquet"))
    (tmp_path / "a.tar").write_bytes(b"no tar file")
    with pytest.raises(ValueError, match=r"tar file .*a\.tar cannot be read"):
        count_rows([str(tmp_path / "a.tar")])
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"all end in .parquet, or all in .tar"):
        find_shards(str(tmp_path / "*"))
    with pytest.raises(ValueError, match=r"Parquet file .*b\.parquet cannot be read"):
        count_rows([str(tmp_path / "b.parquet")])


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_rows_hold_the_bytes_that_were_stored(kind, parquet, tars):
    rows = open_shards(find_shards(parquet if kind == "parquet" else tars))
    column = "image" if kind == "parquet" else "png"
    renamed = rows.rename_column(column, "photo").select_columns(["photo"])
    spans = [ShardSpan(0, 3, 5), ShardSpan(2, 1, 2)]
    first = rows.offsets[2] + 1
    assert [(index, row["photo"]["bytes"]) for index, row in renamed.read(spans)] == [
        (index, png_of(index)) for index in (3, 4, first)
    ]
    assert renamed.place_of(first) == f"row 1 of {rows.files[2]}"


def test_a_shard_that_lost_rows_is_named(tars):
    rows = open_shards(find_shards(tars))
    with pytest.raises(ValueError, match=r"train-00\.tar ends after 5 rows, 9 were counted"):
        list(ShardedRows(rows.source, rows.files, [9, *rows.counts[1:]]).read([ShardSpan(0, 0, 9)]))


# --- streamed images -----------------------------------------------------------------------------------------------


def batches_of(stream: StreamedImages, num_workers: int = 0, batch_size: int = 4) -> list[list[int]]:
    loader = DataLoader(stream, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    return [[row_of(row["pixel_values"]) if row else -1 for row in batch] for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_an_epoch_shows_every_row_once(kind, num_workers, parquet, tars):
    stream = make_stream(parquet if kind == "parquet" else tars)
    stream.divide(0, 1, batch_size=4)
    first, again = batches_of(stream, num_workers), batches_of(stream, num_workers)
    stream.set_epoch(1)
    other = batches_of(stream, num_workers)
    assert first == again != other
    assert sorted(chain(*first)) == sorted(chain(*other)) == list(range(24))
    assert [len(batch) for batch in first] == [4] * 6


def test_processes_have_the_same_number_of_batches(parquet):
    read, lengths = Counter(), []
    for process in range(5):
        stream = make_stream(parquet)
        stream.divide(process, 5, batch_size=2)
        batches = batches_of(stream, batch_size=2)
        read.update(chain(*batches))
        lengths.append(list(map(len, batches)))
    assert lengths == [[2, 2, 1]] * 5
    assert set(read) == set(range(24))
    assert read.total() == 25  # one row is shown twice, since 24 rows do not divide by 5


def test_incomplete_batches_are_dropped_in_all_processes(parquet):
    for process in range(2):
        stream = make_stream(parquet)
        stream.divide(process, 2, batch_size=5, drop_last=True)
        assert list(map(len, batches_of(stream, 2, 5))) == [5, 5]


@pytest.mark.parametrize(("num_processes", "drop_last"), [(25, False), (5, True)])
def test_a_process_without_a_batch_is_refused(parquet, num_processes, drop_last):
    with pytest.raises(ValueError, match=rf"24 training images cannot be divided among {num_processes} processes"):
        make_stream(parquet).divide(0, num_processes, batch_size=5, drop_last=drop_last)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_batches_are_not_read_and_the_rest_is_the_same(parquet, num_workers, monkeypatch):
    stream = make_stream(parquet, buffer_size=3)
    stream.divide(0, 1, batch_size=4)
    stream.set_epoch(2)
    whole = batches_of(stream, num_workers)
    stream.skip_batches(2, 4)
    assert batches_of(stream, num_workers) == [[-1] * 4] * 4 + whole[4:]
    decoded = []
    monkeypatch.setattr(stream, "_read_pixels", lambda record, seed: decoded.append(seed) or torch.zeros(1, 1, 3))
    list(stream)
    assert len(decoded) == 8  # of 24
    stream.set_epoch(3)
    assert all(row >= 0 for batch in batches_of(make_stream(parquet), num_workers) for row in batch)


def test_rows_and_their_augmentation_are_those_of_the_table(parquet, tmp_path):
    augmentation = TrainingAugmentation((8, 8), scale=(0.2, 0.5))
    files = [file for file in find_shards(parquet) if count_rows([file])[0]]
    table = load_dataset("parquet", data_files={"train": files}, split="train")
    images = LabelledImages(table, make_processor(), augmentation, seed=4)
    stream = make_stream(parquet, buffer_size=1, augmentation=augmentation, seed=4)
    for each in (images, stream):
        each.set_epoch(2)
    rows = list(stream)
    assert [row["labels"] for row in rows] == table["label"]
    for index, row in enumerate(rows):
        assert row["augmentation_seed"] == images[index]["augmentation_seed"] == f"4/2/{index}"
        assert torch.equal(row["pixel_values"], images[index]["pixel_values"])


# --- columns and classes -------------------------------------------------------------------------------------------


def load(**arguments):
    return load_images(DataArguments(augmentation="none", **arguments), (8, 8))


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_a_webdataset_are_found(tars, streaming):
    images = load(train_files=tars, validation_files=tars, streaming=streaming)
    assert images.class_names == ["0", "1", "2"]
    assert {"image", "label"} <= set(images.train.column_names)
    assert images.evaluation["label"][:4] == [0, 1, 2, 0]


@pytest.mark.parametrize("streaming", [False, True])
def test_class_names_come_from_a_file(tars, tmp_path, streaming):
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    files = {"train_files": tars, "validation_files": tars, "streaming": streaming}
    images = load(**files, class_names_file=str(tmp_path / "names.txt"))
    assert images.class_names == ["ant", "bee", "cat", "dog"]
    assert images.evaluation.features["label"].names == images.class_names
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(
        ValueError, match=r"column 'label' of the training images .*\n.*row 2 of .*: the class 2 is none of the 2"
    ):
        load(**files, class_names_file=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("ant\nant\n")
    with pytest.raises(ValueError, match=r"one name a line, each once and none empty, got 2 lines, twice: ant"):
        load(**files, class_names_file=str(tmp_path / "names.txt"))


def test_undeclared_names_are_sorted(tmp_path):
    pattern = write_parquet(tmp_path, [4, 3], Value("string"))
    images = load(train_files=pattern, validation_files=pattern, streaming=True)
    stream = StreamedImages(images.train, images.labels, make_processor(), shuffle_buffer_size=1)
    assert images.class_names == NAMES
    assert [row["labels"] for row in stream] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_columns_are_listed_with_their_option(parquet, streaming):
    with pytest.raises(
        ValueError, match=r"`--label_column_name kind` is not a column of the data, which has image, l"
    ):
        load(train_files=parquet, validation_files=parquet, streaming=streaming, label_column_name="kind")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "scenes", "streaming": True}, "`--streaming true` needs `--train_files`"),
        ({"train_files": "a", "streaming": True}, "needs `--validation_files`"),
        ({"train_files": "a", "train_dir": "b"}, "Give either .* `--train_files`"),
        ({"train_dir": "a", "validation_files": "b"}, "`--validation_files b` needs `--train_files`"),
        ({"dataset_name": "a", "streaming": True, "max_train_samples": 3}, "name fewer files"),
        ({"dataset_name": "a", "streaming": True, "on_bad_image": "skip"}, "the length would not be known"),
        ({"dataset_name": "scenes", "shuffle_buffer_size": 0}, "at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**arguments)


def test_a_bad_image_is_named_with_its_shard(tmp_path):
    pattern = write_parquet(tmp_path, [2, 2])
    table = load_dataset("parquet", data_files={"a": find_shards(pattern)[1:]}, split="a")
    cells = [{"image": {"bytes": b"nothing", "path": "x.png"}, "label": 0}, {"image": None, "label": 0}]
    for number, cell in enumerate(cells):
        file = tmp_path / f"bad-{number}.parquet"
        type(table).from_list([cell], features=table.features).to_parquet(file)
        with pytest.raises(ValueError, match=rf"row 0 of .*bad-{number}\.parquet"):
            list(make_stream(str(file)))


def test_a_local_folder_streams_like_a_hub_id(tmp_path):
    write_parquet(tmp_path / "data", [4, 3])
    write_parquet(tmp_path / "data", [3], name="validation")
    images = load(dataset_name=str(tmp_path / "data"), streaming=True)
    assert (images.class_names, images.train.counts, len(images.evaluation)) == (NAMES, [4, 3], 3)


# --- whole runs ----------------------------------------------------------------------------------------------------


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class KilledError(Exception):
    """Stands for a kill signal."""


class Killer(TrainerCallback):
    """End a run after a step, without a word to it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KilledError


def files_of(pattern: str) -> list[str]:
    return ["--train_files", pattern, "--validation_files", pattern]


def test_a_resumed_stream_ends_with_the_weights_of_a_whole_run(run_train, tmp_path, parquet, monkeypatch):
    # 6 batches an epoch; the run is cut in the second one, behind a checkpoint in its middle
    words = [*RUN, *files_of(parquet), "--max_steps", "14", "--save_steps", "8", "--mixup_alpha", "0.8"]
    run_train.main([*words, "--output_dir", str(tmp_path / "whole")])
    cut = [*words, "--output_dir", str(tmp_path / "cut")]
    with monkeypatch.context() as patched:
        patched.setattr(run_train, "PanelCallback", lambda number: Killer(10))
        with pytest.raises(KilledError):
            run_train.main(cut)
    skipped = []
    skip = StreamedImages.skip_batches
    monkeypatch.setattr(StreamedImages, "skip_batches", lambda *args: skipped.append(args[1:]) or skip(*args))
    run_train.main([*cut, "--resume_from_checkpoint", "auto"])
    assert skipped == [(1, 2)]
    assert sha256_of(tmp_path / "cut") == sha256_of(tmp_path / "whole")


def test_epochs_are_counted_without_max_steps(run_train, tmp_path, tars):
    run_train.main([*RUN, *files_of(tars), "--num_train_epochs", "2", "--output_dir", str(tmp_path)])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"]) == (12, 2.0)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "0", "1": "1", "2": "2"}


def test_repeated_augmentation_is_refused(run_train, tmp_path, parquet):
    words = [*RUN, *files_of(parquet), "--repeated_augmentation", "3", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"`--repeated_augmentation 3` excludes `--streaming true`"):
        run_train.train(words, *parse_arguments(words))


@pytest.mark.slow
def test_killed_run_with_workers_ends_with_the_weights_of_a_whole_one(tmp_path, parquet):
    words = [*RUN, *files_of(parquet), "--max_steps", "60", "--dataloader_num_workers", "2"]
    command = [sys.executable, str(SCRIPT), *words, "--output_dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    folder = tmp_path / "cut"
    process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "checkpoint-8" / "checkpoint_complete.json").exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run([*command, str(folder), "--resume_from_checkpoint", "auto"], check=True, capture_output=True)
    assert sha256_of(folder) == sha256_of(tmp_path / "whole")


RECORDER = """
import json, sys
import torch.distributed
from transformers import TrainingArguments
sys.path.insert(0, {tests!r})
from test_streaming import make_stream, rows_of_batch
from transformers_ice.training import IceTrainer
stream = make_stream({pattern!r})
args = TrainingArguments({folder!r}, use_cpu=True, per_device_train_batch_size=2, dataloader_num_workers=2,
    remove_unused_columns=False)
trainer = IceTrainer(torch.nn.Linear(1, 1), args, train_dataset=stream, data_collator=rows_of_batch)
loader, epochs = trainer.get_train_dataloader(), []
for epoch in range(2):
    loader.set_epoch(epoch)
    batches = []
    for batch in loader:
        torch.distributed.barrier()  # hangs where one process has fewer batches
        batches.append(batch["rows"].tolist())
    epochs.append(batches)
json.dump([len(loader), epochs], open(f"{folder}/{{args.process_index}}.json", "w"))
"""


def rows_of_batch(rows) -> dict[str, torch.Tensor]:
    return {"rows": torch.tensor([row_of(row["pixel_values"]) for row in rows])}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[24], [5, 0, 9, 3, 7], [11, 2], [3] * 9], ids=str)
def test_two_processes_with_two_workers_share_the_rows(tmp_path, sizes):
    pattern = write_tars(tmp_path, sizes) if 0 not in sizes else write_parquet(tmp_path, sizes)
    script = tmp_path / "record.py"
    script.write_text(RECORDER.format(tests=str(ROOT / "tests"), pattern=pattern, folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    records = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2)]
    orders = []
    for epoch in range(2):
        batches = [record[1][epoch] for record in records]
        assert [len(each) for each in batches] == [record[0] for record in records]
        assert len(batches[0]) == len(batches[1])
        rows = Counter(row for each in batches for batch in each for row in batch)
        assert set(rows) == set(range(sum(sizes)))
        assert rows.total() == sum(sizes) + sum(sizes) % 2
        orders.append(batches)
    assert orders[0] != orders[1]
