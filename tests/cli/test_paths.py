"""Paths as people give them: odd names, file:// URIs, other Unicode forms, a locale without UTF-8; and outputs that are inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from hanflow.cli.main import main
from hanflow.errors import UserError
from hanflow.storage import check_output, local_path, portable, shown

ROWS = "news\tsummary\n" + "".join(f"긴 본문이 여기 있습니다 {n}\t{n}\n" for n in ("하나", "둘", "셋"))


def test_one_function_reads_every_path(tmp_path: Path) -> None:
    (tmp_path / "가 나%.tsv").write_text(ROWS)
    assert local_path(f"file://{tmp_path}/가 나%25.tsv") == tmp_path / "가 나%.tsv"
    assert local_path(f"file://localhost{tmp_path}/%EA%B0%80%20%EB%82%98%25.tsv") == tmp_path / "가 나%.tsv"
    apart = unicodedata.normalize("NFD", str(tmp_path / "가 나%.tsv"))
    assert apart != str(tmp_path / "가 나%.tsv") and local_path(apart).is_file()
    for wrong, said in (
        ("a\0b", "zero byte"),
        ("~no-such-user/x", "there is no such user"),
        ("file://host/x", "another machine"),
        ("s3://x", "cannot read s3://"),
    ):
        with pytest.raises(UserError, match=said):
            local_path(wrong)


def test_a_name_that_is_not_utf8_becomes_text_that_every_program_holds(tmp_path: Path) -> None:
    name = os.fsdecode(b"raw-\xff.tsv")
    (tmp_path / name).write_text(ROWS)
    text = portable(str(tmp_path / name))
    assert text.isascii() and text.endswith("/raw-%FF.tsv") and local_path(text).is_file()
    assert shown(name) == "raw-\\udcff.tsv" and shown("a\nb") == "a\\nb" and shown("가 나") == "가 나"
    assert portable("가 나") == "가 나"


@pytest.mark.parametrize("name", [b"raw-\xff.tsv", "가 나 (1).tsv".encode(), b"-x.tsv", b"a\nb.tsv"])
def test_odd_names_are_read_in_a_locale_without_utf8(name: bytes, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(name)).write_text(ROWS, encoding="utf-8")
    source = os.path.join(os.fsencode(tmp_path), name)
    done = subprocess.run(
        [sys.executable, "-m", "hanflow.steps.preprocess", b"--source=" + source, b"--output=out"],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"rows 3" in done.stderr


def test_help_and_settings_print_in_a_locale_without_utf8(tmp_path: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [
        sys.executable,
        "-m",
        "hanflow",
        "run",
        "summarization",
        "--check",
        f"--set=preprocess.source={tmp_path}/가.tsv",
    ]
    done = subprocess.run(command, env=plain, capture_output=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/가.tsv: no such file or folder" in done.stderr.decode()


def test_no_output_is_an_input_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    given, output = tmp_path / "a.csv", tmp_path / "b.csv"
    given.write_text("x")
    check_output("--rows", str(output), [given], force=False)
    for way in (output.symlink_to, output.hardlink_to):
        way(given)
        with pytest.raises(UserError, match=f"{output}: is {given}, which is read"):
            check_output("--rows", f"file://{output}", [given], force=True)
        output.unlink()
    output.write_text("mine")
    with pytest.raises(UserError, match="exists already; give another, or replace it with --force"):
        check_output("--rows", str(output), [given], force=False)
    check_output("--rows", str(output), [given], force=True)


def test_compile_replaces_neither_an_experiment_nor_what_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "summarization.yaml"
    mine.write_text("base: sample-summarization\nname: mine\n")
    command = ["compile", "summarization", "--experiment", "summarization.yaml", "--output"]
    for output in (".", f"file://{tmp_path}"):
        assert main([*command, output, "--force"]) == 1
        assert "summarization.yaml, which is read" in capsys.readouterr().err
    assert mine.read_text() == "base: sample-summarization\nname: mine\n"
    assert main([*command, "out"]) == 0, "a base may be a bundled experiment"
    assert main([*command, "out"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "out", "--force"]) == 0


def test_score_replaces_no_file_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("p.csv", "r.csv"):
        (tmp_path / name).write_text("text\n글\n")
    files = ["--predictions", str(tmp_path / "p.csv"), "--references", str(tmp_path / "r.csv")]
    assert main(["score", *files, "--column", "text", "--rows", str(tmp_path / "r.csv"), "--force"]) == 1
    assert "which is read" in capsys.readouterr().err
    assert (tmp_path / "r.csv").read_text() == "text\n글\n"


def test_the_restart_in_another_locale_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "hanflow-command"  # as pip makes it
    script.write_text("import sys\nfrom hanflow.cli.main import main\nsys.exit(main())\n")
    (tmp_path / "argparse.py").write_text("open('ran', 'w')\n")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, str(script), "run", "가"], cwd=tmp_path, env=plain, capture_output=True, check=False
    )
    assert done.returncode == 2 and "가" in done.stderr.decode(), done.stderr.decode()
    assert not (tmp_path / "ran").exists()


def test_the_file_of_row_scores_is_local(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("가\n")
    texts = [f"--predictions={tmp_path / 'a.txt'}", "--references", str(tmp_path / "a.txt")]
    assert main(["score", *texts, "--rows=gs://bucket/rows.csv"]) == 1
    assert "gs://bucket/rows.csv: is in a bucket, here a local path is needed" in capsys.readouterr().err
