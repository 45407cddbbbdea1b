"""QLoRA fine-tuning and honest scoring of MedGemma on histopathology patches."""

import os

__version__ = "0.1.0"

# Read by huggingface_hub and TRL when they are imported. Nothing about a run on clinical data is sent anywhere unless
# the user turns it on.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
