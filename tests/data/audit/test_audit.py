"""Audit of the splits: copies, groups, classes, shortcuts, and the near-duplicate search behind it."""

import json

import numpy as np
import pandas as pd
import pytest
from audited_patches import compress, make_patch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from histolab_sft.data.audit import audit as auditing
from histolab_sft.data.audit import near_copies
from histolab_sft.data.audit.audit import format_audit, write_audit
from histolab_sft.data.audit.audit_checks import compute_association
from histolab_sft.data.audit.copies import find_leaking_rows, find_near_copies
from histolab_sft.data.audit.near_copies import SAME_PICTURE, find_near_duplicates
from histolab_sft.data.pictures.inspection import check_images


def shrink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX))


def make_rows(count: int, **columns) -> pd.DataFrame:
    """A clean data set: three splits, two classes each, a slide per patch."""
    splits = ["train", "validation", "test"]
    rows = pd.DataFrame({"path": [f"{number}.png" for number in range(count)], "row": -1})
    rows["dataset"] = rows["cohort"] = "crc"
    rows["split"] = [splits[number % 3] for number in range(count)]
    rows["label"] = [("Normal", "Tumor")[number // 3 % 2] for number in range(count)]
    rows["group"] = [f"slide {number}" for number in range(count)]
    return rows.assign(**columns)


def make_intake(rows: pd.DataFrame, pixels: list | None = None, **columns) -> pd.DataFrame:
    """What the intake would say of distinct ordinary pictures; equal entries of `pixels` mean equal pictures."""
    pixels = list(range(len(rows))) if pixels is None else pixels
    intake = rows[["path", "row"]].assign(
        verdict="ok", reason="", conversions="", width=96, height=96, mode="RGB", format="PNG", file_bytes=9000
    )
    intake["file_sha256"] = [f"file {number}" for number in pixels]
    intake["pixel_sha256"] = [f"pixels {number}" for number in pixels]
    intake["thumbnail"] = [
        np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8).tobytes() for number in pixels
    ]
    return intake.assign(contrast=30.0, background_fraction=0.1).assign(**columns)


def audit_patches(rows, intake, class_names=None):
    return auditing.audit_patches(rows, intake, find_near_copies(intake), class_names) | {
        "dropped": [],
        "not_read": {},
        "siblings": None,
    }


def leaks_of(rows, intake):
    return find_leaking_rows(rows, intake, find_near_copies(intake)).to_dict()


def find(audit: dict, check: str) -> dict:
    (finding,) = [finding for finding in audit["findings"] if finding["check"] == check]
    return finding


def checks_of(audit: dict, level: str | None = None) -> set[str]:
    return {finding["check"] for finding in audit["findings"] if level in (None, finding["level"])}


def test_a_clean_data_set_has_no_findings():
    rows = make_rows(60)
    audit = audit_patches(rows, make_intake(rows))
    assert audit["findings"] == [] and audit["refusals"] == audit["warnings"] == 0
    assert audit["patches"] == 60
    assert audit["counts"] == {"crc": dict.fromkeys(("train", "validation", "test"), {"Normal": 10, "Tumor": 10})}
    assert audit["images"]["crc"]["split"]["test"] == {
        "formats": {"PNG": 20}, "sizes": {"96 x 96": 20}, "modes": {"RGB": 20}
    }  # fmt: skip
    assert leaks_of(rows, make_intake(rows)) == {}


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2)])
def test_equal_pixels_in_two_splits_are_refused_whichever_the_splits(first, second):
    rows = make_rows(60)
    pixels = list(range(60))
    pixels[second] = pixels[first]
    finding = find(audit_patches(rows, make_intake(rows, pixels)), "copies_across_splits")
    assert finding["level"] == "refusal" and finding["count"] == 1
    assert "1 of them as equal files" in finding["message"]
    assert [[patch["patch"] for patch in example] for example in finding["examples"]] == [
        [f"{first}.png", f"{second}.png"]
    ]


