"""RxNN's callback that saves a model and puts it on the Hub.

What cannot be written is an error. What cannot be uploaded is told of and tried again; its folder stays, and the run
goes on.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from rxnn.training.trainer_callback import TrainerCallback
from sqat.checkpoint.store import write_folder
from sqat.config import require, require_positive
from sqat.durable import remove_folder
from sqat.errors import CheckpointError
from sqat.hub.transfer import require_repo_id, upload

if TYPE_CHECKING:
    from rxnn.experimental.models import ExperimentalAttentionTransformer as Model

FINAL_FOLDER = "final_model"
RETRY_PAUSES = (1, 4, 16)  # seconds, at the end of the training


class Upload(NamedTuple):
    """A folder, and the message of its commit."""

    folder: Path
    message: str


class UploadQueue:
    """Uploads to one repository, in order. One that fails, and those after it, wait for the next, or for the end."""

    def __init__(self, repo_id: str, private: bool, token: str | None, display_exc_trace: bool) -> None:
        self.repo_id = repo_id
        self.private = private
        self.token = token
        self.display_exc_trace = display_exc_trace
        self.waiting: list[Upload] = []

    def add(self, folder: Path, message: str) -> None:
        self.waiting.append(Upload(folder, message))
        self.flush()

    def flush(self) -> None:
        """Upload what waits, until one fails."""
        while self.waiting and self._succeeds(self.waiting[0]):
            del self.waiting[0]

    def finish(self) -> None:
        """Give what waits some more chances, a little apart, and tell what is left."""
        for pause in RETRY_PAUSES:
            if not self.waiting:
                return
            time.sleep(pause)
            self.flush()
        for folder, message in self.waiting:
            print(f"Not uploaded: {folder} ({message})")

    def _succeeds(self, item: Upload) -> bool:
        try:
            upload(item.folder, self.repo_id, item.message, private=self.private, token=self.token)
        except CheckpointError as error:
            if self.display_exc_trace:
                traceback.print_exc()
            print(f"Upload failed: {error}. The files stay in {item.folder}; it will be tried again")
            return False
        print(f"Uploaded {item.folder} to {self.repo_id}")
        return True


class ModelSaveCallback(TrainerCallback):
    """Saves the model after every evaluation that is better than the best so far, and when training is over.

    Args:
        save_dir: the folder for `epoch_…_val_loss_…`, `epoch_…_batch_…` and `final_model`.
        max_keep: newest checkpoints kept of each of the first two kinds, beside those that wait for their upload.
        push_to_hub: also upload, to `hub_model_id`, made (`private_repo`) if need be, with `hf_token`.
        push_checkpoint_weights: upload checkpoints too, not the final model alone.
        final_commit_message: of the final model; "Final model" by default.
        save_checkpoint_after_n_batches: also save every so many batches of an epoch; `push_batch_checkpoint` uploads
            these too.
        display_exc_trace: print the traceback of a failed upload.
        use_ddp: False; training runs in one process.

    Raises:
        ConfigError: an unusable argument.
    """

    def __init__(
        self,
        save_dir: str | Path,
        max_keep: int = 3,
        push_to_hub: bool = False,
        hub_model_id: str | None = None,
        private_repo: bool = False,
        hf_token: str | None = None,
        push_checkpoint_weights: bool = True,
        final_commit_message: str | None = None,
        save_checkpoint_after_n_batches: int | None = None,
        push_batch_checkpoint: bool = False,
        display_exc_trace: bool = False,
        use_ddp: bool = False,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.max_keep = max_keep
        self.push_checkpoint_weights = push_checkpoint_weights
        self.final_commit_message = final_commit_message or "Final model"
        self.save_checkpoint_after_n_batches = save_checkpoint_after_n_batches
        self.push_batch_checkpoint = push_batch_checkpoint
        self.use_ddp = use_ddp
        require_positive(self, "max_keep")
        right = "at least 1, or None"
        every = save_checkpoint_after_n_batches
        require(every is None or every >= 1, self, "save_checkpoint_after_n_batches", right)
        require(not use_ddp, self, "use_ddp", "False: training runs in one process")
        self.uploads: UploadQueue | None = None
        if push_to_hub:
            repo_id = require_repo_id(hub_model_id, "hub_model_id")
            self.uploads = UploadQueue(repo_id, private_repo, hf_token, display_exc_trace)
        self.best_loss = float("inf")
        self.epoch = 0
        self.epoch_checkpoints: list[Path] = []
        self.batch_checkpoints: list[Path] = []

    def on_epoch_start(self, model: Model, epoch: int) -> None:
        self.epoch = epoch

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> None:
        every = self.save_checkpoint_after_n_batches
        if every is None or (batch_idx + 1) % every:
            return
        folder = self._save(model, f"epoch_{self.epoch}_batch_{batch_idx + 1}")
        if self.push_batch_checkpoint:
            self._push(folder, f"Epoch {self.epoch} - Batch {batch_idx + 1}")
        self._keep_newest(self.batch_checkpoints, folder)

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        is_better = val_loss < self.best_loss  # which NaN is not
        if not is_better:
            return
        self.best_loss = val_loss
        folder = self._save(model, f"epoch_{epoch}_val_loss_{val_loss:.4f}")
        if self.push_checkpoint_weights:
            self._push(folder, f"Epoch {epoch} - Val loss {val_loss:.4f}")
        self._keep_newest(self.epoch_checkpoints, folder)

    def on_training_end(self, model: Model) -> None:
        self._push(self._save(model, FINAL_FOLDER), self.final_commit_message)
        if self.uploads is not None:
            self.uploads.finish()

    def _save(self, model: Model, name: str) -> Path:
        folder = self.save_dir / name
        with write_folder(folder) as temporary:  # so that nothing of an earlier run's stays in it
            model.save_pretrained(temporary)
        print(f"Saved {folder}")
        return folder

    def _push(self, folder: Path, message: str) -> None:
        if self.uploads is not None:
            self.uploads.add(folder, message)

    def _keep_newest(self, checkpoints: list[Path], newest: Path) -> None:
        """Add the newest; drop old ones from the list and the disk, but what still waits for its upload."""
        if newest in checkpoints:  # replaced, in a second run with the same callback
            checkpoints.remove(newest)
        checkpoints.append(newest)
        waiting = {item.folder for item in self.uploads.waiting} if self.uploads is not None else set()
        for folder in checkpoints[: -self.max_keep]:
            if folder not in waiting:
                checkpoints.remove(folder)
                remove_folder(folder)
