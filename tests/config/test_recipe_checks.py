"""Fifty broken recipes: each is refused before a model is loaded, with what to do instead."""

import pytest
import yaml
from recipe_args import BASE

from histolab_sft.config.arguments import parse_recipe

GOOD = BASE | {"use_peft": True, "lora_target_modules": ["q_proj"], "load_in_4bit": True, "max_length": None}

# Key and value that break the recipe, and what the message must say.
BROKEN = [
    ({"learnig_rate": 1e-4}, "learning_rate"),
    ({"learning_rates": 1e-4}, "learning_rate"),
    ({"lerning_rate": 1e-4}, "learning_rate"),
    ({"lora_rank": 8}, "lora_r"),
    ({"lora_alhpa": 8}, "lora_alpha"),
    ({"lora_drop_out": 0.1}, "lora_dropout"),
    ({"lora_target_module": ["q_proj"]}, "lora_target_modules"),
    ({"lora_target_scope": "llm_only"}, "lora_scope"),
    ({"target_modules": ["q_proj"]}, "lora_target_modules"),
    ({"torch_dtype": "bfloat16"}, "dtype"),
    ({"max_seq_length": 512}, "max_length"),
    ({"warmup_ratio": 0.03}, "warmup_steps"),
    ({"evaluation_strategy": "steps"}, "eval_strategy"),
    ({"samples_per_dataset": 5000}, "max_samples"),
    ({"max_sample": 5000}, "max_samples"),
    ({"batch_size": 4}, "per_device_train_batch_size"),
    ({"per_device_batch_size": 4}, "per_device_train_batch_size"),
    ({"epochs": 1}, "num_train_epochs"),
    ({"num_train_epoch": 1}, "num_train_epochs"),
    ({"base_model": "google/medgemma-4b-it"}, "model_name_or_path"),
    ({"model_name": "google/medgemma-4b-it"}, "model_name_or_path"),
    ({"earlystopping": "plateau"}, "early_stopping"),
    ({"early_stopping_patence": 5}, "early_stopping_patience"),
    ({"ema_decays": 0.9}, "ema_decay"),
    ({"prompt_stile": "generic"}, "prompt_style"),
    ({"gradient_acumulation_steps": 4}, "gradient_accumulation_steps"),
    ({"hub_model": "me/x"}, "hub_model_id"),
    ({"hub_private": True}, "hub_private_repo"),
    ({"output_directory": "x"}, "output_dir"),
    ({"sede": 1}, "seed"),
    ({"per_device_train_batch_size": -3}, "at least 1"),
    ({"per_device_train_batch_size": 2.5}, "expected int"),
    ({"per_device_train_batch_size": "many"}, "expected int"),
    ({"learning_rate": "fast"}, "expected float"),
    ({"fold": 1}, "folds is None"),
    ({"folds": 3, "fold": 4}, "expected a fold from 1 to folds"),
    ({"folds": 1}, "at least 2"),
    ({"folds": 3, "max_test_samples": 20}, "take max_samples"),
    ({"folds": 3, "test_fraction": 0.2}, "of which one is the test"),
    ({"seeds": [1, 1]}, "expected different numbers"),
    ({"seeds": 0}, "expected different numbers"),
    ({"seeds": []}, "expected different numbers"),
    ({"seeds": "many"}, "expected list"),
    ({"learning_rate": -1e-4}, "at least 0"),
    ({"learning_rate": 30}, "at most 1"),
    ({"learning_rate": float("nan")}, "not a number"),
    ({"lora_dropout": 1.5}, "at most 0.99"),
    ({"lora_r": 0}, "at least 1"),
    ({"num_train_epochs": -1}, "at least 0"),
    ({"use_peft": "perhaps"}, "expected bool"),
    ({"load_in_4bit": 3}, "expected bool"),
    ({"prompt_style": "generik"}, "generic"),
    ({"early_stopping": "platoe"}, "plateau"),
    ({"dtype": "bfloat"}, "bfloat16"),
    ({"lr_scheduler_type": "cosin"}, "cosine"),
    ({"eval_strategy": "step"}, "steps"),
    ({"lora_target_modules": 5}, "expected list"),
    ({"use_peft": False}, "set use_peft: true"),
    ({"lora_target_modules": None}, "name linear layers"),
    ({"early_stopping": "plateau", "logging_strategy": "no"}, "set logging_strategy: steps"),
    ({"early_stopping": "plateau", "early_stopping_metric": "eval_loss"}, "set eval_strategy: steps"),
    ({"trust_remote_code": True}, "remove it"),
    ({"packing": True}, "remove them"),
    ({"completion_only_loss": False}, "remove completion_only_loss"),
    ({"attn_implementation": "flash_attention_2"}, "remove attn_implementation"),
    ({"model_name_or_path": "google/medgemma-4b-it", "dtype": "float16"}, "set dtype: bfloat16"),
    ({"hub_token": "not-a-real-one"}, "hf auth login"),
    ({"expected_gain": 0}, "at least 0.001"),
    ({"expected_gain": 0.3, "expected_score": 0.2}, "lower it"),
    ({"class_weights": "balanced"}, "expected one of none, inverse_frequency, effective_number"),
    ({"class_sampling": "even"}, "expected one of natural, balanced"),
    ({"class_weights": "inverse_frequency", "class_sampling": "balanced"}, "remove one"),
    ({"class_weights": "inverse_frequency", "label_smoothing_factor": 0.1}, "remove loss_type"),
    ({"class_weights": "effective_number", "loss_type": "dft"}, "remove loss_type"),
    ({"class_sampling": "balanced", "train_sampling_strategy": "sequential"}, "order of the rows"),
    ({"prior_correction": "train"}, "name the shares where the model is to be used"),
    ({"prior_correction": "natural"}, "expected none, train, or a share for each label"),
    ({"prior_correction": {"ward": {"Normal": 0.9, "Tumor": 0.1}}}, "of pcam"),
    ({"prior_correction": {"pcam": {"Normal": 0.9}}}, "all of them 1 together"),
    ({"prior_correction": {"pcam": {"Normal": 0.9, "Tumor": 0.2}}}, "all of them 1 together"),
    (
        {
            "datasets": [GOOD["datasets"][0] | {"prevalence": 0.1, "positive_class": "Tumor"}],
            "prior_correction": {"pcam": {"Normal": 0.9, "Tumor": 0.1}},
        },
        "both say how frequent classes are",
    ),
    ({"constrained_decoding": True}, "only data sets with format: biomarkers have"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "advice"), BROKEN, ids=lambda value: str(value)[:60])
