"""Write the model card: every score from `results.json`, the rest from the recipe, `run.json` and `audit.json`."""

from datetime import datetime
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from trl import SFTConfig

from histolab_sft.config.arguments import DTYPES, HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.audit.audit import describe_dropped
from histolab_sft.data.public.benchmarks import BENCHMARKS, Benchmark
from histolab_sft.embedded import synthetic
from histolab_sft.models.load import EMBEDDED
from histolab_sft.publishing.push_gate import SYSTEMS, walk
from histolab_sft.tasks import choose_limit, classification

FLOOR_METRICS = ("balanced_accuracy", "accuracy", "macro_f1")
FLOOR_COLUMNS = 4  # with a format: the headline score and the next ones

# Family of base models -> its licence's name in the Hub's metadata, link, and notice.
TERMS = {
    "google/medgemma": (
        "health-ai-developer-foundations",
        "https://developers.google.com/health-ai-developer-foundations/terms",
        "HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use found at "
        "https://developers.google.com/health-ai-developer-foundations/terms. What is here is a modification of it: "
        "the same terms and use restrictions pass on to whoever uses it.",
    ),
    "google/gemma": (
        "gemma",
        "https://ai.google.dev/gemma/terms",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, which pass "
        "on to whoever uses what is here.",
    ),
}

# Module names of Gemma 3 in transformers 5, which `models.load.build_quantization_config` finds for the tiny model.
UNQUANTISED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
TESTS = {
    "only_baseline": "Patches that the baseline alone has right",
    "only_finetuned": "Patches that the fine-tuned model alone has right",
    "mcnemar_p": "McNemar's exact p, patches taken for independent",
    "group_p": "p with whole patients or slides swapped at random",
}
PROTOCOLS = {"official": "the one published with the data", "seed": "drawn at random by the recipe"}
RUN_KEYS = ("start", "end", "exit_reason", "hardware", "versions", "data_fingerprint", "git_commit")

# Board power in watts by NVIDIA's data sheets, under the names that torch.cuda.get_device_name gives.
BOARD_POWER = {
    "Tesla T4": 70,
    "NVIDIA L4": 72,
    "Tesla V100-SXM2-16GB": 300,
    "NVIDIA A100-SXM4-40GB": 400,
    "NVIDIA A100-SXM4-80GB": 400,
    "NVIDIA A100 80GB PCIe": 300,
    "NVIDIA H100 80GB HBM3": 700,
    "NVIDIA H100 PCIe": 350,
    "NVIDIA H200": 700,
    "NVIDIA GeForce RTX 3090": 350,
    "NVIDIA GeForce RTX 4090": 450,
}
WORLD_AVERAGE = 0.475  # kg CO2 a kWh: IEA, Global Energy & CO2 Status Report 2019


