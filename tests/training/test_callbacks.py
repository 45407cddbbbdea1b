"""The EMA rule by hand-worked numbers: two modes, counted in optimiser steps, kept over a resume."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from histolab_sft.training.callbacks import STATE_FILE, EMAEarlyStoppingCallback


def make_callback(mode="threshold", metric="loss", patience=3, **keys):
    defaults = {"threshold": 0.5, "min_delta": 0.1, "decay": 0.5}
    return EMAEarlyStoppingCallback(mode, metric, patience, **defaults | keys)


def feed(callback, values, steps=1):
    """Return the optimiser step at which the callback stops, or None."""
    for i, value in enumerate(values, start=1):
        callback.update(value, steps)
        if callback.stopped:
            return i * steps
    return None


def test_the_ema_starts_at_the_first_value_and_decays():
    callback = make_callback(decay=0.9)
    feed(callback, [1.0, 0.0, 0.5])
    assert callback.ema == pytest.approx(0.9 * (0.9 * 1.0) + 0.1 * 0.5)


def test_a_log_of_several_steps_weighs_and_counts_as_many():
    every_step, every_third = make_callback(patience=100), make_callback(patience=100)
    feed(every_step, [1.0] + [0.2] * 6)
    feed(every_third, [1.0])
    feed(every_third, [0.2] * 2, steps=3)
    assert every_third.ema == pytest.approx(every_step.ema)


def test_threshold_stops_after_patience_steps_below_it_and_a_step_above_starts_the_count_again():
    assert feed(make_callback(), [1.0, 0.2, 0.2, 0.2, 0.2]) == 5  # EMA 1, .6, .4, .3, .25
    assert feed(make_callback(), [0.2, 0.2, 2.0, 0.2, 0.2, 0.2, 0.2]) == 7  # EMA .2, .2, 1.1, .65, .425, .31, .26


def test_plateau_stops_after_patience_steps_without_a_fall_by_min_delta():
    # EMA 1, .75, .625, .563, .531, .516, .508, ...: .516 is the last that beats the best before it by .1.
    assert feed(make_callback("plateau"), [1.0] + [0.5] * 10) == 9
    assert feed(make_callback("plateau"), [1.0 - 0.3 * i for i in range(30)]) is None


def test_plateau_holds_its_fire_while_the_model_guesses():
    shelf, descent, floor = [2.2] * 40, [2.0 - 0.2 * i for i in range(10)], [0.1] * 12
    assert feed(make_callback("plateau"), shelf + descent + floor) < 40
    stop = feed(make_callback("plateau", guessing_level=1.9), shelf + descent + floor)
    assert stop is not None and stop > 50


def test_a_higher_accuracy_is_an_improvement():
    rising = [0.1 * i for i in range(10)]
    assert feed(make_callback("plateau", "answer_accuracy", min_delta=0.01), rising) is None
    assert feed(make_callback("plateau", "answer_accuracy", min_delta=0.01), rising + [0.9] * 20) > 10
    assert feed(make_callback("threshold", "answer_accuracy", threshold=0.8), [0.9] * 3) == 3


@pytest.mark.parametrize("mode", ["threshold", "plateau"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_counts(mode, bad):
    callback = make_callback(mode, threshold=5.0)
    feed(callback, [1.0, 1.0])
    ema = callback.ema
    callback.update(bad)
    assert callback.ema == ema and callback.steps_met == 0 and not callback.stopped


def run_step(callback, args, state, control, logs):
    state.global_step += 1
    callback.on_step_begin(args, state, control)
    callback.on_log(args, state, control, logs=dict(logs))


def test_state_in_the_checkpoint_gives_the_same_decisions_after_a_resume(tmp_path):
    values = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    undisturbed = make_callback("plateau", patience=4)
    expected = feed(undisturbed, values)

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback = make_callback("plateau", patience=4)
    callback.on_train_begin(args, state, control)
    for value in values[:3]:
        run_step(callback, args, state, control, {"loss": value})
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    callback.on_save(args, state, control)
    assert json.loads((checkpoint / STATE_FILE).read_text())["last_step"] == 3

    args.resume_from_checkpoint = str(checkpoint)
    resumed = make_callback("plateau", patience=4)
    resumed.on_train_begin(args, state, control)
    for value in values[3:expected]:
        assert not control.should_training_stop
        run_step(resumed, args, state, control, {"loss": value})
    assert control.should_training_stop and state.global_step == expected


def test_a_stopped_run_stays_stopped_after_a_resume(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback = make_callback(patience=2)
    for _ in range(2):
        run_step(callback, args, state, control, {"loss": 0.1})
    (tmp_path / "checkpoint-2").mkdir()
    callback.on_save(args, state, control)

    args.resume_from_checkpoint = str(tmp_path / "checkpoint-2")
    resumed, control = make_callback(patience=2), TrainerControl()
    resumed.on_train_begin(args, state, control)
    resumed.on_step_begin(args, state, control)
    assert control.should_training_stop


def test_logs_without_the_metric_change_nothing(tmp_path):
    args, state, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()
    callback = make_callback(metric="answer_loss")
    run_step(callback, args, state, control, {"loss": 0.0})
    assert callback.ema is None
