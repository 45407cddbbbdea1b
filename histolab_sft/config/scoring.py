"""The keys of a data set that only say how its test split is scored: operating points, sites and subgroups."""

from dataclasses import dataclass

TARGETS = ("target_sensitivity", "target_specificity", "target_accuracy", "prevalence")
OF_ONE_CLASS = ("target_sensitivity", "target_specificity", "prevalence")
SITE = "site"
# They change no row and no question, so that a finished run can be scored with others.
SCORING_KEYS = ("positive_class", *TARGETS, "site_by", "subgroup_by")


@dataclass(frozen=True)
class Part:
    """What parts the test split: its name, the key that says so, the column or pattern, and the cuts of numbers."""

    name: str
    key: str
    by: str
    cuts: tuple[float, ...] = ()


def list_parts(config) -> list[Part]:
    """Return what parts the test split of a `DatasetConfig`, the sites first."""
    parts = [Part(SITE, "site_by", config.site_by)] if config.site_by else []
    for name, value in (config.subgroup_by or {}).items():
        spec = _read_spec(value)
        parts.append(Part(name, f"subgroup_by of {name}", spec["by"], tuple(spec.get("cuts", ()))))
    return parts


def check_scoring(config) -> None:
    """Raise ValueError for scoring keys of a data set without classes, and for values that can't be used.

    Args:
        config: A `DatasetConfig` whose classes are checked.
    """
    given = [key for key in SCORING_KEYS if getattr(config, key) is not None]
    if given and not config.options:
        raise ValueError(
            f"{', '.join(given)} and format: {config.format}, expected these keys with class folders or manifests of "
            "classes alone; remove them"
        )
    _check_points(config)
    _check_parts(config)


def _read_spec(value: str | dict) -> dict:
    return value if isinstance(value, dict) else {"by": value}


def _check_parts(config) -> None:
    """Raise ValueError for sites and subgroups that can't be read."""
    form = "a column or regular expression as text, or {by: column, cuts: [50, 65]}"
    if config.site_by is not None and not (isinstance(config.site_by, str) and config.site_by):
        raise ValueError(f"site_by is {config.site_by!r}, expected a column or regular expression as text; correct it")
    if not isinstance(config.subgroup_by or {}, dict):
        raise ValueError(f"subgroup_by is {config.subgroup_by!r}, expected names, with each {form}; correct it")
    for name, value in (config.subgroup_by or {}).items():
        spec = _read_spec(value)
        cuts = spec.get("cuts", [])
        good = set(spec) <= {"by", "cuts"} and isinstance(spec.get("by"), str) and spec["by"]
        numbers = isinstance(cuts, list) and all(
            isinstance(cut, int | float) and not isinstance(cut, bool) for cut in cuts
        )
        if not good or not numbers or list(cuts) != sorted(set(cuts)) or name == SITE:
            raise ValueError(
                f"subgroup_by has {name!r}: {value!r}, expected {form}, cuts that rise, and another name than "
                f"{SITE}; correct it"
            )


def _check_points(config) -> None:
    """Raise ValueError for keys of operating points whose values are out of bounds, or lack a positive class."""
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
