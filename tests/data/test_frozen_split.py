"""What a run was trained on is never scored, and no change of the data since training goes untold."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from steady_runs import start_recipe

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.frozen_split import (
    FILE,
    SplitError,
    load_scored_patches,
    load_training_patches,
    read_split,
    write_split,
)
from histolab_sft.embedded.tiny_model import build_untrained_tiny_model
from histolab_sft.publishing.hub import build_publish_folder
from histolab_sft.publishing.push_gate import PublishError

pytestmark = pytest.mark.model

CLASSES = {"N": "Normal", "T": "Tumor"}
SLIDES, PER_SLIDE = 24, 4
PATIENCE = 240


def paint(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def name(slide, number):
    return f"{'NT'[slide % 2]}/S{slide:02d}-{number}.png"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with patches of 24 slides, a recipe, and what two steps of training left in `out`."""
    folder = tmp_path_factory.mktemp("frozen")
    for slide in range(SLIDES):
        for number in range(PER_SLIDE):
            paint(folder / "ward" / name(slide, number), 100 * slide + number)
    for split, slides in (("train", range(30, 38)), ("validation", range(38, 42)), ("test", range(42, 48))):
        for slide in slides:
            for number in range(PER_SLIDE):
                paint(folder / "clinic" / split / name(slide, number), 100 * slide + number)
    build_untrained_tiny_model(folder / "model", num_hidden_layers=2)
    recipe = {
        **{"model_name_or_path": str(folder / "model"), "use_peft": True, "lora_r": 4, "data_dir": str(folder)},
        **{"lora_target_modules": ["q_proj", "v_proj"], "output_dir": str(folder / "out"), "use_cpu": True},
        **{"bf16": False, "dtype": "float32", "max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1},
        **{"vision_cache": "off", "activation_checkpointing": False, "disable_tqdm": True, "save_strategy": "no"},
        **{"generate_answers": False, "max_length": None},
        "datasets": [
            {"name": "ward", "source": "ward", "class_names": CLASSES, "group_by": r"(S\d+)-"},
            {"name": "clinic", "source": "clinic", "class_names": CLASSES, "group_by": r"(S\d+)-"},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("recipes/sft.py", folder)
    return folder


@pytest.fixture
def changed(trained, tmp_path):
    """A copy of all that, to change; the recipe reads and writes there."""
    for part in ("ward", "clinic", "out"):
        shutil.copytree(trained / part, tmp_path / part)
    change_recipe(trained, tmp_path, data_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    return tmp_path


def change_recipe(source, target, first=None, **keys):
    """Write the recipe of `source` to `target` with other keys, also of its first data set."""
    recipe = yaml.safe_load((source / "recipe.yaml").read_text()) | keys
    recipe["datasets"][0] |= first or {}
    (target / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def parse(folder, *flags):
    return parse_recipe(["--config", str(folder / "recipe.yaml"), *flags])


def run(script, folder, *flags, code=0):
    log = folder / "log.txt"
    process = start_recipe(folder / "recipe.yaml", log, *flags, script=script)
    process.join(PATIENCE)
    assert process.exitcode == code, log.read_text()[-4000:]
    return log.read_text()


def list_rows(splits):
    """`(split, pixels, data set, patient, label)` of every row."""
    return [
        (split, tuple(row["pixel_sha256"]), row["dataset"], row["group"], row["label"])
        for split, rows in splits.items()
        for row in rows.with_format(None)
    ]


# Changes: of the folder, and of the recipe by `change_recipe`.


def add(folder, slides=(90,), count=PER_SLIDE):
    for slide in slides:
        for number in range(count):
            paint(folder / "ward" / name(slide, number), 100 * slide + number)


def remove(folder, slides=(3,)):
    for slide in slides:
        for path in folder.glob(f"ward/*/S{slide:02d}-*.png"):
            path.unlink()


def remove_one(folder):
    (folder / "ward" / name(0, 0)).unlink()


def rename_files(folder):
    for path in folder.glob("ward/*/*.png"):
        path.rename(path.with_name(f"{path.stem}-again.png"))


def rename_slides(folder):
    """Other numbers, so that the slides are dealt out in another way."""
    for path in sorted(folder.glob("ward/*/*.png")):
        slide, number = map(int, re.findall(r"\d+", path.stem))
        path.rename(path.with_name(f"S{99 - 2 * slide + slide % 2 - 10:02d}-{number}.png"))


def relabel(folder):
    for path in list(folder.glob("ward/N/S00-*.png")):
        path.rename(folder / "ward" / "T" / path.name)


def swap_labels(folder):
    (folder / "ward" / "N").rename(folder / "ward" / "X")
    (folder / "ward" / "T").rename(folder / "ward" / "N")
    (folder / "ward" / "X").rename(folder / "ward" / "T")


def move_train_to_test(folder):
    for path in list(folder.glob("clinic/train/*/S30-*.png")):
        path.rename(folder / "clinic" / "test" / path.parent.name / path.name)


def move_one_of_a_patient(folder):
    # The others of the patient leave, so that no audit of the new splits can see it.
    for path in list(folder.glob("clinic/train/*/S31-*.png"))[1:]:
        path.unlink()
    for path in list(folder.glob("clinic/train/*/S31-*.png")):
        path.unlink()
    paint(folder / "clinic" / "test" / name(31, 9), 77)


def move_test_to_train(folder):
    for path in list(folder.glob("clinic/test/*/S42-*.png")):
        path.rename(folder / "clinic" / "train" / path.parent.name / path.name)


def copy_train_into_another_set(folder):
    for split, slides in (("train", (50, 51)), ("validation", (52, 53)), ("test", (54, 55))):
        for slide in slides:
            paint(folder / "other" / split / name(slide, 0), 100 * slide)
    shutil.copyfile(folder / "clinic" / "train" / name(30, 0), folder / "other" / "test" / name(56, 0))


def save_again(folder):
    """As JPEG, twice as large: not one pixel is as it was."""
    for path in list(folder.glob("ward/*/*.png")):
        image = Image.open(path)
        image.resize((32, 32), Image.Resampling.BICUBIC).save(path.with_suffix(".jpg"), quality=95, subsampling=0)
        path.unlink()


def turn_train_into_test(folder, gone=False):
    """Of patients that nobody knows, so that the picture alone can tell."""
    for slide, number in ((30, 0), (33, 1)):
        path = folder / "clinic" / "train" / name(slide, number)
        image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        image.save(folder / "clinic" / "test" / path.parent.name / f"S{slide + 60}-0.png")
    for path in list(folder.glob("clinic/train/*/S3[03]-*.png")) if gone else ():
        path.unlink()


def overwrite(folder):
    paint(folder / "clinic" / "test" / name(42, 0), 4711)


def nothing(folder):
    pass


OTHER = {"name": "other", "source": "other", "class_names": CLASSES, "group_by": r"(S\d+)-"}
SAME = {"name": "again", "source": "ward", "class_names": CLASSES, "group_by": r"(S\d+)-"}
# What happened: the change of the folder, that of the recipe, what is said, and whether it is refused.
REFUSED, TOLD = True, False
CHANGES = {
    "a slide added": (add, {}, r"ward: of \d+ (test|validation) rows, [1-9]\d* show a picture", REFUSED),
    "three slides added": (lambda f: add(f, (90, 91, 93)), {}, "show a picture that was trained on", REFUSED),
    "a slide removed": (remove, {}, "show a picture that was trained on", REFUSED),
    "two slides removed": (lambda f: remove(f, (4, 9)), {}, "show a picture that was trained on", REFUSED),
    "a patch removed": (remove_one, {}, None, None),
    "a patch of a known slide added": (lambda f: paint(f / "ward" / name(2, 9), 5), {}, None, None),
    "files renamed": (rename_files, {}, r"ward, another name: 96 rows", TOLD),
    "slides renamed": (rename_slides, {}, "show a picture that was trained on", REFUSED),
    "a slide relabelled": (relabel, {}, None, None),
    "labels swapped": (swap_labels, {}, None, None),
    "moved from train to test": (move_train_to_test, {}, r"clinic: of 28 test rows, 4 show a picture", REFUSED),
    "a new picture of a patient trained on": (
        *(move_one_of_a_patient, {}),
        r"clinic: of 25 test rows, 0 show a picture .* on, 0 more a near copy of one, and 1 more a patient",
        REFUSED,
    ),
    "moved from test to train": (
        *(move_test_to_train, {}, r"clinic, another split than in training \(test to train: 4\)", TOLD),
    ),
    "every picture saved again, and another seed": (
        *(save_again, {"split_seed": 7}, r"ward: of \d+ test rows, 0 show .* on, [1-9]\d* more a near copy", REFUSED),
    ),
    "turned copies of pictures trained on": (
        *(turn_train_into_test, {}, r"clinic: of 26 test rows, 0 show .* on, 2 more a near copy", REFUSED),
    ),
    "turned copies of pictures trained on that are gone": (
        *(lambda f: turn_train_into_test(f, True), {}, r"clinic: of 26 test rows, 0 .* 2 more a near copy", REFUSED),
    ),
    "a test picture painted over": (overwrite, {}, "clinic, other pixels under the same name: 1 row$", TOLD),
    "another seed": (nothing, {"split_seed": 7}, "show a picture that was trained on", REFUSED),
    "another test fraction": (nothing, {"test_fraction": 0.3}, "show a picture that was trained on", REFUSED),
    "another validation fraction": (nothing, {"validation_fraction": 0.3}, "validation rows, [1-9]", REFUSED),
    "another cap": (nothing, {"max_samples": 40}, "max_samples is 40, and was None in training", None),
    "a cap of the data set": (
        *(nothing, {"first": {"max_samples": 60}}),
        *("max_samples of data set ward is 60, and was None in training", None),
    ),
    "a test cap": (nothing, {"max_test_samples": 8}, "max_test_samples is 8, and was None in training", TOLD),
    "another protocol": (nothing, {"split_protocol": "seed"}, "show a picture that was trained on", REFUSED),
    "patients not known any more": (nothing, {"first": {"group_by": None}}, "show a picture", REFUSED),
    "another pattern of patients": (
        *(nothing, {"first": {"group_by": r"(S\d+-\d)"}}, "another patient or slide|show a picture", None),
    ),
    "another recipe of the same folder": (
        *(nothing, {"datasets": [SAME], "split_seed": 5}, "again: of .* test rows, [1-9]", REFUSED),
    ),
    "another recipe that caps the same folder": (
        *(nothing, {"datasets": [SAME], "split_seed": 5, "max_samples": 12}, "again: of .* rows", REFUSED),
    ),
    "other words for the classes": (
        *(nothing, {"first": {"class_names": {"N": "Healthy", "T": "Tumor"}}}),
        *("ward, another label or answer", TOLD),
    ),
    "another wording": (
        *(nothing, {"prompt_style": "dataset_specific"}, "prompt_style is dataset_specific, and was generic", TOLD),
    ),
    "the data set under another name": (
        *(nothing, {"first": {"name": "renamed"}}, "renamed, from another data set: 96 rows", None),
    ),
    "a copied picture in a new data set": (
        *(copy_train_into_another_set, {"datasets": [OTHER]}, "other: of 3 test rows, 1 show a picture", REFUSED),
    ),
    "one of the data sets alone": (
        *(nothing, {"datasets": [OTHER | {"name": "clinic", "source": "clinic"}]}),
        *("data set ward is absent, and was there in training", TOLD),
    ),
    "the folder moved": (
        lambda f: (f / "ward").rename(f / "moved"),
        {"first": {"source": "moved"}},
        "source of",
        TOLD,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_since_training_is_refused_or_told_and_nothing_trained_on_is_scored(trained, changed, kind, caplog):
    original = list_rows(load_training_patches(parse(trained)[0], trained / "out"))
    pictures = {pixels for split, pixels, *_ in original if split == "train"}
    patients = {(dataset, patient) for split, _, dataset, patient, _ in original if split == "train"}
    named = {"again": "ward", "renamed": "ward", "other": "other"}
    change, keys, said, refused = CHANGES[kind]
    change(changed)
    change_recipe(changed, changed, **keys)
    histo_args = parse(changed)[0]

    caplog.clear()
    try:
        patches, sentences = load_scored_patches(histo_args, changed / "out")
    except SplitError as error:
        assert refused in (REFUSED, None)
        text = str(error)
        assert "changed_split: frozen" in text and "changed_split: new" in text
        assert re.search(r"[1-9]\d* (show a picture that was trained on|more a)", text)
        if refused:
            assert re.search(said, text), text
        outcomes = []
    else:
        assert refused in (TOLD, None) and sentences
        assert said is None or re.search(said, "\n".join(sentences)), sentences
        assert all(sentence in caplog.text for sentence in sentences)
        outcomes = [patches]

    for choice in ("new", "frozen"):
        histo_args.changed_split = choice
        try:
            outcomes.append(load_scored_patches(histo_args, changed / "out")[0])
        except SplitError as error:
            assert re.search("nothing is left|trained on", str(error))
    for patches in outcomes:
        for split, pixels, dataset, patient, _ in list_rows(patches):
            if split != "train":
                assert pixels not in pictures
                # Slides that bear the name of another one after the change are told apart by their pictures.
                if kind != "slides renamed" and patient is not None and re.fullmatch(r"S\d\d", patient):
                    assert (named.get(dataset, dataset), patient) not in patients


def test_an_unchanged_run_is_scored_without_a_word(trained):
    patches, sentences = load_scored_patches(parse(trained)[0], trained / "out")
    assert sentences == [] and len(patches["test"]) > 0


def test_keys_of_scoring_alone_and_keys_that_are_new_change_nothing(trained, changed):
    change_recipe(changed, changed, first={"target_sensitivity": 0.9, "prevalence": 0.1})
    assert load_scored_patches(parse(changed)[0], changed / "out")[1] == []
    split = read_split(changed / "out")
    for keys in split.settings["datasets"].values():
        del keys["multi_scale"]  # as if it had come after the training
    write_split(split, changed / "out")
    assert load_scored_patches(parse(changed)[0], changed / "out")[1] == []


@pytest.mark.parametrize("keys", [{"split_seed": 7}, {"test_fraction": 0.3}, {"split_protocol": "seed"}])
def test_the_frozen_split_is_the_one_of_training_whatever_deals_now(trained, changed, keys):
    change_recipe(changed, changed, **keys)
    frozen = read_split(trained / "out")
    histo_args = parse(changed, "--changed_split", "frozen")[0]
    patches, sentences = load_scored_patches(histo_args, changed / "out")
    original = load_training_patches(parse(trained)[0], trained / "out")
    assert list_rows(patches) == list_rows(original)
    assert list(patches["test"].with_format(None)["id"]) == list(original["test"].with_format(None)["id"])
    assert len(frozen.rows) == len(list_rows(patches))
    assert any(next(iter(keys)) in sentence for sentence in sentences)


def test_a_folder_without_a_frozen_split_says_that_nothing_is_known(changed, caplog):
    (changed / "out" / FILE).unlink()
    _, sentences = load_scored_patches(parse(changed)[0], changed / "out")
    assert len(sentences) == 1 and "isn't known" in sentences[0] and sentences[0] in caplog.text


def test_a_damaged_frozen_split_is_refused_by_name(changed):
    os.truncate(changed / "out" / FILE, 100)
    with pytest.raises(SplitError, match=rf"{FILE} can't be read.*train again"):
        load_scored_patches(parse(changed)[0], changed / "out")


def test_training_on_other_rows_in_the_folder_of_an_adapter_is_refused(changed):
    change_recipe(changed, changed, split_seed=7)
    with pytest.raises(SplitError, match=r"trained on other rows:\n.*split_seed is 7, and was 42"):
        load_training_patches(parse(changed)[0], changed / "out")
    (changed / "out" / "adapter_model.safetensors").unlink()
    load_training_patches(parse(changed)[0], changed / "out")
    assert read_split(changed / "out").settings["split_seed"] == 7


def test_what_an_adapter_had_learnt_before_counts_when_a_run_goes_on_from_it(trained, changed):
    flags = ["--adapter_name_or_path", str(trained / "out")]
    change_recipe(changed, changed, split_seed=7)
    with pytest.raises(SplitError, match="the adapter in .*\n.*ward: of .* rows, [1-9]"):
        load_training_patches(parse(changed, *flags)[0], changed / "next")
    # On other patients, and then scored on those of the first run.
    change_recipe(changed, changed, split_seed=42, datasets=[OTHER | {"name": "clinic", "source": "clinic"}])
    load_training_patches(parse(changed, *flags)[0], changed / "next")
    change_recipe(trained, changed, data_dir=str(changed), split_seed=7)
    with pytest.raises(SplitError, match="ward: of .* rows, [1-9]"):
        load_scored_patches(parse(changed)[0], changed / "next")


def test_near_copies_of_what_was_trained_on_are_left_out_of_the_new_split_with_their_patients(changed, caplog):
    turn_train_into_test(changed)
    paint(changed / "clinic" / "test" / "N" / "S90-1.png", 5)  # another picture of the patient of a copy
    histo_args = parse(changed, "--changed_split", "new")[0]
    rows = load_scored_patches(histo_args, changed / "out")[0]["test"].with_format(None)
    assert not {"S90", "S93"} & set(rows["group"]) and len([g for g in rows["dataset"] if g == "clinic"]) == 24
    assert "2 more a near copy of one, and 1 more a patient or slide that was; they are left out" in caplog.text


def test_near_copies_that_were_there_in_training_are_a_matter_of_its_audit(changed):
    turn_train_into_test(changed)
    load_training_patches(parse(changed)[0], changed / "next")
    assert load_scored_patches(parse(changed)[0], changed / "next")[1] == []


def test_blank_pictures_give_nothing_away(changed):
    for split in ("train", "test"):
        for label in CLASSES:
            path = changed / "clinic" / split / label / f"S{80 + len(split)}-0.png"
            Image.new("RGB", (16, 16), "white").save(path)
    load_training_patches(parse(changed)[0], changed / "next")
    assert load_scored_patches(parse(changed)[0], changed / "next")[1] == []


@pytest.mark.thorough
def test_the_commands_refuse_tell_and_publish_accordingly(trained, changed):
    add(changed)
    log = run("recipes/evaluate.py", changed, code=1)
    assert "error: " in log and "show a picture that was trained on" in log
    assert not (changed / "out" / "evaluation" / "results.json").exists()

    run("recipes/evaluate.py", changed, "--changed_split", "frozen")
    results = json.loads((changed / "out" / "evaluation" / "results.json").read_text())
    record = json.loads((changed / "out" / "run.json").read_text())
    assert results["provenance"]["data_fingerprint"] == record["data_fingerprint"]
    assert results["provenance"]["changes"]

    run("recipes/evaluate.py", changed, "--changed_split", "new")
    with pytest.raises(PublishError, match=r"fingerprint .*, expected .* as in run.json"):
        build_publish_folder(*parse(changed))
