"""
Look at a recipe before anything is loaded: its keys, data, pictures, splits, prompts and loss masks:

    python recipes/preflight.py --config recipes/histolab_5k.yaml
"""

import logging
import sys

import yaml

from histolab_sft.config.arguments import parse_recipe_elsewhere, resolve_recipe
from histolab_sft.errors import AuditRefusal, plain_errors


def main(histo_args, training_args, model_args, on_gpu):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.data.audit.audit import explain_refusal, format_audit
    from histolab_sft.data.class_balance import format_balance, plan_balance
    from histolab_sft.data.external import load_cohorts
    from histolab_sft.data.frozen_split import describe_split
    from histolab_sft.data.loss_masks import audit_masks, describe_row
    from histolab_sft.data.rows import audit_recipe, format_patches, leave_out_refused
    from histolab_sft.evaluation.sample_size import format_plan
    from histolab_sft.memory.fit import measure_lengths
    from histolab_sft.memory.plan import plan_for_recipe
    from histolab_sft.models.load import check_recipe_model, load_base_processor, load_config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = resolve_recipe(sys.argv[1:])
    print(f"# The recipe, with what the command line says\n{yaml.safe_dump(recipe, sort_keys=False)}")

    check_recipe_model(model_args)
    patches, audit, intake = audit_recipe(histo_args, training_args.output_dir)
    print(f"# The data\n{format_audit(audit)}")

    usable = leave_out_refused(patches)
    test = usable.query("split == 'test'")
    print("\n# What the test split will be able to show")
    for config in histo_args.datasets:
        own = test[test["dataset"] == config.name]
        print(format_plan(config, own, histo_args.expected_score, histo_args.expected_gain))

    rows = format_patches(usable, histo_args)["train"]
    processor = load_base_processor(model_args)
    print("\n# One row of each data set; [brackets] mark the tokens with a loss")
    for name in dict.fromkeys(rows.with_format(None)["dataset"]):
        print(describe_row(rows, name, processor, training_args.max_length))
    checked = audit_masks(rows, processor, load_config(model_args), training_args.max_length)
    print(f"\n# Loss masks\nthe loss of {checked} rows is on the answer and its end of turn alone")

    if described := plan_balance(rows, histo_args.class_weights, histo_args.class_sampling).described:
        print(f"\n# Rare classes\n{format_balance(described)}")

    lengths = measure_lengths(rows, processor)
    print(f"\n# Memory\n{plan_for_recipe(histo_args, training_args, model_args, on_gpu, lengths)}")

    shared = None
    if histo_args.external:
        print("\n# External cohorts")
        try:
            load_cohorts(histo_args, describe_split(patches, intake, histo_args), training_args.output_dir)
        except AuditRefusal as error:
            shared = error
    stopped = explain_refusal(audit, intake, histo_args, training_args.output_dir)
    print(f"\nTraining would be refused: {stopped}" if stopped else "\nReady to train.")
    if shared:
        print(f"Scoring would be refused: {shared}")
    return 1 if stopped or shared else 0


if __name__ == "__main__":
    with plain_errors("Training would be refused"):
        parsed, on_gpu = parse_recipe_elsewhere()
        sys.exit(main(*parsed, on_gpu))
