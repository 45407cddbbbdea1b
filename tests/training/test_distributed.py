"""Two processes do what one does: the same losses, adapters and scores under every strategy, and one end for both."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from compared_results import drop_times
from distributed_runs import (
    DATASETS,
    PATIENCE,
    find_port,
    finish,
    read_log,
    read_output,
    run_ranks,
    start_ranks,
    wait_for,
    write_inputs,
    write_recipe,
)
from peft import PeftModel
from safetensors.torch import load_file
from steady_runs import hash_adapter
from tiny_models import paint_patches
from transformers import AutoModelForImageTextToText

from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import load_processor
from histolab_sft.training.checkpoints import find_whole_checkpoint, list_checkpoints, verify_checkpoint

pytestmark = [pytest.mark.model, pytest.mark.distributed]

SINGLE = {"config": "cpu", "launch": ["--num_processes", "1"]}
FSDP2 = {"config": "fsdp2", "script": "tests/fixtures/fsdp_on_processors.py"}
ONE_BY_ONE = {"per_device_train_batch_size": 1}
COMPILED = {"compiled_layers": "on"}
# Four rows a step, dealt out in every way
WAYS = {
    "one process": (SINGLE, {"per_device_train_batch_size": 4}),
    "one process, accumulating": (SINGLE, ONE_BY_ONE | {"gradient_accumulation_steps": 4}),
    "two processes": ({}, {}),
    "two processes, accumulating": ({}, ONE_BY_ONE | {"gradient_accumulation_steps": 2}),
    "ZeRO-2": ({"config": "deepspeed_zero2"}, {}),
    "ZeRO-2, accumulating": ({"config": "deepspeed_zero2"}, ONE_BY_ONE | {"gradient_accumulation_steps": 2}),
    "ZeRO-3": ({"config": "deepspeed_zero3"}, {}),
    "FSDP2": (FSDP2, {}),
    "FSDP2, accumulating": (FSDP2, ONE_BY_ONE | {"gradient_accumulation_steps": 2}),
    "one process, accumulating, compiled": (SINGLE, ONE_BY_ONE | {"gradient_accumulation_steps": 4} | COMPILED),
    "two processes, compiled": ({}, COMPILED),
    "ZeRO-2, accumulating, compiled": (
        {"config": "deepspeed_zero2"},
        ONE_BY_ONE | {"gradient_accumulation_steps": 2} | COMPILED,
    ),
}
LOSSES = ("loss", "answer_loss", "eval_loss", "eval_answer_loss")
MEANS = ("mean_token_accuracy", "answer_accuracy", "eval_mean_token_accuracy", "eval_answer_accuracy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Way -> output folder of two epochs with evaluations."""
    keys = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    found = {}
    for number, (way, (options, own)) in enumerate(WAYS.items()):
        found[way] = folder / f"way-{number}"
        said = run_ranks(write_recipe(folder, found[way], **keys | own), folder / f"way-{number}.log", **options)
        assert ("compiled in" in said) == way.endswith("compiled")
    return found


