"""Jobs that go wrong, for the tests of the worker; a module of its own, so that a new process imports it fast."""

import os
import signal
import time
from collections import Counter

from fuzz.plan import Job, Result


def run(job: Job) -> Result:
    """Hang, die or end, according to the job's number."""
    if job.number == 1:
        time.sleep(600)
    if job.number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Result(Counter(done=1))
