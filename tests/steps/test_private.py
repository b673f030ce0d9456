"""Nothing that is passed on tells who made it, and where: every byte of a bundle and of the reports is searched."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pytest

from hanflow.config import ExportConfig
from hanflow.config.places import last_part, without_places
from hanflow.experiment import step_config
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.steps.train import run as train
from tests.support.corpora import petitions
from tests.support.model_fixtures import EVALUATE, Chain

MARK = "MARK7"


def found_in(folder: Path, marks: list[str]) -> list[str]:
    """Files whose name or bytes hold a mark, in UTF-8 or UTF-16; archives are unpacked."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        contents = [path.relative_to(folder).as_posix().encode(), path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(io.BytesIO(contents[1])) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        needles = [mark.encode(form) for mark in marks for form in ("utf-8", "utf-16-le")]
        if any(needle in content for content in contents for needle in needles):
            found.append(str(path.relative_to(folder)))
    return found


def test_no_shipped_byte_tells_who_made_it_and_where(
    scored: tuple[Chain, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, root = "summarization", tmp_path / f"{MARK}-data"
    root.mkdir()
    for name in ("HOME", "USER", "LOGNAME", "HOSTNAME", "HANFLOW_MARKED"):
        monkeypatch.setenv(name, str(root / f"{MARK}-{name}"))
    monkeypatch.chdir(root)
    rows = "".join(f"{body}\t{title}\n".replace("\n\t", " ") for body, title in petitions(40))
    (root / "raw.tsv").write_text(f"news\tsummary\n{rows}", encoding="utf-8")
    shutil.copytree(scored[0].model, root / "base")
    chain = Chain(root / "corpus", root / "shards", root / "model")
    values = {"source": str(root / "raw.tsv"), "validation_ratio": 0.1, "test_ratio": 0.2}
    preprocess(step_config("preprocess", values, task), task=task, output=str(chain.corpus))
    encoding = {"tokenizer": f"../{root.name}/base", "max_source_tokens": 64, "max_target_tokens": 16}
    tokenize(step_config("tokenize", encoding, task), task=task, output=str(chain.shards), corpus=str(chain.corpus))
    training = {
        "pretrained": str(root / "base"), "checkpoints": str(root / "checkpoints"), "max_steps": 2, "precision": "fp32",
    }  # fmt: skip
    train(step_config("train", training, task), task=task, output=str(chain.model), shards=str(chain.shards))
    settings = {**vars(EVALUATE), "earlier": str(root / "base")}
    evaluation = root / "evaluation"
    evaluate(step_config("evaluate", settings, task), task=task, output=str(evaluation), **chain.inputs)
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(evaluation)}
    export(ExportConfig(check_rows=1, title="모델"), task=task, output=str(root / "bundle"), **inputs)

    reports = root / "reports"
    reports.mkdir()
    for artifact in (chain.corpus, chain.model, evaluation):
        shutil.copy(artifact / "report.html", reports / f"{artifact.name}.html")
    trackers = root / "trackers"
    trackers.mkdir()
    for path in (root / "checkpoints").rglob("*"):
        if path.is_file() and not path.parent.name.startswith("step-"):
            shutil.copy(path, trackers / path.name)
    assert list(trackers.iterdir())
    marks = [MARK, str(root), str(tmp_path)]
    for folder in (root / "bundle", reports, trackers):
        assert found_in(folder, marks) == []
    bundle = (root / "bundle" / "bundle.json").read_text(encoding="utf-8")
    assert '"tokenizer": "base"' in bundle and '"earlier": "base"' in bundle, "what it was made of is still named"
    assert found_in(root / "model", marks), "the search finds what is there"


def test_places_and_names() -> None:
    settings = {
        "pretrained": "gs://bucket/runs/a/model/",
        "tokenizer": "owner/name",
        "source": "/data/a.tsv,~/b.tsv",
        "resume": "auto",
        "earlier": "C:\\Users\\me\\bundle",
        "special_tokens": ["/", "~"],
        "members": [{"pretrained": "./x/y"}],
        "intended_use": "/anything/",
        "speaker_format": "/P{n}/ ",
        "epochs": 3,
    }
    assert without_places(settings) == {
        **settings,
        "pretrained": "model",
        "source": "a.tsv, b.tsv",
        "earlier": "bundle",
        "members": [{"pretrained": "y"}],
    }
    assert last_part("#Person{n}#: ") == "#Person{n}#: " and last_part("") == ""
