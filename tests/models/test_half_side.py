"""On pictures without finer detail, half of the side is enough: the embedded model learns as much of them."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from histolab_sft.config.arguments import read_recipe
from histolab_sft.embedded.synthetic import DEMO_PATCHES, write_synthetic_patches

pytestmark = [pytest.mark.model, pytest.mark.thorough, pytest.mark.longest]
EPOCHS = 6  # twice the demo's: the tower, which stays as it is, has seen everything at twice the size


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train and score the demo's two classes at a resolution; give what `results.json` says of them."""
    folder = tmp_path_factory.mktemp("half")
    write_synthetic_patches(folder / "data" / "synthetic", {"pcam": DEMO_PATCHES["pcam"]})
    for path in (folder / "data" / "synthetic" / "pcam").rglob("*.png"):
        with Image.open(path) as image:
            # Half of the model's own side: what is finer than its pixels is gone.
            half = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
        half.save(path)
    datasets = [entry for entry in read_recipe("recipes/demo.yaml")["datasets"] if entry["name"] == "pcam"]

    def run(name, *keys, scoring=()):
        flags = ["--config", "recipes/demo.yaml", "--data_dir", str(folder), "--output_dir", str(folder / name)]
        flags += ["--datasets", json.dumps(datasets), "--generate_answers=false", "--sensitivity=none"]
        flags += [f"--num_train_epochs={EPOCHS}", *keys]
        for script, more in (("recipes/sft.py", ()), ("recipes/evaluate.py", scoring)):
            done = subprocess.run([sys.executable, script, *flags, *more], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
        results = json.loads((folder / name / "evaluation" / "results.json").read_text())
        return results["datasets"]["pcam"]

    return run


def test_half_the_side_is_learnt_to_within_the_interval_of_the_whole(run):
    whole = run("whole")["finetuned"]["balanced_accuracy"]
    assert whole["value"] >= 0.9
    compared = ["--sensitivity=prompt", "--sensitivity_samples=40", "--sensitivity_sides", "64", "96"]
    for tokens, scoring in ((16, ()), (4, compared)):
        half = run(f"half-{tokens}", "--image_side=32", f"--image_tokens={tokens}", scoring=scoring)
        assert half["finetuned"]["balanced_accuracy"]["value"] >= whole["ci95"][0]
    curve = half["sensitivity"]["robustness"]["side"]
    assert curve["strengths"] == [32, 64, 96] and curve["unchanged"] == 32
    assert len(curve["baseline"]) == len(curve["finetuned"]) == 3
