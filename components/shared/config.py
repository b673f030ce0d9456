"""Every setting of every step: one frozen dataclass a step, one place to read them from YAML and the command line.

Standard library and pyyaml only, so that compiling a pipeline and `hanflow --help` stay instant. A setting is
declared once, here; the experiment files, `--set`, the steps' own command lines and the parameters of the
Kubeflow pipelines are all made from these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from components.shared.slices import tpu_slice


class UserError(Exception):
    """Something the person who runs hanflow can mend; the message says what, where and what to do."""

    exit_status = 1
    """Exit status of a command that ends with this error."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists them all."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head} in the settings:", *(f"  - {problem}" for problem in problems)]))


REQUIRED = ""
"""Default of a text setting that has no sensible default; `required=True` marks it."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    required: bool = False,
) -> Any:
    """A dataclass field with its documentation and its limits; mutable defaults are copied per instance."""
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "required": required,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class PreprocessConfig:
    """Raw files to a clean, split corpus."""

    source: str = setting(
        REQUIRED,
        "Raw data: a file, a folder or a glob (csv, tsv, txt, jsonl, parquet, AI-Hub json; each also .gz), or several with commas between.",
        required=True,
    )
    validation_source: str = setting(
        "", "Raw data of the validation split, same formats; empty: split off from source."
    )
    test_source: str = setting("", "Raw data of the test split, same formats; empty: split off from source.")
    columns: dict = setting(
        {},
        'Which raw column plays which role, e.g. {"source": "body", "target": "title"}; roles left out are found by their usual names.',
    )
    encoding: str = setting(
        "auto",
        "Text encoding of raw files; auto: by byte-order mark, else UTF-8, else CP949 where the file's beginning fits only that.",
    )
    validation_ratio: float = setting(
        0.05,
        "Fraction of the distinct source texts that goes to validation, when no validation_source is given.",
        at_least=0,
        below=1,
    )
    test_ratio: float = setting(
        0.05,
        "Fraction of the distinct source texts that goes to test, when no test_source is given.",
        at_least=0,
        below=1,
    )
    seed: int = setting(42, "Seed of the split.")
    limit_rows: int = setting(
        0, "Read at most this many raw rows of each source (0: all); for a quick trial.", at_least=0
    )
    unicode: str = setting("NFC", "Unicode normalisation of all text.", choices=("NFC", "NFKC", "none"))
    strip_html: bool = setting(
        True, "Remove tags, unescape entities; <br> becomes a space in sources and a new line in targets."
    )
    collapse_whitespace: bool = setting(True, "Runs of spaces become one space, runs of new lines one new line.")
    max_repeats: int = setting(
        0, "Shorten runs of one repeated character (ㅋㅋㅋㅋ) to this many (0: leave them).", at_least=0
    )
    min_source_chars: int = setting(1, "Reject rows whose source text is shorter, in characters.", at_least=0)
    max_source_chars: int = setting(
        0, "Reject rows whose source text is longer, in characters (0: no limit).", at_least=0
    )
    drop_short_sources: bool = setting(True, "Summarization: reject rows whose source is no longer than its summary.")
    drop_labels: list = setting([], 'Classification: reject rows with these labels, e.g. ["2"] (ambiguous reviews).')
    deduplicate: bool = setting(True, "Reject exact duplicates of an earlier row.")
    speaker_format: str = setting(
        "#Person{n}#: ",
        "AI-Hub dialogues: what stands before each utterance; {n} counts speakers from 1, {id} is the raw speaker id. Empty: nothing.",
    )


@dataclass(frozen=True)
class TokenizeConfig:
    """Corpus to token ids."""

    tokenizer: str = setting(
        "", "Pretrained tokenizer: hub name or folder; empty: train one on the corpus's train split."
    )
    algorithm: str = setting("byte_bpe", "What to train when no tokenizer is given.", choices=("byte_bpe", "unigram"))
    vocabulary_size: int = setting(8000, "Vocabulary of the trained tokenizer, special tokens included.", at_least=300)
    special_tokens: list = setting(
        [], 'Tokens never split, e.g. ["#Person1#", "#PhoneNumber#"]; added to the vocabulary if missing.'
    )
    max_source_tokens: int = setting(
        512, "Longest source, in tokens, end-of-sequence included; longer ones are truncated.", at_least=2
    )
    max_target_tokens: int = setting(
        100, "Longest target, in tokens, end-of-sequence included; longer ones are truncated.", at_least=2
    )
    chunk_tokens: int = setting(
        256, "Language modelling: documents are packed into chunks of this many tokens.", at_least=8
    )
    morphemes: bool = setting(
        False, "Cut texts into morphemes (MeCab) before the tokenizer sees them; for classification."
    )
    workers: int = setting(0, "Tokenizer threads (0: one a core).", at_least=0)


@dataclass(frozen=True)
class TrainConfig:
    """Shards to a trained model."""

    pretrained: str = setting(
        "", "Pretrained model to start from: hub name or folder; empty: random weights of the `architecture`."
    )
    architecture: dict = setting(
        {},
        'Architecture of a model trained from nothing, e.g. {"type": "bart", "d_model": 256}; keys are those of its transformers config.',
    )
    seed: int = setting(42, "Seed of the weights, of dropout and of the order of the data.")
    epochs: int = setting(3, "Passes over the train split.", at_least=1)
    max_steps: int = setting(0, "Stop after this many optimizer steps (0: the epochs decide).", at_least=0)
    batch_tokens: int = setting(
        8192,
        "Padded source and target tokens in one forward pass of the whole job; sequences of similar length share a batch.",
        at_least=16,
    )
    batch_size: int = setting(
        0, "Sequences in one forward pass of the whole job; 0: as many as fit batch_tokens.", at_least=0
    )
    accumulation: int = setting(1, "Forward passes to one optimizer step.", at_least=1)
    learning_rate: float = setting(3e-5, "Peak learning rate of AdamW.", above=0)
    schedule: str = setting("linear", "Learning rate after warm-up.", choices=("linear", "cosine", "constant"))
    warmup_ratio: float = setting(
        0.1, "Fraction of all optimizer steps with rising learning rate.", at_least=0, at_most=1
    )
    warmup_steps: int = setting(
        0, "Optimizer steps with rising learning rate; overrides warmup_ratio when above 0.", at_least=0
    )
    weight_decay: float = setting(0.01, "AdamW's decoupled weight decay; biases and norms are exempt.", at_least=0)
    clip_norm: float = setting(1.0, "Largest global gradient norm (0: no clipping).", at_least=0)
    class_weights: str = setting(
        "none",
        "Classification: weight of each class's loss; balanced: rare classes count as much as frequent ones.",
        choices=("none", "balanced"),
    )
    epoch_tokens: float = setting(
        0.0, "Most tokens of one epoch, in millions, drawn anew every epoch (0: all of them).", at_least=0
    )
    label_smoothing: float = setting(0.0, "Label smoothing of the training loss.", at_least=0, below=1)
    precision: str = setting(
        "auto",
        "Arithmetic of the forward pass; auto: bf16 where the hardware multiplies it natively, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    backend: str = setting(
        "auto",
        "Device layer: torch (CPU, CUDA) or xla (a TPU slice, or virtual devices with PJRT_DEVICE=CPU); auto: xla where PJRT_DEVICE=TPU, else torch.",
        choices=("auto", "torch", "xla"),
    )
    topology: str = setting(
        "",
        "xla: chips along each side of the slice that training expects, e.g. 2x2x4; another one is refused. Empty: whatever is there.",
    )
    compilation_cache: str = setting(
        "",
        "xla: folder (gs://… too) where compiled graphs are kept from run to run; empty: none.",
    )
    compile: str = setting("auto", "torch.compile of the model; auto: on GPUs.", choices=("auto", "on", "off"))
    processes: int = setting(
        1, "Worker processes on this machine (0: one a GPU); under torchrun it decides instead.", at_least=0
    )
    log_every: int = setting(10, "Optimizer steps between two logged figures.", at_least=1)
    validate_every: int = setting(
        0, "Optimizer steps between two validations (0: at the end of every epoch).", at_least=0
    )
    validation_rows: int = setting(
        0, "Rows that are also generated and scored at every validation (0: validation loss alone).", at_least=0
    )
    validation_beams: int = setting(1, "Beams of that generation (1: greedy).", at_least=1)
    best_metric: str = setting(
        "loss",
        "Which validation figure decides which model is best: loss, or a score such as rougeL_morpheme or rouge_sum.",
    )
    best_mode: str = setting(
        "auto",
        "Whether its best value is the smallest or the largest; auto: smallest for loss, perplexity, bits_per_byte and calibration_error, else largest.",
        choices=("auto", "min", "max"),
    )
    patience: int = setting(0, "Stop after this many validations in a row without improvement (0: never).", at_least=0)
    threshold: float = setting(
        0.0, "By how much a validation must improve to count as better for patience.", at_least=0
    )
    save_every: int = setting(
        500, "Optimizer steps between two checkpoints (0: at validations and epoch ends only).", at_least=0
    )
    save_minutes: float = setting(
        0.0, "Also save a checkpoint when this many minutes have passed since the last (0: no).", at_least=0
    )
    save_total_limit: int = setting(
        2, "Checkpoints kept, the newest ones; the best one is kept beside them.", at_least=1
    )
    checkpoints: str = setting(
        "", "Folder of checkpoints, metrics.jsonl, train.log and TensorBoard events; empty: beside the model."
    )
    resume: str = setting(
        "auto",
        "auto: go on from the newest intact checkpoint in the folder, if any; never: refuse a folder that holds some; or the path of one checkpoint.",
    )
    nonfinite_limit: int = setting(
        10,
        "Stop after this many steps in a row whose gradient is not finite; single ones are skipped and counted.",
        at_least=1,
    )
    nonfinite_dump: bool = setting(False, "Save weights and batch of a step that led to that stop, to reproduce it.")
    wandb: bool = setting(False, "Also log to Weights & Biases (needs the wandb package; WANDB_MODE=offline works).")
    wandb_project: str = setting("hanflow", "Project of the Weights & Biases run.")
    wandb_tags: list = setting([], "Tags of the Weights & Biases run.")
    engine: str = setting(
        "hanflow",
        "What trains: our own loop, or transformers' Seq2SeqTrainer / Trainer.",
        choices=("hanflow", "transformers"),
    )


@dataclass(frozen=True)
class CombineConfig:
    """Trained models to one that averages what they say; the ensemble pipeline alone has this step."""

    members: list = setting(
        [],
        'Models that are trained side by side, e.g. [{"name": "rnn", "architecture": {"type": "rnn"}, "epochs": 2}, …]: a name each, and what differs from the settings of train.',
    )
    weights: list = setting(
        [], "How much each member counts in the average, in their order, none negative; empty: all the same."
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """A model's scores on held-out rows."""

    split: str = setting("test", "Which split is scored.", choices=("test", "validation"))
    limit_rows: int = setting(0, "Score at most this many rows (0: all).", at_least=0)
    beams: int = setting(4, "Beams of the search (1: greedy).", at_least=1)
    max_new_tokens: int = setting(100, "Longest generated text, in tokens.", at_least=1)
    min_new_tokens: int = setting(0, "Shortest generated text, in tokens.", at_least=0)
    length_penalty: float = setting(1.0, "Exponent of the length in the beam's score.")
    no_repeat_ngram: int = setting(0, "Never generate the same n-gram of tokens twice (0: allowed).", at_least=0)
    batch_tokens: int = setting(16384, "Padded source tokens times beams in one generation batch.", at_least=16)
    remove_tokens: list = setting(
        [], 'Tokens deleted from generated texts, e.g. ["<usr>"]; begin, end and padding always are.'
    )
    engine: str = setting(
        "auto",
        "What generates; auto: CTranslate2 on a CPU for models that it can run (BART), else transformers. Same texts in float32.",
        choices=("auto", "transformers", "ctranslate2"),
    )
    compute_type: str = setting(
        "float32",
        "Arithmetic of generation; int8 is faster, its texts differ a little, and it needs CTranslate2.",
        choices=("float32", "int8"),
    )
    top_classes: int = setting(1, "Classification: classes told for every row, the likeliest first.", at_least=1)
    greedy: bool = setting(False, "Language modelling: continue with the likeliest token, draw none.")
    temperature: float = setting(
        1.0, "Language modelling: divides the scores before a token is drawn; below 1 bolder.", above=0
    )
    top_k: int = setting(0, "Language modelling: only the k likeliest tokens can be drawn (0: all).", at_least=0)
    top_p: float = setting(
        1.0,
        "Language modelling: only the likeliest tokens that together have this probability (1: all).",
        above=0,
        at_most=1,
    )
    lead_sentences: int = setting(1, "Sentences that the lead baseline copies.", at_least=1)
    earlier: str = setting(
        "", "Another model of the task to score on the same rows: folder of a bundle or of a model; empty: none."
    )
    minimum: dict = setting(
        {}, 'Lowest scores that are good enough to export, e.g. {"rougeL_morpheme": 0.3}; below them export is skipped.'
    )
    maximum: dict = setting({}, 'The same for scores where less is better, e.g. {"perplexity": 40}.')
    untrained: bool = setting(False, "Also score the model as it was before training, on the same rows.")
    examples: int = setting(20, "Examples shown in the report.", at_least=0)


