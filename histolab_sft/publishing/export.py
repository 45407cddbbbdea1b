"""Take a model home: merged, converted and proven, with a card, in a folder that needs nothing of this project."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models.generate import render_prompt
from histolab_sft.models.load import load_base_processor, locate_base_model
from histolab_sft.provenance import compute_sha256, write_json
from histolab_sft.publishing.engine_parity import compare_engine, describe
from histolab_sft.publishing.engines import check_llama, find_engine, serve_gguf
from histolab_sft.publishing.gguf import find_tools, write_gguf
from histolab_sft.publishing.hub import collect_evidence, list_files, write_evidence
from histolab_sft.publishing.merge import PARITY_FILE
from histolab_sft.publishing.merge import describe as describe_merge
from histolab_sft.publishing.publish_merged import VOCABULARY, build_merged_folder, name_repository
from histolab_sft.publishing.push_gate import ADAPTER, PublishError, check_leaks, read_json

ENGINE_PARITY = "engine_parity.json"
IN_GGUF = ("gguf", "ollama")
VLLM = "vllm serve {folder} --dtype bfloat16 --max-model-len 2048 --limit-mm-per-prompt '{{\"image\": 1}}'"
# Ollama puts the picture where the message begins, and <bos> before it all.
GEMMA_USER, GEMMA_MODEL = "<start_of_turn>user\n{{ .Content }}<end_of_turn>\n", "<start_of_turn>model\n"
MODELFILE = """FROM ./{model}
FROM ./{projector}
TEMPLATE \"\"\"{{{{- range $i, $_ := .Messages }}}}
{{{{- $last := eq (len (slice $.Messages $i)) 1 }}}}
{{{{- if eq .Role "assistant" }}}}{reply}{{{{ .Content }}}}<end_of_turn>
{{{{ else }}}}{user}{{{{ if $last }}}}{reply}{{{{ end }}}}
{{{{- end }}}}
{{{{- end }}}}\"\"\"
PARAMETER stop <end_of_turn>
PARAMETER temperature 0
PARAMETER num_ctx 8192
"""


@dataclass
class ExportArguments:
    """Keys beside those of a recipe."""

    format: Literal["gguf", "ollama", "vllm", "merged"] = field(
        default="gguf",
        metadata={
            "help": "What is written: `gguf` for llama.cpp, `ollama` the same with a Modelfile, `vllm` and `merged` "
            "the weights for transformers, which `vllm` compares with a running server."
        },
    )
    quant: Literal["q8_0", "q4_k_m", "bf16"] | None = field(
        default=None,
        metadata={"help": "Precision of the language model: q8_0 unless said otherwise in GGUF, else bf16."},
    )
    llama_cpp: str | None = field(
        default=None, metadata={"help": "A clone of llama.cpp, in place of the one that the package brings."}
    )
    engine_url: str | None = field(
        default=None,
        metadata={"help": "A running server to compare (vLLM, Ollama, llama-server), such as http://127.0.0.1:8000."},
    )
    engine_model: str | None = field(
        default=None, metadata={"help": "What that server calls the model; its first if omitted."}
    )

    def __post_init__(self):
        if self.quant is None:
            self.quant = "q8_0" if self.format in IN_GGUF else "bf16"
        if self.format not in IN_GGUF and self.quant != "bf16":
            raise ValueError(f"quant is {self.quant} with format: {self.format}, expected bf16; take format: gguf")


def export_model(
    args: ExportArguments,
    patches: Dataset,
    histo_args: HistoArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
) -> tuple[Path, list[str]]:
    """Write the model in `args.format`; return its folder, and one line for each comparison.

    `output_dir/merged` holds the merged model, which is made anew where it isn't of this adapter. For other formats
    `output_dir/export/FORMAT-QUANT` holds the GGUF files, what goes with them, `engine_parity.json` and the card.

    Args:
        patches (`Dataset`): Validation split, to compare on.

    Raises:
        PublishError: A tool isn't installed, the evaluation isn't of this adapter, or the answers differ; the folder
            then has `engine_parity.json` and no card.
    """
    # What can be refused at once is, before minutes of merging.
    in_gguf, output_dir = args.format in IN_GGUF, Path(training_args.output_dir)
    tools = find_tools(args.quant, args.llama_cpp) if in_gguf else None
    if in_gguf and args.engine_url is None:
        check_llama()
    engine = find_engine(args.engine_url, args.engine_model) if args.engine_url else None

    merged = output_dir / "merged"
    parity = _read_proof(output_dir, merged)
    if parity is None:
        merged, parity = build_merged_folder(patches, histo_args, training_args, model_args)
    lines = [f"merged: {describe_merge(parity)}"]
    if args.format == "merged":
        return merged, lines
    if args.format == "vllm" and engine is None:
        raise PublishError(
            f"{merged} is merged and proven; start `{VLLM.format(folder=merged)}` (`pip install vllm` brings it, best "
            "in an environment of its own), then give its address by engine_url, so that its answers can be compared"
        )
    target = output_dir / "export" / f"{args.format}-{args.quant}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with ExitStack() as stack:
        if in_gguf:
            base_model = locate_base_model(model_args.model_name_or_path)
            files = write_gguf(merged, base_model, model_args.model_revision, target, args.quant, tools)
            if args.format == "ollama":
                write_modelfile(target, *files, render_prompt(load_base_processor(model_args), "{question}"))
            engine = engine or stack.enter_context(serve_gguf(*files))
        found = {"format": args.format, "quant": args.quant}
        found |= compare_engine(engine, patches, histo_args, training_args, model_args)
    write_json(target / ENGINE_PARITY, found | {"adapter_sha256": parity["adapter_sha256"]})
    lines.append(f"{engine.name}: {describe(found)}")
    if not found["passed"]:
        raise PublishError(
            f"{engine.name} answers otherwise than the adapter ({describe(found)}), expected the same answer to "
            f"{found['min_agreement']:.0%} and {found['max_mean_gap']} nats at most between them; see "
            f"{target / ENGINE_PARITY}, and take quant: bf16, or the adapter"
        )
    evidence = collect_evidence(histo_args, training_args, model_args)
    repo_id = name_repository(training_args) or output_dir.resolve().name
    write_evidence(target, evidence, repo_id, histo_args, training_args, model_args, parity, found)
    check_leaks(target, [name for name in list_files(target) if name not in VOCABULARY], repo_id)
    return target, lines


def write_modelfile(folder: Path, model: Path, projector: Path, prompt: str) -> Path:
    """Write Ollama's Modelfile for Gemma 3, whose turns it has in words of its own.

    Args:
        prompt (`str`): What the model was trained to answer, for the question `{question}`.

    Raises:
        PublishError: The base model has other turns than Gemma 3.
    """
    turns = GEMMA_USER.replace("{{ .Content }}", "{question}") + GEMMA_MODEL
    if prompt.replace("<bos>", "").replace("<start_of_image>", "") != turns:
        raise PublishError(
            f"the base model is asked by {prompt!r}, expected Gemma 3's turns, which are the ones that are known here "
            "for Ollama; take format: gguf"
        )
    path = folder / "Modelfile"
    path.write_text(MODELFILE.format(model=model.name, projector=projector.name, user=GEMMA_USER, reply=GEMMA_MODEL))
    return path


def _read_proof(output_dir: Path, merged: Path) -> dict | None:
    """Return `merge_parity.json` where it is of the adapter and the merged files that lie there, and has passed."""
    if not (output_dir / PARITY_FILE).is_file() or not (merged / PARITY_FILE).is_file():
        return None
    parity = read_json(output_dir / PARITY_FILE)
    files = {path.name: compute_sha256(path) for path in sorted(merged.glob("*.safetensors"))}
    same = parity["adapter_sha256"] == compute_sha256(output_dir / ADAPTER) and parity["merged_sha256"] == files
    return parity if same and parity["passed"] else None
