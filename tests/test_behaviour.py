"""The comparison of two recorded runs sees every change of a result, and nothing else."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.behaviour import compare, keep


def leave(folder, started="2026-01-01T10:00:00+00:00", accuracy=0.5, truth="Tumor", text="All is well.", level=3):
    """Write what a run leaves, and return what is kept of it."""
    out = folder / "out"
    (out / "evaluation").mkdir(parents=True)
    results = {"start": started, "train_runtime": len(str(folder)), "data": f"{folder}/data", "accuracy": [accuracy]}
    (out / "evaluation/results.json").write_text(json.dumps(results))
    (out / "evaluation/report.html").write_text(f"<p>{text}</p> <p>{folder} at {started}</p>")
    pd.DataFrame({"id": ["a", "b"], "truth": [truth, None]}).to_parquet(out / "predictions.parquet")
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(out / "loss.png")
    (out / "adapter_model.safetensors").write_bytes(bytes([level]))
    keep(out, folder / "kept", {str(folder): "WORK"})
    return folder / "kept"


def test_the_order_of_the_layers_of_an_adapter_is_no_difference(tmp_path):
    kept = []
    for i, layers in enumerate((["q_proj", "v_proj"], ["v_proj", "q_proj"])):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}/adapter_config.json").write_text(json.dumps({"target_modules": layers}))
        kept.append(tmp_path / f"kept{i}")
        kept[i].mkdir()
        keep(tmp_path / f"{i}", kept[i], {})
    assert compare(*kept) == []


def test_times_and_places_are_no_difference(tmp_path):
    before = leave(tmp_path / "before")
    after = leave(tmp_path / "elsewhere", started="2027-02-03T11:22:33+00:00")
    assert compare(before, after) == []


CHANGES = {
    "a number": ({"accuracy": 0.5000001}, ["evaluation/results.json: /accuracy/0: 0.5 -> 0.5000001"]),
    "a type": ({"accuracy": True}, ["evaluation/results.json: /accuracy/0: 0.5 -> true"]),
    "a cell": ({"truth": "Stroma"}, ['predictions.parquet.json: /columns/truth/0: "Tumor" -> "Stroma"']),
    "a sentence": (
        {"text": "It isn't."},
        [f"evaluation/report.html: {line}" for line in ("@@ -1 +1 @@", "-<p>All is well.</p>", "+<p>It isn't.</p>")],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_with_its_place_and_both_values(tmp_path, change):
    keys, lines = CHANGES[change]
    assert compare(leave(tmp_path / "before"), leave(tmp_path / "after", **keys)) == lines


def test_other_weights_and_another_figure_are_told(tmp_path):
    lines = compare(leave(tmp_path / "before"), leave(tmp_path / "after", level=4))
    assert [line.split(": ")[1] for line in lines] == ["/adapter_model.safetensors", "/loss.png"]


def test_what_one_side_alone_has_is_told_once(tmp_path):
    before, after = leave(tmp_path / "before"), leave(tmp_path / "after")
    (after / "evaluation/report.html").unlink()
    results = json.loads((after / "evaluation/results.json").read_text()) | {"added": {"a": 1, "b": 2}}
    (after / "evaluation/results.json").write_text(json.dumps(results))
    assert compare(before, after) == [
        f"evaluation/report.html: missing in {after}",
        "evaluation/results.json: /added: only after",
    ]
