"""The training loop: steps, evaluations, checkpoints, records and resume, for one model or for several that
are trained in turns, so that all see the same machine load.

    out/run.json                        settings, and whether the run is finished (``tools.run_dir``)
    out/<name>/records.jsonl            one line per step and per evaluation
    out/<name>/checkpoints/step-...     see ``checkpoint``
"""

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minimoe.data.corpus import Corpus
from minimoe.distributed.errors import Interrupted, TrainingError
from minimoe.distributed.strategy import SingleProcess
from minimoe.models.gpt import GPT
from minimoe.tools import records
from minimoe.tools.allocator import keep_freed_memory
from minimoe.tools.files import write_atomically
from minimoe.tools.machine import describe_machine
from minimoe.training import checkpoint
from minimoe.training.config import TrainConfig
from minimoe.training.metrics import Evaluation, evaluation_record, step_record
from minimoe.training.progress import Display, Silent
from minimoe.training.trainer import Trainer


def train(
    model: GPT,
    corpus: Corpus,
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    device: str = "cpu",
    resume: bool = False,
    display: Display | None = None,
    strategy: SingleProcess | None = None,
) -> list[Evaluation]:
    """Train a model and return its evaluations, the last of them after the last step.

    Args:
        out: folder for records and checkpoints; None writes nothing.
        resume: continue from the newest checkpoint in ``out``; on a CPU bit-identical to a run that was
            never interrupted. Evaluations before the checkpoint are not returned again.
        strategy: ``DataExpertParallel`` where several processes train the model, each calling this.

    Raises:
        TrainingError, CheckpointError: with the remedy. Interrupted: Ctrl-C, after a checkpoint was saved.
    """
    strategy = SingleProcess() if strategy is None else strategy
    network = strategy.wrap_model(model.to(device), config.batch_size)
    trainer = Trainer(network, corpus, config, device, strategy)
    folders = {"model": Path(out)} if out is not None else {}
    return train_in_turns({"model": trainer}, folders, resume=resume, display=display)["model"]


def train_in_turns(
    trainers: Mapping[str, Trainer],
    folders: Mapping[str, Path],
    *,
    resume: bool = False,
    display: Display | None = None,
) -> dict[str, list[Evaluation]]:
    """Train several models, one step of each in turn, each for its own ``config.steps`` -> their evaluations.

    Args:
        folders: where each model's records and checkpoints go; without a folder nothing is written.
    """
    keep_freed_memory()
    display = display or Silent()
    evaluations: dict[str, list[Evaluation]] = {name: [] for name in trainers}
    for name, folder in folders.items():
        _open(folder, trainers[name], resume)
    with display, _interruptible() as stop:
        display.start(trainers)
        while waiting := [n for n, t in trainers.items() if t.step < t.config.steps]:
            # After a kill some may be one step ahead: the others catch up first.
            name = min(waiting, key=lambda n: trainers[n].step)
            evaluations[name] += _turn(name, trainers[name], folders.get(name), display)
            if trainers[name].strategy.any_rank(stop.is_set()):
                for other, folder in folders.items():
                    checkpoint.save(folder / "checkpoints", trainers[other])
                raise Interrupted
    return evaluations


def _turn(name: str, trainer: Trainer, folder: Path | None, display: Display) -> list[Evaluation]:
    """One step of one model, with the evaluation and checkpoint due after it -> the evaluation, if any."""
    config, evaluations = trainer.config, []
    last = trainer.step + 1 == config.steps
    step = trainer.train_step()
    display.step(name, step)
    _record(folder, trainer, step_record(step))
    if last or trainer.step % config.eval_every == 0:
        evaluations.append(trainer.evaluate())
        display.evaluation(name, evaluations[0])
        _record(folder, trainer, evaluation_record(evaluations[0]))
    if folder is not None and (last or trainer.step % config.checkpoint_every == 0):
        checkpoint.save(folder / "checkpoints", trainer)
    return evaluations


def _open(folder: Path, trainer: Trainer, resume: bool) -> None:
    """Prepare a run's folder: restore the newest checkpoint, or start the records."""
    newest = trainer.strategy.run_on_rank0(lambda: _claim(folder, trainer, resume))
    if newest is not None:
        checkpoint.restore(newest, trainer)
        trainer.strategy.run_on_rank0(lambda: records.truncate_after(folder / "records.jsonl", trainer.step))
        return
    header = {
        "kind": "run",
        **trainer.settings(),
        "bf16": trainer.bf16,
        "domains": dict(zip(trainer.corpus.domains, trainer.corpus.sources, strict=True)),
        "machine": describe_machine(trainer.device),
    }
    trainer.strategy.run_on_rank0(lambda: write_atomically(folder / "records.jsonl", ""))
    _record(folder, trainer, header)


def _claim(folder: Path, trainer: Trainer, resume: bool) -> Path | None:
    """The checkpoint to resume from, or None.

    Raises:
        TrainingError: the folder holds a run already, or the disk is too full for the checkpoints.
    """
    newest = checkpoint.latest(folder / "checkpoints")
    if not resume and (newest or (folder / "records.jsonl").exists()):
        raise TrainingError(f"{folder} already holds a run; resume it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = checkpoint.needed_bytes(trainer), shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"checkpoints need {needed / 1e6:,.0f} MB in {folder}, but only {free / 1e6:,.0f} MB are free; "
            "free some space or choose another --out"
        )
    return newest


def _record(folder: Path | None, trainer: Trainer, record: records.Record) -> None:
    if folder is None or not trainer.strategy.is_rank0:
        return
    try:
        records.append(folder / "records.jsonl", record | {"data": trainer.corpus.fingerprint})
    except OSError as error:
        newest = checkpoint.latest(folder / "checkpoints")
        saved = f"{newest} is intact" if newest else "no checkpoint was due yet"
        raise TrainingError(
            f"could not write {folder / 'records.jsonl'} at step {trainer.step} ({error}); {saved}. "
            "Free some space and resume"
        ) from error


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that the loop checks between steps. A second Ctrl-C raises
    KeyboardInterrupt as usual. Outside the main thread signals cannot be caught and keep their handlers."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous[signal.SIGINT])
        stop.set()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
