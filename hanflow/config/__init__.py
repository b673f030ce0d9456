"""Every setting of every step: one frozen dataclass a step, one place to read them from YAML and the command line.

Standard library and pyyaml only, so that compiling a pipeline and `hanflow --help` stay instant. A setting is
declared once, in `steps`, `training` or `cluster`; the experiment files, `--set`, the steps' own command lines and
the parameters of the Kubeflow pipelines are all made from these classes.
"""

from hanflow.config.building import step_config
from hanflow.config.cluster import ClusterConfig, JobConfig, job_problems
from hanflow.config.experiment import (
    SECTIONS,
    STEPS,
    Experiment,
    Setting,
    all_settings,
    member_settings,
    settings_of,
    to_mapping,
)
from hanflow.config.loading import load_experiment, parse_text
from hanflow.config.steps import (
    CombineConfig,
    EvaluateConfig,
    ExportConfig,
    PreprocessConfig,
    TokenizeConfig,
)
from hanflow.config.training import TrainConfig

__all__ = [
    "SECTIONS",
    "STEPS",
    "ClusterConfig",
    "CombineConfig",
    "EvaluateConfig",
    "Experiment",
    "ExportConfig",
    "JobConfig",
    "PreprocessConfig",
    "Setting",
    "TokenizeConfig",
    "TrainConfig",
    "all_settings",
    "job_problems",
    "load_experiment",
    "member_settings",
    "parse_text",
    "settings_of",
    "step_config",
    "to_mapping",
]
