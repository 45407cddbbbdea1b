"""The demo as a newcomer runs it: it learns, the base model doesn't know, and early stopping waits for the class."""

import ast
import json
import re
import subprocess
import sys

import pytest
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.rows import load_patches
from histolab_sft.models.load import load_processor, locate_base_model
from histolab_sft.publishing import merge
from histolab_sft.training.answer_tokens import collect_answers, compute_guessing_level
from histolab_sft.training.callbacks import EMAEarlyStoppingCallback

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Output folder of the demo's three commands, its flags and the log of its training."""
    folder = tmp_path_factory.mktemp("demo")
    flags = ["--config", "recipes/demo.yaml", "--data_dir", str(folder), "--output_dir", str(folder / "out")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    for command in (
        [sys.executable, "recipes/paint_patches.py", str(folder / "data" / "synthetic")],
        [*launch, "recipes/sft.py", *flags],
        [sys.executable, "recipes/evaluate.py", *flags],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        (folder / f"{len(list(folder.glob('*.log')))}.log").write_text(result.stdout + result.stderr)
    logged = re.findall(r"\{'loss'.*?\}", (folder / "1.log").read_text())
    log = [{key: float(value) for key, value in ast.literal_eval(entry).items()} for entry in logged]
    return folder / "out", flags, log


def read_results(demo):
    return json.loads((demo[0] / "evaluation" / "results.json").read_text())


def test_the_fine_tuned_model_knows_what_the_base_model_does_not(demo):
    results = read_results(demo)
    assert list(results["datasets"]) == ["crc", "pcam", "bach"]
    # The better of two readings of the base model, as it reads and without its leanings.
    assert results["overall"]["baseline"]["balanced_accuracy"]["value"] <= 0.45
    raw = [entry["zero_shot"]["raw"]["balanced_accuracy"]["value"] for entry in results["datasets"].values()]
    assert sum(raw) / 3 <= 0.40
    assert results["overall"]["finetuned"]["balanced_accuracy"]["value"] >= 0.85


def test_the_same_holds_for_what_the_two_write(demo):
    entries = read_results(demo)["datasets"].values()
    written = {
        system: [entry[system]["generation"]["balanced_accuracy"]["value"] for entry in entries]
        for system in ("baseline", "finetuned")
    }
    assert sum(written["baseline"]) / 3 <= 0.40 and sum(written["finetuned"]) / 3 >= 0.85


def test_colour_alone_does_not_come_as_far(demo):
    for entry in read_results(demo)["datasets"].values():
        floor = entry["floors"]["colour_histogram"]["balanced_accuracy"]["value"]
        assert floor < entry["finetuned"]["balanced_accuracy"]["value"]
        assert entry["colour_floor"] is None


def test_a_plateau_of_the_answer_loss_is_not_seen_while_the_class_is_guessed(demo):
    _, flags, log = demo
    histo_args, training_args, model_args = parse_recipe(flags)
    processor = load_processor(locate_base_model(model_args.model_name_or_path))
    collator = DataCollatorForVisionLanguageModeling(processor=processor, completion_only_loss=True)
    level = compute_guessing_level(collect_answers(load_patches(histo_args)["train"], collator))["answer_loss"]
    # The constant words are known from the start, while the class is guessed: the mean loss is low all the same.
    assert any(entry["loss"] < 0.25 * level and entry["answer_loss"] > 0.9 * level for entry in log)

    def stop(guessing_level):
        callback = EMAEarlyStoppingCallback("plateau", "answer_loss", 5, 0.0, 0.2, 0.9, guessing_level)
        for entry in log:
            callback.update(entry["answer_loss"], int(training_args.logging_steps))
            if callback.stopped:
                return entry["answer_loss"]
        return 0.0

    assert stop(None) > 0.9 * level  # an impatient plateau fires on the shelf
    assert stop(0.9 * level) < 0.9 * level  # the same one waits when it knows where guessing ends


def test_adapter_and_merged_model_agree_on_every_label_of_the_validation_split(demo, monkeypatch):
    folder, flags, _ = demo
    histo_args, _, model_args = parse_recipe(flags)
    patches = load_patches(histo_args)["validation"]
    monkeypatch.setattr(merge, "PARITY_PATCHES", len(patches))
    merge.merge_adapter(model_args, folder)
    parity = merge.check_merge_parity(patches, histo_args, model_args, folder)
    assert parity["n_patches"] == len(patches) >= 200
    # Merging leaves every label as it is. The 4-bit weights of training are other weights, by which single patches
    # whose likeliest labels are nearly as likely fall to the other side; `merge_parity.json` has the largest gap.
    pairs = parity["pairs"]
    assert pairs["bfloat16/merged"]["agreement"] == 1.0
    assert pairs["bfloat16/merged"]["largest_gap"] <= merge.MAX_GAP
    assert min(pair["agreement"] for pair in pairs.values()) >= 0.98
