# SPDX-License-Identifier: Apache-2.0
"""Command lines and recipes: misspelt, contradictory, of wrong types, out of range, or files of another kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.folders import copy_model, is_done
from hostile.frame import Finished, Place, Row, command
from hostile.pictures import NO_PICTURES, scene, whole


def nothing(place: Place) -> None:
    return None


def picture(place: Place) -> Path:
    """Write a picture and two files that are none."""
    place.put("text.png", "no picture")
    return place.put("x.png", whole("PNG"))


def is_fine(finished: Finished) -> bool:
    return finished.code == 0


def lines() -> Iterator[Row]:
    """Yield command lines that are refused before any work."""
    explain = ("explain", "{in}/x.png", "--model", "{model}", "--output_dir", "{out}")
    evaluate = ("evaluate", "--models", "{model}", "--output_dir", "{out}", "--num_pictures", "0")
    convert = ("convert", "--checkpoint", "{model}", "--output_dir", "{out}/new")
    export = ("export", "--model", "{model}", "--output", "{out}/x.onnx")
    benchmark = ("benchmark", "--model_name_or_path", "{model}", "--output_dir", "{out}")
    train = ("train", "--model_name_or_path", "{model}", "--dataset_name", "scenes", "--output_dir", "{out}")
    every = {"explain": explain, "evaluate": evaluate, "convert": convert, "export": export}
    every |= {"benchmark": benchmark, "train": train, "publish": ("publish", "{model}", "a/b"), "app": ("app",)}
    for name, words in every.items():
        yield Row(
            f"{name}: an unknown option", picture, command(*words, "--no_such_option", "1"), says="no_such_option"
        )
        yield Row(f"{name}: an option without its value", picture, command(*words, _OPTION[name]))
        yield Row(f"{name}: a recipe that is not there", picture, command(name, "nowhere.yaml"), says=r"nowhere\.yaml")
        yield Row(f"{name}: letters that are no text", picture, command(name, "--a\udcff", "b\udcfe"))
    for name in ("trian", "", "-x", "--", "explain\n", "Explain", "../explain", "\0", "$(touch ran)"):
        yield Row(f"command {name!r}", nothing, command(name), says="expected one of")
    wrong: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
        explain: (
            *(("--batch_size", value) for value in ("0", "-1", "x", "1.5", "9" * 50)),
            *(("--scale", value) for value in ("0", "-1", "nan", "inf", "17", "x")),
            *((name, "x") for name in ("--picture", "--format", "--annotations", "--on_bad_image", "--html")),
            *(("--target", value) for value in ("no class", "7", "-1", "", "²", "9" * 50)),
            ("--batch_size=",),
            ("--batch_size", "1", "2"),
        ),
        evaluate: (
            *(("--limit", value) for value in ("0", "-1", "x", "nan")),
            *((name, "-1") for name in ("--batch_size", "--num_workers", "--num_resamples", "--num_pictures")),
            *(("--benchmark", value) for value in ("x", "", "Segmentation")),
            *(("--explainers", value) for value in ("x", "", "ice,rollout")),
            *(("--dataset_name", value) for value in ("x", "", "../x", "voc", "coco20k")),
            *(("--dataset_options", value) for value in ("x", "x=1", "seed=x", "image_size=true", "=")),
            *(("--device", value) for value in ("x", "cuda:99", "cpu:x", "")),
            ("--data_dir", "/nowhere"),
            ("--data_dir", "{in}"),
            ("--models", "a=nowhere", "a={model}"),
            ("--models", "="),
            ("--split", "x"),
        ),
        export: (
            *(
                ("--image_size", *value)
                for value in (("0",), ("-8",), ("31",), ("x",), ("32", "32", "32"), ("99999999",))
            ),
            *(("--batch_sizes", value) for value in ("0", "-1", "x")),
            *(("--pruning_layers", value) for value in ("9", "-1", "x")),
            *(("--keep_rates", value) for value in ("0", "nan", "2", "x")),
            *(("--opset", value) for value in ("1", "999", "x")),
            ("--pruning_strategy", "x"),
            ("--pruning_strategy", "background"),
            ("--dataset_name", "x"),
            ("--tolerance", "x"),
            ("--report", "{out}/x.onnx"),
        ),
        benchmark: (
            *(("--batch_sizes", value) for value in ("0", "-1", "x")),
            *((name, "0") for name in ("--num_images", "--images_per_repeat", "--num_repeats", "--num_threads")),
            *(("--keep_beta", *value) for value in (("1", "1"), ("nan", "0.1"), ("0.5",), ("0.5", "9"), ("x", "y"))),
            ("--keep_rates", "0.5", "0.5"),
            ("--keep_rates", "7"),
            ("--keep_counts", "nowhere.json"),
            ("--accuracies", "nowhere.json"),
            ("--dataset_name", "x"),
            ("--data_dir", "/nowhere"),
            ("--device", "x"),
            ("--dtype", "x"),
            ("--config_overrides", "hidden_size"),
            ("--config_overrides", "no_such_field=1"),
            ("--config_overrides", "{"),
        ),
        train: (
            *(("--num_train_epochs", value) for value in ("-1", "x", "nan")),
            *(("--per_device_train_batch_size", value) for value in ("0", "-1", "x")),
            *(("--learning_rate", value) for value in ("-1", "nan", "inf", "x")),
            *(("--dataloader_num_workers", value) for value in ("-1", "x")),
            *(("--image_size", value) for value in ("0", "-1", "x")),
            *(("--ema_decay", value) for value in ("1", "0", "nan")),
            *(("--keep_rates", value) for value in ("x", "")),
            *(("--config_overrides", value) for value in ("hidden_size", "{", "=1", "{model}")),
            ("--train_dir", "{in}"),
            ("--model_type", "ice_deit"),
            ("--max_train_samples", "0"),
            ("--lr_scheduler_type", "x"),
            ("--eval_strategy", "x"),
            ("--pruning_strategy", "x"),
            ("--distillation_type", "soft"),
            ("--teacher_model_name_or_path", "/nowhere", "--distillation_type", "soft"),
            ("--streaming", "true"),
            ("--validation_files", "x.tar"),
        ),
        ("app", "--model", "{model}"): (
            *(("--port", value) for value in ("0", "-1", "99999", "x")),
            *((name, "nan") for name in ("--timeout_s", "--max_upload_mb", "--max_pixels")),
            *((name, "0") for name in ("--timeout_s", "--max_upload_mb", "--max_pixels", "--num_threads")),
        ),
        ("publish", "{model}"): (
            ("owner/x/y",),
            ("",),
            ("a b/c", "--dry_run"),
            ("..", "--dry_run"),
            ("o/n", "--create_pr", "--revision", "x"),
        ),
    }
    for words, endings in wrong.items():
        for ending in endings:
            yield Row(f"{words[0]} {' '.join(ending)[:60]}", picture, command(*words, *ending))


_OPTION = {"explain": "--target", "evaluate": "--limit", "convert": "--id2label", "export": "--image_size"}
_OPTION |= {"benchmark": "--seed", "train": "--seed", "publish": "--revision", "app": "--port"}


def recipes() -> Iterator[Row]:
    """Yield recipes of other kinds; none of them starts any work."""
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    aliases += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    texts: dict[str, bytes | str] = {
        "empty": "",
        "a list": "[1, 2]",
        "a number": "7",
        "null": "null",
        "text": "hello",
        "no UTF-8": b"models: \xff\xfe",
        "UTF-16": "models: x".encode("utf-16"),
        "zeros": bytes(99),
        "a picture": whole("PNG"),
        "a pickle": NO_PICTURES["pickle"],
        "tabs": "models:\n\t- x\n",
        "cut": "models: [x, ",
        "a key twice": "limit: 1\nlimit: 2\n",
        "an unknown key": "no_such_option: 1\n",
        "a key that is a number": "7: 1\n",
        "a key that is a list": "? [1, 2]\n: 3\n",
        "a nested list": "models: [[x]]\n",
        "a nested mapping": "models: {a: {b: c}}\n",
        "aliases that grow": aliases,
        "an alias of itself": "models: &a [*a]\n",
        "nested 5,000 deep": "models: " + "[" * 5000,
        "a number of 5,000 digits": "limit: " + "9" * 5000,
        "a 13th month": "split: 2020-13-45\n",
        "code of python": "models: !!python/object/apply:os.system ['touch ran']\n",
        "an object of python": "models: !!python/object/new:os.system ['touch ran']\n",
        "two documents": "limit: 1\n---\nlimit: 2\n",
        "a wrong type": "limit: many\n",
        "a negative number": "limit: -5\n",
        "NaN": "limit: .nan\n",
        "a list where one is needed": "limit: [1, 2]\n",
        "a token in a broken line": 'hub_token: "hf_SECRETSECRETSECRET\n',
        "a very long line": "models: " + "x" * 200_000 + "\nlimit: -1\n",
    }
    for number, (title, text) in enumerate(texts.items()):
        name = ("evaluate", "train", "explain", "benchmark")[number % 4] if title not in _EVALUATES else "evaluate"
        for ending in ("yaml", "json"):
            write = partial(_put, f"r.{ending}", text)
            says = "" if title in ("a very long line",) else r"r\.|limit|models|required|no_such|: error:"
            yield Row(f"{name} r.{ending}: {title}", write, command(name, "{written}"), says=says)
    for title, act in (("a pipe", _pipe), ("a folder", _folder), ("a link to nothing", _dangling)):
        yield Row(f"recipe that is {title}", act, command("evaluate", "{written}"), says=r"r\.yaml")


_EVALUATES = ("a wrong type", "a negative number", "NaN", "a list where one is needed", "a very long line")


def _put(name: str, content: bytes | str, place: Place) -> Path:
    return place.put(name, content)


def _pipe(place: Place) -> Path:
    os.mkfifo(place.inputs / "r.yaml")
    return place.inputs / "r.yaml"


def _folder(place: Place) -> Path:
    (place.inputs / "r.yaml").mkdir()
    return place.inputs / "r.yaml"


def _dangling(place: Place) -> Path:
    (place.inputs / "r.yaml").symlink_to("nowhere")
    return place.inputs / "r.yaml"


def files() -> Iterator[Row]:
    """Yield files that commands read, and places that they would write to."""
    benchmark = ("benchmark", "--model_name_or_path", "{model}", "--output_dir", "{out}")
    contents = ("", "7", "null", "{", "[]", "[[]]", '[["x"]]', "[[2]]", "[[NaN]]", "[[0.1, 0.9]]", "[" * 100_000, "{}")
    for option in ("--keep_counts", "--accuracies"):
        for text in (*contents, '{"unpruned": 7}', '{"unpruned": null}', '{"x": 0.5}', "\udcff"):
            data = text.encode(errors="surrogateescape")
            yield Row(
                f"{option} with {text[:20]!r}", partial(_put, "x.json", data), command(*benchmark, option, "{written}")
            )
    explain = ("explain", "{in}/x.png", "--model", "{model}")
    yield Row("explain a picture", picture, command(*explain, "--output_dir", "{out}"), is_done)
    yield Row(
        "explain no picture",
        picture,
        command("explain", "{in}/text.png", *explain[2:], "--output_dir", "{out}"),
        says=r"text\.png",
    )
    yield Row(
        "explain nothing", nothing, command("explain", "{in}", *explain[2:], "--output_dir", "{out}"), says="No images"
    )
    yield Row(
        "explain a pattern of nothing",
        nothing,
        command("explain", "{in}/*.png", *explain[2:], "--output_dir", "{out}"),
    )

    for title, output in (
        ("a picture", "{in}/x.png"),
        ("below a picture", "{in}/x.png/y"),
        ("/dev/null", "/dev/null"),
    ):
        yield Row(f"explain into {title}", picture, command(*explain, "--output_dir", output))
    yield Row("explain into a text that is no name", picture, command(*explain, "--output_dir", "{out}/\udcff"))
    for kind in ("svg", "pdf"):

        def done(end: Finished, kind: str = kind) -> bool:
            return (end.place.output / f"x.{kind}").is_file()

        yield Row(f"explain as {kind}", picture, command(*explain, "--output_dir", "{out}", "--format", kind), done)

    def precious(name: str, place: Place) -> Path:
        place.put("precious.txt", "precious")
        os.symlink("../in/precious.txt", place.output / name)
        return picture(place)

    for name in ("x.png", "explanations.jsonl", "explanations.jsonl.part", "coco.json", "index.html"):
        words = ("--output_dir", "{out}", "--annotations", "coco", "--html")
        yield Row(f"a link {name} in the output", partial(precious, name), command(*explain, *words), is_fine, True)
    export = ("export", "--model", "{model}", "--output")
    for title, output in (
        ("a folder", "{out}"),
        ("the weights", "{written}/model.safetensors"),
        ("a config", "{written}/config.json"),
    ):
        yield Row(f"export into {title}", copy_model, command("export", "--model", "{written}", "--output", output))
    yield Row("export below a picture", picture, command(*export, "{in}/x.png/y.onnx"))
    evaluate = (
        "evaluate",
        "--models",
        "{model}",
        "--num_pictures",
        "0",
        "--measure_cost",
        "false",
        "--limit",
        "2",
        "--output_dir",
    )
    yield Row("evaluate into a picture", picture, command(*evaluate, "{in}/x.png"))

    def many(place: Place) -> None:
        for number, data in enumerate(NO_PICTURES.values()):
            place.put(f"many/{number:02d}.png", data)
        scene().save(place.inputs / "many/good.png")

    count = len(NO_PICTURES)

    def names_all(finished: Finished) -> bool:
        return finished.stderr.count("Error: ") == count and f"1 of {count + 1} images explained" in finished.stderr

    yield Row("explain a folder of broken pictures", many, partial(_as_answer, names_all), bool)


def _as_answer(check: Callable[[Finished], bool], place: Place, _: Any) -> bool:
    """Explain a folder, where each file has a line of its own."""
    finished = command("explain", "{in}/many", "--model", "{model}", "--output_dir", "{out}")(place, None)
    return finished.code == 1 and "Traceback" not in finished.stderr and check(finished)


def publications() -> Iterator[Row]:
    """Yield folders that must not be published; all are refused before anything is sent."""

    def write(name: str, content: bytes | None, place: Place) -> Path:
        folder = place.inputs / "model"
        shutil.copytree(place.model, folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    run = command("publish", "{written}", "owner/name", "--dry_run")
    contents: dict[str, tuple[bytes | None, ...]] = {
        "README.md": (
            None,
            b"",
            b"\xff\xfe",
            b"---\na: [\n---\n",
            b"---\n- 1\n---\n",
            b"---\n7\n---\n",
            bytes(99),
            b"---\nlicense: {}\n---\n",
        ),
        "config.json": (
            None,
            b"",
            b"null",
            b"[" * 100_000,
            b"\xff",
            b'{"model_type": 7}',
            b'{"model_type": "ice_deit", "auto_map": 7}',
        ),
        "preprocessor_config.json": (None, b"", b"[]", b"[" * 100_000, b'{"auto_map": []}'),
        "model.safetensors": (None, b"", bytes(64), NO_PICTURES["lfs pointer"]),
        "modeling_ice_deit.py": (None, b"import os; os.system('touch ran')"),
        "evil.py": (b"import os; os.system('touch ran')",),
        "weights.pkl": (NO_PICTURES["pickle"],),
        "images/a.png": (b"no", b""),
        "notes.json": (b'{"token": "hf_abcdefghijklmnopqrstuvwxyzabcdefgh"}',),
    }
    for name, entries in contents.items():
        for content in entries:
            title = "missing" if content is None else repr(content[:30])
            yield Row(f"publish with {name} {title}", partial(write, name, content), run)
    yield Row("publish a folder that is none", nothing, command("publish", "{in}/nowhere", "a/b", "--dry_run"))
    yield Row("publish a file", picture, command("publish", "{written}", "a/b", "--dry_run"))


def rows() -> list[Row]:
    """Return all rows."""
    return [*lines(), *recipes(), *files(), *publications()]
