"""What may go on in a run's folder, and what is found before a run's first step."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import pytest
import yaml

from hanflow.config import to_mapping
from hanflow.errors import UserError
from hanflow.experiment import Experiment, experiment_names, find_experiment, load_experiment
from hanflow.own_files import json_text, replace_file
from hanflow.pipelines.checks import check
from hanflow.pipelines.display import Display
from hanflow.pipelines.local import _Run, run_locally
from hanflow.pipelines.run_folder import EVENTS, RECORD, SETTINGS, earlier_run, locked
from hanflow.progress import EVENTS_VARIABLE, hold_run

STEPS = ("preprocess", "tokenize", "train", "evaluate", "export")


def experiment(*overrides: str) -> Experiment:
    return load_experiment(find_experiment("sample-summarization"), overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a run leaves it whose export failed."""
    run = tmp_path / "run"
    with locked(run):
        replace_file(run / SETTINGS, yaml.safe_dump(to_mapping(experiment())))
        events = [{"event": "finished", "step": step} for step in STEPS[:4]]
        (run / EVENTS).write_text("".join(f"{json_text(event)}\n" for event in events) + '{"event": "fini')
        record = {"pipeline": "summarization", "status": "failed", "steps": [{"name": step} for step in STEPS]}
        replace_file(run / RECORD, json_text(record))
    return run


def test_settings_of_what_is_not_done_may_change(folder: Path) -> None:
    free = ("export.formats=[huggingface]", "export.title=other", "name=other", "job.runtime=auto")
    assert earlier_run(folder, experiment(*free)).done == set(STEPS[:4])


@pytest.mark.parametrize(
    ("override", "step"),
    [
        ("preprocess.seed=1", "preprocess"),
        ("tokenize.vocabulary_size=400", "tokenize"),
        ("train.epochs=9", "train"),
        ("train.architecture.d_model=16", "train"),
        ("evaluate.beams=1", "evaluate"),
    ],
)
def test_settings_of_what_is_done_are_refused_naming_the_step(override: str, step: str, folder: Path) -> None:
    key = ".".join(override.partition("=")[0].split(".")[:2])
    with pytest.raises(UserError, match=rf"differs in {key} \({step} is done\)"):
        earlier_run(folder, experiment(override))