def test_equal_pixels_under_other_bytes_are_still_a_copy():
    rows = make_rows(60)
    intake = make_intake(rows)
    intake.loc[1, "pixel_sha256"] = intake.loc[0, "pixel_sha256"]
    assert "(0 of them as equal files" in find(audit_patches(rows, intake), "copies_across_splits")["message"]


def test_copies_inside_a_split_only_warn():
    rows = make_rows(60)
    pixels = list(range(60))
    pixels[6] = pixels[12] = pixels[0]
    audit = audit_patches(rows, make_intake(rows, pixels))
    assert checks_of(audit) == {"copies_within_split"}
    finding = find(audit, "copies_within_split")
    assert finding["level"] == "warning" and "2 surplus" in finding["message"] and len(finding["examples"][0]) == 3


def test_one_picture_with_two_labels_is_a_warning_and_across_splits_a_refusal_too():
    rows = make_rows(60)
    inside, across = list(range(60)), list(range(60))
    inside[3] = inside[0]  # both train, Normal and Tumor
    across[4] = across[0]  # train Normal, validation Tumor
    audit = audit_patches(rows, make_intake(rows, inside))
    assert checks_of(audit, "refusal") == set()
    assert find(audit, "conflicting_labels")["message"].startswith(
        "1 pictures or near copies carry more than one label (0 of them"
    )
    audit = audit_patches(rows, make_intake(rows, across))
    assert checks_of(audit, "refusal") == {"copies_across_splits"}
    assert "(1 of them across splits, 0 as near copies)" in find(audit, "conflicting_labels")["message"]


def test_the_same_picture_in_two_data_sets_may_have_two_labels():
    rows = make_rows(60, dataset=["crc"] * 30 + ["pcam"] * 30)
    pixels = list(range(60))
    pixels[33] = pixels[0]  # both train, Normal in one and Tumor in the other
    assert checks_of(audit_patches(rows, make_intake(rows, pixels))) == {"copies_within_split"}


def test_blank_patches_of_two_splits_are_no_leak():
    rows = make_rows(60)
    pixels = list(range(60))
    pixels[1] = pixels[0]
    intake = make_intake(rows, pixels)
    intake.loc[:1, "contrast"] = 0.0
    audit = audit_patches(rows, intake)
    assert checks_of(audit) == {"blank_copies"} and audit["refusals"] == 0
    assert leaks_of(rows, intake) == {}


@pytest.mark.slow
def test_a_group_on_both_sides_is_refused_and_groups_of_two_cohorts_are_not_mixed_up():
    rows = make_rows(60)
    rows.loc[[0, 1, 5], "group"] = "slide A"
    finding = find(audit_patches(rows, make_intake(rows)), "groups_across_splits")
    assert finding["level"] == "refusal" and finding["count"] == 1
    assert {patch["split"] for patch in finding["examples"][0]} == {"train", "validation", "test"}
    names = ["crc"] * 30 + ["pcam"] * 30
    rows = make_rows(60, dataset=names, cohort=names)
    rows.loc[[0, 31], "group"] = "slide A"  # train in one, validation in the other
    assert audit_patches(rows, make_intake(rows))["findings"] == []
    rows["cohort"] = "one hospital"
    assert find(audit_patches(rows, make_intake(rows)), "groups_across_splits")["count"] == 1
    assert leaks_of(rows, make_intake(rows)) == {0: "same patient or slide"}


def test_patches_without_a_group_are_counted():
    rows = make_rows(60, group=[None, *[f"slide {number}" for number in range(59)]])
    finding = find(audit_patches(rows, make_intake(rows)), "no_group")
    assert finding["level"] == "warning" and finding["count"] == 1 and "crc: 1" in finding["message"]
    everywhere = find(audit_patches(make_rows(60, group=None), make_intake(rows)), "no_group")
    assert everywhere["count"] == 60 and len(everywhere["examples"]) == 50


