"""Rungs that answer "why a language model?": other frozen encoders, nearest neighbours, and a small network.

They stand in the ladder beside the floors, on the same test patches and the same draws of the bootstrap.
"""

import logging
from collections.abc import Sequence

import numpy as np
from accelerate.utils.memory import clear_device_cache

from histolab_sft.evaluation.asked import Asked
from histolab_sft.evaluation.cnn import RESNET18, count_epochs, measure_cnn
from histolab_sft.evaluation.floors import compute_linear_probe
from histolab_sft.evaluation.neighbours import compute_neighbours
from histolab_sft.evaluation.predictions import select_probe_rows
from histolab_sft.evaluation.rung_tables import CNN, LINEAR, NEIGHBOURS
from histolab_sft.models.image_encoders import check_image_model, encode_rows, load_encoder, name_encoders

logger = logging.getLogger(__name__)


def check_rungs(histo_args) -> None:
    """Refuse encoders and networks that can't be had before anything is scored; errors as in `check_image_model`."""
    for name in histo_args.encoders or []:
        check_image_model(name, "encoders")
    if histo_args.cnn not in (None, RESNET18):
        check_image_model(histo_args.cnn, "cnn")


def measure_rungs(asked: Sequence[Asked], histo_args, training_args) -> None:
    """Add to each data set with options what the recipe's `encoders` and `cnn` reach, and say which have none."""
    encoders = name_encoders(histo_args.encoders or [])
    if not encoders and not histo_args.cnn:
        return
    choosing = [given for given in asked if given.config.options]
    for given in asked:
        if not given.config.options:
            logger.info("%s has no rung of encoders or cnn: its answers are written", given.config.name)
    # The language model's memory is for them.
    clear_device_cache(garbage_collection=True)
    for short, name in encoders.items():
        encoder = load_encoder(name, training_args.device)
        for given in choosing:
            rows = select_probe_rows(given.rows)
            batch_size = training_args.per_device_eval_batch_size
            features = {split: encode_rows(part, encoder, batch_size) for split, part in rows.items()}
            labels = {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()}
            known = features, labels, given.config.options
            given.rungs[f"{LINEAR}:{short}"] = compute_linear_probe(*known)
            given.rungs[f"{NEIGHBOURS}:{short}"] = compute_neighbours(*known)
        del encoder
        clear_device_cache(garbage_collection=True)
    if histo_args.cnn:
        [short] = name_encoders([histo_args.cnn])
        counts = {given.config.name: len(given.rows["train"]) for given in asked}
        for given in choosing:
            epochs = count_epochs(given.config.name, counts, histo_args, training_args)
            given.rungs[f"{CNN}:{short}"] = measure_cnn(given.rows, given.config, epochs, histo_args, training_args)
