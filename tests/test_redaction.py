# SPDX-License-Identifier: Apache-2.0
"""Tokens and passwords are recognized by name, by value and by form, and nothing else is taken for one."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from transformers_ice.cli.demo import DemoArguments
from transformers_ice.console.command_line import parse_dataclasses
from transformers_ice.console.exits import command
from transformers_ice.console.redaction import (
    find_secret_line,
    is_secret_name,
    known_secrets,
    redact_arguments,
    redact_text,
    tokens_hidden,
)
from transformers_ice.hub.published_files import find_secret_files
from transformers_ice.training import IceTrainingArguments, ModelArguments, parse_arguments, resume_command
from transformers_ice.training.models import parse_config_overrides


SECRET = "my-secret-0123"  # without the form of a Hub token: found by the name of its option or by its value alone


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "spelling",
    [
        ["--hub_token", SECRET],
        ["--hub-token", SECRET],
        [f"--hub_token={SECRET}"],
        [f"--hub-token={SECRET}"],
        ["--token", SECRET],
        [f"--token={SECRET}"],
        ["--push_to_hub_token", SECRET],
        ["--push-to-hub-token", SECRET],
        [f"--push_to-hub-token={SECRET}"],
        ["--HUB_TOKEN", SECRET],
        ["--hub_token", "--", SECRET],
        ["--hub_token", f"-{SECRET}"],
        ["--hub_token", SECRET, "--hub-token", f"{SECRET}2"],
        ["--hub_token", ""],
        ["--hub_token="],
        ["--hub_token"],
    ],
    ids=" ".join,
)
def test_secret_options_are_left_out_in_every_spelling(spelling):
    argv = ["a.yaml", "--lr", "1", *spelling, "--use_cpu", "--name", "x y"]
    kept = ["a.yaml", "--lr", "1", "--use_cpu", "--name", "x y"]
    assert redact_arguments(argv) == kept
    command = resume_command("run", argv)
    assert command == "run a.yaml --lr 1 --use_cpu --name 'x y' --resume_from_checkpoint auto (and your token)"


def test_options_that_only_sound_like_secrets_are_kept():
    argv = ["--fuse_pruned_tokens", "true", "--cls_token_index", "0", "--dataset_name", "token", "--tokens", "3"]
    assert redact_arguments(argv) == argv
    assert not any(map(is_secret_name, ("--tokenizer", "--average_tokens_across_devices", "--broken", "tokens_seen")))


URLS = {
    "https://user:pw@host/a.parquet": "https://***@host/a.parquet",
    "https://user:pw@host/a.parquet?token=abc&part=1": "https://***@host/a.parquet?token=***&part=1",
    "https://abcdef@host:8080/a": "https://***@host:8080/a",
    "s3://key:p@ss@bucket/x": "s3://***@bucket/x",
    "zip://a.parquet::https://user:pw@host/a.zip": "zip://a.parquet::https://***@host/a.zip",
    "https://h/a?X-Amz-Credential=A%2Fb&n=2&Signature=01": "https://h/a?X-Amz-Credential=***&n=2&Signature=***",
    "https://h/a?x=1&sig=a%3D&sv=2": "https://h/a?x=1&sig=***&sv=2",
    "https://h/a?access_token=1#b": "https://h/a?access_token=***#b",
    "https://h/a?X-Amz-Security-Token=1": "https://h/a?X-Amz-Security-Token=***",
    "https://h/a#access_token=1": "https://h/a#access_token=***",
    "https://h/a?apiKey=1": "https://h/a?apiKey=***",
}  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), URLS.items())
def test_credentials_in_urls_are_replaced(url, expected):
    assert redact_text(f"cannot read '{url}' now") == f"cannot read '{expected}' now"
    assert redact_text(expected) == expected
    for argv in (["--train_files", url], [f"--train_files={url}"]):
        assert redact_arguments(argv) == [part.replace(url, expected) for part in argv]
    command = resume_command("run", ["--train_files", url])
    assert url not in command
    assert command.endswith("(with your credentials for ***)")


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/a/b@v1?keyword=cat&page=2",
        "hf://datasets/a/b@refs%2Fconvert/x.parquet",
        "pip install hf_transfer hf_xet; from huggingface_hub import hf_hub_download",
        "ssh to me@host, see https://arxiv.org/abs/1 or mail a@b.org",
        "`--hub_token` takes a token (hf_...), use_distillation_token: true",
    ],
)
def test_ordinary_texts_are_unchanged(text):
    assert redact_text(text) == text
    assert find_secret_line(text) is None


@pytest.mark.parametrize(
    "token", ["hf_FAKE0000", "hf_" + "aB" * 17, "hf_" + "q" * 34, "hf_oauth_eyJh.b-C", "api_org_" + "x" * 34]
)
def test_hub_tokens_are_found_by_their_form(token):
    assert redact_text(f"a {token}, b") == "a ***, b"
    assert find_secret_line(f"a\nb={token}") == 2


def test_known_values_are_replaced_wherever_they_stand(monkeypatch, tmp_path):
    args = IceTrainingArguments(output_dir=str(tmp_path), hub_token=SECRET, use_cpu=True)
    assert known_secrets(args, None) == (SECRET,)
    assert known_secrets(ModelArguments(model_type="vit", token="other")) == ("other",)
    assert redact_text(f"a/{SECRET}/b", [SECRET]) == "a/***/b"
    argv = ["--run_name", SECRET, "--x", f"a={SECRET}"]
    assert redact_arguments(argv, [SECRET]) == ["--run_name", "***", "--x", "a=***"]
    assert redact_text("a word", ["word"]) == "a word", "too short to be told from a word"
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}\n")
    assert known_secrets() == (SECRET,)
    assert redact_arguments(["--run_name", SECRET]) == ["--run_name", "***"]


def test_the_token_of_a_login_is_known(monkeypatch, tmp_path):
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert known_secrets() == (SECRET,)


def test_hidden_tokens_come_back_also_after_an_error(tmp_path):
    args = IceTrainingArguments(output_dir=str(tmp_path), hub_token=SECRET, use_cpu=True)
    with tokens_hidden(args):
        assert args.hub_token is None
        torch.save(args, tmp_path / "training_args.bin")
    assert args.hub_token == SECRET
    assert SECRET.encode() not in (tmp_path / "training_args.bin").read_bytes()
    error = OSError("full")
    with pytest.raises(OSError, match="full"), tokens_hidden(args):
        raise error
    assert args.hub_token == SECRET


def test_arguments_do_not_print_their_token():
    assert SECRET not in repr(ModelArguments(model_type="vit", token=SECRET))


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_tokn", SECRET],
        ["--hub-tokn", SECRET],
        [f"--hub_tokn={SECRET}"],
        ["--push-to-hub-token", SECRET],
        ["--hub_toke", SECRET],
        ["--seed", "hf_FAKE0000"],
        ["--nothing_like_it", "hf_FAKE0000"],
        ["--validation_dir", "https://user:pw@host/x"],
    ],
    ids=" ".join,
)
def test_messages_about_wrong_arguments_hide_secrets(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--model_type", "vit", "--dataset_name", "scenes", "--output_dir", "x", *words])
    message = capsys.readouterr().err
    assert not any(secret in message for secret in (SECRET, "hf_FAKE0000", "user:pw"))


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_messages_about_wrong_files_do_not_quote_them(tmp_path, capsys, ending):
    file = tmp_path / f"run.{ending}"
    file.write_text(f"hub_token: {SECRET}: [1\n")
    with pytest.raises(SystemExit, match="2"):
        parse_dataclasses((ModelArguments,), [str(file)])
    message = capsys.readouterr().err
    assert "cannot be read: mapping values are not allowed here (line 1, column" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "content", [b"run_name: \xff", b"seed: " + b"1" * 5000, b"a: 2024-13-45", b"a: " + b"[" * 5000]
)
def test_argument_files_that_cannot_be_read_are_named(tmp_path, capsys, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        parse_dataclasses((ModelArguments,), [str(tmp_path / "run.yaml")])
    assert f"{tmp_path / 'run.yaml'} cannot be read" in capsys.readouterr().err


def test_argument_files_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "run.yaml").write_text("\ufeffmodel_type: vit\n", encoding="utf-8")
    assert parse_dataclasses((ModelArguments,), [str(tmp_path / "run.yaml")])[0].model_type == "vit"


def test_a_traceback_holds_no_secret(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--hub-token", SECRET])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    @command()
    def fail(argv):
        raise KeyError("https://user:pw@host", SECRET, "hf_FAKE0000")

    with pytest.raises(KeyError, match="host") as caught:
        fail([])
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "KeyError: ('https://***@host', '***', '***')" in printed
    assert command()(lambda argv: parse_config_overrides(argv[0]) and 0)([f"a{SECRET}"]) == 1
    assert re.search(r"Error: .*got 'a\*\*\*'", capsys.readouterr().err)


def test_files_with_secrets_are_found_with_their_line(tmp_path):
    contents = {
        "README.md": f"# a\n\nrun --hub-token {SECRET}\n".encode(),
        "config.json": json.dumps({"url": "https://u:p@h/x"}).encode(),
        "model.safetensors": b"\x10\0\0\0\0\0\0\0{'a': 'hf_FAKE0000'}" + bytes(10),
        "images/a.png": bytes(range(256)),
        "LICENSE": b"free\n",
    }
    (tmp_path / "images").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = find_secret_files(tmp_path, list(contents), [SECRET])
    assert found == {"README.md": 3, "config.json": 1, "model.safetensors": 1}
    assert find_secret_files(tmp_path, ["README.md"], [SECRET]) == {"README.md": 3}
    assert find_secret_files(tmp_path, ["README.md"]) == {}


def test_a_command_without_arguments_takes_its_defaults():
    assert parse_dataclasses((DemoArguments,), []) == (DemoArguments(),)
