"""A process that does jobs, watched: one that hangs or dies is a finding, and the next job gets a new process."""

import multiprocessing
import os
from collections.abc import Callable

from .plan import Finding, Job, Result


class Worker:
    """
    Args:
        run: what to do with a job; a function that a new process can import.
    """

    def __init__(self, run: Callable[[Job], Result]):
        self.run = run
        self.process = None

    def do(self, job: Job) -> Result:
        """The job's result; with a finding of all of its texts if it does not end, or ends the process."""
        if self.process is None:
            # Python's own start of a process would import the program again; a fork is no friend of threads.
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.run, other), daemon=True)
            self.process.start()
            other.close()
            self.pipe.recv()  # it has imported what it needs: that is not the first job's time
        self.pipe.send(job)
        try:
            if self.pipe.poll(job.limit):
                return self.pipe.recv()
            error = f"no end after {job.limit:.0f} s"
        except (EOFError, ConnectionResetError):
            self.process.join()
            error = f"the process died (exit code {self.process.exitcode})"
        self.stop()
        texts = job.texts()
        return Result(findings=[Finding(job.part, f"{error}: {job}", [text for _, text in texts], job.name)])

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(run: Callable[[Job], Result], pipe):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # rates are those of one core
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:  # the run is over
            return
        pipe.send(run(job))
