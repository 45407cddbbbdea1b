"""On pictures without finer detail, half of the side is enough: the embedded model learns as much of them."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from histolab_sft.arguments import read_recipe
from histolab_sft.data.synthetic import DEMO_PATCHES, write_synthetic_patches

pytestmark = [pytest.mark.model, pytest.mark.thorough]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train and score the demo's two classes at a resolution; give the score of the fine-tuned model."""
    folder = tmp_path_factory.mktemp("half")
    write_synthetic_patches(folder / "data" / "synthetic", {"pcam": DEMO_PATCHES["pcam"]})
    for path in (folder / "data" / "synthetic" / "pcam").rglob("*.png"):
        with Image.open(path) as image:
            # Half of the model's own side: what is finer than its pixels is gone.
            half = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
        half.save(path)
    datasets = [entry for entry in read_recipe("recipes/demo.yaml")["datasets"] if entry["name"] == "pcam"]

    def run(*resolution):
        out = folder / "-".join(("out", *resolution))
        flags = ["--config", "recipes/demo.yaml", "--data_dir", str(folder), "--output_dir", str(out)]
        flags += ["--datasets", json.dumps(datasets), "--generate_answers", "false", "--sensitivity", "none"]
        flags += [f"--{key}={value}" for key, value in zip(("image_side", "image_tokens"), resolution, strict=False)]
        for script in ("recipes/sft.py", "recipes/evaluate.py"):
            done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
        results = json.loads((out / "evaluation" / "results.json").read_text())
        return results["datasets"]["pcam"]["finetuned"]["balanced_accuracy"]

    return run


def test_half_the_side_is_learnt_to_within_the_interval_of_the_whole(run):
    whole = run()
    assert whole["value"] >= 0.8
    for resolution in [("32", "16"), ("32", "4")]:
        half = run(*resolution)
        assert half["value"] >= whole["ci95"][0]
