"""A model's and its optimizer's tensors by name, as a checkpoint holds them."""

from __future__ import annotations

import torch


def in_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that processors can read: those of a CPU or a GPU themselves, a TPU's as copies."""
    return {name: t.detach().cpu() if t.device.type == "xla" else t.detach() for name, t in tensors.items()}


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in main memory, which training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → tensor of every parameter and persistent buffer; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter>/<slot>` → tensor of the optimizer's state."""
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Put what `optimizer_tensors` gave into an optimizer of the same model, in the shapes that it has already."""
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in saved.items():
        name, _, slot = key.rpartition("/")
        slots.setdefault(name, {})[slot] = value
    for name, values in slots.items():
        parameter = parameters[name]
        present = optimizer.state.get(parameter, {})
        optimizer.state[parameter] = {
            slot: value.reshape(present[slot].shape if slot in present else value.shape).to(parameter.device)
            for slot, value in values.items()
        }
