"""What processes are forked from: everything imported, and a small run done, so that forks find all compiled loops in
memory. It leaves no threads.
"""

import tempfile

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.nn.parallel.distributed

from sqat.run_config import RunConfig
from sqat.train import start_run

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    config = {
        "model": {"preset": "sqat-mm", "vocab_size": 307, "num_layers": 1, "context_length": 29},
        "data": {"source": "stories:61", "validation_limit": 1, "cache_dir": f"{folder}/cache"},
        "train": {"batch_size": 7, "precision": "float32", "tensorboard": False, "max_steps": 2, "device": "cpu"},
    }
    start_run(RunConfig.from_dict(config), f"{folder}/run").train()
