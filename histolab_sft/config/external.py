"""One entry of a recipe's `external` list: a cohort that was never trained on, and is scored whole."""

import difflib
import json
from dataclasses import InitVar, dataclass, fields

from histolab_sft.config.checks import check_keys
from histolab_sft.config.class_names import check_text, compose
from histolab_sft.config.dataset import CLASS_FOLDERS, DatasetConfig

# What is asked, and how it is shown: of a cohort, the training data set says it.
ASKED = (
    *("question", "instruction", "codec", "fields", "style", "multi_scale", "max_new_tokens"),
    *("positive_class", "target_sensitivity", "target_specificity", "target_accuracy"),
)
# As the training data set has it where the cohort doesn't say.
INHERITED = ("class_names", "image_steps", "intensity_window", "prevalence")
LEAKS = ("stop", "drop", "allow")


@dataclass
class ExternalConfig(DatasetConfig):
    """One entry of the recipe's `external` list, with the keys of a data set that say how its pictures are read.

    The question, the answers to choose from, how pictures are cropped, and the targets of thresholds are those of the
    training data set; so are `image_steps`, `intensity_window` and `prevalence` if omitted.

    Args:
        external_of (`str`, *optional*): The data set of the run whose question, class words, temperatures and
            baseline the cohort is scored with. May be omitted where there is one alone.
        class_names (`dict[str, str | None]`, *optional*): Label in the cohort -> class words of the training data set.
            Several labels may have the same words; rows of a label with null are left out and counted. Without it,
            labels are those of the training data set.
        leaks (`str`, *optional*): What to do about rows that show a picture, a near copy, or a patient or slide of
            train or validation: `stop`, `drop` leaves them out and counts them, `allow` scores them all the same.
            The recipe's `leaks` if omitted.
    """

    class_names: dict[str, str | None] | None = None
    external_of: str | None = None
    leaks: str | None = None
    trained: InitVar[DatasetConfig] = None

    def __post_init__(self, trained: DatasetConfig):
        self.trained = trained
        super().__post_init__()

    @property
    def options(self) -> list[str] | None:
        """The answers to choose from, which are those of the training data set."""
        return self.trained.options

    def _check_classes(self):
        self.task = "classification"
        if self.label_by is not None and self.label_column != "label":
            raise ValueError("label_by and label_column, expected one place of the label; remove one")
        if not isinstance(self.class_names, dict) or not self.class_names:
            raise ValueError(
                f"class_names is {self.class_names!r}, expected a mapping of the cohort's labels to class words of "
                "the training data set; list every label, with null for those to leave out"
            )
        check_text({label: words for label, words in self.class_names.items() if words is not None})
        check_text(dict.fromkeys(self.class_names, ""))
        self.class_names = {
            compose(label): None if words is None else compose(words) for label, words in self.class_names.items()
        }


def read_external(entries: str | list | None, datasets: list[DatasetConfig]) -> list[ExternalConfig]:
    """Return the cohorts of a recipe, each with the training data set it is scored as.

    Args:
        entries: The recipe's list, or the same as JSON; empty for none.
        datasets: The data sets of the run.

    Raises:
        ValueError: Anything that is wrong with an entry, with what to do.
    """
    entries = json.loads(entries) if isinstance(entries, str) and entries else entries or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"external is {entries!r}, expected a list of cohorts, each with name and source; correct it")
    cohorts = [_read_cohort(entry, datasets) for entry in entries]
    names = [config.name for config in [*datasets, *cohorts]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"external: {', '.join(twice)} is the name of two data sets or cohorts; rename one")
    return cohorts


def list_external_keys() -> list[str]:
    """Return the keys that an entry of `external` may have."""
    return [entry.name for entry in fields(ExternalConfig) if entry.init and entry.name not in ASKED]


def _read_cohort(entry: dict, datasets: list[DatasetConfig]) -> ExternalConfig:
    where = f"external cohort {entry.get('name', '?')!r}"
    if given := sorted(set(entry) & set(ASKED)):
        raise ValueError(
            f"{where} has {', '.join(given)}, expected none: what is asked, and how, is the training data set's to "
            "say; remove it"
        )
    check_keys(entry, list_external_keys(), where)
    if missing := sorted({"name", "source"} - set(entry)):
        raise ValueError(f"{where} lacks {', '.join(missing)}; add it")
    trained = _choose_trained(entry.get("external_of"), datasets, where)
    form = entry.get("format", CLASS_FOLDERS)
    if (trained.options is None) != (form != CLASS_FOLDERS):
        raise ValueError(
            f"{where} has format: {form}, expected "
            f"{'none' if trained.options else 'one'}, as the data set {trained.name!r} of the run that it is scored "
            "as; correct format or external_of"
        )
    keys = {key: getattr(trained, key) for key in (*ASKED, *INHERITED)}
    if trained.options is None:
        del keys["class_names"]
    config = ExternalConfig(**keys | entry, trained=trained)
    if config.leaks not in (None, *LEAKS):
        raise ValueError(f"{where}: leaks is {config.leaks!r}, expected one of {', '.join(LEAKS)}; correct it")
    if config.splits is not None and (isinstance(config.splits, str) or set(config.splits) != {"test"}):
        raise ValueError(
            f"{where}: splits is {config.splits!r}, expected test alone, with the data's name or names of what is "
            "scored, since nothing is trained or fitted on it; correct it, or remove it to score all rows"
        )
    if trained.options:
        _check_words(config, where)
    return config


def _choose_trained(name: str | None, datasets: list[DatasetConfig], where: str) -> DatasetConfig:
    named = {config.name: config for config in datasets}
    if name is None and len(named) == 1:
        return datasets[0]
    if name not in named:
        raise ValueError(
            f"{where}: external_of is {name!r}, expected the data set of the run that it is scored as, one of "
            f"{', '.join(named)}; {'add' if name is None else 'correct'} it"
        )
    return named[name]


def _check_words(config: ExternalConfig, where: str) -> None:
    """Raise ValueError for words that the model wasn't trained to say, or where no label has any."""
    strange = [(label, words) for label, words in config.class_names.items() if words not in (None, *config.options)]
    if strange:
        (label, words), near = strange[0], difflib.get_close_matches(strange[0][1], config.options, 1, 0.5)
        raise ValueError(
            f"{where}: class_names has {label!r}: {words!r}, expected one of the class words of "
            f"{config.trained.name!r}: {', '.join(config.options)}{f' (did you mean {near[0]!r}?)' if near else ''}; "
            "correct it, or leave the label out of the scores by null"
        )
    if not any(config.class_names.values()):
        raise ValueError(f"{where}: class_names has null for every label, expected class words for one at least")
