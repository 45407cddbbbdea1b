"""QLoRA fine-tuning and honest scoring of MedGemma on histopathology patches."""

import logging
import os
import warnings

__version__ = "0.1.0"

# Read by huggingface_hub and TRL when they are imported. Nothing about a run on clinical data is sent anywhere unless
# the user turns it on.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# What libraries say in every run and nobody can act upon.
# bitsandbytes: a processor without its optional kernels uses PyTorch's own operations, with the same result.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# And with 8-bit layers, once a layer and pass, that they take what they multiply in float16.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
)
# DeepSpeed, which accelerate imports, says that it found no GPU, also in a run that doesn't use it.
logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to"))
# TRL reads an attribute by its name of before transformers 5.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

# Read when CUDA starts. Batches of changing length leave gaps that no later tensor fits; segments that grow have none.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
