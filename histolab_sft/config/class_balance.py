"""What a recipe may ask for where some classes are rare: weights, sampling, and another prior at scoring."""

import math

import yaml

from histolab_sft.config.recipe_file import read_yaml

NONE, INVERSE_FREQUENCY, EFFECTIVE_NUMBER = CLASS_WEIGHTS = ("none", "inverse_frequency", "effective_number")
NATURAL, BALANCED = CLASS_SAMPLING = ("natural", "balanced")
TRAIN = "train"


def read_prior_correction(value: str | dict, datasets: list) -> str | dict[str, dict[str, float]]:
    """Return the recipe's `prior_correction`: `none`, `train`, or data set -> class in words -> its share.

    Args:
        value: From YAML, or its text from the command line.
        datasets (`list[DatasetConfig]`): Of the recipe.

    Raises:
        ValueError: It is none of these; a data set or a label that the recipe doesn't have; or shares that aren't a
            distribution over all classes.
    """
    if value in (None, NONE, TRAIN):
        return value or NONE
    try:
        read = read_yaml(f"prior_correction: {value}")["prior_correction"] if isinstance(value, str) else value
    except yaml.YAMLError:
        read = value
    options = {config.name: config.class_names for config in datasets if config.options}
    if not isinstance(read, dict) or not read or not set(map(str, read)) <= set(options):
        raise ValueError(
            f"prior_correction is {value!r}, expected {NONE}, {TRAIN}, or a share for each label of a data set, as in "
            f"{{{next(iter(options), 'NAME')}: {{LABEL: 0.02, OTHER: 0.98}}}}, of {', '.join(options) or 'none'}"
        )
    return {str(name): _read_shares(str(name), shares, options[str(name)]) for name, shares in read.items()}


def check_class_balance(histo_args, training_args, choosing: list[bool]) -> list[tuple[object, str]]:
    """Return rules for `check_consistency`: whether each is broken, and what it says.

    Args:
        choosing (`list[bool]`): For each data set, whether its rows choose from options.
    """
    weighted, sampled = histo_args.class_weights != NONE, histo_args.class_sampling != NATURAL
    keys = {
        f"class_weights: {histo_args.class_weights}": weighted,
        f"class_sampling: {histo_args.class_sampling}": sampled,
        f"prior_correction: {histo_args.prior_correction}": histo_args.prior_correction != NONE,
    }
    named = histo_args.prior_correction if isinstance(histo_args.prior_correction, dict) else {}
    moved = [config.name for config in histo_args.datasets if config.name in named and config.prevalence is not None]
    moved += [
        config.name
        for config in histo_args.external
        if config.trained.name in {*named} - {*moved} and config.prevalence is not None
    ]
    return [
        (
            any(keys.values()) and not all(choosing),
            f"{', '.join(key for key, given in keys.items() if given)}: rows of data sets with a format have no "
            "class; remove it, or give data sets with classes a recipe of their own",
        ),
        (
            weighted and sampled,
            "class_weights and class_sampling: each alone makes up for rare classes, and both together favour them; "
            "remove one",
        ),
        (
            histo_args.prior_correction == TRAIN and not weighted and not sampled,
            f"prior_correction: {TRAIN} without class_weights or class_sampling, which alone make the model learn "
            "other shares than the train split's; remove it, or name the shares where the model is to be used",
        ),
        (
            moved,
            f"prior_correction names shares of {', '.join(moved)}, where prevalence is set too: both say how frequent "
            "classes are where the model is used; remove one",
        ),
        (
            weighted and (training_args.loss_type != "nll" or training_args.label_smoothing_factor > 0),
            "class_weights weigh the plain loss of each token; remove loss_type and label_smoothing_factor",
        ),
        (
            sampled and training_args.train_sampling_strategy != "random",
            "class_sampling and train_sampling_strategy both choose the order of the rows; remove one",
        ),
    ]


def _read_shares(name: str, shares, class_names: dict[str, str]) -> dict[str, float]:
    shares = {str(label): share for label, share in shares.items()} if isinstance(shares, dict) else {}
    numbers = all(
        isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1 for share in shares.values()
    )
    if set(shares) != set(class_names) or not numbers or not math.isclose(sum(shares.values()), 1, abs_tol=1e-3):
        raise ValueError(
            f"prior_correction of data set {name!r} is {shares}, expected for each label of class_names "
            f"({', '.join(class_names)}) a share above 0, all of them 1 together; correct it"
        )
    total = sum(shares.values())
    return {words: shares[label] / total for label, words in class_names.items()}
