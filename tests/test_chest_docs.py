"""The blocks of docs/chest_xrays.md read the data sets as published."""

import json
import re
from pathlib import Path

import pytest
import yaml
from open_fixture import write_labelled_chest

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.public.benchmarks import BENCHMARKS
from histolab_sft.data.rows import list_patches, load_patches
from recipes.download import main

TEXT = Path("docs/chest_xrays.md").read_text(encoding="utf-8")
BLOCKS = {block["name"]: block for block in map(yaml.safe_load, re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL))}
# The first answer of train, as the model learns it
ANSWERS = {
    "mimic_reports": "FINDINGS:\nThe lungs are clear of consolidation, effusion 0. No change since.\n\nIMPRESSION:\n"
    "No acute process 0.",
    "mimic_labels": "No Finding",
    "chexpert": "None",
    "chestxray14": "None",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_documented_block_gives_rows_in_every_split(tmp_path, name):
    write_labelled_chest(tmp_path, [BLOCKS[name]])
    given = HistoArguments(datasets=[BLOCKS[name]], data_dir=str(tmp_path))
    splits = load_patches(given)
    assert all(len(splits[split]) for split in ("train", "validation", "test"))
    row = min(splits["train"].with_format(None), key=lambda row: row["id"])
    assert row["completion"][0]["content"] == ANSWERS[name] and row["group"]
    assert set(list_patches(given)["protocol"]) == {"official"}
    assert len(json.loads(row["ask"]).get("vocabulary", [])) == {"mimic_labels": 14, "chestxray14": 14}.get(
        name, 5 if name == "chexpert" else 0
    )


@pytest.mark.parametrize("name", ["mimic_cxr", "chexpert", "chestxray14"])
def test_licence_and_access_are_told_and_the_document_says_the_same(tmp_path, caplog, name):
    caplog.set_level("INFO")
    benchmark = BENCHMARKS[name]
    assert main([name, "--folder", str(tmp_path)]) == 1
    assert f"licence: {benchmark.licence}" in caplog.text and f"By hand, from {benchmark.source}" in caplog.text
    assert benchmark.licence.split(":")[0].split(";")[0] in TEXT


def test_pictures_that_are_missing_from_a_placed_copy_are_counted(tmp_path, caplog):
    write_labelled_chest(tmp_path, [{"format": "chestxray14", "source": "chestxray14"}])
    assert main(["chestxray14", "--folder", str(tmp_path)]) == 1
    assert "found 11 images, expected 112120" in caplog.text
