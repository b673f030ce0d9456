"""The command line: what help, settings, suggestions and errors say to someone who does not know hanflow yet."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hanflow.cli.main import main, make_parser
from hanflow.cli.options import PIPELINES, settings_of_all_tasks
from hanflow.config import suggest
from hanflow.errors import ConfigError
from hanflow.experiment import EXPERIMENTS, SECTIONS, all_settings, experiment_names, load_experiment
from hanflow.pipelines.display import step_lines
from hanflow.version import version_line

COMMANDS = make_parser()[1].parsers
HEAVY = ("torch", "transformers", "kfp", "numpy", "pyarrow", "rich", "kubernetes", "argcomplete")


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a failing command prints to standard error."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as wrong_usage:
        status = int(str(wrong_usage.code))
        assert status == 2
    assert status in (1, 2)
    return capsys.readouterr().err


def test_help_shows_every_command_in_a_group_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hanflow.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in shown
    for group in ("on this machine:", "Kubeflow Pipelines server:", "Use a model:", "examples:"):
        assert group in shown
    for name in COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_its_parser_takes(name: str) -> None:
    text = COMMANDS[name].format_help()
    examples = [line.split("  #")[0].strip() for line in text.partition("examples:\n")[2].splitlines()]
    assert examples
    commands = [line for line in examples if line.startswith("hanflow ")]
    for line in commands:
        make_parser()[0].parse_args(shlex.split(line)[1:])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{version_line()}\n"


def test_settings_are_listed_with_type_choices_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    everything = output_of(capsys, "settings")
    for setting in settings_of_all_tasks():
        assert f"\n  {setting.dotted}  (" in everything, setting.dotted
    section = output_of(capsys, "settings", "train")
    assert section.startswith("train: ") and "evaluate." not in section.replace("evaluate.beams", "")
    assert "train.precision  (auto | fp32 | bf16 | fp16; default auto)" in section
    assert "train.epochs  (whole number; default 3)" in section
    assert "preprocess.source  (text; required)" in output_of(capsys, "settings", "preprocess.source")
    of_task = output_of(capsys, "settings", "evaluate", "--task", "classification")
    assert "evaluate.top_classes" in of_task and "evaluate.beams" not in of_task
    assert "evaluate.top_classes  (whole number; default 1; only classification)" in output_of(capsys, "settings")
    records = json.loads(output_of(capsys, "settings", "export", "--json"))
    formats = next(record for record in records if record["name"] == "export.formats")
    assert formats["choices"] == ["auto", "huggingface", "ctranslate2"] and formats["default"] == ["auto"]
    assert "did you mean train?" in error_of(capsys, "settings", "trian")
    assert "did you mean train.learning_rate?" in error_of(capsys, "settings", "lr")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("train.bs", "train.batch_size"),
        ("train.batch", "train.batch_size"),
        ("train.wd", "train.weight_decay"),
        ("train.warmup", "train.warmup_ratio or train.warmup_steps"),
        ("evaluate.num_beams", "evaluate.beams"),
        ("beams", "evaluate.beams"),
        ("tokenize.max_length", "tokenize.max_source_tokens or tokenize.max_target_tokens"),
        ("max_len", "tokenize.max_source_tokens or tokenize.max_target_tokens"),
        ("train.num_train_epochs", "train.epochs"),
        ("preprocess.epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("train.fp16", "train.precision"),
        ("train.lr_scheduler", "train.schedule"),
        ("data", "preprocess.source"),
        ("preprocess.file", "preprocess.source"),
        ("gpus", "job.gpus"),
        ("train.gpus", "job.gpus"),
        ("trian.lr", "train.learning_rate"),
        ("train.Batch-Size", "train.batch_size"),
        ("train.smoothing", "train.label_smoothing"),
        ("preprocess.sorce", "preprocess.source"),
        ("trian", "train"),
        ("train.qwerty", ""),
        ("hello.world", ""),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_suggests_what_was_meant(given: str, meant: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    section, _, name = given.rpartition(".")
    path.write_text(f"{section}: {{{name}: 1}}\n" if section else f"{given}: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, require=False)
    if section in SECTIONS:
        expected = f"{given}: no such setting" + (f"; did you mean {meant}?" if meant else "; `hanflow settings")
        assert expected in str(caught.value)
    known = [*(setting.dotted for setting in all_settings("summarization")), *SECTIONS]
    assert suggest.setting(given, known) == (meant.split(" or ") if meant else [])


def test_short_names_stand_for_settings_that_exist() -> None:
    known = {setting.dotted for setting in settings_of_all_tasks()}
    assert set(suggest.SETTINGS) <= known
    for dotted, names in suggest.SETTINGS.items():
        section = dotted.partition(".")[0]
        assert not [name for name in names.split() if f"{section}.{name}" in known], f"{dotted}: hides a setting"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.precision=float16", "did you mean fp16?"),
        ("train.precision=BF16", "did you mean bf16?"),
        ("train.schedule=cos", "did you mean cosine?"),
        ("export.formats=[hf]", "did you mean huggingface?"),
        ("evaluate.engine=ct2", "did you mean ctranslate2?"),
        ("evaluate.split=dev", "did you mean validation?"),
        ("preprocess.unicode=nfc", "did you mean NFC?"),
        ("train.schedule=banana", "is none of linear, cosine, constant\n"),
        ("train.epochs=2001-99-99", "expected a whole number"),
        ("train.epochs=" + "[" * 400, "expected a whole number"),
    ],
)
def test_a_wrong_value_suggests_a_choice(override: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(EXPERIMENTS / "sample-summarization.yaml", [override])
    assert hint in f"{caught.value}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rnu", "summarization"], "no such command: rnu; did you mean run?"),
        (["run", "sumarization"], "'sumarization' is not a pipeline; did you mean summarization?"),
        (["compile", "clasification", "--output", "x"], "did you mean classification?"),
        (["predict", "model", "--inptu", "x"], "unexpected option: --inptu; did you mean --input?"),
        (["watch", "one", "two"], "unexpected argument: two"),
        (["run", "summarization", "--experiment", "kobart-new"], "no such experiment file; did you mean kobart-news?"),
        (["run", "summarization", "--experiment", "cnn-reviews"], "of the pipeline classification"),
    ],
)
def test_a_misspelt_word_suggests_the_right_one(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hint in error_of(capsys, *arguments).splitlines()[-1]


def test_an_unknown_experiment_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "run", "summarization", "--experiment", "qwerty")
    assert "did you mean" not in error and ", ".join(experiment_names()) in error


def test_a_missing_file_or_a_folder_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.csv"
    file.write_text("prediction\n가\n", encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside.txt").write_text("가\n", encoding="utf-8")
    for arguments in (
        ["run", "summarization", "--experiment", folder],
        ["run", "summarization", "--output", file],
        ["compile", "summarization", "--output", file],
        ["import", "nowhere.ckpt", "--model", folder, "--tokenizer", folder, "--output", "out"],
        ["import", folder, "--model", folder, "--tokenizer", folder, "--output", "out"],
        ["import", file, "--model", folder, "--tokenizer", "nowhere", "--output", "out"],
        ["predict", "nowhere", "--input", file],
        ["predict", folder, "--input", file],
        ["predict", file, "--input", file],
        ["demo", "nowhere"],
        ["demo", file],
        ["score", "--predictions", "nowhere.csv", "--references", file],
        ["score", "--predictions", folder, "--references", folder],
        ["score", "--predictions", file, "--references", file, "--reference-column", "prediction", "--rows", folder],
        ["watch", "run", "--endpoint", "http://127.0.0.1:9", "--token-file", folder],
    ):
        error = error_of(capsys, *arguments)
        lines = [line for line in error.splitlines() if " INFO " not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), (arguments, error)


def test_compile_asks_for_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "source:" not in (EXPERIMENTS / "kobart-news.yaml").read_text(encoding="utf-8")
    path = output_of(capsys, "compile", "summarization", "--experiment", "kobart-news", "--output", str(tmp_path))
    assert Path(path.strip()).is_file()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hanflow ru", {"run"}),
        ("hanflow run ", set(PIPELINES)),
        ("hanflow run summarization --experiment kobart", {"kobart-dialogue", "kobart-news"}),
        ("hanflow run summarization --set train.warm", {"train.warmup_ratio=", "train.warmup_steps="}),
        ("hanflow settings train.lear", {"train.learning_rate"}),
        ("hanflow predict --engine ct", {"ctranslate2"}),
    ],
)
def test_the_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "IFS": "\013",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
    }
    subprocess.run([sys.executable, "-m", "hanflow"], env=environment, check=False, timeout=60)
    words = (tmp_path / "words").read_text(encoding="utf-8").split("\013")
    assert {word.strip() for word in words if not word.startswith("-")} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_fits_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = output_of(capsys, "completion", shell)
    assert "hanflow" in script and "_ARGCOMPLETE=1" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_an_excerpt_of_a_log_has_the_lines_of_the_steps_alone() -> None:
    log = """\
09:19:43.890 - INFO - Running pipeline: \x1b[95m'hanflow-summarization'\x1b[0m
--------------------------------------------------------------------------------
/lib/kfp/local/orchestrator/task_executor.py:100: UserWarning: Task 'preprocess': settings are ignored
  _warn_local_only_noops(task_name, task_spec, executor_spec.container)
    [KFP Executor 2026-11-25 09:19:44,081 INFO]: Got executor_input:
    {
        "inputs": {
            "parameterValues": {}
        }
    }
    reading 3 rows
    ValueError: unexpected
09:19:44.611 - ERROR - Task \x1b[96m'preprocess'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
RuntimeError: Pipeline \x1b[95m'hanflow-summarization'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m. Inner task failed
"""
    assert step_lines(log.splitlines(keepends=True), 9) == ["    reading 3 rows", "    ValueError: unexpected"]
    assert step_lines(log.splitlines(keepends=True), 1) == ["    ValueError: unexpected"]
