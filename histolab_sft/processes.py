"""Check that all launched processes take part in a run, and explain the loss of one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from accelerate import PartialState
from torch.distributed import DistError, distributed_c10d
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled
from trl import SFTConfig

# What gloo says, in a RuntimeError, when another process is gone or silent; NCCL has an error class of its own.
GLOO_MARKS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


class LostProcessError(RuntimeError):
    """Another process of the run is gone or silent."""


def check_processes(
    training_args: SFTConfig, model_args, scoring: bool = False, environment: Mapping = os.environ
) -> None:
    """Stop a run that isn't the one its launcher meant, before anything is loaded.

    Args:
        model_args (`ModelConfig`): What the recipe says of the base model.
        scoring (`bool`): Whether the run scores, for which each process needs a whole model.

    Raises:
        ValueError: There are fewer processes than were to be launched, or their strategy can't carry the recipe.
    """
    found = training_args.world_size
    meant = int(environment.get("WORLD_SIZE", "1"))
    if found != meant:
        raise ValueError(
            f"{found} process in this run, expected the {meant} that were launched: each would train alone and "
            "overwrite the others; set use_cpu: true to train on processors, or launch where the GPUs are"
        )
    # accelerate announces the meeting point of several processes, and then starts a single one.
    if "WORLD_SIZE" not in environment and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= set(environment):
        raise ValueError(
            "1 process in this run, expected the several that accelerate launch was asked for: with --cpu, or "
            "distributed_type MULTI_CPU or NO, it starts one only; launch with --config_file "
            "accelerate_configs/multi_gpu.yaml, which with use_cpu: true in the recipe runs on processors too"
        )
    if "WORLD_SIZE" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ValueError(
            f"1 process in this run, expected the {environment['SLURM_STEP_NUM_TASKS']} tasks of the SLURM step: each "
            "would train alone; set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as docs/scaling.md does"
        )
    fsdp = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    sharded = fsdp or environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if scoring and sharded:
        raise ValueError(
            "scoring with DeepSpeed or FSDP, expected a whole model in each process; launch with "
            "accelerate_configs/multi_gpu.yaml"
        )
    if fsdp and training_args.use_cpu:
        raise ValueError(
            "FSDP with use_cpu, expected GPUs: on processors every one would silently keep the whole model; launch "
            "with accelerate_configs/multi_gpu.yaml"
        )
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    if quantised and is_deepspeed_zero3_enabled():
        raise ValueError(
            "4-bit or 8-bit weights with ZeRO-3, expected weights that it can shard: every process would load the "
            "whole model first; launch with accelerate_configs/deepspeed_zero2.yaml, or remove load_in_4bit "
            "(load_in_8bit)"
        )
    if is_deepspeed_zero3_enabled() and model_args.names_resolution:
        raise ValueError(
            "image_side or image_tokens with ZeRO-3, expected a whole vision tower in each process: its position "
            "embeddings are interpolated when it is loaded; launch with accelerate_configs/deepspeed_zero2.yaml"
        )
    uint8 = model_args.load_in_8bit or model_args.bnb_4bit_quant_storage in (None, "uint8")
    if fsdp and quantised and uint8:
        raise ValueError(
            "quantised weights in whole numbers with FSDP, expected weights that it can shard; take load_in_4bit with "
            "bnb_4bit_quant_storage at the value of dtype, or launch with accelerate_configs/deepspeed_zero2.yaml"
        )
    if training_args.use_cpu and found > 1:
        # Trainer hands ddp_timeout to GPU processes only.
        distributed_c10d._set_pg_timeout(timedelta(seconds=training_args.ddp_timeout))


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn what the network says about a lost process into a `LostProcessError` with advice."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, DistError) or any(mark in str(error) for mark in GLOO_MARKS)
        state = PartialState()
        if state.num_processes == 1 or not lost:
            raise
        raise LostProcessError(
            f"process {state.process_index} of {state.num_processes} lost another one ({str(error).splitlines()[0]}), "
            "expected its answer within ddp_timeout; look for the first error in the logs of the others and start "
            "the run again: training goes on by resume_from_checkpoint: auto"
        ) from error


@contextmanager
def unsharded() -> Iterator[None]:
    """Let a model that is made inside be whole: ZeRO-3 would shard even one without weights, and fail."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
