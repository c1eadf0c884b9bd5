"""Run jobs in a watched process. A job that hangs or dies is a finding, and the next one gets a new process."""

import multiprocessing
import os
from collections.abc import Callable

from .plan import Finding, Job, Result


class Worker:
    """
    Args:
        run: the function that runs a job; a new process must be able to import it.
    """

    def __init__(self, run: Callable[[Job], Result]):
        self.run = run
        self.process = None

    def do(self, job: Job) -> Result:
        """Run a job. Returns its result, or a finding with all its texts if the job hangs or its process dies."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")  # a fork is unsafe with threads
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.run, other), daemon=True)
            self.process.start()
            other.close()
            self.pipe.recv()  # wait for its imports: they must not count for the first job
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # measure the rates of one core
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:  # the run is over
            return
        pipe.send(run(job))
