"""A process that has everything imported and warm, and runs each `sqat` command in a fork of itself: a start costs
milliseconds, not seconds. With shim.c preloaded, it can have the command stopped at its n-th change to the disk.

It reads requests from standard input, a JSON object a line, and answers with one each.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

ACTIONS = {"count": 0, "kill": 1, "fail": 2, "signal": 3}


def main():
    import torch

    torch.set_num_threads(1)
    warm_up(Path.cwd())
    for line in sys.stdin:
        request = json.loads(line)
        for name in request["modules"]:
            importlib.import_module(name)
        print(json.dumps(answer(request)), flush=True)


def warm_up(folder):
    """Run the small run once, so that forks find all compiled loops in memory. No threads are left by it."""
    from sqat.cli.train import read_run
    from sqat.train import start_run

    config = read_run(str(folder / "config.yaml"), [f"data.cache_dir={folder / 'cache'}", "train.max_steps=2"])
    start_run(config, folder / "run").train()


def answer(request):
    """Run a command to its end, or to that of `seconds`, when it is killed."""
    child = os.fork()
    if not child:
        become(request)
    watched = os.pidfd_open(child)
    try:
        if request.get("seconds") is not None and not select.select([watched], [], [], request["seconds"])[0]:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(watched)
    _, status, used = os.wait4(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime}


def become(request):
    """Be the command; does not return."""
    os.chdir(request["folder"])
    os.environ.update(request.get("environment", {}))
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["sqat", *request["command"]]
    prepare(request)
    from sqat.cli import main as command

    end_as(command)


def prepare(request):
    """Whatever shall go wrong; and the runs of a comparison are forks."""
    if runner := sys.modules.get("sqat.compare.runner"):
        forks = SimpleNamespace(Popen=ForkedRun, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
        setattr(runner, "subprocess", forks)  # noqa: B010
    trace = os.open(request["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    if code := request.get("before"):
        exec(code, {})  # written in the test that asks
    shim = ctypes.CDLL(None)
    if hasattr(shim, "fault_arm"):
        fault = request["fault"]
        numbers = (ACTIONS[fault["action"]], ctypes.c_long(fault.get("at", 0)), fault.get("value", 0))
        shim.fault_arm(request["root"].encode(), *numbers, ctypes.c_long(fault.get("again", 0)), trace)


def end_as(function):
    """End this process as Python would after `function`."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


class ForkedRun:
    """As `subprocess.Popen`, for the runs of a comparison: a fork that is what `python -m sqat.compare.run` would be,
    without the seconds that importing everything takes.
    """

    def __init__(self, command, *, stdout, **_):
        assert command[1:3] == ["-m", "sqat.compare.run"]
        self.returncode: int | None = None
        theirs, self.stdin = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            return
        os.setsid()
        for old, new in ((theirs, 0), (stdout.fileno(), 1), (stdout.fileno(), 2)):
            os.dup2(old, new)
        for name in os.listdir("/proc/self/fd"):  # as exec does
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:
                    continue
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        shim = ctypes.CDLL(None)
        if hasattr(shim, "fault_arm"):
            shim.fault_arm(b"", 0, 0, 0, 0, -1)  # the fault is the comparison's own
        sys.argv = command[2:]
        from sqat.compare import run

        end_as(run.main)

    def poll(self):
        return self._reap(os.WNOHANG)

    def wait(self):
        return self._reap(0)

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _reap(self, flags):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                os.close(self.stdin)
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