@dataclass(frozen=True)
class ExportConfig:
    """A trained model to a bundle that others can load."""

    formats: list = setting(
        ["auto"],
        "Formats of the bundle: huggingface, ctranslate2; auto: huggingface, and ctranslate2 where the model can be converted.",
        choices=("auto", "huggingface", "ctranslate2"),
    )
    compute_types: list = setting(
        ["float32", "int8"],
        "Arithmetic of the CTranslate2 models, one folder each; int8 takes a quarter of the space.",
        choices=("float32", "int8"),
    )
    check_rows: int = setting(
        8, "Real rows on which every format, reloaded, must give the trained model's outputs.", at_least=1
    )
    title: str = setting("", "Name of the model in its card; empty: the experiment's name.")
    license: str = setting("", "Licence of the weights, for the model card; empty: the card says that none was stated.")
    intended_use: str = setting("", "What the model is meant for, for the model card.")


@dataclass(frozen=True)
class JobConfig:
    """Where the workers of the train step run, and with what."""

    runtime: str = setting(
        "local",
        "Where training runs: in the step's own process, as a PyTorchJob (GPUs, or CPUs alone), or as a JobSet on a TPU slice.",
        choices=("local", "pytorchjob", "tpu"),
    )
    workers: int = setting(1, "PyTorchJob: pods, the master included.", at_least=1)
    min_workers: int = setting(
        0, "PyTorchJob: go on with as few pods as this when some are lost (elastic); 0: all are needed.", at_least=0
    )
    gpus: int = setting(1, "PyTorchJob: GPUs of a pod, one process each (0: one process on CPUs).", at_least=0)
    accelerator: str = setting(
        "",
        "Kind of accelerator. PyTorchJob: GKE's name of the GPU, e.g. nvidia-l4 (empty: any). TPU: generation and size, e.g. v4-32.",
    )
    topology: str = setting("", "Shape of the TPU slice in chips, e.g. 2x2x4; empty: the usual one of the accelerator.")
    slices: int = setting(1, "TPU slices that train together.", at_least=1)
    image: str = setting("", "Image of the workers; empty: hanflow's own for that runtime.")
    cpu: str = setting("4", "CPUs that a pod asks for, e.g. 4 or 500m.")
    memory: str = setting("16Gi", "Memory that a pod asks for and is held to.")
    shared_memory: str = setting("8Gi", "Size of /dev/shm of a pod with GPUs; counts as its memory.")
    scratch: str = setting("100Gi", "Most disk of a pod under /tmp: shards, model and checkpoints on their way.")
    namespace: str = setting("", "Namespace of the job; empty: that of the step, or of the kubeconfig's context.")
    service_account: str = setting("hanflow", "Service account of the pods: what they may read and write in gs://.")
    queue: str = setting("", "Kueue's LocalQueue that admits the job; empty: none.")
    priority_class: str = setting("", "PriorityClass of the pods; empty: the cluster's default.")
    spot: bool = setting(
        False, "Run on spot nodes: cheaper, taken away at any time; training goes on from checkpoints."
    )
    node_selector: dict = setting({}, 'Further labels that nodes must have, e.g. {"pool": "training"}.')
    tolerations: list = setting([], 'Further taints that pods bear, as Kubernetes writes them, e.g. [{"key": "team"}].')
    environment: dict = setting({}, 'Environment of the workers, e.g. {"NCCL_DEBUG": "INFO"}; never secrets.')
    secrets: dict = setting(
        {},
        'Environment taken from Secrets of the namespace: variable to secret/key, e.g. {"WANDB_API_KEY": "wandb/api-key"}.',
    )
    max_restarts: int = setting(
        3, "Restarts after failures that may pass; lost nodes and host maintenance do not count.", at_least=0
    )
    deadline_hours: float = setting(168.0, "The job fails when it takes longer, waiting for nodes included.", above=0)


