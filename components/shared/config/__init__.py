"""Every setting of every step: one frozen dataclass a step, one place to read them from YAML and the command line.

Standard library and pyyaml only, so that compiling a pipeline and `hanflow --help` stay instant. A setting is
declared once, in `steps`, `training` or `cluster`; the experiment files, `--set`, the steps' own command lines and
the parameters of the Kubeflow pipelines are all made from these classes.
"""

from components.shared.config.building import step_config
from components.shared.config.cluster import ClusterConfig, JobConfig, job_problems
from components.shared.config.errors import ConfigError, UserError
from components.shared.config.experiment import (
    SECTIONS,
    STEPS,
    Experiment,
    Setting,
    all_settings,
    member_settings,
    settings_of,
    to_mapping,
)
from components.shared.config.loading import load_experiment, parse_text
from components.shared.config.steps import (
    CombineConfig,
    EvaluateConfig,
    ExportConfig,
    PreprocessConfig,
    TokenizeConfig,
)
from components.shared.config.training import TrainConfig

__all__ = [
    "SECTIONS",
    "STEPS",
    "ClusterConfig",
    "CombineConfig",
    "ConfigError",
    "EvaluateConfig",
    "Experiment",
    "ExportConfig",
    "JobConfig",
    "PreprocessConfig",
    "Setting",
    "TokenizeConfig",
    "TrainConfig",
    "UserError",
    "all_settings",
    "job_problems",
    "load_experiment",
    "member_settings",
    "parse_text",
    "settings_of",
    "step_config",
    "to_mapping",
]
