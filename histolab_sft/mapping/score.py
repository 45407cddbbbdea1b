"""Ask a system about the squares of a grid."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from PIL import Image

from histolab_sft.data.pictures.decoding import decode_image
from histolab_sft.data.slides.grid import Grid
from histolab_sft.demo.data_set import DataSet, word_question
from histolab_sft.demo.systems import decide, show_case
from histolab_sft.evaluation.answer_cache import ask_in_parts
from histolab_sft.evaluation.predictions import System, describe_asking
from histolab_sft.models.compiled_layers import compiled_scoring
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities
from histolab_sft.tasks import TASKS

PROBABILITY = "probability: "  # before the name of a class, in the columns of a map


def score_squares(
    grid: Grid, squares: np.ndarray, name: str, sha256: str, system: System, data_set: DataSet
) -> pd.DataFrame:
    """Return what `system` says about N squares, by the likelihood of whole answers, as `answer_patches` does.

    Answers are kept in the cache of this machine: a call that was cut off goes on where it stood.

    Args:
        squares: Their rows and columns in the grid, int (N, 2).
        name: Of the picture, for messages.
        sha256: Of its file.
        data_set: One with options; its threshold and its reading of the likelihoods are applied.

    Returns:
        `row, column, x, y` (upper left corner in pixels of the picture), `tissue` (a part of 1), `answer`,
        `confidence`, `withheld` (whether that is too low to count), and for each class `probability: CLASS`.
    """
    ask, task, args = data_set.asks[0], TASKS[data_set.task], system.histo_args
    question = word_question(data_set, ask)
    targets = [task.format_answer(ask, option, data_set.config) for option in data_set.options]
    settings = describe_asking(system, [question], [sha256, *grid.step, grid.patch_size, squares.tolist()]) | {
        "targets": targets,
        "candidate_batch_size": args.candidate_batch_size,
        "rendering": data_set.rendering,
        "multi_scale": data_set.config.multi_scale,
    }

    def score(parts: list[range]) -> Iterator[dict]:
        with compiled_scoring(args.compiled_layers, system.model, system.batch_size, sum(map(len, parts))):
            for part in parts:
                # Read here: worker processes would share the slide's open file, and where they stand in it.
                cases = [_show(grid.read(*squares[number]), name, data_set) for number in part]
                scores, _ = label_log_likelihoods(
                    system.model,
                    system.processor,
                    cases,
                    [question] * len(cases),
                    targets,
                    system.batch_size,
                    args.candidate_batch_size,
                )
                yield {"log_likelihoods": list(scores.numpy())}

    scores = np.stack(ask_in_parts(name, settings, len(squares), score)["log_likelihoods"].to_numpy())
    chances = probabilities(scores, data_set.log_priors.get(system.name))
    answers = [decide(row, data_set, system.name) for row in chances]
    corners = [grid.find_corner(row, column) for row, column in squares]
    return pd.DataFrame(
        {
            "row": squares[:, 0],
            "column": squares[:, 1],
            "x": [x for x, _ in corners],
            "y": [y for _, y in corners],
            "tissue": grid.tissue[squares[:, 0], squares[:, 1]],
            "answer": [answer.value for answer in answers],
            "confidence": [answer.confidence for answer in answers],
            "withheld": [answer.withheld for answer in answers],
            **{PROBABILITY + option: chances[:, place] for place, option in enumerate(data_set.options)},
        }
    )


def _show(patch: Image.Image, name: str, data_set: DataSet) -> list[Image.Image]:
    """Return a square as the model saw patches in training: rendered, and in crops where the data set cuts any."""
    rendered, _ = decode_image(np.asarray(patch), name, rendering=data_set.rendering)
    return show_case([rendered], data_set)
