"""The trainings of a study: what `folds` and `seeds` of a recipe stand for."""


def list_seeds(seeds: list[int] | None, seed: int) -> list[int]:
    """Return the seeds of a study: one number says how many, from `seed` on, several are the seeds themselves."""
    if seeds is None:
        return [seed]
    if len(seeds) == 1:
        return list(range(seed, seed + seeds[0]))
    return seeds


def count_trainings(histo_args) -> int:
    """Return how many trainings the study has that a run is one of, 1 for a run by itself."""
    return (histo_args.folds or 1) * len(list_seeds(histo_args.seeds, 0))
