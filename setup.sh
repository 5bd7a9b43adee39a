# Sourced by train.sh, test.sh, release.sh and tests/run.sh: leaves an environment with all that
# the code needs.
#
# The active virtualenv or conda environment is used. Without one (conda's "base" does not
# count, it belongs to everything) a virtualenv is made in .venv. A requirements file is
# installed once, and again only when it changes.

root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
needed_gb=10 # PyTorch with CUDA is 5.4 GB, and pip unpacks beside it

fail() {
  echo "error: $*" >&2
  exit 1
}

in_conda() { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; }

find_python() {
  local candidate
  for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.10 or newer was found; install one, or activate an environment that has it"
}

python_of() { # python_of ENVIRONMENT: its python, on Windows too
  local candidate
  for candidate in bin/python Scripts/python.exe python.exe; do
    if [ -x "$1/$candidate" ]; then
      echo "$1/$candidate"
      return
    fi
  done
  return 1
}

environment="${VIRTUAL_ENV:-}"
in_conda && environment="${environment:-$CONDA_PREFIX}"
if [ -z "$environment" ]; then
  environment="$root/.venv"
  if ! python_of "$environment" >/dev/null; then
    python="$(find_python)" || exit 1
    echo "making a virtual environment in .venv"
    rm -rf "$environment"
    "$python" -m venv "$environment" || {
      rm -rf "$environment"
      fail "$python cannot make a virtual environment (see above);" \
        "on Debian and Ubuntu: apt install python3-venv"
    }
  fi
fi
python="$(python_of "$environment")" ||
  fail "the active environment $environment has no python; mend or leave it, or activate another one"
PATH="$(dirname "$python"):$PATH"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) in $environment is too old; Python 3.10 or newer is needed"

install_requirements() { # install_requirements FILE: once for each content of FILE
  local file="$1" mark digest free
  digest="$("$python" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$file")" || fail "$file cannot be read"
  mark="$environment/.installed-$digest"
  [ -e "$mark" ] && return
  free="$(df -Pk "$environment" | awk 'NR == 2 { print int($4 / 1048576) }')"
  if [ "${free:-$needed_gb}" -lt "$needed_gb" ] && ! "$python" -c 'import torch' 2>/dev/null; then
    fail "$environment has $free GB of disk left, and about $needed_gb GB are needed" \
      "(PyTorch with CUDA alone takes 5.4 GB); free some, or put the repository elsewhere"
  fi
  "$python" -c 'import pip' 2>/dev/null || "$python" -m ensurepip >/dev/null 2>&1 ||
    fail "the environment $environment has no pip; install it there (with uv: uv pip install pip), then" \
      "start again"
  echo "installing ${file#"$root/"} into $environment (the first time takes some minutes)"
  "$python" -m pip install --quiet --disable-pip-version-check -r "$file" ||
    fail "the packages of ${file#"$root/"} could not be installed (see above); is there a network?" \
      "Behind a proxy set HTTPS_PROXY, for a mirror PIP_INDEX_URL, then start again"
  touch "$mark"
}

install_requirements "$root/requirements.txt"