@dataclass(frozen=True)
class ClusterConfig:
    """What Kubeflow gives the steps' own pods; requests and limits are the same. Without meaning for `hanflow run`."""

    preprocess_cpu: str = setting("2", "CPUs of the preprocess step, e.g. 2 or 500m.")
    preprocess_memory: str = setting("8Gi", "Memory of the preprocess step.")
    tokenize_cpu: str = setting("4", "CPUs of the tokenize step: it uses them all.")
    tokenize_memory: str = setting("16Gi", "Memory of the tokenize step.")
    train_cpu: str = setting(
        "4", "CPUs of the train step's own pod; 500m is enough where a job trains (job.runtime is not local)."
    )
    train_memory: str = setting(
        "16Gi", "Memory of the train step's own pod; 2Gi is enough where a job trains (job.runtime is not local)."
    )
    evaluate_cpu: str = setting("4", "CPUs of the evaluate step: it generates on them.")
    evaluate_memory: str = setting("16Gi", "Memory of the evaluate step.")
    export_cpu: str = setting("2", "CPUs of the export step.")
    export_memory: str = setting("16Gi", "Memory of the export step: the model in several formats at once.")
    node_selector: dict = setting(
        {}, "Labels that the steps' nodes must have; the train step's nodes are left to job.node_selector."
    )
    tolerations: list = setting([], 'Taints that the steps bear, as Kubernetes writes them, e.g. [{"key": "team"}].')