def test_a_broken_recipe_is_refused_with_advice(tmp_path, keys, advice):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD | keys))
    with pytest.raises(ValueError) as error:
        parse_recipe(["--config", str(path)])
    assert advice in str(error.value)
    assert any(key in str(error.value) for key in keys) or "did you mean" in str(error.value)


def test_the_recipe_that_is_broken_above_is_itself_good(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    parse_recipe(["--config", str(path)])


def test_shares_of_the_classes_are_read_in_their_words_from_yaml_and_from_the_command_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    dataset = GOOD["datasets"][0] | {"class_names": {"N": "Normal tissue", "T": "Tumor"}}
    path.write_text(
        yaml.safe_dump(GOOD | {"datasets": [dataset], "prior_correction": {"pcam": {"T": 0.02, "N": 0.98}}})
    )
    expected = {"pcam": {"Normal tissue": 0.98, "Tumor": 0.02}}
    assert parse_recipe(["--config", str(path)])[0].prior_correction == expected
    flag = ["--prior_correction", '{"pcam": {"N": 0.5, "T": 0.5}}']
    assert parse_recipe(["--config", str(path), *flag])[0].prior_correction["pcam"]["Tumor"] == 0.5


def test_labels_that_yaml_takes_for_something_else_are_labels_in_shares_too(tmp_path):
    path = tmp_path / "recipe.yaml"
    dataset = GOOD["datasets"][0] | {"class_names": {"No": "Normal", "01": "Tumor"}}
    text = yaml.safe_dump(GOOD | {"datasets": [dataset]})
    path.write_text(text + "prior_correction: {pcam: {No: 0.9, 01: 0.1}}\n")
    assert parse_recipe(["--config", str(path)])[0].prior_correction == {"pcam": {"Normal": 0.9, "Tumor": 0.1}}
    flag = ["--prior_correction", "{pcam: {No: 0.8, 01: 0.2}}"]
    assert parse_recipe(["--config", str(path), *flag])[0].prior_correction["pcam"]["Tumor"] == 0.2


@pytest.mark.parametrize("key", ["class_weights: inverse_frequency", "class_sampling: balanced"])
def test_rare_classes_are_of_data_sets_with_classes_alone(tmp_path, key):
    path = tmp_path / "recipe.yaml"
    questions = {"name": "captions", "source": "captions", "format": "captions"}
    keys = dict([key.split(": ")]) | {"datasets": [*GOOD["datasets"], questions]}
    path.write_text(yaml.safe_dump(GOOD | keys))
    with pytest.raises(ValueError, match=f"{key}: rows of data sets with a format have no class"):
        parse_recipe(["--config", str(path)])


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "learning_rate: 2e-5\n")
    assert yaml.safe_load(path.read_text())["learning_rate"] == "2e-5"
    assert parse_recipe(["--config", str(path)])[1].learning_rate == 2e-5


def test_every_complaint_is_made_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"learning_rate": "fast", "lora_r": 0}))
    with pytest.raises(ValueError, match="learning_rate.*lora_r|lora_r.*learning_rate"):
        parse_recipe(["--config", str(path)])