def format_card(
    results: dict,
    run: dict,
    audit: dict,
    figures: list[str],
    repo_id: str,
    histo_args: HistoArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    parity: dict | None = None,
    exported: dict | None = None,
) -> str:
    """Return README.md: metadata that the Hub accepts, `model-index` among them, and the text.

    Args:
        results (`dict`): `evaluation/results.json`; scores are rounded to three decimals in the text, and stand
            unrounded in `model-index`.
        run, audit (`dict`): `run.json` and `audit.json`, empty where there is none.
        figures (`list[str]`): File names in `figures/`.
        repo_id (`str`): Where the weights go, for the loading code.
        parity (`dict`, *optional*): Of a merged model: the proof of `merge.check_merge_parity`, which is then told.
        exported (`dict`, *optional*): Of a merged model in another engine's format: what `export.export_model` found,
            which is then told with the commands that run it.

    Raises:
        ValueError: The metadata aren't valid.
    """
    scores = results["datasets"]
    datasets = [_describe_dataset(config, scores[config.name], figures, histo_args) for config in histo_args.datasets]
    written = not all(config.options for config in histo_args.datasets)
    shown = {figure for dataset in datasets for figure in dataset["figures"]}
    quantised = {
        "in_8bit": model_args.load_in_8bit,
        "type": repr(model_args.bnb_4bit_quant_type),
        "nested": model_args.use_bnb_nested_quant,
        "skipped": repr(UNQUANTISED),
    }
    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(template).render(
        title=repo_id.split("/")[-1],
        repo_id=repr(repo_id),
        base=_describe_base(model_args, results["provenance"].get("revision")),
        resolution=[model_args.image_side, model_args.image_tokens] if model_args.names_resolution else None,
        quantised=quantised if model_args.load_in_4bit or model_args.load_in_8bit else None,
        dtype=model_args.dtype if model_args.dtype in DTYPES else "bfloat16",
        question=repr(datasets[0]["prompt"]),
        max_new_tokens=datasets[0]["max_new_tokens"],
        datasets=datasets,
        verdict=results["verdict"],
        overall=format_scores(results["overall"]) if len(datasets) > 1 and results.get("overall") else "",
        figures=[figure for figure in figures if figure not in shown],
        target=None if written else classification.format_target("..."),
        findings=[
            f"{finding['check'].replace('_', ' ')} ({finding['level']}): {finding['count']}"
            for finding in audit.get("findings", [])
        ]
        + (describe_dropped(audit) if "dropped" in audit else []),
        sha256=results["provenance"]["adapter_sha256"],
        parity=parity,
        exported=exported,
        parity_table=_format_engine(exported) if exported else None,
        training=format_table(["setting", "value"], _list_settings(histo_args, training_args, model_args)),
        carbon=estimate_carbon(run),
        origin=format_table(["", ""], _list_origin(results["provenance"], run)),
    )
    card = f"---\n{_build_metadata(results, repo_id, model_args, parity is not None).to_yaml()}\n---\n\n{text}"
    ModelCard(card)  # raises where the Hub would
    return card


def find_benchmark(config: DatasetConfig) -> Benchmark | None:
    """Return the public data set in whose folder of `make data` (`datasets/NAME`) the source lies, or None."""
    parts = Path(config.source).parts
    names = [name for parent, name in zip(parts, parts[1:], strict=False) if parent == "datasets"]
    return BENCHMARKS.get(names[-1]) if names else None


def _describe_dataset(config: DatasetConfig, entry: dict, figures: list[str], histo_args: HistoArguments) -> dict:
    finetuned, benchmark = entry["finetuned"], find_benchmark(config)
    groups = f"{entry['n_groups']} patients or slides" if entry["n_groups"] else "unknown patients and slides"
    notes = [f"Split: {PROTOCOLS.get(entry['split_protocol'], entry['split_protocol'])}."]
    notes += [text[0].upper() + text[1:] for text in [*entry["warnings"], entry["colour_floor"]] if text]
    for name, value in entry["difference"].items():
        if not is_score(value):
            notes.append(f"{TESTS.get(name, name)}: {f'{value:.3g}' if isinstance(value, float) else value}")
    if "zero_shot" in entry:
        notes.append(f"Baseline: {entry['zero_shot']['reason']}")
    if entry.get("detectable"):
        notes.append(entry["detectable"]["text"])
    if "imbalance" in entry:
        notes.append(f"Rare classes: {entry['imbalance']['summary']}")
    written = {system: entry[system]["generation"] for system in SYSTEMS if "generation" in entry[system]}
    floors = {name: floor for name, floor in entry["floors"].items() if floor}
    columns = [name for name in FLOOR_METRICS if is_score(finetuned.get(name))]
    task = entry.get("task", classification.NAME)
    limit = choose_limit(task, config.max_new_tokens, histo_args.max_new_tokens)
    if config.options:
        prompt = classification.format_prompt(config.name, config.options, histo_args.prompt_style, config.question)
    else:
        columns = list(dict.fromkeys([entry["headline"], *entry["difference"]]))[:FLOOR_COLUMNS]
        prompt = entry["question"]
        notes.append(f"Task: {task}. A written answer that can't be read counts as wrong.")
    return {
        "name": config.name,
        "size": f"{entry['n']} test patches of {groups}.",
        "scores": format_scores(entry),
        "written": format_scores(written) if written else "",
        "floors": format_floors(floors, finetuned, columns) if floors else "",
        "per_class": format_classes(finetuned.get("per_class", {})),
        "figures": [figure for figure in figures if "confusion" in figure and config.name in figure],
        "notes": notes,
        "prompt": prompt,
        "max_new_tokens": limit,
        "data": _describe_data(config, benchmark, histo_args.data_dir),
    }