def launch(*command, code=0):
    """Run `accelerate launch` as a user does."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == code, result.stderr[-6000:]
    return result.stderr


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_however_four_rows_are_dealt_out_losses_and_adapter_are_the_same(runs, way):
    expected, found = read_log(runs["one process"]), read_log(runs[way])
    assert len(expected) == len(found) == 8  # three steps and an evaluation in each of two epochs
    for entry, other in zip(expected, found, strict=True):
        assert other["step"] == entry["step"]
        names = [name for name in (*LOSSES, *MEANS) if name in entry]
        assert names and {name: other[name] for name in names} == pytest.approx(
            {name: entry[name] for name in names}, abs=1e-6, rel=0
        )
    weights, others = (load_file(runs[name] / "adapter_model.safetensors") for name in ("one process", way))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=0)
    manifest = verify_checkpoint(find_whole_checkpoint(runs[way]))
    assert manifest["run"]["processes"] == (1 if way.startswith("one") else 2)


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_the_adapter_of_every_strategy_gives_the_same_likelihoods_in_plain_peft(folder, runs, way):
    processor = load_processor(str(folder / "model"))
    scores = []
    for run in (runs["one process"], runs[way]):
        base = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, run).eval()
        answers = list(DATASETS[0]["class_names"].values())
        scores.append(label_log_likelihoods(model, processor, paint_patches(4), ["Which tissue?"] * 4, answers)[0])
    assert (scores[0] - scores[1]).abs().max() <= 1e-4
    # What was learnt is in it.
    with model.disable_adapter():
        untrained = label_log_likelihoods(model, processor, paint_patches(4), ["Which tissue?"] * 4, answers)[0]
    assert (scores[1] - untrained).abs().max() > 0.1


@pytest.mark.parametrize(
    ("config", "nf4"), [("multi_gpu", True), ("deepspeed_zero2", True), ("deepspeed_zero3", False)]
)
def test_a_launch_file_as_it_is_trains_the_demo_recipe_on_two_processors_and_goes_on(folder, tmp_path, config, nf4):
    flags = {
        **{"model_name_or_path": folder / "model", "datasets": json.dumps(DATASETS), "data_dir": folder},
        **{"output_dir": tmp_path / "out", "load_in_4bit": nf4, "use_bnb_nested_quant": nf4, "vision_cache": "off"},
        **{"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2},
    }
    flags = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    recipe, log = "recipes/demo.yaml", tmp_path / "resumed.log"
    path = f"accelerate_configs/{config}.yaml"
    launch("--config_file", path, "--main_process_port", find_port(), "recipes/sft.py", "--config", recipe, *flags)
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-4"]
    assert verify_checkpoint(tmp_path / "out" / "checkpoint-4")["run"]["processes"] == 2
    undisturbed = hash_adapter(tmp_path / "out")

    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    said = run_ranks(recipe, log, *flags, "--resume_from_checkpoint", "auto", config=config)
    assert "goes on from" in said and "checkpoint-2" in said
    assert hash_adapter(tmp_path / "out") == undisturbed

    run_ranks(recipe, tmp_path / "scored.log", *flags, "--sensitivity", "none", script="recipes/evaluate.py")
    results = json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())
    assert [entry["n"] for entry in results["datasets"].values()] == [9, 9]


@pytest.mark.parametrize("config", ["multi_gpu", "deepspeed_zero2", "deepspeed_zero3"])
def test_the_adapter_is_saved_in_float32_where_training_computes_in_bfloat16(folder, tmp_path, config):
    recipe = write_recipe(folder, tmp_path / "run", bf16=True, max_steps=2, save_strategy="no")
    run_ranks(recipe, tmp_path / "run.log", config=config)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    # As trained, and not what is left of it in bfloat16.
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


def test_zero3_refuses_quantised_weights(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path / "run", load_in_4bit=True)
    said = run_ranks(recipe, tmp_path / "run.log", config="deepspeed_zero3", code=2)
    assert "4-bit or 8-bit weights with ZeRO-3" in said and "deepspeed_zero2.yaml" in said


@pytest.mark.parametrize(("options", "keys"), [(FSDP2, {}), ({}, COMPILED)], ids=["FSDP2", "compiled"])
def test_a_run_of_two_processes_goes_on_exactly_and_its_adapter_is_scored(folder, tmp_path, options, keys):
    recipe = write_recipe(folder, tmp_path / "out", max_steps=4, lora_dropout=0.1, **keys)
    run_ranks(recipe, tmp_path / "run.log", **options)
    undisturbed = hash_adapter(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    assert "checkpoint-2" in run_ranks(recipe, tmp_path / "resumed.log", **options)
    assert hash_adapter(tmp_path / "out") == undisturbed
    run_ranks(recipe, tmp_path / "scored.log", **SINGLE, script="recipes/evaluate.py")
    assert (tmp_path / "out" / "evaluation" / "results.json").is_file()


def test_fsdp_refuses_processors_on_which_it_would_not_shard(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path / "run")
    assert "FSDP with use_cpu" in run_ranks(recipe, tmp_path / "run.log", config="fsdp2", code=2)


def test_two_processes_that_would_be_one_each_stop(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path / "run", use_cpu=False)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU for them here")
    said = run_ranks(recipe, tmp_path / "run.log", code=2)
    assert said.count("error: no GPU that PyTorch can use, expected one unless the recipe has use_cpu: true") == 2


def test_two_machines_start_by_the_multi_node_file(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path / "run", max_steps=1)
    path, port = "accelerate_configs/multi_node.yaml", find_port()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", "2"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--machine_rank"]
    machines = [
        subprocess.Popen(
            [*command, rank, "recipes/sft.py", "--config", str(recipe)], stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    for machine in machines:
        _, said = machine.communicate(timeout=PATIENCE)
        assert machine.returncode == 0, said[-6000:]
    assert verify_checkpoint(tmp_path / "run" / "checkpoint-1")["run"]["processes"] == 2


def test_early_stopping_stops_both_processes_at_the_step_at_which_it_stops_one(folder, tmp_path):
    keys = {"early_stopping": "threshold", "early_stopping_threshold": 6.5, "early_stopping_patience": 2}
    reasons = []
    for name, options, rows in (("one", SINGLE, 4), ("two", {}, 2)):
        recipe = write_recipe(folder, tmp_path / name, **keys, max_steps=40, per_device_train_batch_size=rows)
        run_ranks(recipe, tmp_path / f"{name}.log", **options)
        reasons.append(json.loads((tmp_path / name / "run.json").read_text())["exit_reason"])
    assert reasons[0] == reasons[1] and re.fullmatch(r"early stopping after step \d+", reasons[0])


def test_balanced_accuracy_in_training_is_that_of_one_process(folder, tmp_path):
    keys = {"model_name_or_path": str(folder / "decided"), "datasets": DATASETS, "max_steps": 1}
    keys |= {"eval_on_start": True, "eval_strategy": "steps", "save_steps": 1}
    values = []
    for name, options in (("one", SINGLE), ("two", {})):
        run_ranks(write_recipe(folder, tmp_path / name, **keys), tmp_path / f"{name}.log", **options)
        values.append(read_log(tmp_path / name)[0]["eval_balanced_accuracy"])
    assert values[0] == values[1] and 0 < values[0] < 1


def test_a_signal_to_one_process_stops_both_with_one_checkpoint(folder, tmp_path):
    keys = {"max_steps": 60, "save_steps": 100, "lora_dropout": 0.1}
    run_ranks(write_recipe(folder, tmp_path / "undisturbed", **keys), tmp_path / "undisturbed.log")
    recipe, log = write_recipe(folder, tmp_path / "stopped", **keys), tmp_path / "stopped.log"
    processes = start_ranks(recipe, log)
    wait_for("{'loss'", log, processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    finish(processes, log, code=143)
    record = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert record["exit_reason"] == f"SIGTERM after step {record['steps']}" and record["steps"] < 60
    assert [path.name for path in list_checkpoints(tmp_path / "stopped")] == [f"checkpoint-{record['steps']}"]

    run_ranks(recipe, tmp_path / "resumed.log")
    assert hash_adapter(tmp_path / "stopped") == hash_adapter(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stands_still_ends_the_other_with_a_message(folder, tmp_path, number):
    recipe, log = write_recipe(folder, tmp_path / "run", max_steps=10_000, ddp_timeout=8), tmp_path / "run.log"
    processes = start_ranks(recipe, log)
    wait_for("{'loss'", log, processes)
    os.kill(processes[1].pid, number)
    processes[0].join(60)
    processes[1].kill()
    assert processes[0].exitcode == 2, read_output(log)[-6000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["exit_reason"].startswith("LostProcessError: process 0 of 2 lost another one")


def test_scores_shared_by_two_processes_are_those_of_one(folder, tmp_path):
    base = AutoModelForImageTextToText.from_pretrained(folder / "decided", dtype=torch.float32)
    write_adapter(base, tmp_path / "adapter")
    # Small parts, so that each data set has several.
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import runpy\nfrom histolab_sft.evaluation import answer_cache\nanswer_cache.CHUNK = 4\n"
        "runpy.run_path('recipes/evaluate.py', run_name='__main__')\n"
    )
    found = {}
    for name, options in (("one", SINGLE), ("two", {})):
        output_dir, cache = tmp_path / name, tmp_path / f"{name}-cache"
        shutil.copytree(tmp_path / "adapter", output_dir)
        keys = {"model_name_or_path": str(folder / "decided"), "datasets": DATASETS, "max_new_tokens": 4}
        keys |= {"sensitivity": "prompt", "sensitivity_samples": 3, "vision_cache": "auto"}
        recipe = write_recipe(folder, output_dir, **keys)
        environment = {"XDG_CACHE_HOME": str(cache)}
        said = run_ranks(recipe, tmp_path / f"{name}.log", script=str(script), environment=environment, **options)
        parts = [path for path in cache.rglob("part-*.answers") if not path.name.startswith(".")]
        # Each part was scored by one process, and both had some.
        assert said.count("patches scored") == len(parts)
        shares = [path.read_text().count("patches scored") for path in tmp_path.glob(f"{name}.[0-9]")]
        assert min(shares) > len(parts) // 4
        found[name] = json.loads((output_dir / "evaluation" / "results.json").read_text())
    for results in found.values():
        results["recipe"].pop("output_dir")
        assert results["provenance"]["hardware"].pop("count") == (2 if results is found["two"] else 1)
    assert json.dumps(drop_times(found["two"])) == json.dumps(drop_times(found["one"]))
    tables = [pd.read_parquet(tmp_path / name / "evaluation" / "predictions.parquet") for name in found]
    assert tables[0].equals(tables[1]) and len(tables[0]) == 2 * 2 * 9
    assert not tables[0].duplicated(["id", "dataset", "system"]).any()


def write_adapter(base, folder):
    """Write an adapter with weights that change the answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    get_peft_model(base, LoraConfig(target_modules=targets, r=4, init_lora_weights=False)).save_pretrained(folder)


