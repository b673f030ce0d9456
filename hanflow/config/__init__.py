"""The settings of every step: one frozen dataclass each. Standard library and pyyaml only.

What a single task needs is declared by that task (`hanflow.tasks`), which extends these classes.
"""

from hanflow.config.cluster import ClusterConfig, JobConfig, job_problems
from hanflow.config.fields import build, changed, to_mapping
from hanflow.config.places import last_part, without_places
from hanflow.config.search import SamplingConfig, SearchConfig
from hanflow.config.steps import CombineConfig, EvaluateConfig, ExportConfig, PreprocessConfig, TokenizeConfig
from hanflow.config.training import TrainConfig

__all__ = [
    "ClusterConfig",
    "CombineConfig",
    "EvaluateConfig",
    "ExportConfig",
    "JobConfig",
    "PreprocessConfig",
    "SamplingConfig",
    "SearchConfig",
    "TokenizeConfig",
    "TrainConfig",
    "build",
    "changed",
    "job_problems",
    "last_part",
    "to_mapping",
    "without_places",
]
