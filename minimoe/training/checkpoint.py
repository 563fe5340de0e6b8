"""Checkpoints: tensors in safetensors, everything else in plain JSON, no pickle.

    checkpoints/step-00000200/
        model.safetensors      the weights to use (the averaged ones if the run averages)
        training.safetensors   raw weights, optimizer moments, random generator states
        state.json             step, configurations, data fingerprint, a checksum of each file

A checkpoint is written under a temporary name and then renamed, so it exists completely or not at all. The
last two are kept.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimoe.cost import parameters
from minimoe.models.config import ModelConfig
from minimoe.models.gpt import GPT
from minimoe.tools.files import checksum, flush, json_checksum, write_atomically
from minimoe.tools.settings import first_difference
from minimoe.training.trainer import Trainer

FORMAT = 1

KEEP = 2

EXTRA = "kept."  # prefix of the names of ``Trainer.extra_state``


class CheckpointError(ValueError):
    """A checkpoint could not be written or read, or does not fit; the message says what to do."""


def save(folder: Path, trainer: Trainer) -> Path:
    """Write the trainer's whole state to a folder in ``folder`` and keep only one older checkpoint.

    Where several processes train one model, rank 0 writes the gathered state.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are intact.
    """
    tensors = {
        "model": trainer.strategy.gather_experts(_model_tensors(trainer)),
        "training": trainer.strategy.gather_experts(_training_tensors(trainer)),
    }
    return trainer.strategy.run_on_rank0(lambda: _write(folder, trainer, tensors))


def _write(folder: Path, trainer: Trainer, tensors: dict[str, dict[str, Tensor]]) -> Path:
    final = folder / f"step-{trainer.step:08d}"
    if final.exists():  # a resumed run that has not taken a step yet
        return final
    temporary = folder / f"{final.name}.tmp"
    try:
        for unfinished in folder.glob("*.tmp"):  # left by a kill
            shutil.rmtree(unfinished)
        temporary.mkdir(parents=True)
        checksums = {}
        for name, content in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file(content, path)
            flush(path)
            checksums[path.name] = checksum(path)
        state: dict[str, Any] = {
            "format": FORMAT,
            "step": trainer.step,
            "bf16": trainer.bf16,
            **trainer.settings(),
            "data": trainer.corpus.fingerprint,
            "domains": list(trainer.corpus.domains),
            "sha256": checksums,
        }
        checksums["state.json"] = json_checksum(state)
        write_atomically(temporary / "state.json", json.dumps(state, indent=1))
        temporary.rename(final)
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        previous = latest(folder)
        saved = f"{previous.name} is intact" if previous else "there is no earlier one"
        raise CheckpointError(
            f"could not write the checkpoint of step {trainer.step} to {folder} ({error}); {saved}. "
            "Free some space and resume, or choose another --out"
        ) from error
    for old in _all(folder)[:-KEEP]:
        # Renamed first, so that a kill during the removal leaves no incomplete checkpoint.
        shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)
    return final


def needed_bytes(trainer: Trainer) -> int:
    """Estimated disk space of a run's checkpoints at their peak: two kept, one being written."""
    per_parameter = 4 * (4 if trainer.config.average else 3)  # two moments, the weights, their average
    return (KEEP + 1) * per_parameter * parameters(trainer.model.config)


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp" and p.is_dir())


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    return max(_all(folder), default=None)


def restore(path: Path, trainer: Trainer) -> None:
    """Load a checkpoint into a trainer with the same settings.

    Raises:
        CheckpointError: the checkpoint is damaged, or has other settings or other data.
    """
    state = _read_state(path)
    settings = trainer.settings()
    if difference := first_difference({part: state.get(part) for part in settings}, settings):
        raise CheckpointError(
            f"{path} was {difference}; resume with the same settings, or start a new run with another --out"
        )
    if state["data"] != trainer.corpus.fingerprint:
        raise CheckpointError(
            f"{path} was trained on other text (fingerprint {state['data']}, now "
            f"{trainer.corpus.fingerprint}: a package, Python or --data changed); restore the text, or start "
            "a new run with another --out"
        )
    weights = trainer.strategy.shard_experts(_read_tensors(path, "model", state))
    tensors = trainer.strategy.shard_experts(_read_tensors(path, "training", state))
    trainer.model.load_state_dict(weights)
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            if trainer.config.average:
                trainer.average[name].copy_(weights[name])
                parameter.copy_(tensors[f"weights.{name}"])
            slots = {
                slot: tensors[f"optimizer.{slot}.{name}"]
                for slot in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{slot}.{name}" in tensors
            }
            if slots:
                device = trainer.device
                trainer.optimizer.state[parameter] = {s: t.to(device) for s, t in slots.items()}
    extra = {name.removeprefix(EXTRA): t for name, t in tensors.items() if name.startswith(EXTRA)}
    trainer.extra_state = {name: t.to(trainer.device) for name, t in extra.items()}
    torch.set_rng_state(tensors["generator.cpu"])
    if trainer.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator.cuda"], trainer.device)
    trainer.step = state["step"]
    trainer.bf16 = state["bf16"]


def load_model(path: Path, device: str = "cpu") -> GPT:
    """A trained model in eval mode, from a checkpoint or from the newest one of a run's folder.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    checkpoint = path if (path / "state.json").exists() else latest(path / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no checkpoint; train one with `minimoe train --out {path}`")
    state = _read_state(checkpoint)
    model = GPT(ModelConfig(**state["model"]))
    model.load_state_dict(_read_tensors(checkpoint, "model", state))
    return model.to(device).eval()


def _model_tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = dict(trainer.model.state_dict())
    if trainer.config.average:
        tensors |= trainer.average
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _training_tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {"generator.cpu": torch.get_rng_state()}
    tensors |= {EXTRA + name: tensor for name, tensor in trainer.extra_state.items()}
    if trainer.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(trainer.device)
    for name, parameter in trainer.parameters.items():
        if trainer.config.average:
            tensors[f"weights.{name}"] = parameter.detach()
        for slot, tensor in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{name}"] = tensor
    return tensors


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        intact = state["sha256"].pop("state.json") == json_checksum(state)
        version = state["format"]
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(_damaged(path, f"state.json: {error}")) from error
    if not intact:
        raise CheckpointError(_damaged(path, "state.json does not match its checksum"))
    if version != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version}, this version reads {FORMAT}")
    return state


def _read_tensors(path: Path, name: str, state: dict[str, Any]) -> dict[str, Tensor]:
    file = path / f"{name}.safetensors"
    try:
        if checksum(file) != state["sha256"][file.name]:
            raise CheckpointError(_damaged(path, f"{file.name} does not match its checksum"))
        return load_file(file)
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(_damaged(path, f"{file.name}: {error}")) from error


def _damaged(path: Path, what: str) -> str:
    others = [p.name for p in _all(path.parent) if p != path]
    remedy = f"remove it to resume from {others[-1]}" if others else "there is no other: start a new run"
    return f"the checkpoint {path} is damaged ({what}); {remedy}"
