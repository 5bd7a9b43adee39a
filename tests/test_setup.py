"""Tests of setup.sh, and of tools/release.sh, which sources it."""

import os
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = (
    "requirements.txt",
    "requirements-export.txt",
    "requirements-demo.txt",
    "requirements-timm.txt",
    "tests/requirements.txt",
)
LOCK = "requirements.lock"
BASH = shutil.which("bash")
COMMANDS = ("bash", "dirname", "df", "awk", "rm", "cat", "mkdir", "sleep")

# Replaces the Python of an environment. The arguments of pip are logged; pip, Ruff and pytest do
# not run.
PYTHON = f"""#!{BASH}
[ "$WITHOUT_PIP" ] && [[ "$*" = "-c import pip" || "$2" = ensurepip ]] && exit 1
case "$1 $2" in
"-m pip") echo "$@" >> "$(dirname "$0")/../pip.log"; exit "${{PIP_STATUS:-0}}" ;;
"-m ruff" | "-m pytest") exit 0 ;;
esac
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of the scripts with a train.py that prints its arguments."""
    root = tmp_path / "check out"  # a path with a space in it
    (root / "tools").mkdir(parents=True)
    (root / "tests").mkdir()
    for name in ("setup.sh", "train.sh", "tools/release.sh", "tests/run.sh", *REQUIREMENTS, LOCK):
        shutil.copy(ROOT / name, root / name)
    (root / "train.py").write_text("import sys; print('trained', sys.argv[1:])\n")
    return root


@pytest.fixture
def commands(tmp_path):
    """Return a folder with the commands that setup.sh requires, without Python."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def environment(tmp_path):
    """Return an environment whose pip only logs its arguments."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    write_executable(folder / "bin/python", PYTHON)
    return folder


def write_executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


def run(checkout, *argv, path, script="train.sh", **env):
    return subprocess.run(
        [BASH, str(checkout / script), *argv],
        capture_output=True,
        text=True,
        env={"PATH": str(path), **{k: str(v) for k, v in env.items()}},
        check=False,
    )


def pip_calls(environment):
    log = environment / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_the_active_environment_is_used_and_installed_once(checkout, commands, environment):
    for _ in range(2):
        result = run(checkout, "--seed", "1", path=commands, VIRTUAL_ENV=environment)
        assert result.returncode == 0, result.stderr
        assert "trained ['--seed', '1']" in result.stdout
    assert len(pip_calls(environment)) == 1
    with open(checkout / "requirements.txt", "a") as file:
        file.write("# changed\n")
    run(checkout, path=commands, VIRTUAL_ENV=environment)
    assert len(pip_calls(environment)) == 2
    assert not (checkout / ".venv").exists()


def test_a_conda_environment_is_used_except_base(checkout, commands, environment):
    result = run(checkout, path=commands, CONDA_PREFIX=environment, CONDA_DEFAULT_ENV="fer")
    assert "trained" in result.stdout
    result = run(checkout, path=commands, CONDA_PREFIX=environment, CONDA_DEFAULT_ENV="base")
    assert "Python 3.10 or newer was not found" in result.stderr  # for the creation of .venv


@pytest.mark.parametrize("active", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_environment_without_python_is_not_replaced(checkout, commands, environment, active):
    (environment / "bin/python").rename(commands / "python")
    active = {active: environment, "CONDA_DEFAULT_ENV": "fer"}
    result = run(checkout, path=commands, **active)
    assert result.returncode == 1
    assert f"the active environment {environment} has no Python" in result.stderr
    assert not (commands.parent / "pip.log").exists()
    (environment / "Scripts").mkdir()
    (commands / "python").rename(environment / "Scripts/python.exe")  # as on Windows
    assert "trained" in run(checkout, path=commands, **active).stdout


def test_error_without_python(checkout, commands):
    result = run(checkout, path=commands)
    assert result.returncode == 1
    assert result.stderr.startswith("error: Python 3.10 or newer was not found")


def test_error_with_an_old_python(checkout, commands):
    write_executable(commands / "python3", f"#!{BASH}\nexit 1\n")  # the result of `version < 3.10`
    assert "Python 3.10 or newer was not found" in run(checkout, path=commands).stderr


def test_error_with_an_old_python_in_the_active_environment(checkout, commands, environment):
    old = '[ "$1" = --version ] && echo Python 3.9.18 && exit\nexit 1'
    write_executable(environment / "bin/python", f"#!{BASH}\n{old}\n")
    result = run(checkout, path=commands, VIRTUAL_ENV=environment)
    assert result.returncode == 1
    expected = f"{environment} has Python 3.9.18, but Python 3.10 or newer is required"
    assert expected in result.stderr


def test_error_without_the_venv_module(checkout, commands):
    fake = '[[ "$2" = *print* ]] && echo 3.12; [ "$1" = -c ]'
    write_executable(commands / "python3", f"#!{BASH}\n{fake}\n")
    result = run(checkout, path=commands)
    assert result.returncode == 1
    assert "apt install python3.12-venv" in result.stderr
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".venv.lock").exists()


