"""One door opens models, and nothing behind it runs: the syntax tree of the library, and folders full of traps."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hanflow
from hanflow.cli.main import main
from hanflow.config import ExportConfig
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.loading import files
from hanflow.models import ensemble
from hanflow.serving.sources import open_source
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.tokenize import run as tokenize
from hanflow.steps.train import run as train
from hanflow.system import hub_door
from tests.support.model_fixtures import EVALUATE, Chain, rewritten
from tests.support.tasks import make_shards, reviews, settings, trained

LIBRARY = Path(hanflow.__file__).parent

ALLOWED = {
    "from_pretrained": {"loading/pretrained.py"},
    "from_config": {"loading/pretrained.py", "models/ensemble.py"},
    "for_model": {"models/ensemble.py"},
    "torch.load": {"loading/state_dict.py"},
    # By names of the program's own tables, of the caller (`run_step`), and of the command line (task=module:Class).
    "import_module": {"__init__.py", "api/runs.py", "tasks/__init__.py"},
    "Auto": {"loading/pretrained.py", "models/ensemble.py"},
    # An attribute by a variable name of something imported, rather than of a dataclass or a tensor.
    "getattr": {"__init__.py", "loading/pretrained.py", "tasks/__init__.py"},
}
"""What opens or finds something by its name → the modules that may."""

NEVER = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "imp", "eval", "exec", "__import__"}


def found_in(path: Path) -> Iterator[tuple[str, str]]:
    """(what, place) of everything in a module that opens or runs something by a name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        place = f"{path.relative_to(LIBRARY)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | (
                {node.module} if isinstance(node, ast.ImportFrom) else set()
            )
            yield from ((str(name).split(".")[0], place) for name in names if str(name).split(".")[0] in NEVER)
            yield from (("import_module", place) for name in names if name == "import_module")
        elif isinstance(node, ast.Attribute):
            if node.attr in ("from_pretrained", "from_config", "for_model", "import_module"):
                yield node.attr, place
            if node.attr.endswith("load") and ast.unparse(node.value) in ("torch", "yaml") and node.attr != "safe_load":
                yield f"{ast.unparse(node.value)}.{node.attr}", place
            if isinstance(node.value, ast.Name) and node.value.id.startswith("Auto") and node.attr != "register":
                yield "Auto", place
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in NEVER:
                yield node.func.id, place
            if node.func.id in ("getattr", "setattr", "vars") and node.args:
                root = node.args[0]
                while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
                    root = root.func if isinstance(root, ast.Call) else root.value
                by_variable = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
                if isinstance(root, ast.Name) and root.id in imported and by_variable:
                    yield "getattr", place


