"""How often, and how heavily, the rows of each class are learnt: class weights and class-balanced sampling.

Both are of each data set by itself: a class that is rare in one isn't made up for by another.
"""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from histolab_sft.config.class_balance import BALANCED, INVERSE_FREQUENCY, NATURAL, NONE


@dataclass(frozen=True)
class ClassBalance:
    """What a run does about rare classes; by default nothing.

    Args:
        weights (`dict`): (Data set, class) -> weight of a row's loss; empty where all weigh 1.
        members (`list[list[np.ndarray]]`): Of each data set and class in it the row numbers, to draw epochs from;
            empty where each row comes once an epoch.
        shares (`np.ndarray`, *optional*): float, shape (rows,): weight of a row times how often it comes in an epoch
            on average; None where that is 1 for all.
        described (`dict`): Data set -> class -> `rows`, `weight` and `drawn`, how many rows of it an epoch has on
            average. It goes into `run.json`.
    """

    weights: dict[tuple[str, str], float] = field(default_factory=dict)
    members: list[list[np.ndarray]] = field(default_factory=list)
    shares: np.ndarray | None = None
    described: dict[str, dict[str, dict]] = field(default_factory=dict)


AS_THEY_COME = ClassBalance()


def plan_balance(train: Dataset, class_weights: str, class_sampling: str) -> ClassBalance:
    """Return what is done about rare classes among these rows.

    Args:
        train (`Dataset`): Rows of one or more data sets with options.
        class_weights (`str`): One of `CLASS_WEIGHTS`.
        class_sampling (`str`): One of `CLASS_SAMPLING`.
    """
    if (class_weights, class_sampling) == (NONE, NATURAL):
        return AS_THEY_COME
    plain = train.with_format(None)
    datasets, labels = np.array(plain["dataset"]), np.array(plain["label"])
    weights, members, shares, described = {}, [], np.ones(len(labels)), {}
    for dataset in dict.fromkeys(datasets.tolist()):
        inside = np.flatnonzero(datasets == dataset)
        rows = {label: inside[labels[inside] == label] for label in sorted(set(labels[inside].tolist()))}
        counts = {label: len(own) for label, own in rows.items()}
        own_weights = weigh_classes(counts, class_weights)
        drawn = {
            label: len(inside) / len(rows) if class_sampling == BALANCED else count for label, count in counts.items()
        }
        for label, own in rows.items():
            shares[own] = own_weights[label] * drawn[label] / counts[label]
        described[dataset] = {
            label: {"rows": counts[label], "weight": own_weights[label], "drawn": drawn[label]} for label in rows
        }
        weights |= {(dataset, label): weight for label, weight in own_weights.items()}
        members.append(list(rows.values()))
    return ClassBalance(
        weights if class_weights != NONE else {}, members if class_sampling == BALANCED else [], shares, described
    )


def weigh_classes(counts: dict[str, int], class_weights: str) -> dict[str, float]:
    """Return the weight of each class, whose mean over the rows is 1.

    `inverse_frequency` is one divided by the number of its rows n. `effective_number` is one divided by the effective
    number of them, (1 - b^n) / (1 - b) with b = (N - 1) / N (Cui et al. 2019, arXiv 1901.05555, equation 3), and N the
    number of rows of the data set: the more rows a class has, the less another one adds.

    Args:
        counts (`dict`): Class -> its rows, at least one.
    """
    total = sum(counts.values())
    rows = np.array(list(counts.values()), dtype=np.float64)
    if class_weights == NONE:
        weights = np.ones(len(rows))
    elif class_weights == INVERSE_FREQUENCY:
        weights = 1 / rows
    else:
        # b^n in a form that keeps its digits where b is nearly 1; a single row makes b zero.
        weights = 1 / (-np.expm1(rows * np.log1p(-1 / total))) if total > 1 else np.ones(1)
    weights *= total / (weights @ rows)
    return dict(zip(counts, weights.tolist(), strict=True))


def draw_epoch(members: list[list[np.ndarray]], generator: np.random.Generator) -> np.ndarray:
    """Return the row numbers of one epoch, int of shape (rows,), shuffled: as many of a data set as it has.

    Its classes come equally often; which of them come once more than others, where that doesn't divide, is drawn. Of a
    class with fewer rows than that each comes once, or as often as the number holds them all, before one comes again;
    of a class with more rows a part is drawn without putting any back.

    Args:
        members (`list[list[np.ndarray]]`): Data set, class -> row numbers, at least one.
    """
    drawn = []
    for classes in members:
        total = sum(map(len, classes))
        wanted = np.full(len(classes), total // len(classes))
        wanted[generator.permutation(len(classes))[: total % len(classes)]] += 1
        for rows, count in zip(classes, wanted, strict=True):
            drawn += [rows] * (count // len(rows))
            drawn.append(generator.permutation(rows)[: count % len(rows)])
    return generator.permutation(np.concatenate(drawn))


def format_balance(described: dict[str, dict[str, dict]]) -> str:
    """Return one line a class: its rows, how often each of them comes in an epoch, and how heavily."""
    lines = []
    for dataset, classes in described.items():
        lines += [
            f"{dataset}, {label}: {row['rows']} rows, each {row['drawn'] / row['rows']:.3g} times an epoch, with "
            f"weight {row['weight']:.3g}"
            for label, row in classes.items()
        ]
    return "\n".join(lines)
