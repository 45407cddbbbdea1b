"""Memory doesn't grow with the rows of a data set: pictures are read when they are needed, and let go."""

import io
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PCAM_CLASSES
from PIL import Image

# The script as it is, in a process of its own, which then says the most memory that it has ever had. (What `getrusage`
# says begins with the memory of the process that started it.)
MEASURED = """
import pathlib, re, runpy, sys
sys.argv = ["recipes/sft.py", "--config", sys.argv[1]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


def write_parquet(path, count):
    """Write `count` rows with 16 different pictures of 96 x 96 pixels: noise, so that none is small (5 kB)."""
    rng, pictures = np.random.default_rng(count), []
    for _ in range(16):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(buffer, format="JPEG")
        pictures.append(buffer.getvalue())
    images = [{"bytes": pictures[row % 16], "path": None} for row in range(count)]
    labels = [list(PCAM_CLASSES)[row % 2] for row in range(count)]
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=100)


@pytest.mark.model
@pytest.mark.thorough
def test_peak_memory_of_audit_and_training_is_flat_from_1000_to_20000_rows(tmp_path, untrained_model):
    peaks = []
    for count in (1_000, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for split, rows in (("train", count), ("validation", 32), ("test", 32)):
            write_parquet(folder / f"{split}.parquet", rows)
        recipe = {
            "model_name_or_path": str(untrained_model),
            "use_peft": True,
            "lora_target_modules": ["q_proj"],
            "datasets": [{"name": "pcam", "source": str(folder), "class_names": PCAM_CLASSES}],
            "leaks": "allow",
            **{"use_cpu": True, "bf16": False, "max_length": None, "max_steps": 4, "save_strategy": "no"},
            **{"vision_cache": "off", "output_dir": str(folder / "out"), "report_to": "none"},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", MEASURED, str(folder / "recipe.yaml")]
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        assert f"train={count}" in done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 100, f"MiB at the peak: {peaks}"
