"""Prints where the rows of global batches lie on 16 virtual devices, as JSON: `python -m tests.xla.placement SHARDS`.

Each of 4 simulated hosts reads its part; the parts, one after the other as the slice's mesh has them, are sent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOSTS, CHIPS = 4, 4


def main(folder: Path) -> None:
    import torch
    import torch_xla
    from transformers import AutoTokenizer

    from hanflow.config import TrainConfig
    from hanflow.data.shards import Shard
    from hanflow.tasks import get_task
    from hanflow.training.backends.xla import XlaBackend
    from hanflow.training.loader import Data
    from tests.xla.runs import ARCHITECTURES

    task = get_task("summarization")
    config = TrainConfig(architecture=ARCHITECTURES["summarization"], batch_tokens=1024, topology="2x2x4")
    backend = XlaBackend(config)
    model = task.new_model(config, AutoTokenizer.from_pretrained(folder / "tokenizer"), {})
    data = Data.of(Shard(folder / "train.arrow", task.sequences), task, config, shuffle=True)
    reported: list[dict[str, Any]] = []
    for batch in data.plan.epoch(0):
        parts = []
        for host in range(HOSTS):
            reader: Any = SimpleNamespace(
                reader=host, readers=HOSTS, row_multiple=CHIPS, static_shapes=True, pin=lambda tensors: tensors
            )
            parts.append(data.collate(batch, task, model, reader))
        sent = backend.put({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        shards = [shard.tolist() for shard, _ in torch_xla._XLAC._get_local_shards([sent["input_ids"]])[0]]
        reported.append({"rows": batch.rows.tolist(), "devices": shards})
    print(json.dumps(reported))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
