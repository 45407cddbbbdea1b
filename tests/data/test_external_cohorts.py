"""A cohort is scored whole, in the words of training, and what the run learnt from is never among its rows unseen."""

import shutil
from pathlib import Path

import pytest
from external_study import ELSEWHERE, SITES, list_training_rows, paint, parse, write_study
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.external import load_cohorts
from histolab_sft.data.frozen_split import FILE, list_trained
from histolab_sft.errors import AuditRefusal

REAL = Path("../shared/data")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, the cohort's entry, and the names of the pictures of each split of the run."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        entry = write_study(folder)
        yield folder, entry, list_training_rows(folder)


@pytest.fixture
def study(made, tmp_path):
    """A copy to change, and the rest of it."""
    shutil.copytree(made[0], tmp_path / "study", ignore=shutil.ignore_patterns("cache"))
    recipe = tmp_path / "study" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(made[0]), str(tmp_path / "study")))
    return tmp_path / "study", *made[1:]


def load(folder, entry, **keys):
    histo_args = parse(folder, entry | keys)[0]
    [cohort] = load_cohorts(histo_args, list_trained(histo_args, folder / "out"), folder / "out")
    return cohort


def list_rows(cohort):
    return cohort.rows.with_format(None)


def share(folder, path, name="A-QA90-900.png", change=None, label="benign"):
    """Put a picture of training into the cohort under another name, changed or not."""
    target = folder / "hospital" / "test" / label / name
    with Image.open(folder / path) as image:
        (change or (lambda picture: picture))(image).save(target)


@pytest.mark.slow
def test_a_folder_of_test_alone_is_read_in_the_words_of_training(study):
    folder, entry, splits = study
    cohort = load(folder, entry)
    rows, facts = list_rows(cohort), cohort.facts
    assert len(rows) == 3 * 3 * 8 and facts["found"] == 4 * 3 * 8
    assert set(rows["label"]) == {"Normal", "Tumor"} and rows["label"].count("Tumor") == 2 * 3 * 8
    assert set(rows["protocol"]) == {"external"} and len(set(rows["group"])) == 3 * 3 * 4
    assert rows["prompt"][0][0]["content"].count("Normal, Stroma, Tumor") == 1
    assert facts["left_out"] == [
        {"key": "class_names", "reason": "label mapped to null", "label": "artefact", "rows": 3 * 8}
    ]
    assert facts["shared_rows"] == facts["shared_with_test"] == 0


@pytest.mark.slow
def test_the_question_is_that_of_training_also_where_its_name_selects_it(study):
    folder, entry, splits = study
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: ward", "name: pcam") + "prompt_style: dataset_specific\n")
    (folder / "out" / FILE).unlink()
    assert "lymph node" in list_rows(load(folder, entry))["prompt"][0][0]["content"]


@pytest.mark.slow
def test_all_rows_are_scored_whatever_splits_the_data_have_unless_the_block_names_some(study):
    folder, entry, splits = study
    shutil.move(folder / "hospital" / "test", folder / "parts")
    for part, label in (("train", "benign"), ("fold_7", "carcinoma"), ("fold_7", "artefact"), ("train", "adenoma")):
        shutil.copytree(folder / "parts" / label, folder / "hospital" / part / label)
    with pytest.raises(ValueError, match="fold_7"):
        load(folder, entry)  # beside folders of splits, another is no class
    cohort = load(folder, entry, splits={"test": ["fold_7", "train"]})
    assert len(cohort.rows) == 72
    cohort = load(folder, entry, splits={"test": "fold_7"})
    assert set(list_rows(cohort)["label"]) == {"Tumor"}


@pytest.mark.slow
def test_a_label_without_words_is_refused_with_its_count(study):
    folder, entry, splits = study
    names = {label: words for label, words in ELSEWHERE.items() if label != "adenoma"}
    with pytest.raises(ValueError, match=r"'adenoma' \(24 rows\).*Normal, Stroma, Tumor.*or null"):
        load(folder, entry, class_names=names)


def test_a_label_that_the_cohort_lacks_is_no_error(study):
    folder, entry, splits = study
    assert len(load(folder, entry, class_names=ELSEWHERE | {"stroma": "Stroma"}).rows) == 72


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "picture"),
        (lambda picture: picture.rotate(90), "near_copy"),
        (lambda picture: picture.resize((64, 64), Image.Resampling.BICUBIC), "near_copy"),
    ],
)
def test_a_picture_of_training_in_a_cohort_is_refused_or_left_out_or_scored_as_the_block_says(
    study, split, change, reason
):
    folder, entry, splits = study
    share(folder, splits[split][0], change=change)
    with pytest.raises(AuditRefusal, match="(?s)hospital: of 73 rows, .*leaks: drop"):
        load(folder, entry)
    dropped, allowed = (load(folder, entry, leaks=rule) for rule in ("drop", "allow"))
    assert len(dropped.rows) == 72 and len(allowed.rows) == 73
    assert (
        dropped.facts["shared"]
        == allowed.facts["shared"]
        == {"picture": 0, "near_copy": 0, "patient": 0} | {reason: 1}
    )
    assert [part["rows"] for part in dropped.facts["left_out"] if part["key"] == "leaks: drop"] == [1]


