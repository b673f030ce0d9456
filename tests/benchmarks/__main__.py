"""`make bench`: every figure of the README's table, as ratios to a named peer measured in the same run.

`python -m tests.benchmarks [NAME]` runs one row, or all; rows are merged into results.json and into README.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.data import CNN, GPT, KOBART, RNN, SHARED, make_review_shards, make_shards, tokenizer

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE.parents[1] / "README.md"
BATCH = 8
REPEATS = 2


def machine() -> str:
    """Processor, cores, accelerator and torch, as the table names them."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = torch.cpu.get_capabilities()
    units = "AMX" if info.get("amx_bf16") else "AVX-512" if info.get("avx512_f") else "AVX2"
    return f"{info.get('cpu_name', platform.processor())} ({units}), {os.cpu_count()} cores, torch {torch.__version__}"


def row(
    name: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str, *, smaller: bool = False
) -> dict[str, Any]:
    """One row; `ratio` above 1 means that ours is better, `spread` is that of the repeats' ratios."""
    pairs = [(b / a if smaller else a / b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "peer": peer,
        "ours": round(statistics.median(ours), 4),
        "theirs": round(statistics.median(theirs), 4),
        "unit": unit,
        "ratio": round(statistics.median(pairs), 3),
        "spread": f"{min(pairs):.2f}–{max(pairs):.2f} over {len(pairs)}",
        "machine": machine(),
    }


def train_run(engine: str, shards: Path, **job: Any) -> dict[str, Any]:
    """What one training process measured; with `processes`, the Trainer's are started here, ours start themselves."""
    full = {
        "engine": engine,
        "architecture": KOBART,
        "shards": str(shards),
        "batch_size": BATCH,
        "learning_rate": 3e-5,
        "precision": "bf16",
        **job,
    }
    count = job.get("processes", 1) if engine != "hanflow" else 1
    command = [sys.executable, "-m", "tests.benchmarks.train_run", json.dumps(full)]
    processes = []
    for rank in range(count):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }
        env = {**os.environ, **(ranks | {"OMP_NUM_THREADS": "1"} if count > 1 else {})}
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    ends = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        if process.returncode:
            sys.exit(f"{engine} {job} failed:\n{errors[-3000:]}")
    result = json.loads(ends[0][0].splitlines()[-1])
    print(
        f"  {engine} {job}: {result['tokens'] / result['seconds']:,.0f} tokens/s {result}", file=sys.stderr, flush=True
    )
    return result


def speed(result: dict[str, Any]) -> float:
    """Real (not padded) source and target tokens a second."""
    return result["tokens"] / result["seconds"]


def train_bf16(place: Path) -> list[dict[str, Any]]:
    """An epoch of the same rows in bf16: ours, the Trainer as its users run it, the Trainer at its best."""
    shards = make_shards(place, 240)
    ours, default, grouped, peaks = [], [], [], []
    for _ in range(REPEATS):
        peaks.append(matmul_peak(torch.bfloat16))
        ours.append(train_run("hanflow", shards))
        default.append(train_run("trainer", shards, validate=True))
        grouped.append(train_run("trainer-grouped", shards))
    flops = [model_flops(result, shards) / result["seconds"] for result in ours]
    name = "KoBART-size BART, bf16"
    return [
        row(f"training, {name}", "Seq2SeqTrainer", [*map(speed, ours)], [*map(speed, default)], "real tokens/s"),
        row(
            f"training, {name}",
            "Seq2SeqTrainer, group_by_length",
            [*map(speed, ours)],
            [*map(speed, grouped)],
            "real tokens/s",
        ),
        row(
            f"validation loss after equal samples, {name}",
            "Seq2SeqTrainer",
            [r["validation_loss"] for r in ours],
            [r["validation_loss"] for r in default],
            "nats a token",
            smaller=True,
        ),
        row(
            f"peak memory, {name}",
            "Seq2SeqTrainer",
            [r["peak_gb"] for r in ours],
            [r["peak_gb"] for r in default],
            "GB",
            smaller=True,
        ),
        row(
            f"padding efficiency (real / padded tokens), {name}",
            "Seq2SeqTrainer",
            [r["padding_efficiency"] for r in ours],
            [r["padding_efficiency"] for r in default],
            "",
        ),
        row(
            f"start-up until the first step, {name}",
            "Seq2SeqTrainer",
            [r["startup_seconds"] for r in ours],
            [r["startup_seconds"] for r in default],
            "s",
            smaller=True,
        ),
        row(
            f"model FLOP/s, {name}",
            "torch 2048³ bf16 matmul",
            [f / 1e9 for f in flops],
            [p / 1e9 for p in peaks],
            "GFLOP/s",
        ),
    ]


