"""What a reader would lose: pages that name settings, commands and files that are not there, or a site that does not build."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hanflow.experiment import SECTIONS, all_settings
from hanflow.tasks import known_tasks

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for folder, pattern in (("docs", "**/*.md"), (".", "*.md"), ("manifests", "*.md"))
    for page in sorted((ROOT / folder).glob(pattern))
]
FILES = (".csv", ".log", ".parquet", ".py", ".tsv")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {setting.dotted for task in known_tasks() for setting in all_settings(task)}
    named = set(re.findall(rf"[` ]((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?=[`=: ,])", text))
    assert {name for name in named - known if not name.endswith(FILES)} == set(), "no such settings"
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in links if not (page.parent / target).exists()] == [], "links that lead nowhere"
    folders = "hanflow|components|pipelines|manifests|tests|tools|docs|images"
    paths = [path.replace("NAME.py", "") for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text)]
    lost = [path for path in paths if not (ROOT / path).exists() and not (page.parent / path).exists()]
    assert lost == [], "no such files"


def test_commands_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    text = re.sub(r"```text\n.*?```", "", text, flags=re.DOTALL)  # messages
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
    named = set(re.findall(r"(?:^|[`/ ])hanflow ([a-z]+)\b", code, flags=re.MULTILINE))
    usage = subprocess.run([sys.executable, "-m", "hanflow", "--help"], capture_output=True, text=True, check=True)
    assert {name for name in named if not re.search(rf"\b{name}\b", usage.stdout)} == set()
    assert {"run", "predict", "submit"} <= named


def test_experiments_of_the_task_pages_exist() -> None:
    for page in (ROOT / "docs" / "tasks").glob("*.md"):
        table = page.read_text(encoding="utf-8").partition("| experiment |")[2].partition("\n\n")[0]
        names = {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1]) if row}
        assert names, page
        assert {name for name in names if not (ROOT / "pipelines" / "experiments" / f"{name}.yaml").is_file()} == set()


def test_the_runtimes_of_the_cluster_page_are_those_there_are() -> None:
    table = (
        (ROOT / "docs" / "cluster.md")
        .read_text(encoding="utf-8")
        .partition("| `job.runtime` |")[2]
        .partition("\n\n")[0]
    )
    (runtime,) = (setting for setting in all_settings() if setting.dotted == "job.runtime")
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(runtime.choices)


def test_the_migration_tables_have_every_key_of_the_described_config() -> None:
    """The keys of the dialogue system's config.yaml, section by section."""
    sections = {
        "general": "data_path model_name output_dir",
        "inference": "batch_size ckt_path early_stopping generate_max_length no_repeat_ngram_size num_beams remove_tokens "
        "result_path",
        "tokenizer": "bos_token decoder_max_len encoder_max_len eos_token special_tokens",
        "training": "do_eval do_train early_stopping_patience early_stopping_threshold evaluation_strategy fp16 "
        "generation_max_length gradient_accumulation_steps learning_rate load_best_model_at_end logging_dir "
        "logging_strategy lr_scheduler_type num_train_epochs optim overwrite_output_dir per_device_eval_batch_size "
        "per_device_train_batch_size predict_with_generate report_to save_strategy save_total_limit seed warmup_ratio "
        "weight_decay",
        "wandb": "entity name project",
    }
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    for section, keys in sections.items():
        table = page.partition(f"| {section} | here |")[2].partition("\n\n")[0]
        mapped = {key for row in table.splitlines() if row for key in re.split(r",\s*", row.split("|")[1].strip())}
        assert set(keys.split()) - mapped == set(), section


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Offline, as `make docs` does: strict, so that a link that leads nowhere stops it. With a reference of every room."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    assert not re.search(r"href=\"[^\"]*\.md[\"#]", (tmp_path / "index.html").read_text(encoding="utf-8"))
    reference = (tmp_path / "reference" / "tasks" / "index.html").read_text(encoding="utf-8")
    assert "evaluate.beams" in (tmp_path / "settings" / "index.html").read_text(encoding="utf-8")
    assert "hanflow.tasks.base.Task.loss" in reference and "number of target tokens" in reference


def test_the_refusals_are_quoted_as_they_are_printed() -> None:
    """Each quoted message fits a text in the source; words in capitals and examples stand where that fills something in."""
    texts = [text for path in (ROOT / "hanflow").rglob("*.py") for text in _patterns(path.read_text(encoding="utf-8"))]
    page = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
    quoted = [line for block in re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
    assert len(quoted) > 40
    fitting = {line for line in quoted if any(5 * size > len(line) and text.search(line) for size, text in texts)}
    assert [line for line in quoted if line not in fitting] == []


def _patterns(source: str) -> list[tuple[int, re.Pattern[str]]]:
    """The longer texts of a module, each with its characters; any text fits where one is filled in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else None for p in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [part for text in node.value.split("%s") for part in (text, None)][:-1]
        else:
            continue
        size = sum(len(part) for part in parts if part)
        if size >= 15:
            found.append((size, re.compile("".join(".*" if part is None else re.escape(part) for part in parts))))
    return found
