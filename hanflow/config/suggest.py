"""Suggestions for an unknown name: first common short names, then the same name in another section, then similar spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

SIMILAR = 0.75
"""Least similarity (difflib's ratio, 0 to 1) of two spellings of one word; below it nothing is suggested."""

SETTINGS: dict[str, str] = {
    "preprocess.source": "data dataset datasets data_path data_file data_files data_dir data_url input input_file file files "
    "path train_data train_file train_path train_source raw corpus dataset_name",
    "preprocess.validation_source": "valid val dev validation validation_data validation_file val_data val_file dev_data "
    "dev_file eval_data valid_data valid_file",
    "preprocess.test_source": "test test_data test_file",
    "preprocess.validation_ratio": "valid_ratio val_ratio dev_ratio val_size val_split validation_split eval_ratio",
    "preprocess.test_ratio": "test_size test_split",
    "preprocess.limit_rows": "limit max_rows nrows num_rows max_samples max_train_samples",
    "preprocess.columns": "column text_column source_column target_column label_column summary_column fields",
    "preprocess.unicode": "normalization normalize nfc nfkc unicode_normalization",
    "preprocess.deduplicate": "dedup dedupe drop_duplicates unique",
    "tokenize.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path pretrained_tokenizer",
    "tokenize.algorithm": "tokenizer_type tokenizer_model bpe sentencepiece",
    "tokenize.vocabulary_size": "vocab vocab_size vocabulary",
    "tokenize.special_tokens": "additional_special_tokens added_tokens",
    "tokenize.max_source_tokens": "max_len max_length max_seq_len max_seq_length seq_len sequence_length max_source_length "
    "max_input_length max_tokens",
    "tokenize.max_target_tokens": "max_len max_length max_target_length max_output_length max_summary_length",
    "tokenize.chunk_tokens": "block_size chunk_size context_length context",
    "tokenize.morphemes": "mecab morpheme morphs",
    "tokenize.workers": "threads num_workers num_proc",
    "train.pretrained": "model model_name model_path model_name_or_path pretrained_model base_model",
    "train.architecture": "arch model_config config",
    "train.epochs": "epoch num_epochs n_epochs max_epochs num_train_epochs train_epochs",
    "train.max_steps": "steps num_steps train_steps total_steps max_iters iterations",
    "train.batch_size": "bs batch train_batch_size per_device_train_batch_size micro_batch_size",
    "train.accumulation": "accum grad_accum gradient_accumulation gradient_accumulation_steps accumulation_steps",
    "train.learning_rate": "lr max_lr peak_lr base_lr",
    "train.schedule": "scheduler lr_scheduler lr_schedule lr_scheduler_type scheduler_type",
    "train.warmup_ratio": "warmup warm_up warmup_fraction warmup_proportion",
    "train.warmup_steps": "warmup warm_up num_warmup_steps",
    "train.weight_decay": "wd decay l2",
    "train.clip_norm": "clip grad_clip gradient_clip gradient_clipping gradient_clip_val max_grad_norm max_norm",
    "train.label_smoothing": "smoothing label_smoothing_factor",
    "train.precision": "fp16 bf16 fp32 amp dtype torch_dtype mixed_precision half_precision",
    "train.backend": "device accelerator_type",
    "train.processes": "nproc nproc_per_node num_processes",
    "train.log_every": "logging_steps log_steps log_interval",
    "train.validate_every": "eval_steps eval_every eval_interval validation_steps val_interval",
    "train.save_every": "save_steps checkpoint_every save_interval",
    "train.best_metric": "metric metric_for_best_model monitor",
    "train.patience": "early_stopping early_stopping_patience early_stop",
    "train.checkpoints": "checkpoint_dir ckpt ckpt_dir output_dir save_dir",
    "train.resume": "resume_from_checkpoint resume_from",
    "train.wandb": "report_to use_wandb",
    "evaluate.beams": "beam num_beams n_beams beam_size beam_width",
    "evaluate.max_new_tokens": "max_gen_length generation_max_length max_generate_length",
    "evaluate.min_new_tokens": "min_len min_length min_tokens",
    "evaluate.no_repeat_ngram": "no_repeat_ngram_size",
    "evaluate.greedy": "do_sample sample sampling",
    "evaluate.batch_tokens": "eval_batch_size per_device_eval_batch_size",
    "evaluate.compute_type": "quantization quantize int8",
    "export.compute_types": "quantization quantize int8",
    "job.gpus": "gpu num_gpus n_gpus ngpus devices gpus_per_node",
    "job.workers": "nodes num_nodes nnodes replicas world_size num_machines",
    "job.accelerator": "gpu_type tpu tpu_type node_type accelerator_type",
    "job.runtime": "launcher distributed strategy",
    "job.environment": "env envs environ",
    "job.memory": "mem ram",
    "job.cpu": "cpus",
    "job.shared_memory": "shm shm_size",
    "job.max_restarts": "retries restarts",
}
"""Setting → its names in other programs, and short ones."""

VALUES: dict[str, str] = {
    "bf16": "bfloat16 bf",
    "fp16": "float16 half 16 16-mixed mixed",
    "fp32": "float32 float full 32",
    "float32": "fp32 float full 32",
    "int8": "8bit 8 quantized",
    "huggingface": "hf transformers safetensors pytorch",
    "transformers": "hf huggingface trainer",
    "ctranslate2": "ct2 ctranslate",
    "hanflow": "own native",
    "byte_bpe": "bpe bytebpe bbpe",
    "unigram": "sentencepiece spm",
    "cosine": "cos",
    "constant": "none const",
    "torch": "cuda gpu cpu pytorch",
    "xla": "tpu",
    "validation": "dev val valid eval",
    "trainjob": "trainer kubeflow-trainer gpu torchrun ddp",
    "pytorchjob": "training-operator pytorch",
    "tpu": "jobset xla",
    "on": "true yes 1",
    "off": "false no 0 none",
}
"""Value of a setting with choices → what people write for it."""


def similar(word: str, known: Iterable[str], least: float = SIMILAR) -> str:
    """The known word nearest in spelling, without regard to case and punctuation; "" where none is near enough."""
    by_spelling = {_plain(name): name for name in reversed(list(known))}
    near = difflib.get_close_matches(_plain(word), by_spelling, n=1, cutoff=least)
    return by_spelling[near[0]] if near else ""


def value(given: object, choices: Sequence[str]) -> str:
    """The choice nearest to a value that is none of them; "" where none is near enough."""
    plain = _plain(str(given))
    exact = [c for c in choices if _plain(c) == plain]
    alias = [c for c in choices if plain in map(_plain, VALUES.get(c, "").split())]
    return next(iter(exact + alias), "") or similar(str(given), choices, 0.6)


def setting(key: str, known: Sequence[str]) -> list[str]:
    """The settings that an unknown key may mean, the likeliest first; none where nothing is near.

    Args:
        key: `section.name`, or a name alone, or a section alone, as it was given.
        known: every setting as `section.name`.
    """
    section, _, name = key.rpartition(".")
    sections = list(dict.fromkeys(dotted.split(".")[0] for dotted in known))
    if not section:
        near = similar(name, sections)
        if near:
            return [near]
    elif section not in sections:
        section = similar(section, sections) or section
    plain = _plain(name)
    names = {dotted: dotted.partition(".")[2] for dotted in known}
    exact = [dotted for dotted, own in names.items() if _plain(own) == plain]
    short = [d for d, others in SETTINGS.items() if d in names and plain in map(_plain, others.split())]
    for found in (_first_in(section, exact), short, exact):
        if found:
            return _first_in(section, found) or found
    here = {own: dotted for dotted, own in names.items() if dotted.startswith(f"{section}.")}
    near = similar(name, here)
    if near:
        return [here[near]]
    parts = [d for own, d in here.items() if name in own.split("_")]
    if 0 < len(parts) <= 2:  # `smoothing` for label_smoothing
        return parts
    near = similar(name, names.values(), 0.8)
    return [dotted for dotted, own in names.items() if near and own == near][:2]


def hint(word: str, known: Iterable[str]) -> str:
    """`did you mean A?` for a word that is not known; else all known ones."""
    names = list(known)
    near = similar(word, names, 0.6)
    return f"did you mean {near}?" if near else f"known: {', '.join(names)}"


def did_you_mean(names: Sequence[str]) -> str:
    """`; did you mean A or B?`; empty without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def spelling_hint(word: str, known: Iterable[str], least: float = SIMILAR) -> str:
    """`did_you_mean` of the known word nearest in spelling; empty where none is near enough."""
    near = similar(word, known, least)
    return did_you_mean([near] if near else [])


def _first_in(section: str, found: Sequence[str]) -> list[str]:
    return [dotted for dotted in found if dotted.startswith(f"{section}.")]


def _plain(name: str) -> str:
    """A name without case, hyphens, underscores and dots: `Batch-Size` and `batch_size` are one word."""
    return re.sub(r"[-_.\s]", "", name).lower()