def test_a_training_that_has_checkpoints_keeps_what_decides_its_model(folder: Path) -> None:
    (folder / EVENTS).write_text(json_text({"event": "finished", "step": "tokenize"}) + "\n")
    assert earlier_run(folder, experiment("train.epochs=9")).done == {"tokenize"}, "nothing is trained yet"
    (folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    assert earlier_run(folder, experiment("train.save_every=9")).done, "this decides nothing"
    with pytest.raises(UserError, match=r"differs in train.epochs \(train has begun, there are checkpoints\)"):
        earlier_run(folder, experiment("train.epochs=9"))


def test_a_run_that_succeeded_says_how_its_model_is_trained_further(folder: Path) -> None:
    record = {"pipeline": "summarization", "status": "succeeded", "steps": []}
    replace_file(folder / RECORD, json_text(record))
    assert earlier_run(folder, experiment()).succeeded, "the same command again: killed just before its end, perhaps"
    with pytest.raises(UserError, match=f"train.pretrained={folder / 'model'}"):
        earlier_run(folder, experiment("train.epochs=9"))


@pytest.mark.parametrize("name", [SETTINGS, RECORD])
@pytest.mark.parametrize(
    "content", ["", "[]", "3", "null", '{"pipeline": "summariz', "{}", "name: tiny\ntask: summari\n"]
)
def test_a_damaged_record_is_refused_by_name(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{folder / name}: (is damaged|not valid YAML)"):
        earlier_run(folder, experiment())


def test_a_folder_of_something_else_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text("base: sample-summarization\n")
    (tmp_path / "data.tsv").write_text("news\tsummary\n")
    with pytest.raises(UserError, match="exists already and does not hold a run"):
        earlier_run(tmp_path, experiment())


def test_a_run_killed_at_its_very_beginning_begins_again(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        (tmp_path / "run" / f".{SETTINGS}.new").write_text("half")
    assert not earlier_run(tmp_path / "run", experiment()).done


def test_what_killed_steps_left_half_written_goes(folder: Path) -> None:
    made = folder / "kfp" / "pipeline-1" / "train"
    (made / ".model.partial-0badcafe").mkdir(parents=True)
    (made / "corpus").mkdir()
    (made / ".model.lock").touch()
    with locked(folder):
        pass
    assert [path.name for path in made.iterdir()] == ["corpus"]
    assert json.loads((folder / EVENTS).read_text().splitlines()[0])["step"] == "preprocess"
    assert (folder / EVENTS).read_bytes().endswith(b"\n")


# ---- Before the first step


def checked(*overrides: str, name: str = "sample-summarization") -> str:
    with pytest.raises(UserError) as refused:
        check(load_experiment(find_experiment(name), overrides))
    return str(refused.value)


def test_samples_pass() -> None:
    for name in (name for name in experiment_names() if name.startswith("sample-")):
        check(load_experiment(find_experiment(name)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.minimum={rougeL_morphem: 0.1}", "did you mean rougeL_morpheme?"),
        ("evaluate.maximum={rougeL_morpheme: low}", "evaluate.maximum.rougeL_morpheme: expected a number"),
        ("train.best_metric=rougeL_morphem", "did you mean rougeL_morpheme?"),
        ("train.best_metric=rougeL_morpheme", "needs train.validation_rows above 0"),
        ("evaluate.split=tset", "did you mean test?"),
        ("preprocess.source=nowhere.tsv", "preprocess.source: nowhere.tsv: no such file or folder"),
        ("preprocess.test_source=nowhere.tsv", "preprocess.test_source: nowhere.tsv: no such file or folder"),
        ("preprocess.columns={source: newz}", "did you mean news?"),
        ("preprocess.columns={sourze: petition}", "did you mean source?"),
        ("preprocess.test_ratio=0", "evaluate.split=test has no rows"),
        ("tokenize.tokenizer=./no/such", "tokenize.tokenizer"),
        ("evaluate.earlier=no/such", "evaluate.earlier=no/such: no such folder"),
        ("train.resume=no/such", "train.resume=no/such: no such folder"),
        ("train.architecture.d_modle=3", "did you mean d_model?"),
    ],
)
def test_a_misspelt_name_is_found_before_the_first_step(override: str, said: str, tmp_path: Path) -> None:
    assert said in checked(override)


def test_a_test_file_without_labels_is_refused_with_the_ways_on(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{n % 2}\t글 {n}\n" for n in range(9)).join(["label\tdocument\n", ""]))
    (tmp_path / "test.csv").write_text("id,document\n41,줄거리가 탄탄하다\n42,대사가 어색하다\n")
    source = f"preprocess.source={tmp_path / 'train.tsv'}"
    message = checked(source, f"preprocess.test_source={tmp_path / 'test.csv'}", name="sample-classification")
    assert f"{tmp_path / 'test.csv'}: has no column for label" in message
    assert "evaluate.split=validation" in message and "hanflow predict" in message


def test_a_run_whose_checkpoints_are_in_a_bucket_goes_on(folder: Path) -> None:
    settings = experiment("train.checkpoints=gs://bucket/checkpoints")
    replace_file(folder / SETTINGS, yaml.safe_dump(to_mapping(settings)))
    assert earlier_run(folder, settings).done == set(STEPS[:4])


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre, mounted without locks

    monkeypatch.setattr("fcntl.flock", refuse)
    opened = len(os.listdir("/proc/self/fd"))
    with locked(tmp_path / "run"):
        assert len(os.listdir("/proc/self/fd")) == opened
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "run" / EVENTS))
    hold_run()


def test_a_run_that_succeeded_is_shown_again_though_its_data_is_gone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        {"name": "preprocess", "seconds": 1.0, "figures": {}, "artifact": str(folder / "corpus"), "status": "done"}
    ]
    replace_file(folder / RECORD, json_text({"pipeline": "summarization", "status": "succeeded", "steps": steps}))
    assert run_locally(experiment(), str(folder)) == 0
    assert "has succeeded already" in "".join(capsys.readouterr())


def test_what_a_finished_step_has_read_need_not_be_kept(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    gone = [f"train.pretrained={place}", f"tokenize.tokenizer={place}", "train.architecture={}"]
    refused = checked(*gone)
    assert "train.pretrained" in refused and "tokenize.tokenizer" in refused
    check(experiment(*gone), {"tokenize", "train"})


def test_a_line_that_a_killed_step_has_cut_does_not_end_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _Run(experiment(), folder, "")
    lines = [
        '{"event": "progr{"event": "started", "step": "train"}\n',
        "[]\n",
        '{"event": "started", "step": "train"}\n',
    ]
    with Display("run", "") as display:
        run._follow(io.StringIO("".join(lines)), display)
    assert run.records["train"].status == "running"
