"""An evaluation that is cut off goes on where it stood, and says the same in the end."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from compared_results import drop_times
from conftest import BACH_CLASSES, PCAM_CLASSES, write_class_folders

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.pictures.decoding import ImageRefused
from histolab_sft.data.rows import load_audited_patches, select_datasets
from histolab_sft.evaluation import answer_cache, predictions

KILLS = 5


@pytest.mark.model
def test_a_broken_read_costs_one_chunk_and_the_next_call_gives_the_same_answers(
    tmp_path, monkeypatch, untrained_model
):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    monkeypatch.setattr(answer_cache, "CHUNK", 4)
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    processor = AutoProcessor.from_pretrained(untrained_model)
    write_class_folders(tmp_path / "data" / "ward", PCAM_CLASSES, per_class=20, slides=10)
    entry = {"name": "ward", "source": "data/ward", "class_names": PCAM_CLASSES}
    histo_args = HistoArguments(datasets=[entry], data_dir=str(tmp_path), test_fraction=0.4)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    test = select_datasets(load_audited_patches(histo_args, tmp_path / "out")["test"], "ward")
    system = predictions.System("baseline", model, processor, predictions.hash_weights(model), histo_args, 2)
    ask = (test, system, histo_args.datasets[0])
    whole = predictions.predict(*ask, generate=False)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "broken"))
    lost = test.with_format(None)[9]["images"][0]["path"]
    os.rename(lost, tmp_path / "moved.png")
    with pytest.raises((ImageRefused, FileNotFoundError)):
        predictions.predict(*ask, generate=False)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("part-*.answers")}
    assert len(kept) == 2  # rows 0 to 7; the picture is of row 9

    os.rename(tmp_path / "moved.png", lost)
    pd.testing.assert_frame_equal(predictions.predict(*ask, generate=False), whole)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


@pytest.mark.kill
def test_an_evaluation_killed_five_times_writes_the_same_results(tmp_path, untrained_model):
    for name, classes in (("ward", PCAM_CLASSES), ("bach", BACH_CLASSES)):
        write_class_folders(tmp_path / "data" / name, classes, per_class=24, slides=12)
    write_adapter(untrained_model, tmp_path / "adapter")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    start_evaluation(tmp_path, untrained_model, whole).wait()
    steps = len(list_kept(whole))
    expected = read_results(whole)
    assert steps > 10 and expected["datasets"]["bach"]["sensitivity"]

    draw = random.Random(0)
    reached = []
    for point in sorted(draw.sample(range(1, steps), KILLS)):
        process = start_evaluation(tmp_path, untrained_model, killed)
        while len(list_kept(killed)) < point and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.random() / 5)
        assert process.poll() is None, f"it ended before step {point}"
        process.kill()
        process.wait()
        reached.append(len(list_kept(killed)))
    assert reached == sorted(reached) and reached[0] < steps
    assert not (killed / "evaluation" / "results.json").exists()

    start_evaluation(tmp_path, untrained_model, killed).wait()
    assert list_kept(killed) == list_kept(whole)
    assert json.dumps(drop_times(read_results(killed))) == json.dumps(drop_times(expected))
    for name in ("predictions.parquet", "report.html"):
        assert (killed / "evaluation" / name).is_file()
    assert pd.read_parquet(killed / "evaluation" / "predictions.parquet").equals(
        pd.read_parquet(whole / "evaluation" / "predictions.parquet")
    )


def write_adapter(model, folder):
    """An adapter of random weights on the language layers, as training leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny_models import LANGUAGE_LORA
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    config = LoraConfig(target_modules=LANGUAGE_LORA, r=4, init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(model), config).save_pretrained(folder)


def start_evaluation(folder, model, output):
    """Start the recipe's script with a cache of its own beside its results."""
    if not output.exists():
        shutil.copytree(folder / "adapter", output)
    datasets = [
        {"name": name, "source": f"data/{name}", "class_names": classes, "group_by": r"-(S\d+)-"}
        for name, classes in (("ward", PCAM_CLASSES), ("bach", BACH_CLASSES))
    ]
    flags = {
        **{"config": "recipes/demo.yaml", "datasets": json.dumps(datasets), "data_dir": folder},
        **{"model_name_or_path": model, "load_in_4bit": "false", "output_dir": output, "max_new_tokens": 4},
        **{"sensitivity": "prompt", "sensitivity_samples": 8, "per_device_eval_batch_size": 8},
    }
    command = [sys.executable, "recipes/evaluate.py"]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    with (output.parent / f"{output.name}.log").open("a") as log:
        environment = os.environ | {"XDG_CACHE_HOME": str(output.parent / f"{output.name}-cache")}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def list_kept(output):
    """Names of what an evaluation has put aside for its next start."""
    cache = output.parent / f"{output.name}-cache"
    kept = [*cache.rglob("part-*.answers"), *cache.rglob("features/*.npy")]
    return sorted(str(path.relative_to(cache)) for path in kept if not path.name.startswith("."))


def read_results(output):
    """The record without the one key in which the two evaluations differ on purpose."""
    results = json.loads((output / "evaluation" / "results.json").read_text())
    assert results["recipe"].pop("output_dir") == str(output)
    return results
