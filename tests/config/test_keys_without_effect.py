"""Keys that a resume may change in silence: each is changed in a real resume, which ends with the same bytes of the
adapter, or is refused where it changes the rows.
"""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from steady_runs import DATASETS, hash_adapter, start_recipe, write_inputs, write_recipe

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.training.run_keys import NO_EFFECT

pytestmark = [pytest.mark.model, pytest.mark.thorough]

PATIENCE = 240
RUN = {"max_steps": 6, "save_steps": 3}
# Which rows there are: with these values they are the same ones.
SAME_ROWS = {
    **{"data_dir": "MOVED", "datasets": [DATASETS[0] | {"source": "MOVED/pcam"}], "leaks": "drop"},
    **{"refused_images": "quarantine", "unlabelled": "drop", "max_samples": 1000, "max_test_samples": 1000},
    **{"split_protocol": "seed", "output_dir": "OTHER", "resume_from_checkpoint": "CHECKPOINT"},
    "resume_changes": ["learning_rate", "lora_dropout"],
}
OTHER_ROWS = {
    **{"split_seed": 7, "validation_fraction": 0.3, "test_fraction": 0.3, "prompt_style": "dataset_specific"},
    **{"datasets": [DATASETS[0] | {"class_names": {"Normal": "Healthy", "Tumor": "Tumor"}}]},
    **{"max_samples": 12, "max_test_samples": 2, "folds": 3, "fold": 1},
}
# Keys that don't stand alone.
BESIDE = {"folds": {"fold": 1}, "fold": {"folds": 3}}
SCORING = {
    **{"generate_answers": False, "max_new_tokens": 3, "sensitivity": "prompt"},
    **{"sensitivity_samples": 3, "sensitivity_sides": [28], "changed_split": "new"},
    **{"expected_score": 0.7, "expected_gain": 0.1},
    **{"encoders": ["facebook/dinov2-base"], "cnn": "resnet18"},
    "prior_correction": {"pcam": {"Normal": 0.9, "Tumor": 0.1}},
    "external": [{"name": "elsewhere", "source": "pcam"}],
}
MESSAGES = {
    **{"logging_nan_inf_filter": False, "log_on_each_node": False, "log_level": "error", "disable_tqdm": False},
    **{"log_level_replica": "error", "report_to": ["tensorboard"], "run_name": "another", "project": "another"},
    **{"trackio_space_id": "a/b", "trackio_bucket_id": "a/c", "trackio_static_space_id": "a/d"},
    **{"hub_private_repo": True, "hub_model_id": "a/b", "hub_strategy": "end"},
    **{"hub_always_push": True, "hub_revision": "main"},
}
OTHERS = {
    **{
        "seeds": [7, 42],
        "do_train": True,
        "do_eval": False,
        "do_predict": True,
        "include_num_input_tokens_seen": True,
    },
    **{"skip_memory_metrics": False, "ddp_timeout": 600, "local_rank": 0},
}
SAVING = {"save_steps": 2, "save_total_limit": 1, "save_on_each_node": True}
WORKERS = {
    **{"dataloader_num_workers": 2, "dataloader_pin_memory": True, "dataloader_persistent_workers": True},
    **{"dataloader_prefetch_factor": 3, "dataloader_multiprocessing_context": "forkserver"},
}
GROUPS = {
    "rows": SAME_ROWS,
    "scoring, messages and others": SCORING | MESSAGES | OTHERS,
    "saving": SAVING,
    "saving at the ends of epochs": {"save_strategy": "epoch"},
    "workers": WORKERS,
}
# Nothing that a recipe may say: of any data set, and of one with classes.
REFUSED = ("profile_notes", "written", "hub_token", "constrained_decoding")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs, also at a second place, and in `whole` a run that nobody disturbed, with its checkpoints."""
    folder = tmp_path_factory.mktemp("keys")
    write_inputs(folder)
    shutil.copytree(folder / "pcam", folder / "moved" / "pcam")
    code, log = run(folder, folder / "whole", {})
    assert code == 0, log[-3000:]
    return folder


def place(folder, output_dir, keys):
    """Return the keys with the places that they name."""
    places = {"MOVED": folder / "moved", "OTHER": folder / f"{output_dir.name}-other"}
    text = yaml.safe_dump(keys)
    for word, path in places.items() | {("CHECKPOINT", output_dir / "checkpoint-3")}:
        text = text.replace(word, str(path))
    return yaml.safe_load(text)


def write(folder, output_dir, keys):
    recipe = write_recipe(folder, output_dir)
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | RUN | place(folder, output_dir, keys)))
    return recipe


def run(folder, output_dir, keys):
    """Return exit code and log."""
    log = folder / f"{output_dir.name}.log"
    process = start_recipe(write(folder, output_dir, keys), log)
    process.join(PATIENCE)
    return process.exitcode, log.read_text()


def resume(folder, name, keys):
    """Go on from the third step of the undisturbed run with other keys; return exit code, log and results' place."""
    output_dir = folder / name
    # As it stood after its third step.
    shutil.copytree(folder / "whole", output_dir, ignore=shutil.ignore_patterns("checkpoint-6", "*.safetensors"))
    shutil.copytree(folder / "whole" / "checkpoint-3", output_dir / "checkpoint-3", dirs_exist_ok=True)
    return *run(folder, output_dir, keys), Path(place(folder, output_dir, keys).get("output_dir", output_dir))


def read_values(folder, output_dir, keys):
    parsed = parse_recipe(["--config", str(write(folder, output_dir, keys))])
    return {entry.name: getattr(part, entry.name) for part in parsed for entry in fields(part)}


def test_every_key_without_effect_is_changed_in_one_of_the_resumes(folder):
    assert {key for keys in GROUPS.values() for key in keys} | OTHER_ROWS.keys() == NO_EFFECT.keys() - set(REFUSED)
    before = read_values(folder, folder / "parsed", {})
    for keys in GROUPS.values():
        after = read_values(folder, folder / "parsed", keys)
        # Whatever is said, `do_eval` is what `eval_strategy` makes of it, and memory is pinned for a GPU alone.
        assert {key for key in keys if after[key] == before[key]} <= {"do_eval", "dataloader_pin_memory"}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_recipe_may_not_say_is_refused(folder, key):
    with pytest.raises(ValueError, match=key):
        read_values(folder, folder / "inner", {key: True})


@pytest.mark.parametrize("name", GROUPS)
def test_a_resume_with_other_keys_without_effect_ends_with_the_same_bytes(folder, name):
    keys, expected = GROUPS[name], hash_adapter(folder / "whole")
    code, log, results = resume(folder, name, keys)
    assert code == 0, log[-3000:]
    assert "log_level" in keys or "training goes on from" in log
    assert not list(results.glob("checkpoint-[12]"))
    if hash_adapter(results) != expected:
        alone = {key: resume(folder, f"{name} {key}", {key: value}) for key, value in keys.items()}
        changed = [key for key, (code, _, place) in alone.items() if code or hash_adapter(place) != expected]
        pytest.fail(f"other bytes, or an error, by {changed}")


@pytest.mark.parametrize("key", OTHER_ROWS)
def test_a_resume_with_other_rows_is_refused(folder, key):
    code, log, _ = resume(folder, f"refused {key}", {key: OTHER_ROWS[key]} | BESIDE.get(key, {}))
    assert code == 1
    assert f"{key} is " in log or "of data set pcam is " in log, log[-2000:]
    assert not (folder / f"refused {key}" / "adapter_model.safetensors").exists()
