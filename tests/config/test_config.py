"""Settings: one declaration, and every mistake reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanflow.errors import ConfigError, UserError
from hanflow.experiment import STEPS, all_settings, load_experiment, member_settings, settings_of, step_config
from hanflow.experiment.loading import parse_text


def experiment(folder: Path, text: str, name: str = "e.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_that_no_command_line_passes_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="wandb_project: '--' cannot be passed on"):
        step_config("train", {"wandb_project": "--"})


def test_a_base_lies_below_and_sections_merge(tmp_path: Path) -> None:
    experiment(
        tmp_path,
        "name: low\npreprocess: {source: a.csv, seed: 7}\ntrain: {epochs: 9, architecture: {type: bart, d_model: 8}}\n",
        "base.yaml",
    )
    path = experiment(tmp_path, "base: base.yaml\nname: high\ntrain: {architecture: {type: bart}}\n")
    loaded = load_experiment(path)
    assert (loaded.name, loaded.preprocess.seed, loaded.train.epochs) == ("high", 7, 9)
    assert loaded.train.architecture == {"type": "bart"}, "a mapping is one setting: replaced, not mixed"


def test_a_base_circle_is_reported(tmp_path: Path) -> None:
    experiment(tmp_path, "base: b.yaml\n", "a.yaml")
    experiment(tmp_path, "base: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match="circle"):
        load_experiment(tmp_path / "a.yaml")


def test_dotted_paths_are_relative_to_the_file_and_others_are_left_alone(tmp_path: Path) -> None:
    path = experiment(tmp_path, "preprocess: {source: ./raw.csv}\ntokenize: {tokenizer: gogamza/kobart-base-v2}\n")
    loaded = load_experiment(path)
    assert loaded.preprocess.source == str(tmp_path.resolve() / "raw.csv")
    assert loaded.tokenize.tokenizer == "gogamza/kobart-base-v2"


def test_overrides_win_and_are_read_by_the_settings_type(tmp_path: Path) -> None:
    path = experiment(tmp_path, "preprocess: {source: a.csv}\n")
    loaded = load_experiment(
        path,
        [
            "train.learning_rate=1e-4",
            "preprocess.source=2024: a=b.csv",
            "evaluate.untrained=true",
            "tokenize.special_tokens=['#Person1#']",
            "train.architecture.d_model=64",
        ],
    )
    assert loaded.train.learning_rate == 1e-4, "YAML 1.1 reads 1e-4 as text"
    assert loaded.preprocess.source == "2024: a=b.csv", "text stays text, whatever YAML would make of it"
    assert loaded.evaluate.untrained is True
    assert loaded.tokenize.special_tokens == ["#Person1#"]
    assert loaded.train.architecture == {"d_model": 64}


def test_all_problems_come_in_one_message_with_the_nearest_known_key(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        "trian: {}\npreprocess: {sorce: a.csv, validation_ratio: 1.5}\ntrain: {epochs: many, schedule: linaer}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, ["train.accumulation=0", "nonsense"])
    message = str(caught.value)
    for expected in (
        "8 problems",
        "trian: no such setting; did you mean train?",
        "preprocess.sorce: no such setting; did you mean preprocess.source?",
        "preprocess.source: is required",
        "preprocess.validation_ratio: must be below 1, found 1.5",
        "train.epochs: expected a whole number, found 'many'",
        "'linaer' is none of linear, cosine, constant; did you mean linear?",
        "train.accumulation: must be at least 1, found 0",
        "'nonsense': write it as step.key=value",
    ):
        assert expected in message


def test_settings_that_cannot_go_together(tmp_path: Path) -> None:
    path = experiment(tmp_path, "preprocess: {source: a.csv, validation_ratio: 0.6, test_ratio: 0.5}\n")
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        load_experiment(path)
    with pytest.raises(ConfigError, match="needs its own tokenizer"):
        load_experiment(path, ["preprocess.test_ratio=0.1", "train.pretrained=x/y"])


MEMBERS = "task: classification\npreprocess: {source: a.tsv}\ncombine: {members: [{name: a, %s}, {name: b}]}\n"


def test_a_member_is_checked_together_with_the_settings_that_it_takes_over(tmp_path: Path) -> None:
    path = experiment(tmp_path, MEMBERS % "architecture: {type: rnn}")
    with pytest.raises(ConfigError, match="combine.members: a: train.pretrained and train.architecture exclude"):
        load_experiment(path, ["train.pretrained=x/y", "tokenize.tokenizer=x/y"])
    path = experiment(tmp_path, MEMBERS % "pretrained: x/y")
    with pytest.raises(ConfigError, match="combine.members: a: train.pretrained='x/y' needs its own tokenizer"):
        load_experiment(path)


def test_members_have_checkpoints_of_their_own_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    path = experiment(tmp_path, MEMBERS % "pretrained: ./model")
    loaded = load_experiment(path, ["train.checkpoints=gs://bucket/run/", "tokenize.tokenizer=x/y"])
    one, other = member_settings(loaded)
    assert one["settings"]["pretrained"] == str(tmp_path / "model")
    assert [member["settings"]["checkpoints"] for member in (one, other)] == ["gs://bucket/run/a", "gs://bucket/run/b"]


@pytest.mark.parametrize("key", ["train.seed.x", "combine.members.a.epochs"])
def test_an_override_into_what_is_no_mapping_is_refused(key: str, tmp_path: Path) -> None:
    path = experiment(tmp_path, MEMBERS % "epochs: 1" + "train: {seed: 3}\n")
    with pytest.raises(ConfigError, match="is no mapping; set it as a whole"):
        load_experiment(path, [f"{key}=3"])


@pytest.mark.parametrize(("text", "said"), [("a: [1", "not valid YAML"), ("- 1\n", "expected `key: value` lines")])
def test_a_file_that_is_no_experiment(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_experiment(experiment(tmp_path, text))
    with pytest.raises(UserError, match="no such experiment file"):
        load_experiment(tmp_path / "missing.yaml")


def test_what_kubeflow_hands_over_is_taken() -> None:
    config = step_config(
        "train", {"epochs": 3.0, "learning_rate": 1, "architecture": {"d_model": 64.0, "dropout": 0.1}}
    )
    assert (config.epochs, config.learning_rate) == (3, 1.0)
    assert str(config.architecture) == "{'d_model': 64, 'dropout': 0.1}", "structs know floats alone"
    assert step_config("train", {"architecture": None}).architecture == {}
    with pytest.raises(ConfigError, match=r"train\.epochs: expected a whole number, found 2\.5"):
        step_config("train", {"epochs": 2.5})
    with pytest.raises(ConfigError, match="expected true or false, found 1"):
        step_config("evaluate", {"untrained": 1})


def test_every_setting_is_documented_and_fits_its_own_limits() -> None:
    for setting in all_settings():
        assert setting.help.endswith("."), setting.dotted
        assert setting.type in (str, int, float, bool, list, dict), setting.dotted
    for step in STEPS:
        values = {s.name: s.default for s in settings_of(step) if not s.required}
        step_config(step, {**values, **({"source": "x"} if step == "preprocess" else {})})


def test_text_of_the_command_line() -> None:
    assert parse_text("train", "epochs", "3") == 3
    assert parse_text("preprocess", "source", "[a") == "[a"
    assert parse_text("train", "epochs", "[a") == "[a", "refused later, with the setting's name"
