"""An evaluation without a model: real patches, splits and floors, and answers drawn at a chosen skill."""

import hashlib
import json

import numpy as np
import pandas as pd
from open_fixture import write_noise

from histolab_sft.arguments import HistoArguments
from histolab_sft.data.patches import load_audited_patches, select_dataset
from histolab_sft.data.synthetic import GROUP_BY, TISSUES, write_synthetic_patches
from histolab_sft.evaluation.floors import compute_linear_probe, measure_floors
from histolab_sft.evaluation.open_answers import score_answers, score_overall_answers
from histolab_sft.evaluation.results import SYSTEMS, score_dataset, score_overall
from histolab_sft.evaluation.sensitivity import build_variants, score_sensitivity
from histolab_sft.evaluation.verdict import add_front
from histolab_sft.tasks import report

SKILLS = {"baseline": 0.6, "finetuned": 3.0}
CRC = ["Adipose", "Background", "Debris", "Lymphocyte", "Mucus", "Muscle", "Normal", "Stroma", "Tumor"]


def list_synthetic_datasets(names=tuple(TISSUES)):
    """Entries of a recipe for the painted patches."""
    return [
        {
            "name": name,
            "source": name,
            "class_names": dict(zip(TISSUES[name], CRC if name == "crc" else TISSUES[name], strict=True)),
            "group_by": GROUP_BY,
        }
        for name in names
    ]


def fabricate_evaluation(folder, datasets=None, per_class=None, generate=True, change=None, **keys):
    """Return results, test tables by (data set, system) and patches; `folder` must hold patches if `datasets` is.

    `change` makes another table out of the fine-tuned model's and the names of the classes.
    """
    if datasets is None:
        write_synthetic_patches(folder / "patches", per_class or {"crc": 50, "pcam": 160, "bach": 80})
        datasets = list_synthetic_datasets()
    histo_args = HistoArguments(datasets=datasets, data_dir=str(folder / "patches"), test_fraction=0.3, **keys)
    patches = load_audited_patches(histo_args, folder / "out")
    results, estimates, predictions = {"datasets": {}}, {}, {}
    for config in histo_args.datasets:
        classes = list(config.class_names.values())
        rows = {split: select_dataset(patches[split], config.name) for split in patches}
        test = {system: draw_table(rows["test"], classes, SKILLS[system], generate) for system in SYSTEMS}
        if change is not None:
            test["finetuned"] = change(test["finetuned"], classes)
        floors = measure_floors(patches, config) | {"linear_probe": draw_probe(rows, classes)}
        results["datasets"][config.name], estimates[config.name] = score_dataset(
            config,
            test=test,
            validation={system: draw_table(rows["validation"], classes, SKILLS[system], False) for system in SYSTEMS},
            floors=floors,
            protocol=rows["test"][0]["protocol"],
        )
        if histo_args.sensitivity != "none":
            variants = build_variants(rows["test"], config, histo_args)
            asked = {system: draw_variants(variants, classes, SKILLS[system]) for system in SYSTEMS}
            results["datasets"][config.name]["sensitivity"] = score_sensitivity(
                config, histo_args, asked, results["datasets"][config.name]["zero_shot"]
            )
        predictions |= {(config.name, system): test[system] for system in SYSTEMS}
    results["overall"] = score_overall(estimates)
    add_front(results, folder / "out")
    return results, predictions, patches


