"""QLoRA fine-tuning and honest scoring of MedGemma on histopathology patches."""

__version__ = "0.1.0"
