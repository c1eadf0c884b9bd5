"""
Run commands one after another in a Python process that imitates another operating system:

    python tests/support/elsewhere.py SYSTEM '[["train", ["--config", ...]], ...]'

- `windows`: no `fcntl` and `resource`, no affinity, no `preexec_fn`; open files cannot be renamed, replaced or
  removed; processes are spawned.
- `macos`: `RLIMIT_AS` cannot be set, no affinity; processes are spawned.
- `linux`: no changes.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path


WITHOUT = ("fcntl", "resource", "grp", "pwd", "termios", "tty", "pty")  # modules that Python on Windows does not have
HIDDEN = ("fcntl", "resource")  # those that can be hidden here: other packages need the rest on Linux


def as_on(system):
    """Make this process imitate another system. Call it before any other import."""
    if system == "linux":
        return
    for name in ("sched_getaffinity", "sched_setaffinity"):
        delattr(os, name)
    multiprocessing.set_start_method("spawn")
    if system == "macos":
        import resource

        def refuse(kind, limits):
            raise ValueError("current limit exceeds maximum limit")

        resource.setrlimit = refuse
        return
    import psutil  # noqa: F401  imported before `resource` is hidden: it sees that this is Linux, and needs it

    for name in HIDDEN:
        sys.modules[name] = None  # makes its import an ImportError
    start = subprocess.Popen.__init__

    def without_preexec(self, *arguments, preexec_fn=None, **options):
        if preexec_fn is not None:
            raise ValueError("preexec_fn is not supported on Windows platforms")
        start(self, *arguments, **options)

    subprocess.Popen.__init__ = without_preexec
    sys.addaudithook(refuse_open_files)


def refuse_open_files(event, values):
    """Refuse operations that Windows refuses on open files."""
    if event in ("os.rename", "os.remove"):
        places = [os.path.realpath(os.fspath(path)) for path in values[:2] if isinstance(path, str | os.PathLike)]
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                held = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if any(held == place or held.startswith(place + os.sep) for place in places):
                raise PermissionError(13, f"{event}: the process has this file open", held)


def main():
    as_on(sys.argv[1])
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "space")]
    for command, arguments in json.loads(sys.argv[2]):
        if command == "reading":
            sys.argv = ["reading.py", *arguments]
            import_module("reading").main()
        else:
            import_module("training.common.start").run(lambda: import_module(f"training.{command}").main(arguments))  # noqa: B023


if __name__ == "__main__":
    main()