def test_nothing_else_opens_models_or_finds_code_by_a_name() -> None:
    seen: dict[str, set[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        for what, place in found_in(path):
            seen.setdefault(what, set()).add(place)
    astray = {
        what: {place for place in places if place.partition(":")[0] not in ALLOWED.get(what, ())}
        for what, places in seen.items()
    }
    assert {what: places for what, places in astray.items() if places} == {}
    assert seen.keys() == ALLOWED.keys(), "the test sees what there is, and nothing is allowed that is not needed"


# ---- Folders full of traps


def trap(folder: Path) -> None:
    """Modules that leave a mark when they are imported, wherever somebody might look for them."""
    code = f"open({str(marker(folder))!r}, 'w').write('x')\n"
    names = "Trap = TrapTokenizer = TrapTask = type('Trap', (), {'name': 'trap:Trap', 'from_pretrained': lambda *a, **k: 1})"
    for place in ("trap.py", "custom_generate/generate.py", "modeling_trap.py"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(f"{code}{names}\ndef generate(*a, **k): pass\n", encoding="utf-8")


def marker(folder: Path) -> Path:
    return folder / "RAN"


class Program:
    """Pickled, it opens a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def changed(path: Path, **values: Any) -> None:
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**held, **values}), encoding="utf-8")


OWN = dict.fromkeys(
    ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification"), "trap.Trap"
)


def own_tokenizer(folder: Path) -> None:
    changed(
        folder / "tokenizer_config.json",
        tokenizer_class="TrapTokenizer",
        auto_map={"AutoTokenizer": [None, "trap.TrapTokenizer"]},
    )


def own_tokenizer_of_old_form(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", auto_map=["trap.TrapTokenizer", "trap.TrapTokenizer"])


def tokenizer_class_of_a_model(folder: Path) -> None:
    """transformers looks any name up in itself, and then asks on standard input."""
    changed(folder / "tokenizer_config.json", tokenizer_class="AutoModel")
    changed(folder / "config.json", tokenizer_class="AutoModel")


def tokenizer_class_of_no_text(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", tokenizer_class=["trap", "Trap"])


def own_model(folder: Path) -> None:
    changed(folder / "config.json", auto_map=OWN)


def own_model_of_unknown_type(folder: Path) -> None:
    changed(folder / "config.json", auto_map=OWN, model_type="trap", architectures=["TrapForSeq2SeqLM"])


def own_model_inside(folder: Path) -> None:
    changed(folder / "config.json", decoder={"model_type": "vit", "auto_map": OWN, "_name_or_path": str(folder)})


def unknown_architecture(folder: Path) -> None:
    changed(folder / "config.json", architectures=["trap.Trap"], model_type="trap")


def kernels_of_the_hub(folder: Path) -> None:
    changed(folder / "config.json", attn_implementation="trap/kernel", experts_implementation="trap/kernel")


def own_search(folder: Path) -> None:
    changed(folder / "generation_config.json", custom_generate="trap", trust_remote_code=True)
    changed(folder / "config.json", custom_pipelines={"summarization": {"impl": "trap.Trap", "pt": ["AutoModel"]}})


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Program(marker(folder))}, folder / "pytorch_model.bin")


def shards_that_are_pickles(folder: Path) -> None:
    pickled_weights(folder)
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.shared.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def weights_named_in_the_config(folder: Path) -> None:
    torch.save({"model.shared.weight": Program(marker(folder))}, folder / "weights.bin")
    changed(folder / "config.json", transformers_weights="weights.bin")


def adapter(folder: Path) -> None:
    changed(
        folder / "adapter_config.json", base_model_name_or_path="trap/trap", auto_mapping={"parent_library": "trap"}
    )
    torch.save({"x": Program(marker(folder))}, folder / "adapter_model.bin")


TRAPS: list[Callable[[Path], None]] = [
    own_tokenizer,
    own_tokenizer_of_old_form,
    tokenizer_class_of_a_model,
    tokenizer_class_of_no_text,
    own_model,
    own_model_of_unknown_type,
    own_model_inside,
    unknown_architecture,
    kernels_of_the_hub,
    own_search,
    pickled_weights,
    shards_that_are_pickles,
    weights_named_in_the_config,
    adapter,
]


class Silence(io.TextIOWrapper):
    """Standard input that says yes to everything, and notes whether anybody asked."""

    def __init__(self) -> None:
        super().__init__(io.BufferedReader(io.BytesIO("y\n둘째 줄\n".encode())))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Silence:
    stdin = Silence()
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.syspath_prepend(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return stdin


def tried(*calls: Callable[[], object]) -> None:
    """Each either works or is refused."""
    for call in calls:
        with contextlib.suppress(UserError):
            call()


@pytest.mark.parametrize("spring", TRAPS, ids=lambda spring: spring.__name__)
def test_no_command_runs_what_a_model_brings_along(
    spring: Callable[[Path], None], scored: tuple[Chain, Path], answers: Silence, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    chain, evaluation = scored
    model, plain = tmp_path / "model", tmp_path / "plain"
    shutil.copytree(chain.model, model)
    trap(model)
    spring(model)
    shutil.copytree(model, plain)
    (plain / "model.json").unlink()
    rewritten(model, "model")
    inputs = {"shards": str(chain.shards), "corpus": str(chain.corpus)}
    of_export = {"shards": str(chain.shards), "evaluation": str(evaluation)}
    settled = {"task": "summarization"}
    training = step_config("train", {"pretrained": str(plain), "max_steps": 1, "precision": "fp32"}, "summarization")
    other = step_config("tokenize", {"tokenizer": str(plain)}, "summarization")
    earlier = step_config("evaluate", {**vars(EVALUATE), "earlier": str(plain), "limit_rows": 1}, "summarization")
    new = iter(str(tmp_path / f"out{number}") for number in range(20))
    checkpoint = next((path for path in (*model.glob("*.bin"), *model.glob("*.safetensors"))), model / "none")
    tried(
        lambda: open_source(str(model)).predictor(),
        lambda: open_source(str(plain)).predictor(),
        lambda: evaluate(EVALUATE, model=str(model), output=next(new), **settled, **inputs),
        lambda: evaluate(earlier, model=str(chain.model), output=next(new), **settled, **inputs),
        lambda: export(ExportConfig(check_rows=1), model=str(model), output=next(new), **settled, **of_export),
        lambda: train(training, shards=str(chain.shards), output=next(new), **settled),
        lambda: tokenize(other, corpus=str(chain.corpus), output=next(new), **settled),
        lambda: main(["import", str(checkpoint), "--model", str(plain), "--tokenizer", str(plain), "--output", next(new)]),
    )  # fmt: skip
    assert answers.tell() == 0, "asked on standard input"
    assert main(["predict", str(plain), "--max-new-tokens", "2"]) in (0, 1)
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err and "Traceback" not in said.err
    assert not marker(model).exists() and not marker(plain).exists() and "trap" not in sys.modules


@pytest.mark.parametrize("task", ["trap:Trap", "this:s", "code:interact", "os:system"])
def test_a_manifest_s_task_is_looked_up_among_tasks_alone(
    task: str, bundle: Path, answers: Silence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundle, copy)
    trap(copy)
    values = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
    values.pop("digest")
    values["task"] = task
    values["digest"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (copy / "bundle.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    before = set(sys.modules)
    assert main(["predict", str(copy)]) == 1
    assert main(["demo", str(copy)]) == 1
    assert "no such task" in capsys.readouterr().err
    assert not marker(copy).exists() and task.split(":")[0] not in set(sys.modules) - before
    assert answers.tell() == 0


def test_the_experiment_beside_a_model_names_no_code(
    scored: tuple[Chain, Path], answers: Silence, tmp_path: Path
) -> None:
    """A stranger's run: its evaluation is gone, its experiment names a task of its own."""
    shutil.copytree(scored[0].model, tmp_path / "run" / "model")
    trap(tmp_path / "run")
    (tmp_path / "run" / "experiment.yaml").write_text("task: trap:Trap\nevaluate: {beams: 3}\n", encoding="utf-8")
    sys.path.insert(0, str(tmp_path / "run"))
    try:
        opened = open_source(str(tmp_path / "run"))
    finally:
        sys.path.pop(0)
    assert opened.settings.beams == 3 and opened.task.name == "summarization"
    assert not marker(tmp_path / "run").exists()


def test_a_member_of_an_ensemble_brings_no_code(answers: Silence, tmp_path: Path) -> None:
    """The members' configs lie inside the ensemble's own; one of another kind of model used to be asked about."""
    chain = trained(make_shards(tmp_path / "chain", "classification", reviews(60)), "classification", max_steps=1)
    from hanflow.loading.pretrained import load_with_tokenizer
    from hanflow.tasks import get_task

    member = load_with_tokenizer(chain.model, get_task("classification").load_model)
    ensemble.combine({"one": member, "two": member}).save_pretrained(tmp_path / "model")
    member[1].save_pretrained(tmp_path / "model")
    trap(tmp_path / "model")
    open_source(str(tmp_path / "model")).predictor()
    values = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    values["members"][0] |= {"model_type": "vit", "auto_map": OWN, "_name_or_path": str(tmp_path / "model")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=r"config.json: names code of its own \(auto_map\)"):
        open_source(str(tmp_path / "model")).predictor()
    assert not marker(tmp_path / "model").exists() and answers.tell() == 0


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.safetensors"])
def test_a_checkpoint_that_holds_a_program_is_not_run(file: str, answers: Silence, tmp_path: Path) -> None:
    chain = make_shards(tmp_path / "chain", "classification", reviews(60))
    engine = "hanflow" if file.endswith(".safetensors") else "transformers"
    run = {"checkpoints": str(tmp_path / "checkpoints"), "engine": engine, "epochs": 9, "max_steps": 2, "save_every": 1}
    trained(chain, "classification", **run)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    folder = tmp_path / "checkpoints" / "step-00000001"
    torch.save({"x": Program(marker(tmp_path))}, folder / file)
    record = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "commit.json"
    }
    assert file in record
    (folder / "commit.json").write_text(json.dumps(record), encoding="utf-8")
    config = settings("classification", **run)
    with pytest.raises(Exception):  # noqa: B017  whatever it is, nothing ran
        train(config, task="classification", output=str(tmp_path / "again"), shards=str(chain.shards))
    assert not marker(tmp_path).exists() and answers.tell() == 0


def test_what_is_refused_is_named(scored: tuple[Chain, Path], tmp_path: Path) -> None:
    def refused(spring: Callable[[Path], None]) -> str:
        model = tmp_path / spring.__name__
        shutil.copytree(scored[0].model, model)
        (model / "model.json").unlink()
        spring(model)
        with pytest.raises(UserError) as caught:
            open_source(str(model)).predictor()
        return str(caught.value)

    assert "tokenizer_config.json: names code of its own (auto_map)" in refused(own_tokenizer)
    assert "config.json: names code of its own (auto_map)" in refused(own_model_inside)
    assert "'trap', which neither transformers nor hanflow has" in refused(unknown_architecture)
    pickled = refused(pickled_weights)
    assert "a pickle (pytorch_model.bin)" in pickled and "hanflow import FOLDER/pytorch_model.bin" in pickled


def test_sharded_safetensors_are_read(scored: tuple[Chain, Path], tmp_path: Path) -> None:
    shutil.copytree(scored[0].model, tmp_path / "model")
    model = tmp_path / "model"
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, model / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (model / "model.safetensors").unlink()
    (model / "model.json").unlink()
    assert open_source(str(model)).predictor() is not None


@pytest.mark.parametrize(
    ("environment", "door"),
    [
        ({}, ("huggingface.co", 443)),
        ({"HF_ENDPOINT": "http://mirror:8080"}, ("mirror", 8080)),
        ({"HF_ENDPOINT": "http://mirror"}, ("mirror", 80)),
        ({"https_proxy": "http://proxy:3128"}, ("proxy", 3128)),
        ({"https_proxy": "proxy:3128"}, ("proxy", 3128)),
        ({"HTTPS_PROXY": "https://proxy"}, ("proxy", 443)),
        ({"all_proxy": "socks5://proxy"}, ("proxy", 1080)),
        ({"http_proxy": "http://proxy:3128"}, ("huggingface.co", 443)),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "huggingface.co"}, ("huggingface.co", 443)),
    ],
)
def test_the_hub_is_asked_for_where_its_client_connects(
    environment: dict[str, str], door: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "HF_ENDPOINT"]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub_door() == door


OFFLINE = """
import socket, sys, threading
from hanflow.loading import files
assert files.read_json("owner/name", "config.json") == {"model_type": "bart"}  # nobody listens at the hub's place
calls = []
hub = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def count():
    while True:
        calls.append(hub.accept())
threading.Thread(target=count, daemon=True).start()
assert files.revision_of("owner/name") == "a" * 40
assert files.read_json("owner/other", "config.json") is None
print("asked", len(calls))
"""


def test_without_an_answer_of_the_hub_only_the_cache_is_read(tmp_path: Path) -> None:
    """Its client would ask again and again, silently, for each file."""
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("a" * 40) / "config.json").write_text('{"model_type": "bart"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", OFFLINE, str(port)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "asked 0\n", done.stderr


@pytest.mark.parametrize("name", ["no name!", "a/b/c/d", "x--y..z"])
def test_what_is_no_name_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no model can be loaded from there"):
        files.read_json(name, "config.json")
