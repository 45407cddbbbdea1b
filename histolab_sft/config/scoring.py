"""Check the keys of a data set that only say how its test split is scored."""

TARGETS = ("target_sensitivity", "target_specificity", "target_accuracy", "prevalence")
OF_ONE_CLASS = ("target_sensitivity", "target_specificity", "prevalence")
# They change no row and no question, so that a finished run can be scored with others.
SCORING_KEYS = ("positive_class", *TARGETS)


def check_points(config) -> None:
    """Raise ValueError for keys of operating points that have no meaning for a data set, or values out of bounds.

    Args:
        config: A `DatasetConfig` whose classes are checked.
    """
    given = [key for key in SCORING_KEYS if getattr(config, key) is not None]
    if given and not config.options:
        raise ValueError(
            f"{', '.join(given)} and format: {config.format}, expected these keys with class folders or manifests of "
            "classes alone; remove them"
        )
    for key in TARGETS:
        value = getattr(config, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < 1):
            raise ValueError(f"{key} is {value!r}, expected a part between 0 and 1, such as 0.9; correct it")
    if config.positive_class is not None and config.positive_class not in config.options:
        raise ValueError(
            f"positive_class is {config.positive_class!r}, expected one of the words of class_names: "
            f"{', '.join(config.options)}; correct it"
        )
    lost = [key for key in OF_ONE_CLASS if getattr(config, key) is not None]
    if lost and config.positive is None:
        raise ValueError(
            f"{', '.join(lost)} and {len(config.options)} classes, expected positive_class, the one against which all "
            "others count as negative; name it"
        )
