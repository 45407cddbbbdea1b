"""The classification scores as a module of the `evaluate` library, loaded from this folder without any network.

>>> import evaluate
>>> from histolab_sft.metrics import patch_classification
>>> scores = evaluate.load(patch_classification.__path__[0])
>>> scores.compute(references=["Normal", "Tumor"], predictions=["Normal", "unparsed"], classes=["Normal", "Tumor"])
"""

import datasets
import evaluate
import numpy as np

from histolab_sft.metrics.classification import compute_classification

_DESCRIPTION = (
    "Accuracy, balanced accuracy, macro-F1, per-class scores and, given probabilities, ranking and calibration."
)

_INPUTS = """
Args:
    predictions (`list` of `str`): The class named for each patch, or `"unparsed"`, which counts as wrong.
    references (`list` of `str`): The true classes.
    classes (`list` of `str`): All classes, in the order of the columns of `probabilities`.
    probabilities (*optional*): float64, shape (patches, classes), rows summing to 1, in the order of `references`.
"""


class PatchClassification(evaluate.Metric):
    """`compute_classification` behind `evaluate`'s interface; answers can be added batch by batch."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        classes: list[str],
        probabilities: np.ndarray | None = None,
    ) -> dict:
        return compute_classification(references, predictions, classes, probabilities)