def train_fp32(place: Path) -> list[dict[str, Any]]:
    """The same in fp32, fewer rows."""
    shards = make_shards(place, 72)
    ours = [train_run("hanflow", shards, precision="fp32")]
    default = [train_run("trainer", shards, precision="fp32")]
    return [
        row(
            "training, KoBART-size BART, fp32",
            "Seq2SeqTrainer",
            [*map(speed, ours)],
            [*map(speed, default)],
            "real tokens/s",
        )
    ]


def train_processes(place: Path) -> list[dict[str, Any]]:
    """Two processes, one thread each."""
    shards = make_shards(place, 64)
    ours = [train_run("hanflow", shards, processes=2)]
    default = [train_run("trainer", shards, processes=2)]
    return [
        row(
            "training, KoBART-size BART, bf16, 2 processes",
            "Seq2SeqTrainer, 2 processes",
            [*map(speed, ours)],
            [*map(speed, default)],
            "real tokens/s",
        )
    ]


def checkpoint(place: Path) -> list[dict[str, Any]]:
    """Saving and restoring weights and optimizer, beside torch.save and torch.load of the same."""
    code = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.checkpoint_run", str(place)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(code.stdout.splitlines()[-1])
    peer = "torch.save / torch.load (no digest, pickled)"
    return [
        row(
            "checkpoint save, KoBART-size (written, synced, sha256)",
            peer,
            measured["save"],
            measured["torch_save"],
            "MB/s",
        ),
        row(
            "checkpoint restore, KoBART-size (sha256 verified)", peer, measured["load"], measured["torch_load"], "MB/s"
        ),
    ]


def storage(place: Path) -> list[dict[str, Any]]:
    """A folder into a bucket and back, beside gcsfs and the client library's plain calls, against an emulator."""
    command = [sys.executable, "-m", "tests.benchmarks.storage_run", str(place)]
    code = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(code.stdout.splitlines()[-1])
    print(f"  {measured}", file=sys.stderr, flush=True)
    peers = {"gcsfs": "gcsfs put / get", "plain": "blob.upload_from_filename / download_to_filename"}
    return [
        row(
            f"gs:// {what}, sha256 verified (emulator)", peer, measured[f"ours_{way}"], measured[f"{key}_{way}"], "MB/s"
        )
        for way, what in (("up", "upload, committed"), ("down", "download"))
        for key, peer in peers.items()
    ]


def rouge(_: Path) -> list[dict[str, Any]]:
    """Scoring, with the tokens given."""
    from tests.benchmarks.rouge_run import PEER, measure

    return [row(figure["name"], PEER, figure["ours"], figure["theirs"], "pairs/s") for figure in measure()]


