"""Which keys of a recipe contradict each other, in one table of rules."""

import importlib.util

from histolab_sft.config.class_balance import check_class_balance
from histolab_sft.config.phase import PROJECTOR, VISION, list_trained_parts
from histolab_sft.config.trainings import list_seeds


def check_consistency(histo_args, training_args, model_args) -> None:
    """Raise one `ValueError` that names every contradiction between keys, each with what to do."""
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    metric = histo_args.early_stopping_metric
    choosing = [bool(config.options) for config in histo_args.datasets]
    # Not where some rows, or where all of them, bring their own questions.
    useless = {
        "generate_answers: false": not histo_args.generate_answers and not all(choosing),
        f"sensitivity: {histo_args.sensitivity}": histo_args.sensitivity != "none" and not any(choosing),
        f"encoders: {histo_args.encoders}": bool(histo_args.encoders) and not any(choosing),
        f"cnn: {histo_args.cnn}": histo_args.cnn is not None and not any(choosing),
        f"augmentation: {histo_args.augmentation}": histo_args.augmentation != "none" and not all(choosing),
        f"prompt_style: {histo_args.prompt_style}": histo_args.prompt_style != "generic" and not any(choosing),
    }
    stopping = histo_args.early_stopping != "none"
    gemma3 = any(name in str(model_args.model_name_or_path).lower() for name in ("gemma-3", "medgemma"))
    phases = histo_args.phases
    parts = list_trained_parts(histo_args)
    in_folder = histo_args.vision_cache not in ("auto", "off")
    seeds = list_seeds(histo_args.seeds, training_args.seed)
    rules = [
        (
            quantised and not model_args.use_peft,
            "load_in_4bit or load_in_8bit without an adapter: quantised weights can't be trained; set use_peft: true",
        ),
        (
            model_args.use_peft and not (model_args.lora_target_modules or histo_args.adapter_name_or_path),
            "use_peft is on and lora_target_modules is empty; name linear layers such as [q_proj, v_proj]",
        ),
        (
            stopping and training_args.logging_strategy == "no",
            "early_stopping reads the log and logging_strategy is no; set logging_strategy: steps",
        ),
        (
            stopping and metric.startswith("eval_") and training_args.eval_strategy == "no",
            f"early_stopping_metric {metric} is never logged with eval_strategy: no; set eval_strategy: steps",
        ),
        (
            any(useless.values()),
            f"{', '.join(key for key, given in useless.items() if given)}: data sets with a format bring their "
            "own questions, their answers are written, and turning a picture would move boxes and sides; remove it",
        ),
        (
            not any(choosing)
            and "balanced_accuracy" in f"{metric if stopping else ''} {training_args.metric_for_best_model}",
            "eval_balanced_accuracy is measured on class folders alone; with a format, watch loss or eval_loss",
        ),
        (
            histo_args.constrained_decoding and any(config.format != "biomarkers" for config in histo_args.datasets),
            "constrained_decoding needs the form of a JSON answer, which only data sets with format: biomarkers have; "
            "remove it, or give them a recipe of their own",
        ),
        (
            histo_args.constrained_decoding and importlib.util.find_spec("llguidance") is None,
            "constrained_decoding needs llguidance, which isn't here; run `pip install histolab_sft[constrained]`",
        ),
        (
            histo_args.find_siblings and importlib.util.find_spec("cv2") is None,
            "find_siblings needs OpenCV, which isn't here; run `pip install histolab_sft[siblings]`",
        ),
        (
            training_args.trust_remote_code,
            "trust_remote_code runs code that comes with the weights; remove it, no model here needs it",
        ),
        (
            training_args.packing or training_args.padding_free,
            "packing and padding_free don't exist for pictures in TRL; remove them",
        ),
        (
            training_args.completion_only_loss is False or training_args.assistant_only_loss,
            "the loss is on the answer only; remove completion_only_loss and assistant_only_loss",
        ),
        (
            "flash" in str(model_args.attn_implementation),
            "flash attention drops Gemma 3's two-way attention among image tokens, without an error; "
            "remove attn_implementation (sdpa is used)",
        ),
        (
            gemma3 and (training_args.fp16 or model_args.dtype == "float16"),
            "Gemma 3 overflows in float16; set dtype: bfloat16 and fp16: false",
        ),
        (
            training_args.hub_token is not None,
            "a recipe takes no token; remove hub_token and log in with `hf auth login` or set HF_TOKEN",
        ),
        (
            training_args.push_to_hub,
            "push_to_hub uploads all that lies in output_dir; remove it and use recipes/push_adapter.py",
        ),
        (
            training_args.save_only_model or training_args.ignore_data_skip,
            "save_only_model and ignore_data_skip make runs that can't go on exactly; remove them",
        ),
        (
            training_args.enable_jit_checkpoint,
            "enable_jit_checkpoint saves in the middle of a step; remove it, stop signals save at the step's end",
        ),
        (
            training_args.auto_find_batch_size,
            "auto_find_batch_size starts the run again with other steps; set oom: halve in its place",
        ),
        (
            in_folder and (histo_args.augmentation in ("stain", "all") or histo_args.lora_scope != "language"),
            f"vision_cache {histo_args.vision_cache}: features stay the same only while no stain jitter changes the "
            "pictures and no adapter the vision tower; set vision_cache: off",
        ),
        (
            in_folder
            and (histo_args.sensitivity == "all" or histo_args.sensitivity_sides)
            and not training_args.use_cpu,
            "sensitivity: all and sensitivity_sides ask about changed pictures, for which the vision tower must be on "
            f"the GPU, and vision_cache: {histo_args.vision_cache} keeps it off; set sensitivity: prompt without "
            "sensitivity_sides, or vision_cache: auto",
        ),
        (
            histo_args.augmentation != "none" and any(config.multi_scale for config in histo_args.datasets),
            f"augmentation: {histo_args.augmentation} turns each picture by itself, and with multi_scale crops would "
            "no longer lie in the whole picture where it shows them; remove one of the two",
        ),
        (
            histo_args.sensitivity_sides and histo_args.sensitivity == "none",
            "sensitivity_sides asks about the patches of sensitivity, which is none; set sensitivity: prompt or all",
        ),
        (
            histo_args.sensitivity_sides and not model_args.use_peft,
            "sensitivity_sides compares one adapter on base models of several sides, and use_peft is off; remove it",
        ),
        (
            training_args.load_best_model_at_end and training_args.eval_strategy == "no",
            "load_best_model_at_end compares evaluations and eval_strategy is no; set eval_strategy: steps",
        ),
        (
            model_args.lora_modules_to_save,
            "lora_modules_to_save names modules by one model's names; set train_projector or train_vision",
        ),
        (
            phases and (histo_args.train_projector or histo_args.train_vision),
            "train_projector and train_vision beside phases, which say themselves what they train; remove them",
        ),
        (
            phases and training_args.resume_from_checkpoint not in (None, "auto"),
            "resume_from_checkpoint is a path, and a run in phases has a checkpoint in each; set it to auto",
        ),
        (
            histo_args.projector_learning_rate is not None and PROJECTOR not in parts,
            "projector_learning_rate without a trained projector; set train_projector: true",
        ),
        (
            histo_args.vision_learning_rate is not None and VISION not in parts,
            "vision_learning_rate without a trained vision tower; set train_vision: true",
        ),
        (
            histo_args.train_vision and histo_args.lora_scope != "language",
            "train_vision trains the whole tower and lora_scope puts LoRA into it; choose one",
        ),
        (
            in_folder and VISION in parts,
            f"vision_cache {histo_args.vision_cache}: a tower that is trained gives other features in each step; set "
            "vision_cache: off",
        ),
        (
            histo_args.sensitivity_sides and VISION in parts,
            "sensitivity_sides with a trained vision tower, whose positions were learnt for one side; remove it",
        ),
        (
            histo_args.adapter_name_or_path and not model_args.use_peft,
            "adapter_name_or_path without an adapter to train; set use_peft: true, or merge it and train the result",
        ),
        (
            histo_args.expected_gain >= histo_args.expected_score,
            f"expected_gain {histo_args.expected_gain} isn't below expected_score {histo_args.expected_score}, which "
            "it is a part of; lower it",
        ),
        *check_class_balance(histo_args, training_args, choosing),
    ]
    rules += [
        (
            histo_args.fold is not None and histo_args.fold > (histo_args.folds or 0),
            f"fold is {histo_args.fold} and folds is {histo_args.folds}, expected a fold from 1 to folds; correct one",
        ),
        (
            len(set(histo_args.encoders or [])) < len(histo_args.encoders or []),
            f"encoders names one twice in {histo_args.encoders}; remove one",
        ),
        (
            histo_args.folds and histo_args.max_test_samples,
            "max_test_samples beside folds, each patch of which is the test of one; take max_samples",
        ),
        (
            histo_args.folds and "test_fraction" in histo_args.written,
            "test_fraction beside folds, of which one is the test; remove it",
        ),
        (
            not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32,
            f"seeds are {histo_args.seeds}, expected different numbers from 0 to 2**32 - 1, or how many; correct them",
        ),
    ]
    complaints = [message for broken, message in rules if broken]
    if complaints:
        raise ValueError("; ".join(complaints))
