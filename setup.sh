# shellcheck shell=bash
# Sourced by train.sh, test.sh, tests/run.sh and tools/release.sh. Sets $root and $python, and
# installs requirements.txt.
#
# The active virtualenv or conda environment is used (except conda's base). Otherwise a virtualenv
# is created in .venv. A requirements file is installed once, and again when it changes.
# FER_LOCKED=1 installs the exact versions of requirements.lock.

root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
  echo "error: $*" >&2
  exit 1
}

is_supported() { # is_supported PYTHON
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
    is_supported "$candidate" && echo "$candidate" && return
  done
  fail "Python 3.10 or newer was not found. Install it, or activate an environment that has it."
}

python_in() { # python_in ENVIRONMENT: on Unix, and on Windows with virtualenv and conda
  local candidate
  for candidate in "$1/bin/python" "$1/Scripts/python.exe" "$1/python.exe"; do
    [ -x "$candidate" ] && echo "$candidate" && return
  done
  return 1
}

with_lock() { # with_lock COMMAND...: run COMMAND while no other process changes the environment
  local lock="$environment.lock" owner waiting=""
  until mkdir "$lock" 2>/dev/null; do
    [ -d "$lock" ] || [ -w "$(dirname "$environment")" ] || break # read-only: a lock is impossible
    owner="$(cat "$lock/owner" 2>/dev/null)" || true
    if [ -n "$owner" ] && [ "${owner% *}" = "$HOSTNAME" ] && ! kill -0 "${owner##* }" 2>/dev/null; then
      rm -rf "$lock" # its process was killed
      continue
    fi
    [ -n "$waiting" ] || echo "Waiting for another process that sets up $environment." \
      "If there is none, remove $lock."
    waiting=1
    sleep 1
  done
  trap 'rm -rf "$environment.lock"' EXIT
  echo "$HOSTNAME $$" 2>/dev/null >"$lock/owner" || true
  "$@"
  rm -rf "$lock"
  trap - EXIT
}

create_environment() {
  python_in "$environment" >/dev/null && return # created by another process
  echo "Creating a virtual environment in .venv."
  rm -rf "$environment"
  "$python" -m venv "$environment" && return
  # Google Colab has pip, but lacks ensurepip, the module that venv installs pip with.
  "$python" -m venv --without-pip "$environment" &&
    "$python" -m pip --python "$(python_in "$environment")" install --quiet pip && return
  rm -rf "$environment"
  fail "$python cannot create a virtual environment (see above). On Debian and Ubuntu, run:" \
    "apt install python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
}

install_requirements() { # install_requirements FILE: a path relative to $root
  local file="$1" record="$environment/.installed-${1//\//-}" versions="" content
  [ "${FER_LOCKED:-0}" = 0 ] || versions="$root/requirements.lock"
  content="$(cat "$root/$file" ${versions:+"$versions"})"
  is_installed || with_lock run_pip
}

is_installed() { [ "$(cat "$record" 2>/dev/null)" = "$content" ]; }

run_pip() { # with the variables of install_requirements
  local required_gb=10 free_gb # PyTorch with CUDA: 5.4 GB, and temporary files
  [[ "$OSTYPE" != darwin* ]] || required_gb=3
  is_installed && return # installed by another process
  free_gb="$(df -Pk "$environment" | awk 'NR == 2 { print int($4 / 1048576) }')"
  [ "${free_gb:-$required_gb}" -ge "$required_gb" ] || "$python" -c 'import torch' 2>/dev/null ||
    fail "$environment: $free_gb GB of disk space left, but about $required_gb GB are required" \
      "(mostly for PyTorch). Free some space, or move the repository to another disk."
  "$python" -c 'import pip' 2>/dev/null || "$python" -m ensurepip >/dev/null 2>&1 ||
    fail "the environment $environment has no pip. Install it (with uv: uv pip install pip)."
  echo "Installing $file into $environment. The first time takes some minutes."
  "$python" -m pip install --quiet --disable-pip-version-check -r "$root/$file" \
    ${versions:+-c "$versions"} ||
    fail "the packages of $file could not be installed (see above). Check the network connection;" \
      "set HTTPS_PROXY for a proxy, PIP_INDEX_URL for a mirror." \
      "${versions:+FER_LOCKED requires the version of Python that requirements.lock names.}"
  # In a read-only environment there is no record, and pip checks the packages every time.
  { echo "$content" >"$record"; } 2>/dev/null || true
}

environment="${VIRTUAL_ENV:-}"
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || environment="${environment:-${CONDA_PREFIX:-}}"
if [ -z "$environment" ]; then
  environment="$root/.venv"
  if ! python_in "$environment" >/dev/null; then
    python="$(find_python)" || exit 1
    with_lock create_environment
  fi
fi
python="$(python_in "$environment")" ||
  fail "the active environment $environment has no Python. Repair, deactivate or replace it."
is_supported "$python" ||
  fail "$environment has $("$python" --version), but Python 3.10 or newer is required."
PATH="$(dirname "$python"):$PATH"

install_requirements requirements.txt