def test_refused_pictures_are_a_refusal_with_their_reasons():
    rows = make_rows(60)
    intake = make_intake(rows)
    intake.loc[7, ["verdict", "reason"]] = ["refused", "zero bytes"]
    intake.loc[7, ["width", "height", "mode", "format", "pixel_sha256", "thumbnail", "contrast"]] = None
    finding = find(audit_patches(rows, intake), "refused_images")
    assert finding["level"] == "refusal" and "zero bytes: 1" in finding["message"]
    assert finding["examples"] == [[{"patch": "7.png", "dataset": "crc", "split": "validation", "label": "Normal"}]]


def test_converted_tiny_and_empty_pictures_warn():
    rows = make_rows(60)
    intake = make_intake(rows)
    intake.loc[:2, ["verdict", "conversions"]] = ["converted", "CMYK to RGB"]
    intake.loc[3, "width"] = 5
    intake.loc[4:5, "background_fraction"] = 0.99
    audit = audit_patches(rows, intake)
    assert checks_of(audit, "refusal") == set()
    assert "CMYK to RGB: 3" in find(audit, "converted_images")["message"]
    assert find(audit, "tiny_images")["count"] == 1
    assert "crc Tumor: 2" in find(audit, "background")["message"]


def test_a_class_that_is_scored_but_never_learnt_is_refused():
    rows = make_rows(60)
    rows = rows[(rows["split"] != "train") | (rows["label"] != "Tumor")].reset_index(drop=True)
    finding = find(audit_patches(rows, make_intake(rows)), "empty_class")
    assert finding["level"] == "refusal" and "['Tumor']" in finding["message"]


def test_a_class_of_the_recipe_without_any_patch_is_refused():
    rows = make_rows(60)
    audit = audit_patches(rows, make_intake(rows), {"crc": ["Normal", "Tumor", "Stroma"]})
    assert "['Stroma']" in find(audit, "empty_class")["message"]


