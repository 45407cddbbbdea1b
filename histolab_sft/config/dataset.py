"""One entry of a recipe's `datasets` list."""

import re
from dataclasses import dataclass

from histolab_sft.config.checks import check_keys
from histolab_sft.config.class_names import check_class_names, check_text, compose
from histolab_sft.config.picture import read_steps, read_window
from histolab_sft.config.scoring import check_scoring, list_parts

SPLITS = ("train", "validation", "test")
CLASS_FOLDERS = "class_folders"  # the format of a data set that names none
OFFICIAL_SPLITS = ("bach_official",)
MAX_CROPS = 8  # along each side: 65 pictures a row are 16,640 tokens at 256 each


@dataclass
class DatasetConfig:
    """One entry of the recipe's `datasets` list.

    Args:
        name (`str`): Shown in every table; also selects the data set's own question where the task has one.
        source (`str`): Class folders, a manifest (`.csv`, `.json`, `.jsonl`, `.parquet`), a folder of split
            manifests, a folder with PCam's HDF5 pairs, an `.npz` file of MedMNIST's form, or the id of a data set on
            the Hub with parquet files. Relative paths start at the recipe's `data_dir`.
        streaming (`bool`, *optional*, defaults to `False`): Read a data set on the Hub over the network whenever a
            picture is needed, a row group at a time, and keep none of its files on disk.
        format (`str`, *optional*, defaults to `"class_folders"`): How the data lie, a key of
            `histolab_sft.data.formats.FORMATS`. Without one the rows are pictures of classes, in folders or tables.
        task (`str`, *optional*): With a `format`, the only task whose rows are taken, where the data hold several.
            Without one it is `"classification"`.
        class_names (`dict[str, str]`): Label in the data -> words that the model says. The order is the order of the
            options in the prompt. Needed without a `format`; with one it renames labels that are ids in the data.
        question (`str`, *optional*): Prompt in place of the task's own; `{options}` stands for the class names.
        label_by (`str`, *optional*): Regular expression on the path below `source` whose first group (or whole match)
            is the label, where neither a class folder nor a column tells it.
        group_by (`str`, *optional*): Column, or regular expression on the path below `source` whose first group (or
            whole match) is the patient or slide. Rows of one group never cross splits.
        cohort (`str`, *optional*): Where the patients or slides are from, the data set itself if omitted. Data sets of
            one cohort share their names, so that a patient of one must not stand in another split of the other.
        splits (`dict[str, str | list[str]]` or `str`, *optional*): Split -> name or names of it in the data (folder,
            file stem or column value), or the name of a published split (`bach_official`). Rows of other names are
            left out and counted.
        max_samples (`int`, *optional*): Class-balanced cap, in place of the recipe's, over all splits but a test split
            that the data bring.
        image_column, label_column, split_column (`str`): Columns of a manifest.
        instruction (`str`, *optional*): With a `format`: replaces the task's wording about the answer's form, in
            another language for instance.
        codec (`str`, *optional*): With a `format`: how boxes stand in the text, a key of `tasks.boxes.CODECS`.
        fields (`list[dict]`, *optional*): With a `format`: the fields of a JSON answer, as in `tasks.biomarkers`.
        subset (`str`, *optional*): With `format: flare`: the one data set of the source to read.
        style (`str`, *optional*): With `format: biomarkers`: the question, a key of `tasks.biomarkers.QUESTIONS`.
        image_folder (`str`, *optional*): With `format: llava`: where the pictures lie, seen from the source.
        uncertain (`str`, *optional*): With the labels of `chexpert` and `mimic_cxr`, which need it: what becomes of a
            label that the report is uncertain of: `ignore` (it isn't asked for in that row), `zeros` (it counts as
            absent) or `ones` (as present). U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019.
        sections (`list[str]`, *optional*): With the reports of `mimic_cxr`, which need it: the sections that make the
            answer, of `findings` and `impression`. Studies without one of them are left out and counted.
        views (`str`, *optional*, defaults to `"all"`): With `chexpert` and `mimic_cxr`: `all` pictures of a study in
            one row, the frontal ones first, or the `frontal` ones alone.
        intensity_window (`str` or `list`, *optional*): Grey values of 16-bit pictures that become black and white:
            `full` (0 and 65535), `minmax`, or two bounds, each a stored value or a percentile such as `1%`. By default
            the format's own (`config.picture.WINDOWS`), else `full`.
        image_steps (`list`, *optional*): What is done to every picture of every split, in this order:
            `crop_dark_edges`, `pad_to_square`, `resize: [width, height]`, `crop: [left, top, right, bottom]`. Boxes go
            along, and answers come back in pixels of the stored picture.
        multi_scale (`int`, *optional*): For pictures larger than the model sees at once: each is shown whole and then
            in n x n crops, row by row, as further pictures of the same row. This is n, of 2 to 8. Answers that are
            places are places in the whole picture.
        max_new_tokens (`int`, *optional*): Longest generated answer in tokens, in place of the recipe's.
        positive_class (`str`, *optional*): The class, in the model's words, that sensitivity, specificity and
            predictive values are about, against all others. Of two classes it is the second one if omitted.
        target_sensitivity, target_specificity (`float`, *optional*): Choose a threshold on the validation split that
            reaches this sensitivity, or this specificity, of `positive_class`, and score it on test.
        prevalence (`float`, *optional*): Part of `positive_class` where the model is to be used: predictive values and
            net benefit are also given for it.
        target_accuracy (`float`, *optional*): Choose on the validation split how sure the model must be so that its
            answers are right this often; it withholds the others, and test shows what that leaves.
        site_by (`str`, *optional*): Column, or regular expression on the path below `source` as in `group_by`, that
            tells the hospital or scanner of a patch. Scores are also given for each site, with the worst one, their
            spread, and how well the site can be told from the base model's features.
        subgroup_by (`dict`, *optional*): The same for other parts of the test split: name -> column or regular
            expression, such as `sex: sex`. For numbers, name -> `{by: age, cuts: [50, 65]}` makes bands.
    """

    name: str
    source: str
    class_names: dict[str, str] | None = None
    format: str | None = None
    task: str | None = None
    question: str | None = None
    label_by: str | None = None
    group_by: str | None = None
    cohort: str | None = None
    splits: dict[str, str | list[str]] | str | None = None
    max_samples: int | None = None
    image_column: str | None = None
    label_column: str = "label"
    split_column: str = "split"
    instruction: str | None = None
    codec: str | None = None
    fields: list[dict] | None = None
    subset: str | None = None
    style: str | None = None
    image_folder: str | None = None
    uncertain: str | None = None
    sections: list[str] | None = None
    views: str | None = None
    intensity_window: str | list | None = None
    image_steps: list | None = None
    multi_scale: int | None = None
    streaming: bool = False
    max_new_tokens: int | None = None
    positive_class: str | None = None
    target_sensitivity: float | None = None
    target_specificity: float | None = None
    prevalence: float | None = None
    target_accuracy: float | None = None
    site_by: str | None = None
    subgroup_by: dict | None = None

    @property
    def options(self) -> list[str] | None:
        """The answers that every row of the data set has to choose from, None where rows bring their own questions."""
        return list(self.class_names.values()) if self.format is None else None

    @property
    def positive(self) -> str | None:
        """The class that operating points are about: the one named, or the second of two."""
        if self.positive_class is not None or not self.options:
            return self.positive_class
        return self.options[1] if len(self.options) == 2 else None

    @property
    def reader_keys(self) -> dict[str, str | list[str]]:
        """The keys of the recipe that are for the reader of one format alone."""
        keys = ("subset", "style", "image_folder", "uncertain", "sections", "views")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def __post_init__(self):
        if self.format == CLASS_FOLDERS:
            self.format = None
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"data set {self.name!r}: {error}") from error

    def _check(self):
        if not isinstance(self.streaming, bool) or (self.streaming and self.format is not None):
            raise ValueError(
                f"streaming is {self.streaming!r}, expected true or false, and false with a format; correct it"
            )
        read_window(self.intensity_window)
        read_steps(self.image_steps or [])
        if self.multi_scale is not None and self.multi_scale not in range(2, MAX_CROPS + 1):
            raise ValueError(
                f"multi_scale is {self.multi_scale!r}, expected 2 to {MAX_CROPS}, the crops along a side; correct it"
            )
        if self.format is None:
            self._check_classes()
        else:
            self._check_format()
        if isinstance(self.splits, str) and self.splits not in OFFICIAL_SPLITS:
            raise ValueError(
                f"splits is {self.splits!r}, expected a mapping of splits to the data's names or one of "
                f"{', '.join(OFFICIAL_SPLITS)}; correct it"
            )
        if isinstance(self.splits, dict):
            self._check_splits()
        least = len(self.class_names) if self.class_names else 2
        if self.max_samples is not None and self.max_samples < least:
            raise ValueError(
                f"max_samples is {self.max_samples}, expected at least one patch for each of its {least} classes"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more; raise it")
        check_scoring(self)
        patterns = {"label_by": self.label_by, "group_by": self.group_by}
        patterns |= {part.key: part.by for part in list_parts(self)}
        for key, pattern in patterns.items():
            kind = "no" if key == "label_by" else "neither a column nor a"
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{key} {pattern!r} is {kind} regular expression ({error}); correct it") from error

    def _check_splits(self):
        """Raise ValueError for splits without a name in the data, or two with one name."""
        check_keys(self.splits, SPLITS, "splits")
        own = [word for words in self.splits.values() for word in (words if isinstance(words, list) else [words])]
        if not all(isinstance(word, str) and word.strip() for word in own) or [] in self.splits.values():
            raise ValueError(
                f"splits is {self.splits!r}, expected for each split the data's name for it or a list of names, as "
                "text; correct it, and quote what is no text"
            )
        if len(set(map(compose, own))) < len(own):
            raise ValueError(f"splits names one part of the data twice in {self.splits!r}; remove one")
        self.splits = {
            split: list(map(compose, words)) if isinstance(words, list) else compose(words)
            for split, words in self.splits.items()
        }

    def _check_format(self):
        """Raise ValueError for keys that have no meaning with a `format`."""
        if self.question is not None:
            raise ValueError(
                f"format: {self.format} and question, expected the data's own questions; remove it, or change the "
                "wording about the answer's form by instruction"
            )
        if self.label_by is not None:
            raise ValueError(
                f"format: {self.format} and label_by, expected answers of the format's own; remove label_by"
            )
        if self.class_names is not None and not isinstance(self.class_names, dict):
            raise ValueError(
                f"class_names is {self.class_names!r}, expected a mapping of labels to words; correct or remove it"
            )
        check_text(self.class_names or {})
        if isinstance(self.splits, str):
            raise ValueError(
                f"format: {self.format} and splits: {self.splits}, expected a mapping of splits to the data's names: "
                "published splits are for class folders; correct it"
            )

    def _check_classes(self):
        """Raise ValueError for keys that need a `format`, and for class names that answers can't tell apart."""
        given = {"instruction": self.instruction, "codec": self.codec, "fields": self.fields}
        useless = [*(key for key, value in given.items() if value is not None), *self.reader_keys]
        useless += [f"task: {self.task}"] if self.task not in (None, "classification") else []
        if useless:
            raise ValueError(
                f"{useless} and no format, expected these keys with a `format` only, or classification from class "
                "folders or manifests; add `format` or remove them"
            )
        if self.label_by is not None and self.label_column != "label":
            raise ValueError("label_by and label_column, expected one place of the label; remove one")
        self.task = "classification"
        if not isinstance(self.class_names, dict) or len(self.class_names) < 2:
            raise ValueError(
                f"class_names is {self.class_names!r}, expected a mapping of at least two labels to words; list every "
                "label of the data"
            )
        self.class_names = check_class_names(self.class_names)
