"""Jobs that hang or crash, for the tests of the worker. A module of its own: a new process imports it fast."""

import os
import signal
import time
from collections import Counter

from fuzz.plan import Job, Result


def run(job: Job) -> Result:
    """Hang if the job's number is 1, crash if it is 2, else succeed."""
    if job.number == 1:
        time.sleep(600)
    if job.number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Result(Counter(done=1))
