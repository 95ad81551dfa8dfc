# SPDX-License-Identifier: Apache-2.0
"""What is shown of multi-label models, several objects or none: figures, lines, annotations, pages, files, cards."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from publishing_folders import SIZES, make_entry, make_record, write_complete_folder
from transformers import ViTConfig, ViTForImageClassification, pipeline

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.cli import explain as explain_script
from transformers_ice.explainers import MapExplainer
from transformers_ice.export import AnnotationFiles, ExplanationPage
from transformers_ice.hub import build_card, check_folder, read_facts
from transformers_ice.hub.card import first_snippet
from transformers_ice.hub.fresh_process import compare_without_package
from transformers_ice.hub.records import entries_from_training
from transformers_ice.ice_deit.explanation_ice_deit import FoundObject, PatchExplanation
from transformers_ice.visualization import (
    PanelRow,
    class_colors,
    explanation_panel,
    heatmap_figure,
    object_colors,
    objects_of,
    overlay_objects,
    save_result,
)
from transformers_ice.visualization.objects import place_labels


NAMES = {0: "cat", 1: "dog", 2: "hen"}
BOXES = ((10, 20, 50, 60), (60, 30, 110, 90), (5, 70, 45, 95))
SIZE = (100, 120)


def explanation_of(count):
    """Return an explanation of an image of 100 x 120 pixels with dog, cat and hen, the first `count` of them."""
    class_map, objects = np.full(SIZE, 3), []
    for index, score, box in list(zip((1, 0, 2), (0.9, 0.75, 0.5), BOXES, strict=True))[:count]:
        mask = np.zeros(SIZE, bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        class_map[mask] = index
        objects.append(FoundObject(NAMES[index], index, score, box, mask, mask.astype(np.float32) * 0.8))
    mask = class_map != 3
    best = objects[0] if objects else None
    heatmap = mask.astype(np.float32) * 0.9
    label, score = (best.label, best.score) if best else ("background", 0.7)
    box, index = (best.box, best.class_index) if best else (None, None)
    shares = float(mask.mean())
    return PatchExplanation(label, score, box, heatmap, class_map, mask, shares, None, index, tuple(objects))


@pytest.fixture
def grey():
    return np.full((*SIZE, 3), 128, np.uint8)


# --- figures -------------------------------------------------------------------------------------------------------


def test_an_object_has_the_color_of_its_class_in_the_class_map():
    explanation = explanation_of(3)
    colors = object_colors(objects_of(explanation.to_dict()), NAMES, [explanation.class_map])
    of_map = class_colors([explanation.class_map], NAMES)
    assert colors == {NAMES[index]: color for index, color in of_map.items()}
    assert len(set(colors.values())) == 3
    assert objects_of({"label": "cat"}) is None


def test_masks_are_tinted_and_pixels_of_nothing_unchanged(grey):
    objects = objects_of(explanation_of(2).to_dict())
    drawn = overlay_objects(grey, objects, {"dog": "#FF0000", "cat": "#0000FF"}, tint=0.5)
    assert drawn[45, 20].tolist() == [192, 64, 64]  # half of 128, half of red: halves to even
    assert drawn[60, 80].tolist() == [64, 64, 192]
    assert drawn[98, 118].tolist() == [128] * 3
    assert (drawn[21, 20:40] == [255, 0, 0]).all(axis=1).any()  # the line of the box, between black ones
    assert (grey == 128).all()


def test_nothing_found_is_written_and_small_images_have_no_text(grey):
    drawn = overlay_objects(grey, [], {})
    assert (drawn != 128).any()
    assert (drawn[30:] == 128).all()
    assert np.array_equal(overlay_objects(grey[:40], [], {}), grey[:40])


def test_labels_lie_in_the_image_and_not_on_each_other():
    explanation = explanation_of(3)
    objects = [replace(found, box=(100, 0, 120, 10)) for found in objects_of(explanation.to_dict())]
    objects[0] = replace(objects[0], label="a name much too long for this image, or another one")
    colors = dict.fromkeys([found.label for found in objects], "#FF0000")
    placed = place_labels(objects, colors, SIZE, 10)
    assert placed[0][0].endswith("… 0.90")
    assert [text for text, *_ in placed[1:]] == ["cat 0.75", "hen 0.50"]
    for number, (*_, (left, top), (right, bottom)) in enumerate(placed):
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 100
        for *_, (other_left, other_top), (other_right, other_bottom) in placed[:number]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
    ((text, *_),) = place_labels([], {}, SIZE, 10)
    assert text == "nothing found"


FORMS = (("png", 1), ("png", 0.5), ("png", 2), ("svg", 1))


@pytest.mark.parametrize(
    ("count", "forms"),
    [
        *((count, FORMS[1::2]) for count in (0, 1, 3)),
        *(pytest.param(count, FORMS, marks=pytest.mark.slow) for count in (0, 1, 2, 3)),
    ],
)
def test_every_picture_of_every_number_of_objects_is_drawn(count, forms, grey, tmp_path):
    explanation = explanation_of(count)
    for picture in ("heatmap", "class_map", "mask", "cut_out", "panel"):
        for form, scale in forms:
            for name, result in (("own", explanation), ("dict", explanation.to_dict())):
                save_result(grey, result, NAMES, tmp_path / f"{name}.{form}", picture, scale)
            assert (tmp_path / f"own.{form}").read_bytes() == (tmp_path / f"dict.{form}").read_bytes()
        text = " ".join(re.findall(r"<text[^>]*>([^<]*)<", (tmp_path / "own.svg").read_text()))
        if picture in ("heatmap", "mask", "panel"):
            assert [f"{own.label} {own.score:.2f}" in text for own in explanation.objects] == [True] * count
        if picture != "cut_out":
            assert ("nothing found" in text) == (count == 0)


def test_a_panel_has_the_heat_maps_of_the_two_best_objects(grey):
    rows = [PanelRow.from_result(grey, explanation_of(count)) for count in (0, 1, 3)]
    figure = explanation_panel(rows, NAMES)
    axes = np.array(figure.axes).reshape(3, 4)
    assert [axis.get_title() for axis in axes[0]] == ["image", "class map", "heat map", "next heat map"]
    quantities = [[axis.get_xlabel() for axis in line[2:]] for line in axes]
    assert quantities == [["p(not background)", ""], ["p(dog)", ""], ["p(dog)", "p(cat)"]]
    assert rows[0].title == "nothing found"
    assert rows[2].title == "dog 0.90\ncat 0.75\nhen 0.50"
    of_target = PanelRow.from_result(grey, explanation_of(2), target="hen")
    assert [name for name, _ in of_target.heatmaps] == ["p(hen)"]
    figure = explanation_panel([of_target], NAMES)
    assert len(figure.axes) == 3


def test_a_title_names_the_true_classes_only_where_they_are_others(grey):
    def title(truth, count=2):
        return PanelRow.from_result(grey, explanation_of(count), truth_label=truth).title

    assert "true" not in title("cat, dog")  # in the order of their indices, not of the scores
    assert title("cat").endswith("\n(true: cat)")
    assert title("background", 0) == "nothing found"
    assert title("cat", 0) == "nothing found\n(true: cat)"


def test_a_heat_map_figure_labels_every_object(grey):
    texts = [text.get_text() for text in heatmap_figure(grey, explanation_of(3)).axes[0].texts]
    assert texts == ["dog 0.90", "cat 0.75", "hen 0.50"]
    assert [text.get_text() for text in heatmap_figure(grey, explanation_of(0)).axes[0].texts] == ["nothing found"]


# --- annotations and page ------------------------------------------------------------------------------------------


def test_coco_has_an_annotation_of_each_object(tmp_path):
    writer = AnnotationFiles("coco", tmp_path, NAMES)
    for count in (2, 0):
        writer.add(tmp_path / f"{count}.png", str(count), explanation_of(count).to_dict())
    writer.write()
    content = json.loads((tmp_path / "coco.json").read_text())
    assert len(content["images"]) == 2
    found = [(item["id"], item["image_id"], item["category_id"], item["score"]) for item in content["annotations"]]
    assert found == [(1, 1, 1, 0.9), (2, 1, 0, 0.75)]
    assert [item["bbox"] for item in content["annotations"]] == [[10, 20, 40, 40], [60, 30, 50, 60]]
    assert [item["area"] for item in content["annotations"]] == [1600, 3000]


def test_labelme_and_voc_hold_every_object_and_an_empty_image_has_no_file(tmp_path):
    for kind in ("labelme", "voc"):
        writer = AnnotationFiles(kind, tmp_path, NAMES)
        for count in (2, 0):
            writer.add(tmp_path / f"{count}.png", str(count), explanation_of(count).to_dict())
    shapes = json.loads((tmp_path / "labelme" / "2.json").read_text())["shapes"]
    assert [(shape["label"], shape["group_id"]) for shape in shapes] == [("dog", 1), ("cat", 2)]
    things = ElementTree.parse(tmp_path / "voc" / "2.xml").getroot().findall("object")
    assert [(item.findtext("name"), item.findtext("bndbox/xmin")) for item in things] == [
        ("dog", "11"),
        ("cat", "61"),
    ]
    assert not (tmp_path / "voc" / "0.xml").exists()
    assert not (tmp_path / "labelme" / "0.json").exists()


def test_the_page_lists_objects_and_is_wrong_only_where_none_has_the_true_class(tmp_path, grey):
    page = ExplanationPage(tmp_path, NAMES)
    page.add(tmp_path / "cat" / "a.png", Image.fromarray(grey), explanation_of(2).to_dict())
    page.add(tmp_path / "hen" / "b.png", Image.fromarray(grey), explanation_of(2).to_dict())
    page.add(tmp_path / "c.png", Image.fromarray(grey), explanation_of(0).to_dict())
    page.write()
    text = (tmp_path / "index.html").read_text()
    assert text.count("<b>dog</b> 90.0%, <b>cat</b> 75.0%") == 2
    assert "<b>nothing found</b>" in text
    assert "1 of 2 with a known class are wrong" in text
    assert text.count("(true: hen)") == 1


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that finds cat and dog in every image and never hen."""
    folder = tmp_path_factory.mktemp("several")
    config = IceDeiTConfig(**{**SIZES, "id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}})
    config.problem_type, config.object_thresholds = "multi_label_classification", [0.0, 0.01, 1.0]
    torch.manual_seed(9)  # every class has patches of a noise image
    model = IceDeiTForImageClassification(config)
    with torch.no_grad():
        model.deit.patch_head.weight.mul_(50)
    model.save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("target", [None, "hen"])
def test_a_line_holds_the_objects_of_the_pipeline(folder, photo, tmp_path, capsys, target):
    words = [str(photo), "--model", str(folder), "--output_dir", str(tmp_path / "out"), "--annotations", "coco"]
    assert explain_script.main([*words, "--html", "true", *(["--target", target] if target else [])]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = pipeline("patch-explanation", model=str(folder))(str(photo), **({"target": target} if target else {}))
    assert record["objects"] == [
        {"label": found["label"], "score": pytest.approx(found["score"], abs=1e-6), "box": found["box"]}
        for found in expected["objects"]
    ]
    assert len(record["objects"]) == 2
    assert record.get("target") == target
    assert (record["label"], record["found"]) == (record["objects"][0]["label"], True)
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"]) == len(record["objects"])
    assert "<b>" + record["label"] + "</b>" in (tmp_path / "out" / "index.html").read_text()


def test_a_picture_of_nothing_says_so(folder, photo, tmp_path, capsys):
    other = tmp_path / "strict"
    model = IceDeiTForImageClassification.from_pretrained(folder)
    model.config.object_thresholds = [1.0] * 3
    model.save_pretrained(other)
    IceDeiTImageProcessor.from_pretrained(folder).save_pretrained(other)
    assert explain_script.main([str(photo), "--model", str(other), "--output_dir", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert (record["objects"], record["found"], record["box"], record["label"]) == ([], False, None, "background")
    assert "1 of 1: nothing the model knows" in captured.err


@pytest.mark.parametrize("kind", ["ice", "vit"])
def test_relevance_maps_have_the_sigmoid_of_the_largest_logit(kind, folder, photo):
    if kind == "ice":
        model = IceDeiTForImageClassification.from_pretrained(folder).eval()
    else:
        model = ViTForImageClassification(ViTConfig(**SIZES, problem_type="multi_label_classification")).eval()
        randomize(model)
    processor = IceDeiTImageProcessor.from_pretrained(folder)
    with Image.open(photo) as image:
        (result,) = MapExplainer(model, processor, "raw_attention")([image.convert("RGB")])
        outputs = model(**processor(image.convert("RGB"), return_tensors="pt"))
    logits = (outputs.cls_logits if kind == "ice" else outputs.logits)[0]
    assert result["label"] == model.config.id2label[logits.argmax().item()]
    assert result["score"] == pytest.approx(logits.max().sigmoid().item(), abs=1e-5)


# --- exported files ------------------------------------------------------------------------------------------------


def test_an_onnx_file_finds_the_objects_of_its_model(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers_ice.export import OnnxModel, export_onnx

    model = IceDeiTForImageClassification.from_pretrained(folder).eval()
    processor = IceDeiTImageProcessor.from_pretrained(folder)
    file = export_onnx(model, tmp_path / "several.onnx", processor)
    exported = OnnxModel(file)
    assert exported.metadata["object_thresholds"] == [0.0, 0.01, 1.0]
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = processor.post_process_explanation(model(pixel_values), [(40, 50)] * 3, id2label=NAMES)
    found = processor.post_process_explanation(exported.outputs(pixel_values), [(40, 50)] * 3, id2label=NAMES)
    assert any(own.objects for own in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [(own.label, own.box) for own in ours.objects] == [(own.label, own.box) for own in theirs.objects]
        for own, other in zip(ours.objects, theirs.objects, strict=True):
            assert own.score == pytest.approx(other.score, abs=1e-5)
            assert np.array_equal(own.mask, other.mask)


# --- cards ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    fields = {"problem_type": "multi_label_classification", "object_thresholds": [0.0, 0.25, 0.0]}
    return write_complete_folder(tmp_path_factory.mktemp("published") / "tiny", **fields)


def test_a_card_says_that_an_image_has_several_classes(published):
    results = (make_entry(metric="map", value=0.8), make_entry(metric="f1", value=0.7))
    card = build_card(make_record(published, results=results), read_facts(published))
    assert "An image may show several of its classes, or none." in card
    assert "| an image has | several classes, or none; a class is found from a score of 0 to 0.25, one for" in card
    assert "mean average precision of the classes of an image | 0.800" in card
    assert "pipeline_tag: image-classification" in card
    assert re.search(r"^metrics:\n- mean_average_precision\n- f1\n", card, re.MULTILINE)
    assert "one image, one class" not in card
    assert 'for found in explanation["objects"]:' in first_snippet(card)
    plain = replace(read_facts(published), config={**read_facts(published).config, "problem_type": None})
    assert "several classes" not in build_card(make_record(published), plain)


def test_numbers_of_a_run_of_several_classes():
    numbers = {"eval_map": 0.9, "eval_f1": 0.8, "eval_cls_map": 0.7, "eval_foreground_ratio": 0.2}
    run = {"dataset": "scenes", "num_images": 8, "command": "c", "hardware": "h", "date": "2026-01-01", "seed": 3}
    entries = {entry.metric: entry.value for entry in entries_from_training(numbers, **run)}
    assert entries == {"map": 0.9, "f1": 0.8, "cls_map": 0.7, "foreground_ratio": 0.2}
    assert entries_from_training({"eval_foreground_ratio": 0.2}, **run) == ()


def test_a_folder_of_several_classes_can_be_published(published):
    assert check_folder(published) == []
    assert compare_without_package(published) == []
