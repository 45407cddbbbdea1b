"""A run that isn't the one its launcher meant stops, and a lost process is told in a sentence."""

import os

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed import DistBackendError
from trl import SFTConfig

from histolab_sft import processes
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.processes import LostProcessError, check_processes, explain_lost_process


@pytest.fixture
def arguments(tmp_path):
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), ModelConfig()


@pytest.fixture
def state(monkeypatch):
    """Make this process the first of two, as far as messages go."""

    class State:
        num_processes, process_index = 2, 0

    monkeypatch.setattr(processes, "PartialState", State)


def test_one_process_that_nobody_launched_is_right(arguments):
    check_processes(*arguments, environment={})
    check_processes(*arguments, environment={"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"})


def test_fewer_processes_than_launched_are_refused(arguments):
    with pytest.raises(ValueError, match="1 process in this run, expected the 2 that were launched"):
        check_processes(*arguments, environment={"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "flags", [("--cpu", "--num_processes", "2"), ("--cpu", "--config_file", "accelerate_configs/multi_gpu.yaml")]
)
def test_the_single_process_that_accelerate_starts_for_two_is_refused(arguments, monkeypatch, flags):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    args = _validate_launch_command(launch_command_parser().parse_args([*flags, "--num_machines", "1", "_"]))[0]
    environment = prepare_simple_launcher_cmd_env(args)[1]
    with pytest.raises(ValueError, match="expected the several that accelerate launch was asked for"):
        check_processes(*arguments, environment=environment)


def test_the_single_process_of_the_processor_file_is_right(arguments):
    flags = ["--config_file", "accelerate_configs/cpu.yaml", "_"]
    args = _validate_launch_command(launch_command_parser().parse_args(flags))[0]
    check_processes(*arguments, environment=prepare_simple_launcher_cmd_env(args)[1])


def test_tasks_of_slurm_that_do_not_know_of_each_other_are_refused(arguments):
    with pytest.raises(ValueError, match="expected the 8 tasks of the SLURM step"):
        check_processes(*arguments, environment={"SLURM_STEP_NUM_TASKS": "8"})


def test_scoring_refuses_launch_files_that_shard(arguments):
    environment = os.environ | {"ACCELERATE_USE_DEEPSPEED": "true"}
    check_processes(*arguments, environment=environment)
    with pytest.raises(ValueError, match="scoring with DeepSpeed or FSDP"):
        check_processes(*arguments, scoring=True, environment=environment)


def test_fsdp_refuses_processors_and_weights_in_whole_numbers(arguments):
    training_args, _ = arguments
    environment = {"ACCELERATE_USE_FSDP": "true"}
    with pytest.raises(ValueError, match="FSDP with use_cpu"):
        check_processes(*arguments, environment=environment)
    training_args.use_cpu = False
    with pytest.raises(ValueError, match="bnb_4bit_quant_storage"):
        check_processes(training_args, ModelConfig(load_in_4bit=True), environment=environment)
    storage = {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}
    check_processes(training_args, ModelConfig(**storage), environment=environment)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4711"),
        DistBackendError("NCCL communicator was aborted on rank 0."),
    ],
)
def test_what_the_network_says_of_a_lost_process_becomes_advice(state, error):
    with pytest.raises(LostProcessError, match="process 0 of 2 lost another one .*resume_from_checkpoint: auto"):
        with explain_lost_process():
            raise error


def test_other_errors_stay_what_they_are(state):
    with pytest.raises(RuntimeError, match="^shapes differ$"), explain_lost_process():
        raise RuntimeError("shapes differ")
