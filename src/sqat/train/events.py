"""TensorBoard's event files, written as they are told.

TensorBoard's own writer hands events to a thread. What the system refuses is printed by that thread as a traceback,
and raised later, where something else is done. Here it is an OSError of the call that wrote.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """A new file in a folder, which is made if need be.

    Args:
        first_step: what files of earlier starts say of this step and later ones is forgotten.

    Raises:
        OSError: it cannot be made; so do the methods where the system refuses.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"  # TensorBoard reads them in their order
        self._file = open(folder / f"events.out.tfevents.{name}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        try:
            self._add(0, file_version="brain.Event:2")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(first_step, session_log=started)
            self._file.flush()
        except BaseException:
            self.close()
            raise

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write figures of a step."""
        from tensorboard.compat.proto import summary_pb2

        values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(step, summary=summary_pb2.Summary(value=values))
        self._file.flush()

    def flush(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """What was written is in the file already."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