def test_an_environment_is_created_without_ensurepip(checkout, commands, environment):
    fake = f"""case "$*" in
"-m venv --without-pip "*) mkdir -p "$4/bin" && cat "{environment}/bin/python" > "$4/bin/python" &&
  "{shutil.which("chmod")}" +x "$4/bin/python" ;;
"-m pip --python "*) echo "$@" > "{checkout}/pip" ;;
*) [ "$1" = -c ]
esac"""
    write_executable(commands / "python3", f"#!{BASH}\n{fake}\n")
    result = run(checkout, path=commands)
    assert "trained" in result.stdout, result.stderr
    call = (checkout / "pip").read_text()
    assert call == f"-m pip --python {checkout}/.venv/bin/python install --quiet pip\n"
    assert len(pip_calls(checkout / ".venv")) == 1


def test_error_without_a_network_and_retry(checkout, commands, environment):
    result = run(checkout, path=commands, VIRTUAL_ENV=environment, PIP_STATUS=1)
    assert result.returncode == 1
    assert "the packages of requirements.txt could not be installed" in result.stderr
    assert "Check the network connection" in result.stderr
    assert "trained" not in result.stdout
    assert len(pip_calls(environment)) == 1
    assert "trained" in run(checkout, path=commands, VIRTUAL_ENV=environment).stdout
    assert len(pip_calls(environment)) == 2


def test_error_without_pip_and_retry(checkout, commands, environment):
    result = run(checkout, path=commands, VIRTUAL_ENV=environment, WITHOUT_PIP=1)
    assert result.returncode == 1
    assert f"the environment {environment} has no pip" in result.stderr
    assert "trained" in run(checkout, path=commands, VIRTUAL_ENV=environment).stdout


def test_a_read_only_environment_is_used(checkout, commands, environment):
    (environment / ".installed-requirements.txt").mkdir()  # cannot be written to, even by root
    for count in (1, 2):
        result = run(checkout, path=commands, VIRTUAL_ENV=environment)
        assert ("trained" in result.stdout, result.stderr) == (True, "")
        assert len(pip_calls(environment)) == count


def test_one_process_at_a_time_changes_the_environment(checkout, commands, environment):
    lock = environment.with_name("environment.lock")
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {os.getpid()}\n")
    waiting = subprocess.Popen(
        [BASH, str(checkout / "train.sh")],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": str(commands), "VIRTUAL_ENV": str(environment)},
    )
    assert f"Waiting for another process that sets up {environment}" in waiting.stdout.readline()
    assert not pip_calls(environment)
    shutil.rmtree(lock)
    assert "trained" in waiting.communicate(timeout=60)[0]
    assert len(pip_calls(environment)) == 1
    assert not lock.exists()


def test_the_lock_of_a_killed_process_is_removed(checkout, commands, environment):
    ended = subprocess.Popen([BASH, "-c", ":"])
    ended.wait()
    lock = environment.with_name("environment.lock")
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {ended.pid}\n")
    result = run(checkout, path=commands, VIRTUAL_ENV=environment)
    assert "trained" in result.stdout
    assert "Waiting" not in result.stdout
    assert not lock.exists()


def test_cdpath_is_ignored(checkout, commands, environment):
    (checkout / "elsewhere/check out").mkdir(parents=True)
    result = subprocess.run(
        [BASH, "check out/train.sh"],
        capture_output=True,
        text=True,
        cwd=checkout.parent,
        env={
            "PATH": str(commands),
            "VIRTUAL_ENV": str(environment),
            "CDPATH": f"{checkout}/elsewhere",
        },
        check=False,
    )
    assert "trained" in result.stdout, result.stderr


def test_error_without_disk_space(checkout, commands, environment):
    (commands / "df").unlink()
    write_executable(commands / "df", f"#!{BASH}\necho head; echo disk 9 9 2097152 9% /\n")
    without_torch = PYTHON.replace("exec", '[ "$2" = "import torch" ] && exit 1\nexec')
    write_executable(environment / "bin/python", without_torch)
    result = run(checkout, path=commands, VIRTUAL_ENV=environment)
    assert result.returncode == 1
    assert "2 GB of disk space left, but about 10 GB are required" in result.stderr
    assert not pip_calls(environment)
    with_torch = PYTHON.replace("exec", '[ "$2" = "import torch" ] && exit 0\nexec')
    write_executable(environment / "bin/python", with_torch)
    assert "trained" in run(checkout, path=commands, VIRTUAL_ENV=environment).stdout


def test_three_processes_create_one_environment(checkout):
    path = os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin"))
    (checkout / "requirements.txt").write_text("# nothing\n")
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda i: run(checkout, "--x", str(i), path=path), range(3)))
    for i, result in enumerate(results):
        assert f"trained ['--x', '{i}']" in result.stdout, result.stderr
    output = "".join(result.stdout for result in results)
    assert output.count("Creating a virtual environment") == output.count("Installing") == 1
    assert (checkout / ".venv/bin/python").exists()


