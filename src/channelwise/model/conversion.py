"""Putting a part of a checkpoint into a model as transformers itself would: renaming, fusing, casting, tying.

All that is used of transformers beyond its documented interface stands in this file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig


@dataclass(frozen=True)
class Target:
    """Where a checkpoint's tensor goes: a name in the model, the first of several; converted or only renamed."""

    name: str
    is_converted: bool


class Deferred:
    """A tensor that is made when transformers takes all of it, `deferred[...]`, and not before."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __getitem__(self, _index: Any) -> torch.Tensor:
        made: torch.Tensor = self.make()
        return made


class Part:
    """What transformers is shown instead of the model: its state dict is the part's alone, all else is the model's.

    A call then costs as much as the part, and what other parts hold is neither read nor missed.
    """

    def __init__(self, model: nn.Module, entries: Mapping[str, torch.Tensor]) -> None:
        self.__dict__.update(_model=model, _entries=dict(entries))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The part's parameters and buffers, by their full names."""
        return self._entries

    def named_buffers(self) -> list[tuple[str, torch.Tensor]]:
        """None: they only matter for weights that are kept on disk."""
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What stands in the model itself, below no module, is put there; notes about the call stay here."""
        if name in self._entries:
            setattr(self._model, name, value)
        else:
            self.__dict__[name] = value


def targets_of(model: Any, keys: Iterable[str], entries: Mapping[str, torch.Tensor]) -> dict[str, Target]:
    """Where each of a checkpoint's keys goes; keys that the model has no use for are left out.

    entries: the model's state dict, which a key's name must be found in.
    """
    conversions = model._weight_conversions
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    prefix, names = model.base_model_prefix, dict(entries)
    targets = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], prefix, names)
        if name in names:
            targets[key] = Target(name, pattern is not None)
    return targets


def put_in_place(model: Any, entries: Mapping[str, torch.Tensor], tensors: Mapping[str, Any]) -> str | None:
    """Puts tensors under the checkpoint's keys into the model, in the dtypes of `entries`; what went wrong, or None.

    entries: the state dict of the part of the model that the tensors are for, on the meta device.
    """
    # Without a dtype and a plan of dtypes, each tensor takes that of its entry.
    config = LoadStateDictConfig(weight_mapping=model._weight_conversions)
    part: Any = Part(model, entries)
    info, _ = convert_and_load_state_dict_in_model(part, dict(tensors), config, None)
    if info.conversion_errors:
        name, error = next(iter(info.conversion_errors.items()))
        return f"{name} cannot be made of what is stored ({str(error).strip().splitlines()[-1]})"
    for name, stored, expected in sorted(info.mismatched_keys):
        return f"{name} is {tuple(stored)} where {tuple(expected)} is expected"
    return None


def tied_names(model: Any) -> dict[str, str]:
    """The model's tied weights, target to source, by full names."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def tie(model: Any, names: Iterable[str], missing: Iterable[str]) -> None:
    """Ties those of the model's tied weights whose targets are among `names`.

    missing: what the checkpoint lacks. A weight that it holds twice, with different values, is no longer tied.
    """
    every, chosen = tied_names(model), set(names)
    model.all_tied_weights_keys = {target: source for target, source in every.items() if target in chosen}
    try:
        model.tie_weights(missing_keys=set(missing), recompute_mapping=False)
    finally:
        others = {target: source for target, source in every.items() if target not in chosen}
        model.all_tied_weights_keys |= others


def make_initial(model: Any, names: Iterable[str]) -> None:
    """Gives parameters and buffers on the meta device the values that a new model has; always the same, on the CPU.

    Nothing else changes: transformers leaves alone what is marked as loaded, and all else on meta is.
    """
    names = list(names)
    if not names:
        return
    made: list[Any] = []
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = torch.empty_like(module._buffers[leaf], device="cpu")
            made.append(module._buffers[leaf])
        else:
            empty = torch.empty_like(module._parameters[leaf], device="cpu")
            module._parameters[leaf] = nn.Parameter(empty, requires_grad=False)
            made.append(module._parameters[leaf])
    for module in model.modules():
        module._is_hf_initialized = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.initialize_weights()
    for tensor in made:
        tensor._is_hf_initialized = True


def without_values(model: Any) -> list[str]:
    """Buffers that no checkpoint holds, by full names."""
    return [name for name, _ in model.named_non_persistent_buffers()]


def generation_config(folder: Path) -> GenerationConfig:
    """How the model generates, from its own file or else from what its config says of it."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