@pytest.mark.slow
def test_a_patient_of_training_is_found_where_the_cohorts_share_their_names(study):
    folder, entry, splits = study
    slide = splits["train"][0].rsplit("/", 1)[1].split("-")[0]
    paint(folder / "hospital" / "test" / "benign" / f"A-{slide}-77.png", 77, 90)
    pattern = {"group_by": r"-([PQ]\w+)-", "site_by": "([ABC])-[PQ]"}
    # Elsewhere the same name is another patient.
    assert load(folder, entry, **pattern).facts["shared_rows"] == 0
    with pytest.raises(AuditRefusal, match="1 show a patient or slide"):
        load(folder, entry, cohort="ward", **pattern)


def test_rows_of_the_internal_test_split_are_counted_and_no_leak(study):
    folder, entry, splits = study
    share(folder, splits["test"][0])
    facts = load(folder, entry).facts
    assert (facts["shared_rows"], facts["shared_with_test"]) == (0, 1)


def test_the_recipes_key_decides_where_the_block_says_nothing(study):
    folder, entry, splits = study
    share(folder, splits["train"][0])
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "leaks: allow\n")
    assert load(folder, entry).facts["leaks"] == "allow"


@pytest.mark.slow
def test_without_a_frozen_split_the_data_as_they_are_dealt_now_are_compared(study):
    folder, entry, splits = study
    share(folder, splits["train"][0])
    (folder / "out" / FILE).unlink()
    with pytest.raises(AuditRefusal, match="1 show a picture of train or validation"):
        load(folder, entry)


def test_the_cap_is_over_the_words_of_training_and_counted(study):
    folder, entry, splits = study
    cohort = load(folder, entry, max_samples=20)
    labels = list_rows(cohort)["label"]
    assert labels.count("Normal") == labels.count("Tumor") == 10
    held = [part["rows"] for part in cohort.facts["left_out"] if part["key"] == "max_samples"]
    assert sum(held) == 52


def test_a_cohort_of_which_nothing_is_left_is_refused(study):
    folder, entry, splits = study
    shutil.rmtree(folder / "hospital" / "test")
    for number, path in enumerate(splits["train"][:4]):
        (folder / "hospital" / "test" / "benign").mkdir(parents=True, exist_ok=True)
        share(folder, path, f"A-QA9{number}-0.png")
    with pytest.raises(ValueError, match="all 4 rows show"):
        load(folder, entry, class_names={"benign": "Normal"}, leaks="drop")


@pytest.mark.slow
def test_a_picture_that_cannot_be_used_stops_or_is_counted(study):
    folder, entry, splits = study
    (folder / "hospital" / "test" / "benign" / f"{SITES[0]}-QA99-0.png").write_bytes(b"no picture")
    with pytest.raises(AuditRefusal, match="external cohort 'hospital': 1 picture can't be used"):
        load(folder, entry)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "refused_images: quarantine\n")
    cohort = load(folder, entry)
    assert len(cohort.rows) == 72
    assert {"refused_images: quarantine", "class_names"} == {part["key"] for part in cohort.facts["left_out"]}


@pytest.mark.thorough
@pytest.mark.skipif(not (REAL / "pcam_26k").is_dir(), reason="needs real patches in ../shared/data")
def test_two_publications_of_the_same_patches_are_found_to_share_most_of_them(tmp_path):
    """1,000 patches as PNG, all of them among 3,000 of another publication, encoded again as JPEG."""
    trained = {"name": "pcam", "source": "pcam_1000.csv", "class_names": {"Normal": "Normal", "Tumor": "Tumor"}}
    cohort = {"name": "elsewhere", "source": "pcam_26k", "splits": {"test": "test"}}
    histo_args = HistoArguments(datasets=[trained], external=[cohort], data_dir=str(REAL), leaks="allow")
    [found] = load_cohorts(histo_args, list_trained(histo_args, tmp_path), tmp_path)
    assert found.facts["checked"] == 3000 and found.facts["shared"]["picture"] == 0
    assert 790 <= found.facts["shared"]["near_copy"] <= 830
    assert found.facts["shared_with_test"] >= 200
