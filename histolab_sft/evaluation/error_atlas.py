"""The error atlas: the most confident mistakes of each confused pair of classes, as small pictures without a name."""

import base64
import hashlib
import io

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from scipy.special import softmax

PAIRS = 6  # most frequent confusions shown
MISTAKES = 4  # of each
SIDE = 160  # pixels


def list_mistakes(table: pd.DataFrame, patches: Dataset, classes: list[str]) -> list[dict]:
    """Return the most frequent confusions of one system by label likelihood, with their most confident mistakes.

    Args:
        table (`pandas.DataFrame`): From `predict`.
        patches (`Dataset`): The same rows; only pictures that are shown get opened.

    Returns:
        `list[dict]`: `true`, `answer`, `n` and `mistakes`, each `id` (the hash that stands in `predictions.parquet`),
        `confidence` and `picture` (a data address).

    Raises:
        ValueError: The patches aren't those of the table.
    """
    if list(patches.with_format(None)["id"]) != table["id"].tolist():
        raise ValueError(
            "the patches of the report aren't those that were scored, expected the same rows in the same order; "
            "score them again"
        )
    probabilities = softmax(np.stack(table["log_likelihoods"]), axis=1)
    read = pd.DataFrame(
        {
            "true": table["label"].to_numpy(),
            "answer": np.array(classes)[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
            "row": np.arange(len(table)),
        }
    )
    wrong = read[read["true"] != read["answer"]].sort_values("confidence", ascending=False, kind="stable")
    pairs = [(names, rows) for names, rows in wrong.groupby(["true", "answer"])]
    pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
    return [
        {
            "true": true,
            "answer": answer,
            "n": len(rows),
            "mistakes": [
                {
                    "id": hash_id(table["id"].iloc[row.row]),
                    "confidence": row.confidence,
                    "picture": encode_thumbnail(patches[row.row]["image"]),
                }
                for row in rows.head(MISTAKES).itertuples()
            ],
        }
        for (true, answer), rows in pairs[:PAIRS]
    ]


def hash_id(name: str) -> str:
    """Return what stands for a patch in `predictions.parquet`: file names can name a patient."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def encode_thumbnail(image: Image.Image) -> str:
    """Return the picture as a data address: at most `SIDE` pixels, written anew from its pixels and nothing else."""
    bare = Image.fromarray(np.asarray(image.convert("RGB")))
    bare.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