@dataclass(frozen=True)
class Experiment:
    """Every setting of one run."""

    name: str = setting("experiment", "Name of the run; output folders and the model card carry it.")
    task: str = setting("summarization", "What is learnt.")
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    job: JobConfig = field(default_factory=JobConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline that runs it."""
        return "ensemble" if self.combine.members else self.task


STEPS: dict[str, type] = {
    "preprocess": PreprocessConfig,
    "tokenize": TokenizeConfig,
    "train": TrainConfig,
    "combine": CombineConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""Step → its settings."""

SECTIONS: dict[str, type] = {**STEPS, "job": JobConfig, "cluster": ClusterConfig}
"""Section of an experiment → its settings: the steps', and what says where the train step's workers and the steps run."""


@dataclass(frozen=True)
class Setting:
    """One setting as the outside sees it: `train.epochs` on the command line, `train_epochs` in Kubeflow."""

    step: str
    name: str
    type: type
    default: Any
    help: str
    required: bool

    @property
    def dotted(self) -> str:
        return f"{self.step}.{self.name}"

    @property
    def parameter(self) -> str:
        return f"{self.step}_{self.name}"


def settings_of(step: str) -> list[Setting]:
    """The settings of one section, in the order they are declared."""
    cls = SECTIONS[step]
    hints = typing.get_type_hints(cls)
    defaults = cls()
    return [
        Setting(step, f.name, hints[f.name], getattr(defaults, f.name), f.metadata["help"], f.metadata["required"])
        for f in dataclasses.fields(cls)
    ]


def all_settings() -> list[Setting]:
    """The settings of all sections."""
    return [s for section in SECTIONS for s in settings_of(section)]


def member_settings(experiment: Experiment) -> list[dict[str, Any]]:
    """Name and settings of every member of an ensemble: what the train section sets, below what is its own.

    Settings left at their default are left out.
    """
    shared = _changed(experiment.train)
    return [{**shared, **member} for member in experiment.combine.members]


def _changed(config: Any) -> dict[str, Any]:
    """The settings of a section that differ from their defaults."""
    defaults = to_mapping(type(config)())
    return {name: value for name, value in to_mapping(config).items() if value != defaults[name]}


def to_mapping(config: Any) -> dict[str, Any]:
    """A config as plain data, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def step_config(step: str, values: Mapping[str, Any]) -> Any:
    """The config of one section from plain values.

    Raises:
        ConfigError: unknown keys, wrong types or values out of range; all of them in one message.
    """
    config, problems = _build(SECTIONS[step], values, step, require=True)
    if problems:
        raise ConfigError(problems)
    return config


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, require: bool = True) -> Experiment:
    """An experiment from a YAML file (with its `base:` files below it) and `key=value` overrides above it.

    Args:
        path: the experiment file.
        overrides: `step.key=value` texts; the value is read as YAML, except where text is wanted.
        require: whether required settings must be there; a pipeline that is compiled may leave them to its user.

    Raises:
        ConfigError: every problem of every file and override, in one message.
        UserError: a file is missing or is no YAML.
    """
    values = _read_yaml(Path(path), ())
    problems: list[str] = []
    for text in overrides:
        key, separator, raw = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not separator or (not dot and section not in ("name", "task")):
            problems.append(f"--set {text!r}: write it as step.key=value, for example train.epochs=3")
            continue
        if not dot:
            values[section] = raw
            continue
        value = parse_text(section, name, raw)
        target = values.setdefault(section, {})
        if not isinstance(target, dict):
            continue  # reported below, as a section that is no mapping
        first, *rest = name.split(".")
        if rest:  # into a setting that is a mapping: train.architecture.d_model=256
            inner = dict(target.get(first) or {})
            inner[".".join(rest)] = value
            value = inner
        target[first] = value
    experiment, found = _build(Experiment, values, "", require)
    problems += found
    if not problems:
        problems += _cross_checks(experiment)
    if problems:
        raise ConfigError(problems)
    return experiment


def parse_text(step: str, name: str, text: str) -> Any:
    """What a command line's text means for that setting: itself where text is wanted, else its reading as YAML."""
    if any(s.name == name and s.type is str for s in (settings_of(step) if step in SECTIONS else ())):
        return text
    try:
        return yaml.safe_load(text) if text.strip() else None
    except yaml.YAMLError:
        return text  # refused later, with the setting's name and the type it wants


def _cross_checks(experiment: Experiment) -> list[str]:
    """What no single setting can know."""
    problems = []
    pre, train = experiment.preprocess, experiment.train
    split_off = (0 if pre.validation_source else pre.validation_ratio) + (0 if pre.test_source else pre.test_ratio)
    if split_off >= 1:
        problems.append(
            f"preprocess.validation_ratio + preprocess.test_ratio is {split_off:g}: nothing is left to train on"
        )
    if train.pretrained and train.architecture:
        problems.append("train.pretrained and train.architecture exclude each other: empty one of them")
    if train.pretrained and not experiment.tokenize.tokenizer:
        problems.append(
            f"train.pretrained={train.pretrained!r} needs its own tokenizer: set tokenize.tokenizer={train.pretrained!r}"
        )
    problems += _member_problems(experiment)
    if experiment.evaluate.engine == "transformers" and experiment.evaluate.compute_type != "float32":
        problems.append(
            f"evaluate.compute_type={experiment.evaluate.compute_type} needs CTranslate2: set evaluate.engine=ctranslate2, "
            "or leave it auto"
        )
    if not experiment.export.formats:
        problems.append("export.formats: is empty; name at least one format, or auto")
    if "ctranslate2" in experiment.export.formats and not experiment.export.compute_types:
        problems.append("export.compute_types: is empty, but export.formats asks for ctranslate2; name float32 or int8")
    return problems + job_problems(experiment.job) + _cluster_problems(experiment.cluster)


def _cluster_problems(cluster: ClusterConfig) -> list[str]:
    problems = [
        f"cluster.{name}: expected a Kubernetes quantity such as 4, 500m or 16Gi, found {value!r}"
        for name, value in to_mapping(cluster).items()
        if name.endswith(("_cpu", "_memory")) and not _QUANTITY.fullmatch(value)
    ]
    problems += [
        f"cluster.node_selector: {key}: expected text, found {value!r}"
        for key, value in cluster.node_selector.items()
        if not isinstance(value, str)
    ]
    problems += [
        f"cluster.tolerations: expected mappings such as {{key: team}}, found {toleration!r}"
        for toleration in cluster.tolerations
        if not isinstance(toleration, dict)
    ]
    return problems


_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?")
_SECRET_KEY = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_problems(job: JobConfig) -> list[str]:
    """What is wrong with the settings of a job beyond each one's own limits; tells no secret that was misplaced."""
    problems = []
    if job.runtime == "tpu":
        try:
            tpu_slice(job.accelerator, job.topology)
        except ValueError as error:
            problems.append(f"job.accelerator, job.topology: {error}")
        if job.min_workers:
            problems.append("job.min_workers: a TPU slice trains whole or not at all; set it to 0")
    elif job.min_workers > job.workers:
        problems.append(f"job.min_workers={job.min_workers} is more than job.workers={job.workers}")
    for name in ("cpu", "memory", "shared_memory", "scratch"):
        if not _QUANTITY.fullmatch(getattr(job, name)):
            problems.append(
                f"job.{name}: expected a Kubernetes quantity such as 4, 500m or 16Gi, found {getattr(job, name)!r}"
            )
    for name, value in job.environment.items():
        if not _VARIABLE.fullmatch(str(name)):
            problems.append(f"job.environment: {name!r} is no name of an environment variable")
        elif _SECRET_NAME.search(name):
            problems.append(
                f"job.environment: {name} looks like a secret, and settings are logged and stored: put it into a Secret "
                "and name that in job.secrets"
            )
        elif isinstance(value, (dict, list)):
            problems.append(f"job.environment: {name}: expected text")
    for name, place in job.secrets.items():
        if not _VARIABLE.fullmatch(str(name)):
            problems.append(f"job.secrets: {name!r} is no name of an environment variable")
        elif not (isinstance(place, str) and _SECRET_KEY.fullmatch(place)):
            problems.append(
                f"job.secrets: {name}: expected secret/key, the name of a Secret and a key in it (never the secret itself)"
            )
    for toleration in job.tolerations:
        if not isinstance(toleration, dict):
            problems.append(f"job.tolerations: expected mappings such as {{key: team}}, found {toleration!r}")
    return problems


_MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def _member_problems(experiment: Experiment) -> list[str]:
    """What is wrong with the members of an ensemble."""
    members, weights = experiment.combine.members, experiment.combine.weights
    if not members:
        return ["combine.weights: there are no combine.members to weigh"] if weights else []
    names: list[str] = []
    problems: list[str] = []
    for number, member in enumerate(members, 1):
        name = member.get("name") if isinstance(member, Mapping) else None
        if not isinstance(name, str) or not _MEMBER_NAME.fullmatch(name):
            problems.append(
                f"combine.members: number {number} is {member!r}; give a mapping with its `name` (small letters, digits, "
                "hyphens) and its train settings"
            )
            continue
        if name in names:
            problems.append(f"combine.members: two are named {name}")
        names.append(name)
        own = {key: value for key, value in member.items() if key not in ("name", "job")}
        _, found = _build(TrainConfig, own, "train", require=False)
        job, wrong = _build(JobConfig, {**_changed(experiment.job), **(member.get("job") or {})}, "job", require=False)
        found += wrong or job_problems(job)
        problems += [f"combine.members: {name}: {problem}" for problem in found]
    if weights and len(weights) != len(members):
        problems.append(f"combine.weights: {len(weights)} weights for {len(members)} members; give one each, or none")
    if any(isinstance(w, bool) or not isinstance(w, (int, float)) or w < 0 for w in weights) or (
        weights and not any(weights)
    ):
        problems.append(f"combine.weights: {weights}: give numbers, none negative, not all of them 0")
    if experiment.evaluate.untrained:
        problems.append("evaluate.untrained: an ensemble was never untrained; set it to false")
    return problems


def _read_yaml(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """A YAML file merged over its `base:`; `./` and `../` paths inside are relative to the file itself."""
    if path.resolve() in chain:
        raise UserError(f"{path}: its `base:` files form a circle: {' → '.join(str(p) for p in (*chain, path))}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level, found a {type(values).__name__}")
    values = _resolve_paths(values, path.resolve().parent)
    base = values.pop("base", None)
    if base is None:
        return values
    below = _read_yaml(path.parent / str(base), (*chain, path.resolve()))
    return _merge(below, values)


def _resolve_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: (item if key == "base" else _resolve_paths(item, folder)) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(("./", "../")):
        parts = [part.strip() for part in value.split(",")]  # several sources
        return ",".join(str((folder / part).resolve()) if part.startswith(("./", "../")) else part for part in parts)
    return value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two levels deep: sections merge, settings replace (a mapping such as `model` is one setting)."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def _build(cls: type, values: Any, where: str, require: bool) -> tuple[Any, list[str]]:
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        return None, [f"{where}: expected `key: value` lines, found {values!r}"]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems, arguments = [], {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f"{prefix}{key}: no such setting{_suggestion(f'{prefix}{key}', where)}")
            continue
        if dataclasses.is_dataclass(hints[key]):
            section, found = _build(hints[key], {} if value is None else value, key, require)
            problems += found
            if section is not None:
                arguments[key] = section
            continue
        try:
            arguments[key] = _checked(_coerced(value, hints[key]), fields[key].metadata)
        except ValueError as error:
            problems.append(f"{prefix}{key}: {error}")
    for name, f in fields.items():
        if name in values:
            continue
        if dataclasses.is_dataclass(hints[name]):  # a section left out may still have required settings
            problems += _build(hints[name], {}, name, require)[1]
        elif require and f.metadata["required"]:
            problems.append(f"{prefix}{name}: is required ({f.metadata['help']})")
    return (None, problems) if problems else (cls(**arguments), [])


def _suggestion(key: str, where: str) -> str:
    known = [s.dotted for s in all_settings()] if where else [f.name for f in dataclasses.fields(Experiment)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near and where:  # a right name in the wrong section, or with its section missing
        near = [d for d in known if d.split(".")[1] == key.split(".")[-1]][:1]
    if not near and not where:
        near = [s.dotted for s in all_settings() if s.name == key][:1]
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _coerced(value: Any, expected: type) -> Any:
    """`value` as `expected`. YAML reads 1e-4 as text and Kubeflow hands 3 over as 3.0: both are accepted."""
    wrong = ValueError(f"expected {_NAMES[expected]}, found {value!r}")
    if expected is bool:
        if isinstance(value, bool):
            return value
        raise wrong
    if expected in (int, float):
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise wrong from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise wrong
        if expected is float:
            return float(value)
        if value != int(value):
            raise wrong
        return int(value)
    if expected is str:
        if value is None:
            return ""
        if isinstance(value, (dict, list, bool)):
            raise wrong
        return str(value)
    if value is None:
        return expected()
    if not isinstance(value, expected):
        raise wrong
    return _whole_numbers(value)


def _whole_numbers(value: Any) -> Any:
    """Kubeflow passes lists and mappings on as protobuf structs, which know floats alone: 3.0 means 3 again."""
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked(value: Any, limits: Mapping[str, Any]) -> Any:
    if limits.get("required") and value == REQUIRED:
        raise ValueError(f"is required ({limits['help']})")
    choices = limits.get("choices")
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            near = difflib.get_close_matches(str(item), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{item!r} is none of {', '.join(choices)}{hint}")
    for key, text, fits in (
        ("at_least", "at least", lambda v, limit: v >= limit),
        ("at_most", "at most", lambda v, limit: v <= limit),
        ("above", "above", lambda v, limit: v > limit),
        ("below", "below", lambda v, limit: v < limit),
    ):
        limit = limits.get(key)
        if limit is not None and not fits(value, limit):
            raise ValueError(f"must be {text} {limit:g}, found {value:g}")
    return value
