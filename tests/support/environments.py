"""Make virtual environments with other versions of the libraries, to test published folders in them."""

import subprocess
import sys
from pathlib import Path


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """
    Create a virtual environment at `folder` with `requirements`, unless it is there already. Returns its interpreter.

    Raises:
        ValueError: pip failed; the message is the last line of its output.
    """
    python, complete = folder / "bin" / "python", folder / "requirements.txt"
    lines = "\n".join(requirements) + "\n"
    if not complete.is_file() or complete.read_text() != lines:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"{folder}: pip install {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1]}")
        complete.write_text(lines)
    return python
