"""Write `output_dir/space`, a folder that runs as a Gradio Space: one adapter's demo, without the training stack."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, StrictUndefined
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.demo.describe import describe_base_model, describe_data_sets
from histolab_sft.demo.space_code import PACKAGE, copy_package, find_imports, pin_requirements
from histolab_sft.embedded.synthetic import TISSUES, write_synthetic_patches
from histolab_sft.files import unfinished_folder
from histolab_sft.models.load import (
    EMBEDDED,
    build_model_init_kwargs,
    build_quantization_config,
    find_adapter,
    load_base_processor,
    locate_base_model,
)
from histolab_sft.models.precision import Precision, read_precision
from histolab_sft.publishing.hub import list_files
from histolab_sft.publishing.push_gate import (
    ADAPTER,
    ADAPTER_CONFIG,
    PublishError,
    check_adapter,
    check_base_model,
    check_leaks,
)
from histolab_sft.tasks import TASKS

# What the app imports by name; everything else follows from its own imports.
ENTRY, STYLE = "histolab_sft.demo.hosted", "demo/style.css"
# Asked for by settings and not by an import: loading weights onto a device, and 4-bit layers.
ALWAYS, QUANTISED = ["accelerate"], ["bitsandbytes"]
APP = f'''"""The Space starts this file."""

from pathlib import Path

from {ENTRY} import serve_space

if __name__ == "__main__":
    serve_space(Path(__file__).resolve().parent)
'''
PAINTED = "The examples are painted by code. They show no tissue, and answers to them say nothing about patients."


def build_space(histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig) -> Path:
    """Write `output_dir/space` in one step and return it.

    In it are the adapter, the settings that the recipe stands for, the part of this package that answering needs, its
    pinned requirements, painted examples and a README. The embedded base model goes along; any other one is loaded
    from the Hub by the Space itself.

    Raises:
        PublishError: The adapter is broken or of another base model or resolution, the base model is a folder of this
            machine, or a text holds a secret, a path or an identifier.
    """
    output_dir, name = Path(training_args.output_dir), model_args.model_name_or_path
    adapter = find_adapter(output_dir)
    check_adapter(adapter)
    check_base_model(output_dir / ADAPTER_CONFIG, model_args)
    target = output_dir / "space"
    if target.is_symlink():
        raise PublishError(f"{target} is a link, expected a folder to write to; remove it")
    with unfinished_folder(output_dir, ".space-") as temporary:
        folder = Path(temporary, "space")
        (folder / "adapter").mkdir(parents=True)
        for file in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(output_dir / file, folder / "adapter" / file)
        if name == EMBEDDED:
            shutil.copytree(locate_base_model(name), folder / "base_model")
        painted = paint_examples(histo_args, folder / "examples")
        settings = describe_demo(
            histo_args, model_args, output_dir, read_precision(histo_args, training_args), painted
        )
        _write_json(settings, folder / "settings.json")
        files, distributions = find_imports(ENTRY)
        copy_package([*files, STYLE], folder)
        pins = pin_requirements(distributions + ALWAYS + QUANTISED * bool(settings["quantization"]))
        lines = [f"{package}=={pin}\n" for package, pin in sorted(pins.items())]
        (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
        (folder / "app.py").write_text(APP, encoding="utf-8")
        (folder / "README.md").write_text(format_readme(settings, pins["gradio"]), encoding="utf-8")
        own = [file for file in list_files(folder) if not file.startswith("base_model/")]
        check_leaks(folder, own, training_args.hub_model_id or "")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return target


def describe_demo(
    histo_args: HistoArguments, model_args: ModelConfig, output_dir: Path, precision: Precision, remarks: list[str]
) -> dict:
    """Return the settings from which a Space loads what was scored."""
    quantization = build_quantization_config(model_args, precision.compute)
    processor = load_base_processor(model_args)
    data_sets, notes = describe_data_sets(histo_args, output_dir)
    return {
        "title": describe_base_model(model_args.model_name_or_path),
        "base_model": model_args.model_name_or_path,
        "quantization": quantization and quantization.to_dict(),
        "precision": asdict(precision),
        **build_model_init_kwargs(model_args),
        "image_side": model_args.image_side,
        "image_tokens": model_args.image_tokens,
        "chat_template": processor.chat_template,
        "data_sets": [asdict(data_set) for data_set in data_sets],
        "remarks": notes + remarks,
    }


def paint_examples(histo_args: HistoArguments, folder: Path) -> list[str]:
    """Paint one patch a class into `folder/<data set>/<class name>/` where a data set can be painted.

    Returns:
        The remark that belongs beside them; nothing where nothing was painted.
    """
    configs = [config for config in histo_args.datasets if config.options and config.name in TISSUES]
    with TemporaryDirectory() as temporary:
        painted = Path(temporary, "painted")
        if configs:
            write_synthetic_patches(painted, {config.name: 1 for config in configs})
        for config in configs:
            for label, words in config.class_names.items():
                if (painted / config.name / label).is_dir():
                    shutil.copytree(painted / config.name / label, folder / config.name / words)
    return [PAINTED] if folder.is_dir() else []


def format_readme(settings: dict, gradio: str) -> str:
    """Return the README with the front matter that a Space is configured by."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "demo"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template("space.md.jinja").render(
        settings=settings, gradio=gradio, embedded=settings["base_model"] == EMBEDDED, tasks=TASKS
    )


def _write_json(content: dict, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