def _describe_data(config: DatasetConfig, benchmark: Benchmark | None, data_dir: str) -> str:
    source = Path(data_dir, config.source)
    if synthetic.is_painted(source):
        return "painted by code, holding no tissue: its scores prove that the pipeline works, and nothing else."
    if benchmark is None:
        return "a data set of the author's own; its licence and consent aren't recorded here."
    return f"{benchmark.title}, {benchmark.source}. Licence: {benchmark.licence}. Its protocol: {benchmark.protocol}."


def _format_engine(exported: dict) -> str:
    parts = {**exported["datasets"], "all": exported["all"]}
    lines = [
        [
            *(name, part["n_patches"], f"{part['agreement']:.1%}"),
            *("-" if part[gap] is None else f"{part[gap]:.3f}" for gap in ("mean_gap", "largest_gap")),
        ]
        for name, part in parts.items()
    ]
    head = ["data set", "patches", "same answer", "mean difference, nats", "largest difference, nats"]
    return format_table(head, lines)


def _describe_base(model_args: ModelConfig, commit: str | None) -> dict:
    # The commit that the adapter was trained on, since a branch moves on.
    name, revision = model_args.model_name_or_path, commit or model_args.model_revision
    terms = find_terms(name)
    if name == EMBEDDED:
        description = "The base model is the tiny one built into histolab_sft. It has seen no tissue."
    else:
        description = f"[{name}](https://huggingface.co/{name}), revision `{revision}`."
    unknown = "Its terms apply here as well; read them on its page." if name != EMBEDDED else ""
    return {
        "embedded": name == EMBEDDED,
        "name": repr(name),
        "revision": repr(revision),
        "shown": "the embedded tiny model" if name == EMBEDDED else f"[{name}](https://huggingface.co/{name})",
        "description": description,
        "terms": terms[2] if terms else unknown,
    }


def find_terms(name: str) -> tuple[str, str, str] | None:
    """Return licence name, link and notice of a base model's family, or None if they aren't known here."""
    return next((terms for prefix, terms in TERMS.items() if name.startswith(prefix)), None)


def _build_metadata(results: dict, repo_id: str, model_args: ModelConfig, merged: bool) -> ModelCardData:
    name = model_args.model_name_or_path
    terms = find_terms(name)
    licence = {"license": "other", "license_name": terms[0], "license_link": terms[1]} if terms else {}
    relation = "finetune" if merged else "adapter"
    base = {"base_model": name, "base_model_relation": relation} if name != EMBEDDED else {}
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        library_name="transformers" if merged else "peft",
        pipeline_tag="image-text-to-text",
        tags=["histopathology", "medical", "lora", "sft", "trl"],
        eval_results=[
            EvalResult(
                task_type="image-text-to-text" if "task" in entry else "image-classification",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=metric,
                metric_value=score["value"],
            )
            for dataset, entry in results["datasets"].items()
            for metric, score in entry["finetuned"].items()
            if is_score(score) and score["value"] is not None
        ],
        **base,
        **licence,
    )


def _list_settings(histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig) -> list[list]:
    bits = "4-bit " + model_args.bnb_4bit_quant_type if model_args.load_in_4bit else ""
    bits = bits or ("8-bit" if model_args.load_in_8bit else model_args.dtype)
    resolution = [
        [name, value]
        for name, value in (
            ("side of a picture, pixels", model_args.image_side),
            ("image tokens a picture", model_args.image_tokens),
        )
        if value is not None
    ]
    return [
        ["weights of the base model", bits],
        *resolution,
        ["LoRA rank, alpha, dropout", f"{model_args.lora_r}, {model_args.lora_alpha}, {model_args.lora_dropout}"],
        ["LoRA layers", f"{model_args.lora_target_modules} in {histo_args.lora_scope.replace('_', ' ')}"],
        ["learning rate", training_args.learning_rate],
        ["epochs", training_args.num_train_epochs],
        ["patches a device and step", training_args.per_device_train_batch_size],
        ["accumulated steps", training_args.gradient_accumulation_steps],
        ["seed", training_args.seed],
    ]


