"""setup.sh: one environment, installed once, and a clear word where that cannot be."""

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
TOOLS = ("bash", "dirname", "df", "awk", "touch", "rm", "cat", "mkdir", "sleep")

# Stands in for an environment's Python: pip is noted down instead of run.
PYTHON = f"""#!{BASH}
[ "$WITHOUT_PIP" ] && [[ "$*" = "-c import pip" || "$2" = ensurepip ]] && exit 1
if [ "$1 $2" = "-m pip" ]; then
  echo "$@" >> "$(dirname "$0")/../pip.log"
  exit "${{PIP_STATUS:-0}}"
fi
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of the drivers with train.py replaced by one that tells its arguments."""
    root = tmp_path / "check out"  # a path with a space in it
    root.mkdir()
    for name in ("setup.sh", "train.sh", "tools.release.sh", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    (root / "train.py").write_text("import sys; print('trained', sys.argv[1:])\n")
    return root


@pytest.fixture
def tools(tmp_path):
    """Return a folder that holds the few commands that are there, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def environment(tmp_path):
    """Return an environment whose pip only takes notes."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    write_executable(folder / "bin/python", PYTHON)
    return folder


def write_executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


def train(checkout, *argv, path, script="train.sh", **env):
    return subprocess.run(
        [BASH, str(checkout / script), *argv],
        capture_output=True,
        text=True,
        env={"PATH": str(path), **{k: str(v) for k, v in env.items()}},
        check=False,
    )


def installs(environment):
    log = environment / "pip.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_active_environment_is_used_and_installed_once(checkout, tools, environment):
    for _ in range(2):
        result = train(checkout, "--seed", "1", path=tools, VIRTUAL_ENV=environment)
        assert result.returncode == 0, result.stderr
        assert "trained ['--seed', '1']" in result.stdout
    assert installs(environment) == 1
    with open(checkout / "requirements.txt", "a") as file:
        file.write("# changed\n")
    train(checkout, path=tools, VIRTUAL_ENV=environment)
    assert installs(environment) == 2
    assert not (checkout / ".venv").exists()


def test_an_active_conda_environment_is_used_but_not_its_base(checkout, tools, environment):
    result = train(checkout, path=tools, CONDA_PREFIX=environment, CONDA_DEFAULT_ENV="fer")
    assert "trained" in result.stdout
    result = train(checkout, path=tools, CONDA_PREFIX=environment, CONDA_DEFAULT_ENV="base")
    assert "no Python 3.10" in result.stderr  # it went on to make a .venv, and found none to do so


@pytest.mark.parametrize("active", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_environment_without_python_takes_no_other_one(checkout, tools, environment, active):
    (environment / "bin/python").rename(tools / "python")
    active = {active: environment, "CONDA_DEFAULT_ENV": "fer"}
    result = train(checkout, path=tools, **active)
    assert result.returncode == 1
    assert f"the active environment {environment} has no python" in result.stderr
    assert not (tools.parent / "pip.log").exists()
    (environment / "Scripts").mkdir()
    (tools / "python").rename(environment / "Scripts/python.exe")  # as Windows has it
    assert "trained" in train(checkout, path=tools, **active).stdout


def test_without_python(checkout, tools):
    result = train(checkout, path=tools)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no Python 3.10 or newer")


def test_with_an_old_python(checkout, tools):
    write_executable(tools / "python3", f"#!{BASH}\nexit 1\n")  # what `version < 3.10` comes to
    assert "no Python 3.10" in train(checkout, path=tools).stderr


def test_without_the_venv_module(checkout, tools):
    fake = '[[ "$2" = *print* ]] && echo 3.12; [ "$1" = -c ]'
    write_executable(tools / "python3", f"#!{BASH}\n{fake}\n")
    result = train(checkout, path=tools)
    assert result.returncode == 1
    assert "apt install python3.12-venv" in result.stderr
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".venv.lock").exists()


def test_without_what_brings_pip_into_an_environment(checkout, tools, environment):
    fake = f"""case "$*" in
"-m venv --without-pip "*) mkdir -p "$4/bin" && cat "{environment}/bin/python" > "$4/bin/python" &&
  "{shutil.which("chmod")}" +x "$4/bin/python" ;;
"-m pip --python "*) echo "$@" > "{checkout}/pip" ;;
*) [ "$1" = -c ]
esac"""
    write_executable(tools / "python3", f"#!{BASH}\n{fake}\n")
    result = train(checkout, path=tools)
    assert "trained" in result.stdout, result.stderr
    told = (checkout / "pip").read_text()
    assert told == f"-m pip --python {checkout}/.venv/bin/python install --quiet pip\n"
    assert installs(checkout / ".venv") == 1


def test_without_a_network(checkout, tools, environment):
    result = train(checkout, path=tools, VIRTUAL_ENV=environment, PIP_STATUS=1)
    assert result.returncode == 1
    assert "is there a network?" in result.stderr
    assert "trained" not in result.stdout
    assert installs(environment) == 1
    assert "trained" in train(checkout, path=tools, VIRTUAL_ENV=environment).stdout  # tried again


def test_without_pip(checkout, tools, environment):
    result = train(checkout, path=tools, VIRTUAL_ENV=environment, WITHOUT_PIP=1)
    assert result.returncode == 1
    assert f"the environment {environment} has no pip" in result.stderr
    assert "trained" in train(checkout, path=tools, VIRTUAL_ENV=environment).stdout  # tried again


def test_an_environment_that_cannot_be_marked_is_used(checkout, tools, environment):
    (tools / "touch").unlink()
    write_executable(tools / "touch", f"#!{BASH}\necho Read-only >&2; exit 1\n")
    result = train(checkout, path=tools, VIRTUAL_ENV=environment)
    assert ("trained" in result.stdout, result.stderr) == (True, "")


def test_one_process_at_a_time_sets_up(checkout, tools, environment):
    lock = environment.with_name("environment.lock")
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {os.getpid()}\n")
    waiting = subprocess.Popen(
        [BASH, str(checkout / "train.sh")],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": str(tools), "VIRTUAL_ENV": str(environment)},
    )
    assert f"waiting for another process that sets up {environment}" in waiting.stdout.readline()
    assert installs(environment) == 0
    shutil.rmtree(lock)
    assert "trained" in waiting.communicate(timeout=60)[0]
    assert installs(environment) == 1
    assert not lock.exists()


def test_the_lock_of_a_process_that_was_killed_is_taken_over(checkout, tools, environment):
    ended = subprocess.Popen([BASH, "-c", ":"])
    ended.wait()
    lock = environment.with_name("environment.lock")
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {ended.pid}\n")
    assert "trained" in train(checkout, path=tools, VIRTUAL_ENV=environment).stdout
    assert not lock.exists()


def test_a_search_path_for_folders_leads_nowhere_else(checkout, tools, environment):
    (checkout / "elsewhere/check out").mkdir(parents=True)
    result = subprocess.run(
        [BASH, "check out/train.sh"],
        capture_output=True,
        text=True,
        cwd=checkout.parent,
        env={
            "PATH": str(tools),
            "VIRTUAL_ENV": str(environment),
            "CDPATH": f"{checkout}/elsewhere",
        },
        check=False,
    )
    assert "trained" in result.stdout, result.stderr


def test_without_disk(checkout, tools, environment):
    (tools / "df").unlink()
    write_executable(tools / "df", f"#!{BASH}\necho head; echo disk 9 9 2097152 9% /\n")
    # No torch yet, so 10 GB would be needed.
    write_executable(
        environment / "bin/python",
        PYTHON.replace("exec", '[ "$2" = "import torch" ] && exit 1\nexec'),
    )
    result = train(checkout, path=tools, VIRTUAL_ENV=environment)
    assert result.returncode == 1
    assert "2 GB of disk left" in result.stderr
    assert installs(environment) == 0


def test_a_real_environment_is_made(checkout):
    path = os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin"))
    (checkout / "requirements.txt").write_text("# nothing\n")
    with ThreadPoolExecutor(3) as pool:  # jobs that start at once
        results = list(pool.map(lambda i: train(checkout, "--x", str(i), path=path), range(3)))
    for i, result in enumerate(results):
        assert f"trained ['--x', '{i}']" in result.stdout, result.stderr
    told = "".join(result.stdout for result in results)
    assert told.count("making a virtual environment") == told.count("installing") == 1
    assert (checkout / ".venv/bin/python").exists()


# release.sh, which shares it

RELEASED_WEIGHTS = """
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


def test_a_release_is_four_runs_each_from_earlier_ones(checkout, tools, environment, tmp_path):
    (checkout / "train.py").write_text(RELEASED_WEIGHTS)
    runs = tmp_path / "the runs"

    def released(**env):
        argv = (str(runs), "--data", "faces.csv")
        env |= {"VIRTUAL_ENV": environment}
        result = train(checkout, *argv, path=tools, script="tools.release.sh", **env)
        return result, [line for line in result.stdout.splitlines() if "trained" in line]

    stopped, lines = released(STOP="second")
    assert stopped.returncode == 143
    start = "trained --recipe release --no_final_test --out"
    assert lines == [
        f"{start} {runs}/first --data faces.csv",
        f"{start} {runs}/second --model_path {runs}/first/best.pth --jpeg 0.3 --data faces.csv",
    ]
    finished, lines = released()
    assert finished.returncode == 0, finished.stderr
    assert f"done     {runs}/first" in finished.stdout
    assert lines[0] == f"trained --resume {runs}/second"
    assert lines[1].startswith(f"{start} {runs}/third --model_path {runs}/second/best.pth")
    assert f" --teacher {runs}/first/best.pth {runs}/second/best.pth " in lines[1]
    both = f"{runs}/first/best.pth {runs}/third/best.pth"
    assert lines[2].startswith(f"{start} {runs}/fourth --width 1 --clip 1 --model_path {both}")
    assert f" --teacher {both} " in lines[2]
    assert len(lines) == 3
    assert f"tools.release.py {runs}/fourth" in finished.stdout
    assert released()[1] == []  # all is done


@pytest.mark.parametrize("argv", [(), ("--data", "faces.csv")])
def test_a_release_wants_a_folder(checkout, tools, environment, argv):
    result = train(checkout, *argv, path=tools, script="tools.release.sh", VIRTUAL_ENV=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: name a folder for the runs" in result.stderr
