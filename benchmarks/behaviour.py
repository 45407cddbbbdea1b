"""
Show that a change of the code changed no behaviour. Record before and after on one machine, then compare:

    python -m benchmarks.behaviour record /tmp/after
    git worktree add /tmp/old COMMIT
    python -m benchmarks.behaviour record /tmp/before --checkout /tmp/old
    python -m benchmarks.behaviour compare /tmp/before /tmp/after

`record` runs every shipped recipe through the commands of the Makefile (train, evaluate, push-adapter as a dry run,
space, and submission for FLARE), each in a process, with the code of `--checkout` and on one thread. The demo is
trained by `accelerate launch`, the others without it, which saves the time to load the libraries again. The data are
written by the code of the checkout that this file stands in, so both recordings see the same. They are the small
copies that the tests use, and the demo's painted patches; the base model is the embedded one. A run is cut to a few
steps and rows (`SHORT`, `OWN`). All takes some minutes; `--recipes demo flare` records these two alone;
one recipe is compared by `compare BEFORE/demo AFTER/demo`.

Kept, a folder for each recipe: every file that its run leaves (results, audit, run record, predictions, report, card,
the Space but for the code in it), hashes in place of weights and pictures, and `rows.json`, which has each row as it
reaches the trainer, and token ids and loss masks of the first rows. Masked are times, folders of this machine, and the
commit. `compare` prints what differs and ends with 1 if anything does.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CPU = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32"]
SHORT = ["--max_steps", 2, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--save_strategy"]
SHORT += ["no", "--max_new_tokens", 4, "--dataloader_num_workers", 0, "--report_to", "none", "--load_in_4bit", "false"]
# The same key given twice: the last value holds.
OWN = {
    "demo": ["--max_steps", 8, "--max_samples", 90, "--max_new_tokens", 16, "--load_in_4bit", "true"],
    "histolab_448": ["--image_side", 32, "--image_tokens", 4],  # to the embedded model what 448 and 64 are to MedGemma
    "immunopath": ["--constrained_decoding", "true", "--max_new_tokens", 160],  # whole answers
}
COMMANDS = {"train": [], "evaluate": [], "push-adapter": ["--dry_run", "true"], "space": []}
LIBRARIES = "accelerate datasets matplotlib.pyplot pandas peft scipy.stats sklearn.linear_model torch "
LIBRARIES += "transformers.models.gemma3.modeling_gemma3 trl.trainer.sft_trainer"
COLLATED = 2  # rows of each data set and split
SHOWN = 20  # differences of one file

# What may differ between two runs of the same code: keys of JSON, and parts of a text.
TIMES = re.compile(r"(^|_)(start|end|seconds|runtime|time|date|git_commit|per_second)$|^(pid|elapsed)")
MASKS = [
    (re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?([+.]\d\d:?\d\d)?)?"), "DATE"),
    (re.compile(r"\b[0-9a-f]{40}(-dirty)?\b"), "COMMIT"),
]
PICTURES = (".png", ".jpg", ".jpeg", ".tif")
LEFT_OUT = re.compile(r"\.(lock|bin|pyc)$|(^|/)\.|^space/histolab_sft/|^publish/predictions")


def read_rows(flags):
    """Return each row as it reaches the trainer, and the first of them as tokens: adapt this when rows change."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    histo_args, training_args, model_args = find_function("parse_recipe", "histolab_sft")(flags)
    with tempfile.TemporaryDirectory() as audited:
        splits = find_function("load_training_patches", "histolab_sft")(histo_args, audited)
    processor = find_function("load_base_processor", "histolab_sft")(model_args)
    length = training_args.max_length
    collator = DataCollatorForVisionLanguageModeling(processor, max_length=length, completion_only_loss=True)
    rows, tokens, counts = {}, {}, {}
    for split, table in splits.items():
        for row in table:
            name, pictures = f"{split}/{row['dataset']}/{row['id']}", row.get("images") or [row["image"]]
            while name in rows:  # several questions about one picture
                name += "+"
            rows[name] = {
                "pictures": [hash_picture(picture) for picture in pictures],
                "prompt": row["prompt"],
                "completion": row["completion"],
                "group": row["group"],
            }
            counts[split, row["dataset"]] = counts.get((split, row["dataset"]), 0) + 1
            if counts[split, row["dataset"]] <= COLLATED:
                batch = collator([row])
                tokens[name] = {key: batch[key].tolist() for key in ("input_ids", "labels")}
                tokens[name]["pixel_values"] = hash_bytes(batch["pixel_values"].numpy().tobytes())
    return {"order": list(rows), "rows": rows, "tokens": tokens}