def _list_origin(provenance: dict, run: dict) -> list[list]:
    recorded = provenance | {key: run[key] for key in RUN_KEYS if key in run}
    return [[name.replace("_", " "), value] for name, value in walk(recorded) if value is not None]


def estimate_carbon(run: dict) -> str:
    """Return a sentence with energy and carbon of the training run, or with what is missing for one.

    Energy is hours times devices times board power, carbon is energy times the world's average grid (Lacoste et al.
    2019, arXiv 1910.09700, without their correction for the data centre).

    Args:
        run (`dict`): `run.json`; needed are `start` and `end` in ISO 8601, and `hardware` with `device` (the name that
            torch gives) and `count`.
    """
    hardware = run.get("hardware")
    if not isinstance(hardware, dict) or not {"device", "count"} <= set(hardware) or not {"start", "end"} <= set(run):
        return "Carbon: not estimated, the run recorded no hardware or no time."
    device, count = hardware["device"], hardware["count"]
    if device not in BOARD_POWER:
        return f"Carbon: not estimated, the power of the device ({device}) isn't known."
    hours = (datetime.fromisoformat(run["end"]) - datetime.fromisoformat(run["start"])).total_seconds() / 3600
    energy = hours * count * BOARD_POWER[device] / 1000
    return (
        f"Carbon of training: about {energy * WORLD_AVERAGE:.2f} kg CO2, from {hours:.2f} h x {count} x "
        f"{BOARD_POWER[device]} W (board power, {device}) = {energy:.2f} kWh, x {WORLD_AVERAGE} kg a kWh "
        "(world average, IEA 2019). Method: Lacoste et al. 2019 (arXiv 1910.09700). Host, cooling and other runs "
        "aren't counted."
    )


def format_scores(entry: dict) -> str:
    """Return a table with one line a metric: baseline, finetuned, and their difference where it is there."""
    systems = [*SYSTEMS, *(["difference"] if "difference" in entry else [])]
    metrics = [name for name, score in entry["finetuned"].items() if is_score(score)]
    rows = [[name, *(format_score(entry[system].get(name)) for system in systems)] for name in metrics]
    return format_table(["metric", *systems], rows)


def format_score(score: dict | None) -> str:
    """Return a score as `0.812 [0.790, 0.833]`: no brackets without an interval, a dash without a value."""
    if score is None or score["value"] is None:
        return "–"
    interval = score.get("ci95")
    return f"{score['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def is_score(score) -> bool:
    """Whether an entry of `results.json` is a score: `{"value"}`, with or without `ci95`."""
    return isinstance(score, dict) and "value" in score


def format_floors(floors: dict, finetuned: dict, metrics: list[str]) -> str:
    """Return a table with one line a floor, and the fine-tuned model as the last."""
    lines = [*floors.items(), ("**finetuned**", finetuned)]
    rows = [[name, *(_format_value(scores.get(metric)) for metric in metrics)] for name, scores in lines]
    return format_table(["", *metrics], rows)


def format_classes(per_class: dict) -> str:
    """Return a table with one line a class, empty if there is no class."""
    columns = [column for column in next(iter(per_class.values()), {}) if not column.endswith("_ci95")]
    rows = [[name, *(_format_class(scores, column) for column in columns)] for name, scores in per_class.items()]
    return format_table(["class", *columns], rows) if rows else ""


def _format_class(scores: dict, column: str) -> str:
    if f"{column}_ci95" in scores:
        return format_score({"value": scores[column], "ci95": scores[f"{column}_ci95"]})
    return _format_value(scores[column])


def _format_value(value) -> str:
    if is_score(value) or value is None:
        return format_score(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_table(header: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