def test_a_class_that_is_never_scored_warns():
    rows = make_rows(60)
    rows = rows[(rows["split"] != "test") | (rows["label"] != "Tumor")].reset_index(drop=True)
    finding = find(audit_patches(rows, make_intake(rows)), "unscored_class")
    assert finding["level"] == "warning" and "['Tumor']" in finding["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("split", "level"), [("train", "refusal"), ("test", "warning"), ("validation", None)])
def test_an_empty_split_is_named(split, level):
    rows = make_rows(60)
    rows = rows[rows["split"] != split].reset_index(drop=True)
    found = [
        finding for finding in audit_patches(rows, make_intake(rows))["findings"] if "split is" in finding["message"]
    ]
    assert [finding["level"] for finding in found] == ([] if level is None else [level])


def test_rows_without_labels_have_no_class_findings():
    rows = make_rows(60, label=None)
    audit = audit_patches(rows, make_intake(rows), {})
    assert audit["findings"] == [] and audit["counts"]["crc"]["test"] == {"(no class)": 20}
    json.dumps(audit, allow_nan=False)


@pytest.mark.slow
def test_imbalance_warns_beyond_five_to_one():
    rows = make_rows(180)
    tumors = rows.index[(rows["split"] == "train") & (rows["label"] == "Tumor")]
    six = rows.drop(tumors[6:]).reset_index(drop=True)  # 30 to 6
    assert "class_imbalance" not in checks_of(audit_patches(six, make_intake(six)))
    five = rows.drop(tumors[5:]).reset_index(drop=True)
    assert "30 of Normal and 5 of Tumor" in find(audit_patches(five, make_intake(five)), "class_imbalance")["message"]


def test_a_format_that_tells_the_label_and_a_size_that_tells_the_split_warn():
    rows = make_rows(60)
    intake = make_intake(rows)
    intake["format"] = np.where(rows["label"] == "Tumor", "JPEG", "PNG")
    intake["width"] = np.where(rows["split"] == "test", 224, 96)
    audit = audit_patches(rows, intake)
    assert checks_of(audit) == {"format_predicts_label", "size_predicts_split"} and audit["refusals"] == 0


def test_association_is_one_for_a_copy_and_about_zero_for_chance():
    random = np.random.default_rng(0)
    label = pd.Series(random.integers(0, 9, 500))
    assert compute_association(label, label) == pytest.approx(1)
    sizes = pd.Series([f"{number} x 50" for number in range(500)])  # a size of its own for each picture tells nothing
    assert compute_association(sizes, label) < 0.1
    assert compute_association(pd.Series(random.integers(0, 3, 500)), label) < 0.1
    assert compute_association(pd.Series(["PNG"] * 500), label) == 0


VARIANTS = {
    "JPEG 90": lambda image: compress(image, 90),
    "JPEG 40": lambda image: compress(image, 40),
    "half the size": lambda image: image.resize((48, 48)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    **{
        f"{turn.name} and JPEG": lambda image, turn=turn: compress(image.transpose(turn), 75)
        for turn in Image.Transpose
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_a_picture_is_found_and_nothing_else(variant):
    originals = [make_patch(seed) for seed in range(60)]
    copies = [VARIANTS[variant](image) for image in originals]
    pairs, correlations = find_near_duplicates(np.stack([shrink(image) for image in [*originals, *copies]]))
    assert sorted(map(tuple, pairs.tolist())) == [(number, number + 60) for number in range(60)]
    assert correlations.min() >= SAME_PICTURE


def test_nearly_uniform_patches_and_smooth_shading_do_not_match_each_other():
    random = np.random.default_rng(0)
    slope = np.linspace(0, 40, 16)
    glass = [235 + random.normal(0, 2, (16, 16)) for _ in range(30)]
    shaded = [150 + slope * random.uniform(0.5, 2) + random.normal(0, 2, (16, 16)) for _ in range(30)]
    pairs, _ = find_near_duplicates(np.stack([*glass, *shaded]).clip(0, 255).astype(np.uint8))
    assert len(pairs) == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_search_misses_no_pair_that_comparing_all_would_find(seed):
    random = np.random.default_rng(seed)
    base = random.normal(size=(6, 16, 16)).cumsum(axis=1).cumsum(axis=2)
    bases = base[random.integers(0, 6, 40)]
    views = [np.rot90(b, random.integers(4))[:: random.choice([-1, 1])] for b in bases]
    noisy = np.stack([view + random.normal(0, random.choice([0.1, 1, 3]), (16, 16)) for view in views])
    low, high = noisy.min(axis=(1, 2), keepdims=True), noisy.max(axis=(1, 2), keepdims=True)
    thumbnails = ((noisy - low) / (high - low) * 255).astype(np.uint8)
    found, _ = find_near_duplicates(thumbnails)
    # By pixels, not by frequencies: take the mean and the two lowest waves out, then correlate all eight views.
    cosine = np.cos(np.pi * (np.arange(16) + 0.5) / 16) / np.sqrt(8 * 16)
    waves = np.stack([np.full((16, 16), 1 / 16), np.tile(cosine, (16, 1)), np.tile(cosine, (16, 1)).T])
    flat = thumbnails.astype(float)
    flat -= np.einsum("nij,kij,kab->nab", flat, waves, waves)
    flat /= np.sqrt((flat**2).sum(axis=(1, 2), keepdims=True))
    expected = set()
    for one in range(40):
        for other in range(one + 1, 40):
            views = [np.rot90(v, turn) for v in (flat[other], flat[other].T) for turn in range(4)]
            best = max((flat[one] * view).sum() for view in views)
            if abs(best - SAME_PICTURE) < 1e-4:
                return  # rounding may decide such a pair either way
            if best > SAME_PICTURE:
                expected.add((one, other))
    assert set(map(tuple, found.tolist())) == expected


def test_pairs_are_found_across_blocks(monkeypatch):
    thumbnails = np.stack([shrink(make_patch(seed)) for seed in [*range(20), *range(20)]])
    whole, _ = find_near_duplicates(thumbnails)
    monkeypatch.setattr(near_copies, "BLOCK", 7)
    monkeypatch.setattr(near_copies, "CANDIDATES", 3)
    parts, _ = find_near_duplicates(thumbnails)
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, parts.tolist())) and len(whole) == 20


@pytest.mark.slow
def test_a_leak_is_found_from_the_files_to_the_audit(tmp_path):
    rows = make_rows(30)
    for number in range(30):
        make_patch(number).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())  # train and validation, as bytes
    make_patch(6).save(tmp_path / "8.png", compress_level=1)  # train and test, as pixels
    compress(make_patch(9), 80).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "11.png"
    )  # train and test, nearly
    rows["path"] = [str(tmp_path / name) for name in rows["path"]]
    intake = check_images(rows[["path", "row"]].to_dict("records"))
    audit = audit_patches(rows, intake)
    assert find(audit, "copies_across_splits")["count"] == 2
    assert "(1 of them as equal files" in find(audit, "copies_across_splits")["message"]
    near = find(audit, "near_copies_across_splits")
    assert near["level"] == "warning" and near["count"] == 1
    assert {patch["patch"] for patch in near["examples"][0]} == {str(tmp_path / "9.png"), str(tmp_path / "11.png")}
    assert leaks_of(rows, intake) == {0: "equal pixels", 6: "equal pixels", 9: "near copy"}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, "a", "b", "c", "d"])), min_size=9, max_size=40),
    st.randoms(use_true_random=False),
)
def test_without_the_leaking_rows_nothing_crosses_splits_and_test_is_whole(patches, random):
    rows = make_rows(len(patches), group=[group for _, group in patches])
    rows["split"] = random.choices(["train", "validation", "test"], k=len(rows))
    rows.index = random.sample(range(1000), len(rows))  # positions, whatever the index says
    intake = make_intake(rows, [picture for picture, _ in patches])
    leaks = [*leaks_of(rows, intake)]
    kept = rows.drop(rows.index[leaks])
    assert "test" not in set(rows["split"].iloc[leaks])
    assert not {"copies_across_splits", "groups_across_splits"} & checks_of(audit_patches(kept, intake))


