# SPDX-License-Identifier: Apache-2.0
"""Cards: valid to `huggingface_hub`, up to date with their generator, and true to what was recorded."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from publishing_folders import SIZES, make_entry, make_record, write_complete_folder

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import convert
from transformers_ice.evaluation import CEILING, CONTROLS
from transformers_ice.hub import (
    ModelRecord,
    TrainingRecord,
    build_card,
    check_card,
    check_card_for_publication,
    for_repository,
    read_facts,
    read_record,
    read_records,
    write_record,
    write_records,
)
from transformers_ice.hub.card import facts_of_architecture, first_snippet
from transformers_ice.hub.pictures import draw_explanations
from transformers_ice.hub.records import (
    COMPARED_METHODS,
    entries_from_evaluation,
    entries_from_training,
    weights_digest,
)
from transformers_ice.training.run_card import MARK, _base_model


ROOT = Path(__file__).resolve().parents[1]
RECORDS = read_records(ROOT / "model_cards" / "results.json")
CHECKPOINTS = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/config.json"))
TEMPLATES = ["ice-deit-b", "ice-deit-s", "ice-deit-ti"]


@pytest.fixture(scope="module")
def write_cards():
    spec = importlib.util.spec_from_file_location("write_model_card", ROOT / "scripts" / "write_model_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_complete_folder(tmp_path_factory.mktemp("tiny"))


def value_of(name: str, metric: str, method: str) -> float:
    (entry,) = [e for e in RECORDS[name].results if (e.metric, e.method) == (metric, method)]
    return entry.value


def test_every_checkpoint_and_every_planned_model_has_a_record():
    assert sorted(RECORDS) == sorted([*CHECKPOINTS, *TEMPLATES])
    assert [name for name in sorted(RECORDS) if RECORDS[name].is_template] == TEMPLATES


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_cards_are_what_their_generator_writes(name, write_cards):
    expected = write_cards.make_card(RECORDS[name])
    assert (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8") == expected, "run `make cards`"
    if not RECORDS[name].is_template:
        folder = ROOT / "checkpoints" / name
        assert (folder / "README.md").read_text(encoding="utf-8") == expected
        picture = (folder / "images" / f"{name}.png").read_bytes()
        assert picture == (ROOT / "model_cards" / "images" / f"{name}.png").read_bytes()
        assert len(picture) < 150_000


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_results_belong_to_the_weights_that_are_there(name):
    command = f"python scripts/write_model_card.py checkpoints/{name} --record"
    assert RECORDS[name].weights_sha256 == weights_digest(ROOT / "checkpoints" / name), f"run `{command}`"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_recorded_training_is_that_of_the_recipe(name):
    training = RECORDS[name].training
    recipe = yaml.safe_load((ROOT / re.search(r"recipes/\S+", training.command)[0]).read_text(encoding="utf-8"))
    settings = training.settings
    assert settings["Images a step"] == recipe["per_device_train_batch_size"]
    assert settings["Weight decay"] == recipe["weight_decay"]
    assert float(settings["Learning rate"].split(",")[0]) == float(recipe["learning_rate"])
    assert settings.get("Objective") == recipe.get("objective")
    if "pruning_head" in recipe:
        assert recipe["pruning_head"] in training.note
        assert f"margin of {recipe['background_margin']:g}" in training.note


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_metadata_are_valid_to_huggingface_hub(name):
    file = ROOT / "model_cards" / f"{name}.md"
    assert check_card(file.read_text(encoding="utf-8")) == []
    data = metadata_load(file)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    # the data of the photographs are for research
    assert data["license"] == ("cc-by-nc-4.0" if "imagenette" in name else "apache-2.0")
    for repo_id in [*data["datasets"], *([data["base_model"]] if "base_model" in data else [])]:
        validate_repo_id(repo_id)
    again = ModelCard(str(ModelCard(file.read_text(encoding="utf-8"))))  # a round trip through their own classes
    assert again.data.to_dict() == data


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_the_model_index_holds_the_recorded_numbers_and_nothing_else(name):
    data = ModelCard.load(ROOT / "model_cards" / f"{name}.md").data
    listed = sorted(result.metric_value for result in data.eval_results or [])
    assert listed == sorted(entry.value for entry in RECORDS[name].results if entry.method not in COMPARED_METHODS)
    assert bool(listed) != RECORDS[name].is_template


def test_rows_for_comparison_are_no_results_of_a_model(folder):
    assert set(COMPARED_METHODS) == {CEILING, *CONTROLS}
    record = make_record(folder, results=(make_entry(method="ice"), make_entry(method="center_ellipse", value=0.25)))
    card = build_card(record, read_facts(folder))
    assert "control: a centred ellipse" in card
    assert "0.250" in card.partition("## Results")[2]
    assert "(center_ellipse)" not in card


def test_every_number_has_its_command_hardware_and_date():
    for record in RECORDS.values():
        for entry in record.results:
            assert entry.command.startswith("python scripts/")
            assert entry.hardware
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry.date)
            assert entry.low <= entry.value <= entry.high


def test_the_readme_and_the_scenes_page_give_the_recorded_numbers():
    soft, hard = (value_of("ice-deit-scenes", "mean_iou", method) for method in ("ice", "ice_hard"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"the soft map of the sample checkpoint of scenes has mean IoU {soft:.3f}" in readme
    for method in ("raw_attention", "rollout"):
        iou, accuracy = (value_of("deit-scenes", metric, method) for metric in ("mean_iou", "pixel_accuracy"))
        top_1 = value_of("deit-scenes", "top_1", "")
        name = method.replace("_", " ")
        line = rf"\| {name} of the starting DeiT \| +\| {top_1:.3f} \| {accuracy:.3f} \| {iou:.3f} \|"
        assert re.search(line, readme)
    page = (ROOT / "docs" / "results" / "scenes.md").read_text(encoding="utf-8")
    (ice, ice_hard) = (re.search(rf"^\| `{name}` \|.*$", page, re.MULTILINE)[0] for name in ("ice", "ice_hard"))
    assert f"{soft:.3f} ±" in ice
    assert f"{hard:.3f} ±" in ice_hard
    assert f"Top-1 {value_of('ice-deit-scenes', 'top_1', ''):.3f} (patches)" in page


def test_a_card_without_results_is_valid_but_not_for_publication(folder):
    card = build_card(make_record(folder, results=()), read_facts(folder))
    assert check_card(card) == []
    (problem,) = check_card_for_publication(card)
    assert "no results" in problem
    assert "Not measured yet." in card


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_say_so_and_are_refused(name):
    text = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert "**Template.**" in text
    assert check_card_for_publication(text)
    assert "facebook/deit-" in text
    assert "\nmodel_name:" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "", "`license` is missing"),
        ("pipeline_tag: image-classification", "pipeline_tag: magic", "`pipeline_tag` must be one of"),
        ("base_model: start", "base_model: ./outputs/start", "`base_model` must hold ids"),
        ("value: 0.75", "value: .nan", "must be a finite number"),
        ("model-index:\n- name: tiny", "model-index:\n- nome: tiny", "cannot be read"),
        ("---\n", "", "is missing"),
    ],
)
def test_invalid_metadata_are_found(folder, old, new, message):
    card = build_card(make_record(folder), read_facts(folder))
    assert old in card
    assert any(message in problem for problem in check_card(card.replace(old, new)))


def test_energy_is_an_estimate_from_time_and_assumed_power_or_not_measured(folder):
    made = TrainingRecord("train", "images", ("scenes",), power_watts=20.0, power_basis="assumed")
    facts = replace(read_facts(folder), train_seconds=1800.0)
    estimated = build_card(make_record(folder, training=made), facts)
    assert "at 20 W (assumed) that is 10.0 Wh" in estimated  # 0.5 h x 20 W
    assert "Estimate, not a measurement" in estimated
    without_power = build_card(make_record(folder, training=replace(made, power_watts=None)), facts)
    assert "Its energy was not measured." in without_power
    assert "## Energy\n\nNot measured." in build_card(make_record(folder), read_facts(folder))


def test_time_of_a_resumed_run_is_said_to_be_that_of_its_last_part(folder):
    results = {"train_runtime": 130.0, "epoch": 3.0}
    for more, said in (
        ({}, "Training took 2.2 min."),
        ({"train_resumed_at_step": 26}, "2.2 min from step 26 on, where"),
    ):
        (folder / "all_results.json").write_text(json.dumps(results | more))
        assert said in build_card(make_record(folder), read_facts(folder))


def test_parameters_are_counted_from_the_file_as_from_the_model(folder):
    expected = sum(w.numel() for w in IceDeiTForImageClassification(IceDeiTConfig(**SIZES)).parameters())
    assert read_facts(folder).num_parameters == expected
    sizes = {name: value for name, value in SIZES.items() if name not in ("id2label", "label2id")}
    assert facts_of_architecture({**sizes, "num_labels": 3}).num_parameters == expected


def test_the_number_type_is_that_of_the_file(folder, tmp_path):
    assert read_facts(folder).weights_type == "float32"
    IceDeiTForImageClassification.from_pretrained(folder).half().save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    assert (facts.weights_type, facts.num_parameters) == ("float16", read_facts(folder).num_parameters)
    assert "million, float16, safetensors" in build_card(make_record(tmp_path), facts)
    (tmp_path / "model.safetensors").unlink()
    assert (read_facts(tmp_path).weights_type, read_facts(tmp_path).num_parameters) == ("float32", 0)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a model, got no config\.json"):
        read_facts(tmp_path)


def test_records_survive_the_file(tmp_path, folder):
    record = make_record(folder, limits=("One.",), evaluation="--limit 3")
    write_record(tmp_path / "one.json", record)
    assert read_record(tmp_path / "one.json") == record
    write_records(tmp_path / "all.json", {"tiny": record})
    assert read_records(tmp_path / "all.json") == {"tiny": record}


def test_unknown_and_missing_fields_of_a_record_are_errors(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"tiny": {"training": {"command": "c", "data": "d"}, "result": []}}))
    with pytest.raises(ValueError, match=r"results\.json, tiny must hold the fields .* got \['result'\]"):
        read_records(file)
    file.write_text(json.dumps({"tiny": {"training": {"command": "c"}}}))
    with pytest.raises(ValueError, match="tiny, training is not complete"):
        read_records(file)


def test_entries_come_from_a_report_of_the_evaluation():
    score = {"value": 0.5, "low": 0.4, "high": None, "num_examples": 7}
    report = {
        "settings": {"split": None},
        "dataset": {"name": "scenes"},
        "results": [
            {"checkpoint": "tiny", "method": "ice", "scores": {"mean_iou": score, "empty_masks": score}},
            {"checkpoint": "other", "method": "", "scores": {"top_1": score}},
        ],
    }
    run = {"seed": 0, "command": "command", "hardware": "hardware", "date": "2026-01-01"}
    (entry,) = entries_from_evaluation(report, "tiny", **run)
    assert (entry.benchmark, entry.metric, entry.method, entry.split) == ("segmentation", "mean_iou", "ice", "test")
    assert (entry.value, entry.low, entry.high, entry.num_images) == (0.5, 0.4, None, 7)
    with pytest.raises(ValueError, match="must hold scores of 'absent'"):
        entries_from_evaluation(report, "absent", **run)


def test_entries_come_from_the_evaluation_that_ends_a_run():
    numbers = {"eval_top_1": 0.9, "eval_mean_iou": 0.5, "eval_loss": 1.0, "train_loss": 2.0}
    run = {"dataset": "imagefolder", "num_images": 8, "command": "c", "hardware": "h", "date": "2026-01-01", "seed": 3}
    entries = entries_from_training(numbers, **run)
    assert [(e.metric, e.method, e.value, e.seed) for e in entries] == [
        ("top_1", "", 0.9, 3),
        ("mean_iou", "ice_hard", 0.5, 3),
    ]


HOSTILE = ["a|b", "two\nlines", "<script>x</script>", "\x1b[31mred\t", "\u202eleft"]
HOSTILE += ["`code`", "n" * 500, "snake_case", "$$"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_name_is_one_cell_of_the_table(folder, name):
    facts = replace(read_facts(folder), class_names=(name, "dog"))
    card = build_card(make_record(folder), facts)
    (row,) = [line for line in card.split("\n") if line.startswith("| classes")]
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 4
    assert row.isprintable()
    assert row.endswith(", dog |")
    assert len(row) < 120
    assert "<" not in row
    assert not re.search(r"(?<!\\)[`_$]", row)


@pytest.mark.parametrize("location", ["plain/folder", 'o";print(1)#', "two\nlines", "```", "back\\slash", "a\u202eb"])
def test_a_folder_name_is_a_string_of_the_snippet_and_no_code(folder, location):
    record = replace(make_record(folder), location=location, results=())
    card = build_card(record, read_facts(folder))
    assignment = ast.parse(first_snippet(card)).body[1]
    assert isinstance(assignment, ast.Assign)
    assert ast.literal_eval(assignment.value) == location
    assert ast.literal_eval(ast.parse(first_snippet(for_repository(card, "me/tiny"))).body[1].value) == "me/tiny"


def test_a_command_with_backticks_remains_in_its_block(folder):
    record = make_record(folder)
    text = "python run.py 'x\n```\n# out'"
    card = build_card(replace(record, training=replace(record.training, command=text)), read_facts(folder))
    assert f"````bash\n{text}\n````" in card


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"name": "x', '{"name": "x", "training": []}', '{"name": "x", "results": 3}', "{}"]
)
def test_a_broken_record_is_a_sentence_that_names_the_file(tmp_path, content):
    file = tmp_path / "model_card.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"model_card\.json"):
        read_record(file)
    if content != "{}":  # the records of no model
        with pytest.raises(ValueError, match=r"model_card\.json"):
            read_records(file)


def test_the_first_snippet_loads_the_folder_and_a_template_has_none(folder):
    record = make_record(folder)
    snippet = first_snippet(build_card(record, read_facts(folder)))
    assert snippet.startswith("from transformers import pipeline\n")
    assert f'\ncheckpoint = "{folder.as_posix()}"\n' in snippet
    assert "```" not in snippet
    assert first_snippet(build_card(replace(record, is_template=True), read_facts(folder))) == ""


def test_the_template_is_part_of_the_package():
    assert (ROOT / "src" / "transformers_ice" / "hub" / "model_card_template.md").is_file()
    assert '"hub/model_card_template.md"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_what_a_record_holds_is_text_and_no_template(folder):
    card = build_card(make_record(folder, limits=("{{ record.name }} {% if",)), read_facts(folder))
    assert "\n- {{ record.name }} {% if\n" in card


def test_weights_may_have_another_licence(write_cards, folder):
    write_record(folder / "model_card.json", make_record(folder))
    assert "license" not in json.loads((folder / "model_card.json").read_text())
    before = (folder / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: apache-2.0\n" in before
    (folder / "README.md").write_text(f"{before}\n{MARK}\n", encoding="utf-8")  # or it is somebody else's card
    try:
        assert write_cards.main([str(folder), "--license", "cc-by-nc-4.0"]) == 0
        assert write_cards.main([str(folder)]) == 0, "the record keeps it"
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert check_card_for_publication(text) == []
        assert ModelCard(text).data.license == "cc-by-nc-4.0"
        assert "\nWeights: cc-by-nc-4.0. Code: Apache-2.0. " in text
    finally:
        (folder / "README.md").write_text(before, encoding="utf-8")
        (folder / "model_card.json").unlink()


def test_snippets_of_a_published_card_load_the_repository(folder):
    image = f"{folder.as_posix()}/images/scene.png"
    card = build_card(make_record(folder, image=image), read_facts(folder))
    published = for_repository(card, "me/tiny")
    assert 'checkpoint = "me/tiny"' in published
    assert 'image = "https://huggingface.co/me/tiny/resolve/main/images/scene.png"' in published
    assert folder.as_posix() not in published
    assert for_repository(published, "you/other") == for_repository(card, "you/other")
    assert for_repository("no snippet", "me/tiny") == "no snippet"


def test_a_card_of_an_old_record_hides_its_secrets(folder):
    training = TrainingRecord("python scripts/run_train.py --hub-token hf_FAKE0000 --train_files https://u:pw@h/a", "")
    card = build_card(make_record(folder, training=training), read_facts(folder))
    assert "hf_FAKE0000" not in card
    assert "u:pw" not in card


def test_the_base_model_is_an_id_of_the_hub_or_the_name_of_a_folder(tmp_path):
    (tmp_path / "start").mkdir()
    (tmp_path / "sta rt").mkdir()
    assert _base_model(None) is None
    assert _base_model("facebook/deit-small-patch16-224") == "facebook/deit-small-patch16-224"
    assert _base_model(str(tmp_path / "start")) == "start"
    assert _base_model(str(tmp_path / "sta rt")) is None


def test_the_script_writes_the_card_of_a_folder_with_its_own_record(write_cards, folder, tmp_path, capsys):
    write_record(folder / "model_card.json", make_record(folder, name="own"))
    before = (folder / "README.md").read_text(encoding="utf-8")
    try:
        assert write_cards.main([str(folder)]) == 1
        assert "must be a card of this project" in capsys.readouterr().err
        assert (folder / "README.md").read_text(encoding="utf-8") == before, "somebody else wrote it"
        (folder / "README.md").write_text(f"{before}\n{MARK}\n", encoding="utf-8")
        assert write_cards.main([str(folder)]) == 0
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert "# own" in text
        assert MARK in text
        assert check_card_for_publication(text) == []
    finally:
        (folder / "README.md").write_text(before, encoding="utf-8")
        (folder / "model_card.json").unlink()
    assert write_cards.main([str(tmp_path)]) == 1
    assert "has no model_card.json of its own" in capsys.readouterr().err


def test_recording_measures_runs_the_snippet_and_keeps_the_command(write_cards, folder, monkeypatch):
    ran = []

    def run_command(words, home):
        ran.append((words, home))
        if words[0] == "-c":
            return "disc\n"
        score = {"value": 0.5, "low": 0.4, "high": 0.6, "num_examples": 7}
        report = {
            "settings": {"split": "val"},
            "dataset": {"name": "photos"},
            "results": [{"checkpoint": "tiny", "method": "", "scores": {"top_1": score}}],
        }
        Path(words[words.index("--output_dir") + 1], "results.json").write_text(json.dumps(report))
        return ""

    monkeypatch.setattr(write_cards, "run_command", run_command)
    record = make_record(folder, evaluation="--benchmark classification", image=f"{folder}/images/tiny.png")
    measured = write_cards.measure(folder, record, ROOT)
    command = f"python scripts/run_evaluation.py --models tiny={folder} --benchmark classification"
    assert [(e.value, e.split, e.command) for e in measured.results] == [(0.5, "val", command)]
    assert measured.output == "disc"
    assert measured.weights_sha256 == weights_digest(folder)
    assert [home for _, home in ran] == [ROOT, ROOT]
    with pytest.raises(ValueError, match=r"has no recorded command\. Pass --evaluation"):
        write_cards.measure(folder, replace(record, evaluation=""), ROOT)


def test_a_record_is_complete_without_numbers():
    assert ModelRecord("new", TrainingRecord("command", "images")).results == ()
    assert make_entry(value=1.0).value == 1.0


def test_a_converted_checkpoint_has_a_record_to_write_its_card_from(write_cards, hub_folder, tmp_path, capsys):
    folder = tmp_path / "converted"
    assert convert.main(["--checkpoint", str(hub_folder("deit", "new")), "--output_dir", str(folder)]) == 0
    assert "Not trained yet: deit.patch_head" in read_record(folder / "model_card.json").training.data
    assert write_cards.main([str(folder)]) == 1
    assert "Pass --datasets" in capsys.readouterr().err
    assert write_cards.main([str(folder), "--datasets", "imagenet-1k"]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(text) == []
    assert ModelCard(text).data.datasets == ["imagenet-1k"]
    (problem,) = check_card_for_publication(text)
    assert "it has no results" in problem  # the next command names how to measure it


def test_a_figure_may_show_given_photographs(folder, tmp_path):
    photograph, figure = tmp_path / "photograph.png", folder / "images" / "given.png"
    Image.effect_noise((40, 30), 80).save(photograph)
    draw_explanations(folder, figure, images=[photograph])
    draw_explanations(folder, folder / "images" / "again.png", images=[photograph, photograph])
    with Image.open(figure) as one, Image.open(folder / "images" / "again.png") as two:
        assert one.width == two.width
        assert one.height < two.height  # a row for each
