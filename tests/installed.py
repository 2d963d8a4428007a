"""What the wheel promises in an environment that holds nothing else: ``make dist`` runs this.

    python tests/installed.py dist [python3]

Takes the folder of one wheel and one source distribution; installs the wheel in a temporary environment, runs its
commands outside of the tree, asserts what each has left, prints seconds and megabytes, and removes the environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRA = "demo"
PNG = b"\x89PNG\r\n\x1a\n"


class Installed:
    """An environment and an empty folder in which its commands run."""

    def __init__(self, folder: Path, python: str) -> None:
        self.environment, self.work = folder / "environment", folder / "work"
        self.work.mkdir()
        subprocess.run([python, "-m", "venv", str(self.environment)], check=True)

    def install(self, *requirements: str) -> None:
        """Installs with pip, which also checks that what it has installed fits together."""
        pip = [str(self.environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *requirements], check=True, cwd=self.work)
        subprocess.run([*pip, "check"], check=True, cwd=self.work, stdout=subprocess.DEVNULL)

    def run(self, *command: str, code: int = 0) -> str:
        """Runs a command of the environment, prints its seconds, and returns its output."""
        start = time.perf_counter()
        path = self.environment / "bin" / command[0]
        done = subprocess.run([path, *command[1:]], cwd=self.work, capture_output=True, text=True, check=False)
        print(f"  {time.perf_counter() - start:6.1f} s  {' '.join(command)}", flush=True)
        assert done.returncode == code, f"exit code {done.returncode} instead of {code}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def left(self, pattern: str) -> list[Path]:
        """The files of that name in the folder; there is one, and none is empty."""
        found = sorted(self.work.glob(pattern))
        assert found, f"there is no {pattern}"
        assert all(path.stat().st_size for path in found), f"one of {pattern} is empty"
        return found


def megabytes(path: Path) -> float:
    """What a file or a folder holds, in units of a million bytes."""
    files = [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(file.stat().st_size for file in files) / 1e6


def source_is_whole(source: Path, wheel: Path) -> None:
    """The source distribution holds the tree that builds the wheel and tests it, and nothing that git ignores."""
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    missing = {name for name in listed if name and (ROOT / name).exists()} - held
    assert not missing, f"{source.name} lacks {sorted(missing)[:5]}"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if "dist-info" not in name}
    unpacked = {f"lightning_explain/{name}" for name in held if name.startswith(("configs/", "examples/"))} | held
    assert packed <= unpacked, f"only {wheel.name} has {sorted(packed - unpacked)[:5]}"


def is_the_wheel(installed: Installed) -> None:
    """What is imported comes from the environment; both ways to call it are one."""
    where = installed.run("python", "-c", "import lightning_explain; print(lightning_explain.__file__)")
    assert Path(where.strip()).is_relative_to(installed.environment.resolve()), where
    assert installed.run("python", "-m", "lightning_explain", "--version") == installed.run(
        "lightning-explain", "--version"
    )


def demo_runs(installed: Installed) -> None:
    """The demo catches the shortcut, and leaves a dashboard, pictures, reports and a page; ``report`` writes the page again."""
    told = installed.run("lightning-explain", "demo")
    assert "accuracy, no help from" in told, told
    for run in ("marked", "clean"):
        assert all(path.read_bytes().startswith(PNG) for path in installed.left(f"demo_runs/{run}/*/pictures/*.png"))
        installed.left(f"demo_runs/{run}/*/events.out.tfevents.*")
        installed.left(f"demo_runs/{run}/*/explain/step=*.safetensors")
    installed.left("demo_runs/page.html")
    runs = [str(next(iter(installed.left(f"demo_runs/{run}/*/explain"))).parent) for run in ("marked", "clean")]
    installed.run("lightning-explain", "report", *runs, "--output", "again.html")
    assert "</html>" in installed.left("again.html")[0].read_text(encoding="utf-8")
    for run, code in zip(runs, (1, 0), strict=True):
        installed.run("lightning-explain", "check", run, "--fail-if", "relevance_mass/ig > 0.3", code=code)


def methods_are_listed(installed: Installed) -> None:
    """``methods`` lists every class, and describes one; ``doctor`` judges each on a model that is given by name."""
    code = "from lightning_explain import methods; import json; print(json.dumps(methods.__all__))"
    names = json.loads(installed.run("python", "-c", code))
    listed = json.loads(installed.run("lightning-explain", "methods", "--format", "json"))["methods"]
    assert {method["name"] for method in listed} == set(names), listed
    assert "Sundararajan" in installed.run("lightning-explain", "methods", "IntegratedGradients")
    doctor = ("doctor", "torchvision.models:resnet18", "--input-shape", "3,64,64", "--format", "json")
    verdicts = json.loads(installed.run("lightning-explain", *doctor, code=1))
    assert {verdict["state"] for verdict in verdicts} == {"fine", "refused"}, verdicts


def examples_run(installed: Installed, wheel: str) -> None:
    """Examples name the extra that they lack, and run with it."""
    installed.run("lightning-explain", "examples", "--copy", ".")
    installed.left("examples/*.py")
    told = installed.run("lightning-explain", "doctor", "examples/doctor.yaml", code=2)
    assert "pip install 'lightning-explain[hydra]'" in told, told
    installed.install(f"{wheel}[hydra]")
    assert "ig" in installed.run("lightning-explain", "doctor", "examples/doctor.yaml")
    small = ("monitor=fast", "trainer=fast", "logger=csv", "hydra.run.dir=job")
    installed.run("python", "examples/train.py", *small)
    installed.left("job/csv/explain/step=*.safetensors")


def main(folder: Path, python: str = sys.executable) -> None:
    """Installs the wheel of a folder, runs it, and prints seconds and megabytes."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    source_is_whole(source, wheel)
    with tempfile.TemporaryDirectory() as temporary:
        installed = Installed(Path(temporary), python)
        start = time.perf_counter()
        installed.install(f"{wheel.resolve()}[{EXTRA}]")
        print(f"  {time.perf_counter() - start:6.1f} s  pip install '{wheel.name}[{EXTRA}]'", flush=True)
        for check in (is_the_wheel, demo_runs, methods_are_listed):
            check(installed)
        sizes = {"installed": installed.environment, "the wheel": wheel, "the source": source}
        figures = [f"{megabytes(path):.1f} MB {name}" for name, path in sizes.items()]
        examples_run(installed, str(wheel.resolve()))
    print(", ".join(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
