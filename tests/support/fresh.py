"""Run code in an isolated Python interpreter: no checkout on sys.path, empty caches, no network."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
# An editable install puts the checkout on sys.path; a user has only the folder.
HIDE = f"""
import sys
ROOT = {str(ROOT)!r}
sys.path[:] = [entry for entry in sys.path if entry and ROOT not in entry or "site-packages" in entry]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
for name in ("modeling_sener", "training"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} can still be imported: this interpreter is not fresh")
"""


def run_fresh(code: str, folder: Path) -> str:
    """Run `code` in a fresh interpreter with `folder` as home and working directory; returns its output."""
    home = folder / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "0",
    }
    environment["HF_MODULES_CACHE"] = str(home / "modules")
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code], cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
