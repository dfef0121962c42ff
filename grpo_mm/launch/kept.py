"""Runs a command that ends with whoever started it: `python kept.py FD COMMAND…`, with a pipe at the standard input.

A line on the standard input is the number of a signal for the command; the end of the input, which comes when the other process is
gone however it went, kills the command and what it started. Its number, and at its end its exit code (minus the signal that ended
it), go to the file descriptor FD. Where this process itself is killed, as Ray kills what a lost worker has started, the command dies with
it. Nothing of the package is imported: this process is there as long as the command is.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux; its parent is the thread that started it, which waits for it."""


def main() -> None:
    told, command = int(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the command would inherit
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks SIGINT in all that it starts
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_dies_with_us)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", flush=True)
        os.write(told, b"0\n127\n")
        return
    os.write(told, f"{child.pid}\n".encode())
    threading.Thread(target=_listen, args=(child,), daemon=True).start()
    code = child.wait()
    _kill(child)  # what it has left behind
    os.write(told, f"{code}\n".encode())
    os._exit(0)  # the thread reads on


def _listen(child: subprocess.Popen) -> None:
    with open(0, "rb", buffering=0) as asked:
        while said := asked.read(64):
            for number in said.split():
                child.send_signal(int(number))
    _kill(child)


def _dies_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _kill(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing is left
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