def generate(place: Path) -> list[dict[str, Any]]:
    """Beam search on the CPU: CTranslate2 through our interface, beside transformers' own `generate`."""

    def run(*what: str) -> str:
        command = [sys.executable, "-m", "tests.benchmarks.generation_run", str(place), *what]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    run("fit")
    engines = {
        "float32": ("float32",),
        "int8": ("int8",),
        "transformers generate, fp32, batches of 8": ("transformers",),
        "transformers generate, fp32, batches of 8, freed memory kept as in our training": ("transformers", "kept"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(REPEATS):
        for name, what in engines.items():
            speeds[name].append(json.loads(run(*what).splitlines()[-1])["rows_per_second"])
    said = json.loads(run("compare").splitlines()[-1])
    print(f"  {speeds}\n  {said}", file=sys.stderr, flush=True)
    equal, rouge = said["equal"], said["rougeL_morpheme"]
    peers = [name for name in engines if name not in equal]
    rows = []
    for name, kind in (("generate_fp32", "float32"), ("generate_int8", "int8")):
        what = f"{name}: beam 4, 64 new tokens, KoBART-size BART"
        rows += [row(what, peer, speeds[kind], speeds[peer], "rows/s") for peer in peers]
        rows += [
            row(f"{name}: share of equal texts", peers[0], [equal[kind]], [1.0], "of rows"),
            row(f"{name}: ROUGE-L (morphemes) of those texts", peers[0], [rouge[kind]], [rouge["transformers"]], "F1"),
        ]
    return rows


def rnn(place: Path) -> list[dict[str, Any]]:
    """The described bidirectional LSTM on reviews."""
    name, steps = "training, BiLSTM 4 × 256 on reviews (morphemes), bf16, batch 80", 30
    shards = make_review_shards(place, 20_000)
    return _loops(name, shards, RNN, steps, ("padded", "packed"))


def cnn(place: Path) -> list[dict[str, Any]]:
    """The described convolutional network on reviews."""
    name, steps = "training, CNN 3/4/5 × 100 on reviews (morphemes), bf16, batch 80", 150
    shards = make_review_shards(place, 20_000)
    return _loops(name, shards, CNN, steps, ("padded",))


PLAIN = {
    "padded": "DataLoader that pads, the same module",
    "packed": "DataLoader that pads, torch's LSTM over packed sequences",
    "nanogpt": "nanoGPT's loop and model of the same shape",
}


def _loops(
    name: str, shards: Path, architecture: dict[str, Any], steps: int, peers: Sequence[str], **job: Any
) -> list[dict[str, Any]]:
    """Targets a second (rows that have a label, tokens to predict) of our loop beside loops written by hand."""
    settings = {
        "task": "classification",
        "architecture": architecture,
        "batch_size": 80,
        "learning_rate": 1e-3,
        "max_steps": steps,
        **job,
    }
    speeds: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for engine in ("hanflow", *peers):
            result = train_run(engine, shards, **settings)
            speeds.setdefault(engine, []).append(result["targets"] / result["seconds"])
    unit = "tokens/s" if settings["task"] == "language_modeling" else "samples/s"
    return [row(name, PLAIN[peer], speeds["hanflow"], speeds[peer], unit) for peer in peers]


def gpt(place: Path) -> list[dict[str, Any]]:
    """The described decoder: d_model 256, 6 layers, chunks of 256."""
    shards = make_review_shards(place, 90_000, task="language_modeling")
    name = "training, GPT 6 × 256, chunks of 256, vocabulary 16,000, bf16, 32 chunks a step"
    return _loops(name, shards, GPT, 15, ("nanogpt",), task="language_modeling", batch_size=32)


def million_rows(place: Path) -> list[dict[str, Any]]:
    """Preprocess and tokenize a million reviews."""
    from tests.benchmarks.rows_run import measured, write_rows

    sources = [SHARED / "data" / "nsmc" / f"ratings_{part}.txt" for part in ("train", "test")]
    if not all(path.is_file() for path in sources):
        print("  rows: needs shared/data/nsmc (HANFLOW_SHARED): left out", file=sys.stderr)
        return []
    source, count = place / "reviews.tsv", int(os.environ.get("HANFLOW_BENCH_ROWS", 1_000_000))
    write_rows(sources, count, source)
    results: dict[str, list[dict[str, Any]]] = {"hanflow": [], "pandas": []}
    for number in range(REPEATS):
        for engine, reported in results.items():
            output = place / f"{engine}-{number}"
            output.mkdir()
            job = {"engine": engine, "source": str(source), "output": str(output), "tokenizer": str(tokenizer())}
            reported.append(measured(job))
            shutil.rmtree(output)
    ours, theirs = results["hanflow"], results["pandas"]
    for one, other in zip(ours, theirs, strict=True):
        for figure in ("rows", "tokens"):
            assert abs(one[figure] / other[figure] - 1) < 0.01, f"not the same work: {one} and {other}"
    name, peer = f"preprocess and tokenize {count:,} reviews", "pandas and datasets.map"
    speeds = [[count / result["seconds"] for result in part] for part in (ours, theirs)]
    peaks = [[result["peak_gb"] for result in part] for part in (ours, theirs)]
    return [
        row(name, peer, *speeds, "rows/s"),
        row(f"{name}: peak memory", peer, *peaks, "GB", smaller=True),
    ]


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of some 2048³ products."""
    import time

    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def model_flops(result: dict[str, Any], shards: Path) -> float:
    """Floating-point operations that the epoch's real tokens need, forward and backward.

    6 × weights × tokens (Kaplan et al., 2020, section 2.1) for every matrix that a token passes: encoder layers and the
    decoder's cross-attention keys and values for source tokens, the rest of the decoder and the output matrix for
    target tokens; plus 12 × width × length for every source token's attention in each encoder layer. Padding, dropout
    and recomputation count nothing.
    """
    from hanflow.data.shards import Shard

    lengths = Shard(shards / "train.arrow", ("source", "target")).lengths()
    source, target = lengths[:, 0].astype(float), lengths[:, 1].astype(float)
    width, inner, layers, vocabulary = KOBART["d_model"], KOBART["encoder_ffn_dim"], KOBART["encoder_layers"], 30_000
    per_source = layers * (4 * width**2 + 2 * width * inner) + layers * 2 * width**2
    per_target = layers * (6 * width**2 + 2 * width * inner) + width * vocabulary
    attention = 12 * layers * width * (source**2).sum()
    return float(6 * per_source * source.sum() + 6 * per_target * target.sum() + attention)


ROWS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "train_bf16": train_bf16,
    "train_fp32": train_fp32,
    "train_processes": train_processes,
    "checkpoint": checkpoint,
    "storage": storage,
    "rouge": rouge,
    "generate": generate,
    "rnn": rnn,
    "cnn": cnn,
    "gpt": gpt,
    "rows": million_rows,
}


def write_table(results: list[dict[str, Any]]) -> None:
    """Put the table between its marks in README.md."""
    lines = ["| what | peer | ours | theirs | unit | ratio | spread | machine |", "|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['name']} | {r['peer']} | {r['ours']:,} | {r['theirs']:,} | {r['unit']} | **{r['ratio']:.2f}×** | {r['spread']} | {r['machine']} |"
        for r in results
    ]
    text = README.read_text(encoding="utf-8")
    block = "<!-- bench -->\n" + "\n".join(lines) + "\n<!-- /bench -->"
    README.write_text(
        re.sub(r"<!-- bench -->.*<!-- /bench -->", lambda _: block, text, flags=re.DOTALL), encoding="utf-8"
    )


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None
    if only and only not in ROWS:
        sys.exit(f"no benchmark {only!r}; known: {', '.join(ROWS)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    for name, measure in ROWS.items():
        if only in (None, name):
            print(f"{name} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="hanflow-bench-") as place:
                fresh = measure(Path(place))
            keys = {(r["name"], r["peer"], r["machine"]) for r in fresh}
            results = [r for r in results if (r["name"], r["peer"], r["machine"]) not in keys] + fresh
            RESULTS.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            write_table(results)
    for r in results:
        print(f"{r['name']}: {r['ratio']:.2f}× {r['peer']} ({r['ours']:,} against {r['theirs']:,} {r['unit']})")


if __name__ == "__main__":
    main()
