"""An adapter belongs to one base model, and to one commit of it: every road that takes one compares both."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from steady_runs import begin_recipe, write_inputs, write_recipe
from tiny_models import LANGUAGE_LORA
from transformers import AutoModelForImageTextToText
from written_checkpoints import RUN, write_checkpoint

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.hub_access import resolve_commit
from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.continued_adapter import build_continued_config
from histolab_sft.models.load import load_base_model, load_finetuned
from histolab_sft.publishing.merge import load_trained
from histolab_sft.publishing.push_gate import PublishError, check_base_model
from histolab_sft.training.checkpoints import CheckpointError, choose_checkpoint
from histolab_sft.training.exact_resume import describe_run

pytestmark = pytest.mark.model

ONE, NEXT = "google/medgemma-4b-it", "google/medgemma-1.5-4b-it"
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, untrained_model):
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(target_modules=LANGUAGE_LORA, r=4, init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(untrained_model), config).save_pretrained(folder)
    return folder


@pytest.fixture
def cached(tmp_path, monkeypatch, untrained_model):
    """The two base models in the cache of the Hub, with the same shapes and files, each at `COMMIT`."""
    for name in (ONE, NEXT):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(COMMIT)
        for commit in (COMMIT, OTHER):
            shutil.copytree(untrained_model, home / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


ROADS = {
    "scoring": lambda args, folder: load_finetuned(load_base_model(args), args, folder),
    "merging": load_trained,
    "going on": lambda args, folder: build_continued_config(args, "language", folder),
    "publishing": lambda args, folder: check_base_model(folder / "adapter_config.json", args),
}


def name_base(adapter, folder, **keys):
    """A copy of the adapter whose configuration names another origin."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("trained_on", "loaded"), [(ONE, NEXT), (NEXT, ONE)])
def test_an_adapter_of_one_version_is_refused_on_the_next_by_name(cached, adapter, tmp_path, road, trained_on, loaded):
    folder = name_base(adapter, tmp_path / "run", base_model_name_or_path=trained_on, revision=COMMIT)
    with pytest.raises((AdapterError, PublishError), match=f"{trained_on}, expected .*{loaded}"):
        ROADS[road](ModelConfig(loaded, use_peft=True), folder)


@pytest.mark.parametrize("road", ROADS)
def test_an_adapter_of_another_commit_of_the_base_model_is_refused(cached, adapter, tmp_path, road):
    folder = name_base(adapter, tmp_path / "run", base_model_name_or_path=NEXT, revision=COMMIT)
    args = ModelConfig(NEXT, use_peft=True)
    ROADS[road](args, folder)
    ROADS[road](replace(args, model_revision=COMMIT), folder)
    with pytest.raises((AdapterError, PublishError), match=f"set model_revision: {COMMIT}"):
        ROADS[road](replace(args, model_revision=OTHER), folder)


def test_a_revision_is_the_commit_that_the_cache_knows_and_else_itself(cached, tmp_path):
    assert resolve_commit(NEXT) == COMMIT and type(resolve_commit(NEXT)) is str
    assert resolve_commit(NEXT, OTHER) == OTHER
    assert resolve_commit("google/unknown", "main") == "main"
    assert resolve_commit(str(tmp_path), "main") == "main"


def test_a_checkpoint_that_names_a_branch_is_of_the_commit_that_the_branch_is_at(cached, tmp_path):
    for saved, commit, goes_on in (("main", COMMIT, True), ("main", OTHER, False), (OTHER, COMMIT, False)):
        output_dir = tmp_path / f"{saved} {commit}"
        folder = write_checkpoint(output_dir, 2, run=RUN | {"base_model": NEXT, "revision": saved})
        run = RUN | {"base_model": NEXT, "revision": commit}
        if goes_on:
            assert choose_checkpoint("auto", output_dir, run)[0] == str(folder)
        else:
            with pytest.raises(CheckpointError, match="with revision .*expected"):
                choose_checkpoint("auto", output_dir, run)


def test_training_records_base_model_and_commit_with_the_adapter(cached, tmp_path):
    write_inputs(tmp_path)
    recipe = write_recipe(tmp_path, tmp_path / "run", model_name_or_path=NEXT, leaks="allow")
    trainer, _, _ = begin_recipe(recipe)
    assert describe_run(trainer)["base_model"] == NEXT and describe_run(trainer)["revision"] == COMMIT
    trainer.save_model()
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == (NEXT, COMMIT)