def test_the_slurm_script_saves_queues_the_job_again_and_goes_on(folder, tmp_path):
    recipe, bin_folder = write_recipe(folder, tmp_path / "run", max_steps=40, save_steps=100), tmp_path / "bin"
    bin_folder.mkdir()
    # Stand-ins: srun starts two tasks, which it tells to stop when the first loss is logged, once.
    (bin_folder / "srun").write_text(
        f"""#!/bin/bash
shift
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=2 "$@" & pids+=($!); done
if [ ! -e {tmp_path}/told ]; then
    until grep -q "{{'loss'" {tmp_path}/log; do sleep 0.1; done
    touch {tmp_path}/told
    kill -USR1 "${{pids[@]}}"
fi
worst=0
for pid in "${{pids[@]}}"; do wait $pid; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
    )
    (bin_folder / "scontrol").write_text(
        f'#!/bin/bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {tmp_path}/queue\n'
    )
    for name in ("srun", "scontrol"):
        (bin_folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    environment |= {"SLURM_JOB_ID": find_port(), "SLURM_JOB_NODELIST": "one", "SLURM_NTASKS": "2"}
    codes = []
    for _ in range(2):
        with open(tmp_path / "log", "a") as log:
            command = ["bash", "accelerate_configs/slurm.sbatch", "--config", str(recipe)]
            codes.append(subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=PATIENCE).returncode)
    assert codes == [143, 0], (tmp_path / "log").read_text()[-6000:]
    assert (tmp_path / "queue").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["exit_reason"] == "finished" and record["steps"] == 40
    assert [attempt["exit_reason"].split()[0] for attempt in record["earlier"]] == ["SIGUSR1"]
    assert Path(tmp_path, "run", "adapter_model.safetensors").is_file()
