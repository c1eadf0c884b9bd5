"""Jobs that go wrong, for the tests of what watches them: a module that a new process imports in no time."""

import os
import signal
import time
from collections import Counter

from fuzz.plan import Job, Result


def run(job: Job) -> Result:
    """Hangs, dies or ends, by the job's number."""
    if job.number == 1:
        time.sleep(600)
    if job.number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Result(Counter(done=1))