def find_function(pattern, folder):
    """Return the function of that name wherever it stands below `folder`: two versions have it in different files."""
    definition, paths = re.compile(rf"^def ({pattern})\(", re.MULTILINE), list(Path(folder).rglob("*.py"))
    found = [(path, match[1]) for path in paths for match in definition.finditer(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} functions {pattern} below {folder}, expected one; adapt {Path(__file__).name}")
    [(path, name)] = found
    if path.parts[0] == "histolab_sft":
        return getattr(importlib.import_module(".".join(path.with_suffix("").parts)), name)
    sys.path[:0] = [str(path.parent), *sorted({str(other.parent) for other in paths} - set(sys.path))]
    return getattr(importlib.import_module(path.stem), name)


def write_data(name, recipe, home):
    """Write the data of a recipe, whose pictures depend on the path that is named: a relative one."""
    if "format" in recipe["datasets"][0]:
        find_function("write_data", ROOT / "tests")(name, home, recipe["datasets"])
        return home / recipe.get("data_dir", "")
    write_class_folders = find_function("write_class_folders", ROOT / "tests")
    for entry in recipe["datasets"]:
        splits = entry.get("splits")
        for part in splits.values() if isinstance(splits, dict) else [""]:
            write_class_folders(home / entry["source"] / part, entry["class_names"])
    return home


def list_flags(name, recipe, data, out):
    """Return the command line of a shortened run."""
    flags = ["--config", f"recipes/{name}.yaml", "--model_name_or_path", "embedded", "--data_dir", data]
    flags += ["--output_dir", out, *CPU, *SHORT, *OWN.get(name, [])]
    if any("max_new_tokens" in entry for entry in recipe["datasets"]):
        entries = [{k: v for k, v in entry.items() if k != "max_new_tokens"} for entry in recipe["datasets"]]
        flags += ["--datasets", json.dumps(entries)]
    if "phases" in recipe:
        steps = {"max_steps": 2, "num_train_epochs": None}
        flags += ["--phases", json.dumps([phase | steps for phase in recipe["phases"]])]
    return list(map(str, flags))


def read_command(target, checkout, name, mark="--config"):
    """Return the words of the first command of a target of the Makefile that has `mark` in it."""
    keys = f"RECIPE=recipes/{name}.yaml", "ACCELERATE_CONFIG=accelerate_configs/cpu.yaml"
    # Printed and not run: whether that checkout has an environment of its own doesn't matter.
    printed = subprocess.check_output(["make", "-n", target, *keys], cwd=checkout, text=True)
    program, *words = shlex.split(next(line for line in printed.splitlines() if mark in line))
    return [str(Path(sys.executable).with_name(Path(program).name)), *words]


def record(folder, checkout, recipes):
    """Run the recipes of a checkout and write to `folder`, one folder a recipe, what they leave."""
    names = recipes or sorted(path.stem for path in checkout.glob("recipes/*.yaml"))
    with tempfile.TemporaryDirectory() as work:
        work = Path(work).resolve()
        os.chdir(work)
        # A cache of its own, so that no answer of an earlier run is read again; the base model alone is taken along.
        cache = work / "cache"
        (cache / "histolab_sft").mkdir(parents=True)
        base = Path(run_with_code(checkout, ["embedded"], stdout=subprocess.PIPE).strip().splitlines()[-1])
        (cache / "histolab_sft" / base.name).symlink_to(base)
        commands = []
        for name in names:
            recipe = yaml.safe_load((checkout / f"recipes/{name}.yaml").read_text(encoding="utf-8"))
            home = Path(name)
            if name == "demo":
                paint = read_command("demo", checkout, name, "data/synthetic")
                commands.append([*paint[:-1], work / name / paint[-1]])
            else:
                home = write_data(name, recipe, home)
            flags = list_flags(name, recipe, work / home, work / name / "out")
            submission = {"submission": []} if name == "flare" else {}
            for target, more in (COMMANDS | submission).items():
                command = read_command(target, checkout, name)
                if target == "train" and name != "demo":
                    command = [sys.executable, *command[command.index("recipes/sft.py") :]]
                commands.append([*command, *flags[2:], *more])
            commands.append([sys.executable, __file__, "rows", work / name / "out/rows.json", *flags])
        run_with_code(checkout, ["run"], {"XDG_CACHE_HOME": str(cache)}, input=json.dumps(commands, default=str))
        places = {str(work): "WORK", str(checkout): "CHECKOUT", str(base.parent): "CACHE", sys.prefix: "PYTHON"}
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier recording
            keep(work / name / "out", folder / name, places)


def run_with_code(checkout, words, environment=(), **more):
    """Run a part of this file in a process with the code of a checkout."""
    own = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **dict(environment)}
    command = [sys.executable, __file__, *words]
    result = subprocess.run(command, cwd=checkout, env=os.environ | own, text=True, **more)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout


def run_commands(commands):
    """Run one command after the other; those of Python in forks, which needn't load the libraries again."""
    for module in LIBRARIES.split():
        importlib.import_module(module)
    for command in commands:
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            if Path(command[0]).name == "accelerate":
                code = subprocess.run(command, stdout=log, stderr=log).returncode
            else:
                fork = multiprocessing.get_context("fork").Process(target=run_python, args=(command[1:], log))
                fork.start()
                fork.join()
                code = fork.exitcode
            print(f"{time.monotonic() - start:4.0f} s  {shlex.join(command[1:])[:100]}", flush=True)
            if code:
                log.seek(0)
                sys.exit(f"{shlex.join(command)}\nended with {code}:\n{log.read()[-4000:]}")


def run_python(words, log):
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def keep(out, folder, places):
    """Write every file of a run in the form in which two runs of the same code have it alike."""
    hashes = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if LEFT_OUT.search(name):
            continue
        if path.suffix == ".json":
            kept = mask(json.loads(path.read_text(encoding="utf-8")), places)
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            about = {key: json.loads(value) for key, value in about.items() if key != "pandas"}
            name, kept = f"{name}.json", mask({"columns": table.to_pydict(), "about": about}, places)
        elif path.suffix in PICTURES:
            hashes[name] = hash_picture(Image.open(path))
            continue
        elif path.suffix in (".md", ".html", ".txt", ".csv", ".jsonl", ".py", ".svg"):
            kept = mask(path.read_text(encoding="utf-8"), places)
            kept = re.sub(r">\s*<", ">\n<", kept) if path.suffix == ".html" else kept  # one element a line
        else:
            hashes[name] = hash_bytes(path.read_bytes())
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = kept if isinstance(kept, str) else json.dumps(kept, indent=1, ensure_ascii=False, default=str)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def mask(content, places, key=""):
    """Return JSON or a text without times, places of this machine and commits."""
    if TIMES.search(key):
        return "TIME"
    if key == "target_modules" and isinstance(content, list):
        content = sorted(content)  # a set in PEFT, which writes it in any order
    if isinstance(content, dict):
        return {mask(name, places): mask(value, places, name) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [mask(value, places) for value in content]
    if not isinstance(content, str):
        return content
    for place, word in places.items():
        content = content.replace(place, word)
    for pattern, word in MASKS:
        content = pattern.sub(word, content)
    return re.sub(r"data:image/[a-z+]+;base64,([\w+/=]+)", lambda found: hash_bytes(found[1].encode()), content)


def compare(before, after):
    """Return a line for each difference of two recordings: file, key or line, before and after."""
    found = []
    names = {path.relative_to(folder) for folder in (before, after) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        missing = [str(folder) for folder in (before, after) if not (folder / name).is_file()]
        if missing:
            found.append(f"{name}: missing in {missing[0]}")
            continue
        texts = [(folder / name).read_text(encoding="utf-8") for folder in (before, after)]
        if name.suffix == ".json":
            lines = list(compare_values(*map(json.loads, texts)))
        else:
            lines = list(difflib.unified_diff(*(text.splitlines() for text in texts), lineterm="", n=0))[2:]
        found += [f"{name}: {line}" for line in lines[:SHOWN]]
        found += [f"{name}: and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return found


def compare_values(before, after, key=""):
    """Yield `key: before -> after` for each difference of two JSON values; what is on one side alone, once."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before | after:
            if name not in after or name not in before:
                yield f"{key}/{name}: only {'before' if name in before else 'after'}"
            else:
                yield from compare_values(before[name], after[name], f"{key}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from compare_values(*pair, f"{key}/{i}")
    elif json.dumps(before) != json.dumps(after):  # also for NaN, and for 1 and true
        yield f"{key}: {json.dumps(before)[:200]} -> {json.dumps(after)[:200]}"


def hash_picture(picture):
    return hash_bytes(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())


def hash_bytes(content):
    return hashlib.sha256(content).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument("folder", type=Path)
    recorder.add_argument("--checkout", type=Path, default=ROOT, help="whose code runs (this one's by default)")
    recorder.add_argument("--recipes", nargs="+", help="names of recipes, all by default")
    comparer = commands.add_parser("compare")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        found = compare(options.before, options.after)
        print("\n".join(found) or "no difference")
        sys.exit(1 if found else 0)
    record(options.folder.resolve(), options.checkout.resolve(), options.recipes)


if __name__ == "__main__":
    # What runs with the code of the checkout, in a process of its own.
    if sys.argv[1:2] == ["embedded"]:
        print(find_function("load_tiny_base_model", "histolab_sft")())
    elif sys.argv[1:2] == ["run"]:
        run_commands(json.load(sys.stdin))
    elif sys.argv[1:2] == ["rows"]:
        Path(sys.argv[2]).write_text(json.dumps(read_rows(sys.argv[3:])), encoding="utf-8")
    else:
        main()
