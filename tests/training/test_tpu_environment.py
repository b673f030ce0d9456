"""What GKE sets in the pods of a slice: a slice that is not the expected one is refused before anything is computed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.training.backends.tpu import TpuEnvironment
from hanflow.training.optimizer import TracedAdamW, make_optimizer

HOSTS = ",".join(f"slice-0-{n}.hanflow" for n in range(4))
SHAPE = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "max_position_embeddings": 1026,
}
V4_32 = {"PJRT_DEVICE": "TPU", "TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": HOSTS, "TPU_TOPOLOGY": "2x2x4"}


def test_a_slice_as_gke_describes_it() -> None:
    slice_ = TpuEnvironment.read(V4_32)
    assert (slice_.rank, slice_.hosts, slice_.topology) == (2, 4, "2x2x4")
    assert slice_.rendezvous == "tcp://slice-0-0.hanflow:8478"
    assert slice_.problem("2x2x4", 16, 4) is None and slice_.problem("", 16, 4) is None


def test_several_slices() -> None:
    megascale = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "slice-0-0.hanflow:8080",
    }
    slice_ = TpuEnvironment.read({**V4_32, **megascale})
    assert (slice_.rank, slice_.hosts, slice_.rendezvous) == (6, 8, "tcp://slice-0-0.hanflow:8478")
    assert slice_.problem("2x2x4", 32, 8) is None
    assert "32 chips in 2 slices" in str(slice_.problem("2x2x4", 16, 8))
    with pytest.raises(ValueError, match="MEGASCALE_NUM_SLICES=2 does not fit MEGASCALE_SLICE_ID=2"):
        TpuEnvironment.read({**V4_32, **megascale, "MEGASCALE_SLICE_ID": "2"})


def test_outside_of_a_slice_nothing_is_expected() -> None:
    nowhere = TpuEnvironment.read({"PJRT_DEVICE": "CPU"})
    assert nowhere.problem("", 4, 1) is None and nowhere.hosts == 1 and nowhere.rank == 0


@pytest.mark.parametrize(
    ("expected", "devices", "processes", "reported"),
    [
        ("2x4x4", 16, 4, "this slice is 2x2x4 (TPU_TOPOLOGY); change the setting, or the node selector"),
        ("2x2x4", 12, 3, "names 4 hosts (1 slices), the runtime found 3 processes"),
        ("2x2x4", 15, 4, "has 16 chips in 1 slices, the runtime found 15 devices in 4 processes (PJRT_DEVICE=TPU)"),
        ("", 15, 4, "TPU_TOPOLOGY=2x2x4 has 16 chips"),
        ("v4-32", 16, 4, "expected chips along each side, e.g. 2x2x4"),
    ],
)
def test_another_slice_is_refused(expected: str, devices: int, processes: int, reported: str) -> None:
    assert reported in str(TpuEnvironment.read(V4_32).problem(expected, devices, processes))


def test_too_few_virtual_devices_name_the_cure() -> None:
    assert "set CPU_NUM_DEVICES=16" in str(TpuEnvironment.read({"PJRT_DEVICE": "CPU"}).problem("2x2x4", 4, 1))


@pytest.mark.parametrize("changed", [{"TPU_WORKER_ID": "4"}, {"TPU_WORKER_ID": "x"}, {"TPU_TOPOLOGY": "2*2*4"}])
def test_variables_that_make_no_sense(changed: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed.values())).replace("*", r"\*")):
        TpuEnvironment.read({**V4_32, **changed})


def test_no_torch_xla_is_reported_with_its_remedy() -> None:
    from hanflow.training.backends.base import open_backend

    try:
        import torch_xla  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'hanflow\[tpu\]'"):
            open_backend(TrainConfig(backend="xla"))
    else:
        pytest.skip("torch_xla is installed here")


def test_the_extras_that_cannot_live_together_are_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert "torch==2.9.0" in extras["tpu"] and "torch_xla[tpu]==2.9.0" in extras["tpu"]
    declared = {frozenset(item["extra"] for item in pair) for pair in project["tool"]["uv"]["conflicts"]}
    assert declared == {frozenset({"tpu", other}) for other in ("cpu", "gpu", "dev")}
    assert extras["cpu"] == extras["gpu"] == ["torch>=2.13.0"], "what pip refuses to join with the tpu extra's torch"


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_traced_optimizer_is_torchs(clip: float) -> None:
    """The same weights and moments as the fused AdamW, a skipped step included."""
    from hanflow.training.backends.torch import TorchBackend

    backend, made = TorchBackend("fp32"), []
    for traced in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3))
        made.append((model, make_optimizer(model, TrainConfig(weight_decay=0.1), traced=traced)))
    for step in range(20):
        for model, optimizer in made:
            torch.manual_seed(step)
            for parameter in model.parameters():  # drawn: computed ones would feed every difference back
                parameter.grad = torch.randn(parameter.shape) * (float("nan") if step == 11 else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * step
            backend.step(optimizer, list(model.parameters()), clip)
    (fused, theirs), (plain, ours) = made
    assert isinstance(ours, TracedAdamW)
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        # float32, 20 steps: the two round in another order
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
        assert theirs.state[a]["step"].item() == ours.state[b]["step"].item() == 19
        for slot in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours.state[b][slot], theirs.state[a][slot], rtol=1e-5, atol=1e-8)


def test_the_tpu_guide_counts_kobarts_parameters() -> None:
    """The guide's tables follow from them."""
    from transformers import BartConfig, BartForConditionalGeneration

    with torch.device("meta"):
        parameters = BartForConditionalGeneration(BartConfig(vocab_size=30_000, **SHAPE)).num_parameters()
    guide = (Path(__file__).parents[2] / "manifests" / "TPU.md").read_text(encoding="utf-8")
    assert f"{parameters / 1e6:.1f} million parameters" in guide
    assert f"{4 * parameters / 1e6:,.0f} MB in float32" in guide, "gradients"
    assert f"{2 * 15 / 16 * 4 * parameters / 1e6:,.0f} MB in the all-reduce" in guide, "of a ring of 16 chips"