@pytest.mark.slow
def test_the_audit_is_written_whole_with_sorted_keys(tmp_path):
    rows = make_rows(60, group=None)
    audit, copies = audit_patches(rows, make_intake(rows)), pd.DataFrame({"set": []})
    path = tmp_path / "new" / "audit.json"
    write_audit(audit, copies, path.parent)
    first = path.read_bytes()
    assert json.loads(first) == audit
    assert list(json.loads(first)) == sorted(audit)
    write_audit(dict(reversed(audit.items())), copies, path.parent)
    assert path.read_bytes() == first
    assert {entry.name for entry in path.parent.iterdir()} == {"audit.json", "copies.parquet"}


@pytest.mark.slow
def test_the_screen_shows_refusals_first_with_examples():
    rows = make_rows(60, group=None)
    pixels = list(range(60))
    pixels[1] = pixels[0]
    text = format_audit(audit_patches(rows, make_intake(rows, pixels)), examples=1)
    assert text.index("REFUSAL copies_across_splits") < text.index("WARNING no_group")
    assert "0.png (train) = 1.png (validation)" in text and "1 refusal, 1 warning" in text
    assert "Normal 10, Tumor 10" in text


def test_rows_that_were_never_checked_or_have_unknown_splits_raise():
    rows = make_rows(6)
    with pytest.raises(ValueError, match="2 patches such as 4.png haven't been inspected"):
        audit_patches(rows, make_intake(rows).head(4))
    with pytest.raises(ValueError, match="valid"):
        audit_patches(rows.replace({"split": {"validation": "valid"}}), make_intake(rows))
    with pytest.raises(ValueError, match="group"):
        audit_patches(rows.drop(columns="group"), make_intake(rows))
