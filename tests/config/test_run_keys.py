"""A resume is the same run: every key of a recipe either computes and must stay, or is without effect and says why."""

from dataclasses import fields

import pytest
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.training.checkpoints import CheckpointError
from histolab_sft.training.run_keys import CHANGEABLE, NO_EFFECT, WITH_BEST_MODEL, compare_keys, describe_keys

KINDS = (HistoArguments, SFTConfig, ModelConfig)
ALL = [entry.name for kind in KINDS for entry in fields(kind)]
DATASETS = [{"name": "ward", "source": "ward", "class_names": {"N": "Normal", "T": "Tumor"}}]
# Every key that computes. A new one is added here, or to `run_keys.REASONS` with the reason why it has no effect.
COMPUTES = set(
    """
    adapter_name_or_path train_projector train_vision projector_learning_rate vision_learning_rate phases hardware
    bnb_4bit_compute_dtype vision_tower_dtype candidate_batch_size lora_scope oom early_stopping
    early_stopping_metric early_stopping_patience early_stopping_threshold early_stopping_min_delta ema_decay
    find_siblings class_weights class_sampling
    augmentation vision_cache compiled_layers per_device_train_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2
    adam_epsilon optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm
    label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
    torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step eval_strategy
    eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches
    eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model
    enable_jit_checkpoint push_to_hub load_best_model_at_end metric_for_best_model greater_is_better
    ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
    accelerator_config parallelism_config dataloader_drop_last dataloader_in_order remove_unused_columns
    label_names train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend fsdp fsdp_config deepspeed debug model_init_kwargs
    trust_remote_code router_aux_loss_coef chat_template_path dataset_text_field dataset_kwargs dataset_num_proc
    eos_token max_length truncation_mode shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of
    eval_packing completion_only_loss assistant_only_loss loss_type activation_offloading pad_token
    model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout
    lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit
    load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage image_side image_tokens
    """.split()
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("out"))
    return describe_keys(HistoArguments(datasets=DATASETS), SFTConfig(folder, use_cpu=True, bf16=False), ModelConfig())


def test_every_key_computes_or_says_why_it_has_no_effect():
    assert COMPUTES | set(NO_EFFECT) == set(ALL) and not COMPUTES & set(NO_EFFECT)
    assert all(NO_EFFECT.values())
    assert set(CHANGEABLE) <= COMPUTES


def test_every_key_that_computes_stands_in_the_manifest_and_no_other(keys):
    assert set(keys) == COMPUTES


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(COMPUTES))
def test_a_key_that_computes_is_refused_with_its_old_and_new_value(keys, key):
    changed = keys | {key: "another value"}
    with pytest.raises(CheckpointError) as error:
        compare_keys(keys, changed, (), "checkpoint-4", False)
    assert f"{key} was {keys[key]} and is another value" in str(error.value)
    assert (f"resume_changes: [{key}]" in str(error.value)) == (key in CHANGEABLE)
    if key in CHANGEABLE:
        expected = [{"key": key, "from": keys[key], "to": "another value"}]
        assert compare_keys(keys, changed, [key], "checkpoint-4", False) == expected
    else:
        with pytest.raises(CheckpointError, match=f"resume_changes names {key}"):
            compare_keys(keys, changed, [key], "checkpoint-4", False)


def test_what_is_saved_computes_where_the_best_model_is_chosen_among_it(tmp_path):
    saves = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    keys = describe_keys(SFTConfig(str(tmp_path), use_cpu=True, bf16=False, save_strategy="steps", **saves))
    assert set(WITH_BEST_MODEL) <= set(keys)


def test_another_number_of_processes_may_deal_out_the_rows_of_a_step_in_another_way(keys):
    other = keys | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert compare_keys(keys, other, (), "checkpoint-4", True) == []
    with pytest.raises(CheckpointError, match="per_device_train_batch_size was 8 and is 1"):
        compare_keys(keys, other, (), "checkpoint-4", False)
