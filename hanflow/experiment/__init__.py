"""All settings of a run together: the sections of the steps, extended by its task; YAML files, overrides, cross checks.

A setting is declared once, in `hanflow.config` or by the task that alone has it; experiment files, `--set`, the steps' own
command lines and the parameters of the Kubeflow pipelines are all made from these classes.
"""

from hanflow.experiment.checks import limit_problems, model_problems
from hanflow.experiment.loading import (
    EXPERIMENTS,
    add_settings,
    experiment_files,
    experiment_names,
    find_experiment,
    given_settings,
    load_experiment,
)
from hanflow.experiment.sections import (
    SECTIONS,
    STEPS,
    Experiment,
    Setting,
    all_settings,
    build_experiment,
    member_settings,
    settings_of,
    step_config,
)

__all__ = [
    "EXPERIMENTS",
    "SECTIONS",
    "STEPS",
    "Experiment",
    "Setting",
    "add_settings",
    "all_settings",
    "build_experiment",
    "experiment_files",
    "experiment_names",
    "find_experiment",
    "given_settings",
    "limit_problems",
    "load_experiment",
    "member_settings",
    "model_problems",
    "settings_of",
    "step_config",
]
