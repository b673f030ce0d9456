"""`hanflow import`: weights of other programs as a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hanflow.cli.options import Commands
from hanflow.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "import",
        help="make a model folder of a .ckpt or a bare state dict",
        description="Make a folder in Hugging Face format, as train.pretrained takes it, of a PyTorch-Lightning .ckpt or "
        "a state dict (.pt, .bin, .safetensors). Nothing in the file is executed.",
        examples=[
            "hanflow import epoch=3.ckpt --model config.json --tokenizer tokenizer/ --output kobart-mine",
            "hanflow run summarization --set train.pretrained=kobart-mine --set tokenize.tokenizer=kobart-mine",
        ],
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file with the weights")
    parser.add_argument(
        "--model", required=True, metavar="CONFIG", help="config.json of the architecture, or a folder that holds one"
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="folder with the tokenizer of the model")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; must not exist yet")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keys of the file to skip, e.g. 'loss_fn.*'; may be given several times",
    )
    parser.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> int:
    from hanflow.loading.pretrained import load_tokenizer
    from hanflow.loading.state_dict import load_weights, read_weights
    from hanflow.storage import local_path, staged

    checkpoint = local_path(options.checkpoint)
    if not checkpoint.is_file():
        kind = "is a folder; give the file with the weights" if checkpoint.is_dir() else "no such file; check the path"
        raise UserError(f"{options.checkpoint}: {kind}")
    # With a slash it may be a name of the hub.
    if "/" not in options.tokenizer and not Path(options.tokenizer).is_dir():
        raise UserError(f"--tokenizer: {options.tokenizer}: no such folder; give the folder with the model's tokenizer")
    tokenizer = load_tokenizer(options.tokenizer)
    model = _architecture(local_path(options.model))
    weights = read_weights(checkpoint)
    done = load_weights(model, weights.tensors, str(checkpoint), options.ignore)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{options.tokenizer}: has {len(tokenizer)} tokens, but the model has {rows} embeddings: they do not belong "
            "together; give the tokenizer that the model was trained with"
        )
    with staged(options.output) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    print(f"{done.keys} tensors, {model.num_parameters():,} parameters → {options.output}")
    if done.prefix:
        print(f"  prefix of the keys: {done.prefix}")
    if weights.under:
        print(f"  taken from: {weights.under}")
    left = (
        ("not in the file, derived", done.derived),
        ("skipped", done.ignored),
        ("in the file, not imported", weights.passed_over),
    )
    for title, keys in left:
        if keys:
            print(f"  {title}: {', '.join(keys)}")
    print(f"  use it with: --set train.pretrained={options.output} --set tokenize.tokenizer={options.output}")
    return 0


def _architecture(path: Path) -> PreTrainedModel:
    """A model of that config, in float32, its weights still random."""
    from hanflow.loading.pretrained import load_config, untrained

    config_file = path / "config.json" if path.is_dir() else path
    if not config_file.is_file():
        raise UserError(f"{config_file}: no such file; give the config.json of the model that was saved, or its folder")
    config = load_config(config_file)
    try:
        return untrained(config)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"{config_file}: no model can be made of it ({reason}); give the config.json of a transformers model"
        ) from error