def fabricate_captions(folder, write, n=40, truth="{finding} in picture {i}."):
    """Return results, tables and questions of captions that the fine-tuned model writes as `write(true, i)`.

    The base model says one sentence to every picture; pictures and true captions differ, and so do patients.
    """
    findings = ["A small lesion", "A large shadow", "No lesion", "A broken rib", "Clear lungs"]
    for split, count, start in (("train", 40, 0), ("val", 10, 100), ("test", n, 200)):
        rows = []
        for i in range(start, start + count):
            write_noise(folder / "data" / "images" / f"{i}.png")
            caption = truth.format(finding=findings[i % 5], i=i)
            rows.append({"image": f"data/images/{i}.png", "caption": caption, "patient_id": f"p{i}"})
        (folder / "captions").mkdir(exist_ok=True)
        (folder / "captions" / f"{split}.json").write_text(json.dumps(rows))
    entry = {"name": "captions", "source": "captions", "format": "captions"}
    histo_args = HistoArguments(datasets=[entry], data_dir=str(folder))
    questions = load_audited_patches(histo_args, folder / "out")
    test = questions["test"].with_format(None)
    table = test.select_columns(["id", "dataset", "group", "task", "ask", "answer"]).to_pandas()
    table = table.rename(columns={"answer": "truth"}).assign(truncated=False, repaired=False, constrained=False)
    gold = [json.loads(truth) for truth in table["truth"]]
    written = {"baseline": ["A medical picture."] * n, "finetuned": [write(true, i) for i, true in enumerate(gold)]}
    tables = {system: table.assign(answer=texts) for system, texts in written.items()}
    for one in tables.values():
        one["predicted"] = [json.dumps(report.parse(text)) for text in one["answer"]]
    [config] = histo_args.datasets
    entry, estimates = score_answers(config, tables, dict.fromkeys(SYSTEMS), questions["train"], "official")
    results = {"datasets": {"captions": entry}, "overall": score_overall_answers({"captions": estimates}, {})}
    add_front(results, folder / "out")
    return results, {("captions", system): one for system, one in tables.items()}, questions


def draw_table(patches, classes, skill, generate):
    """A table of `predict`: every patch has its own noise, the true class `skill` more, neighbours half of that."""
    table = patches.with_format(None).select_columns(["id", "dataset", "group", "label"]).to_pandas()
    scores = draw_scores(table, classes, np.full(len(table), skill))
    table["log_likelihoods"] = list(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    if generate:
        rng = np.random.default_rng(len(table))
        named = np.array(classes)[scores.argmax(axis=1)]
        lost = rng.random(len(table)) < (0.12 if skill < 1 else 0.01)
        table["answer"] = np.where(lost, "Tissue.", np.char.add("The answer is: ", named))
        table["truncated"] = rng.random(len(table)) < (0.05 if skill < 1 else 0)
        table["generated"] = np.where(lost, "unparsed", named)
    return table


def draw_variants(variants, classes, skill):
    """A table of `predict_variants` whose skill falls with the step of a change and with other words."""
    names = pd.Series(variants.with_format(None)["variant"])
    kinds, steps = names.str.partition(":")[0], names.str.partition(":")[2].replace("", "0").astype(int)
    harm = kinds.map({"stain": 0.25, "jpeg": 0.12, "blur": 0.2, "magnification": 0.12, "paraphrase": 0.1}).fillna(0)
    table = variants.with_format(None).select_columns(["id", "dataset", "group", "label", "variant"]).to_pandas()
    factors = (1 - harm * steps).to_numpy()
    table["log_likelihoods"] = list(draw_scores(table, classes, skill * factors))
    return table


def draw_scores(table, classes, skills):
    noise = np.stack(
        [
            np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)).gumbel(size=len(classes))
            for name in table["id"]
        ]
    )
    gold = np.array([classes.index(label) for label in table["label"]])
    bonus = np.zeros_like(noise)
    bonus[np.arange(len(gold)), (gold + 1) % len(classes)] = 0.5
    bonus[np.arange(len(gold)), gold] = 1
    # Sharper than they are right, as fine-tuned models are.
    return 1.6 * (noise + bonus * skills[:, None])


def draw_probe(rows, classes):
    """A linear probe on features that hold the class half hidden in noise."""
    features, labels = {}, {}
    for split in rows:
        labels[split] = np.array(rows[split].with_format(None)["label"])
        rng = np.random.default_rng(len(labels[split]))
        index = np.array([classes.index(label) for label in labels[split]])
        features[split] = np.eye(len(classes))[index] + rng.normal(0, 0.6, (len(index), len(classes)))
    return compute_linear_probe(features, labels, classes)