# FER_LOCKED


def test_fer_locked_installs_the_versions_of_the_lock(checkout, commands, environment):
    install = f"-m pip install --quiet --disable-pip-version-check -r {checkout}/requirements.txt"
    locked = f"{install} -c {checkout}/requirements.lock"

    def calls(**env):
        count = len(pip_calls(environment))
        result = run(checkout, path=commands, VIRTUAL_ENV=environment, **env)
        assert "trained" in result.stdout, result.stderr
        return pip_calls(environment)[count:]

    assert calls() == [install]
    assert calls(FER_LOCKED=0) == []
    assert calls(FER_LOCKED=1) == [locked]
    assert calls(FER_LOCKED=1) == []
    with open(checkout / LOCK, "a") as file:
        file.write("# changed\n")
    assert calls(FER_LOCKED=1) == [locked]
    assert calls() == [install]
    assert calls(FER_LOCKED=1) == [locked]


def test_fer_locked_with_another_python_names_the_cause(checkout, commands, environment):
    env = {"path": commands, "VIRTUAL_ENV": environment, "PIP_STATUS": 1}
    cause = "requires the version of Python that requirements.lock names"
    assert cause in run(checkout, FER_LOCKED=1, **env).stderr
    assert cause not in run(checkout, **env).stderr


@pytest.mark.parametrize("env", [{}, {"FER_LOCKED": 1}])
def test_the_test_run_installs_all_requirements(checkout, commands, environment, env):
    result = run(checkout, path=commands, script="tests/run.sh", VIRTUAL_ENV=environment, **env)
    assert result.returncode == 0, result.stderr
    calls = pip_calls(environment)
    assert len(calls) == len(REQUIREMENTS)
    constraints = f" -c {checkout}/requirements.lock" if env else ""
    for call, name in zip(calls, REQUIREMENTS):
        assert call.endswith(f" -r {checkout}/{name}{constraints}")


def test_the_lock_has_an_allowed_version_of_each_requirement():
    lines = [line for line in (ROOT / LOCK).read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no URL, hash or +cpu
    versions = dict(line.split("==") for line in lines)
    versions = {normalized(name): version for name, version in versions.items()}
    text = "".join((ROOT / name).read_text() for name in REQUIREMENTS)
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    requirements = [Requirement(line) for line in lines if line]
    assert len(requirements) > 20
    for requirement in requirements:
        if requirement.marker is None:
            assert versions[normalized(requirement.name)] in requirement.specifier, requirement


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# tools/release.sh

TRAIN = """
import os, sys
argv = sys.argv[1:]
out = argv[argv.index("--out" if "--out" in argv else "--resume") + 1]
os.makedirs(out, exist_ok=True)
open(f"{out}/config.json", "w").close()
print("trained", *argv)
if os.path.basename(out) == os.environ.get("STOP"):
    sys.exit(143)
open(f"{out}/metrics.json", "w").close()
"""


def test_a_release_is_four_runs_that_use_previous_ones(checkout, commands, environment, tmp_path):
    (checkout / "train.py").write_text(TRAIN)
    runs = tmp_path / "the runs"

    def release(**env):
        argv = (str(runs), "--data", "faces.csv")
        env |= {"VIRTUAL_ENV": environment}
        result = run(checkout, *argv, path=commands, script="tools/release.sh", **env)
        return result, [line for line in result.stdout.splitlines() if "trained" in line]

    stopped, lines = release(STOP="second")
    assert stopped.returncode == 143
    start = "trained --recipe release --no_final_test --out"
    assert lines == [
        f"{start} {runs}/first --data faces.csv",
        f"{start} {runs}/second --model_path {runs}/first/best.pth --jpeg 0.3 --data faces.csv",
    ]
    finished, lines = release()
    assert finished.returncode == 0, finished.stderr
    assert f"done     {runs}/first" in finished.stdout
    assert lines[0] == f"trained --resume {runs}/second"
    assert lines[1].startswith(f"{start} {runs}/third --model_path {runs}/second/best.pth")
    assert f" --teacher {runs}/first/best.pth {runs}/second/best.pth " in lines[1]
    both = f"{runs}/first/best.pth {runs}/third/best.pth"
    assert lines[2].startswith(f"{start} {runs}/fourth --width 1 --clip 1 --model_path {both}")
    assert f" --teacher {both} " in lines[2]
    assert len(lines) == 3
    assert f"-m tools.release {runs}/fourth" in finished.stdout
    assert release()[1] == []  # all runs are finished


@pytest.mark.parametrize("argv", [(), ("--data", "faces.csv")])
def test_a_release_requires_a_folder(checkout, commands, environment, argv):
    result = run(checkout, *argv, path=commands, script="tools/release.sh", VIRTUAL_ENV=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: name a folder for the runs" in result.stderr
