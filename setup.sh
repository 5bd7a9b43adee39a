# Sourced by train.sh, test.sh, release.sh and tests/run.sh: leaves an environment with all that
# the code needs.
#
# The active virtualenv or conda environment is used. Without one (conda's "base" does not
# count, it belongs to everything) a virtualenv is made in .venv. A requirements file is
# installed once, and again only when it changes.

root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
needed_gb=10 # PyTorch with CUDA is 5.4 GB, and pip unpacks beside it
if [ "${OSTYPE#darwin}" != "$OSTYPE" ]; then needed_gb=3; fi # which a Mac's has not

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

# Jobs that start at once do not make one environment together: the first one does, the others wait.
alone() { # alone COMMAND...
  local owner told=""
  lock="$environment.lock"
  until mkdir "$lock" 2>/dev/null; do
    [ -d "$lock" ] || [ -w "$(dirname "$environment")" ] || break # nobody else can write there either
    owner="$(cat "$lock/owner" 2>/dev/null)" || true
    if [ -n "$owner" ] && [ "${owner% *}" = "$HOSTNAME" ] && ! kill -0 "${owner##* }" 2>/dev/null; then
      rm -rf "$lock" # of a process that was killed
    elif [ -z "$told" ]; then
      told="waiting for another process that sets up $environment (if there is none, remove $lock)"
      echo "$told"
    fi
    sleep 1
  done
  trap 'rm -rf "$lock"' EXIT
  echo "$HOSTNAME $$" 2>/dev/null >"$lock/owner" || true
  "$@"
  rm -rf "$lock"
  trap - EXIT
}

make_environment() {
  python_of "$environment" >/dev/null && return # another process was faster
  echo "making a virtual environment in .venv"
  rm -rf "$environment"
  "$python" -m venv "$environment" && return
  # Some systems, such as Google's notebooks, leave out what brings pip into it, and have pip itself.
  rm -rf "$environment"
  "$python" -m venv --without-pip "$environment" &&
    "$python" -m pip --python "$(python_of "$environment")" install --quiet pip && return
  rm -rf "$environment"
  fail "$python cannot make a virtual environment (see above); on Debian and Ubuntu:" \
    "apt install python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
}

environment="${VIRTUAL_ENV:-}"
in_conda && environment="${environment:-$CONDA_PREFIX}"
if [ -z "$environment" ]; then
  environment="$root/.venv"
  if ! python_of "$environment" >/dev/null; then
    python="$(find_python)" || exit 1
    alone make_environment
  fi
fi
python="$(python_of "$environment")" ||
  fail "the active environment $environment has no python; mend or leave it, or activate another one"
PATH="$(dirname "$python"):$PATH"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) in $environment is too old; Python 3.10 or newer is needed"

install_requirements() { # install_requirements FILE: once for each content of FILE
  local file="$1" mark digest
  digest="$("$python" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$file")" || fail "$file cannot be read"
  mark="$environment/.installed-$digest"
  [ -e "$mark" ] || alone install_anew "$file" "$mark"
}

install_anew() { # install_anew FILE MARK
  local file="$1" mark="$2" free
  [ -e "$mark" ] && return # another process was faster
  free="$(df -Pk "$environment" | awk 'NR == 2 { print int($4 / 1048576) }')"
  if [ "${free:-$needed_gb}" -lt "$needed_gb" ] && ! "$python" -c 'import torch' 2>/dev/null; then
    fail "$environment has $free GB of disk left, and about $needed_gb GB are needed" \
      "(mostly for PyTorch); free some, or put the repository elsewhere"
  fi
  "$python" -c 'import pip' 2>/dev/null || "$python" -m ensurepip >/dev/null 2>&1 ||
    fail "the environment $environment has no pip; install it there (with uv: uv pip install pip), then" \
      "start again"
  echo "installing ${file#"$root/"} into $environment (the first time takes some minutes)"
  "$python" -m pip install --quiet --disable-pip-version-check -r "$file" ||
    fail "the packages of ${file#"$root/"} could not be installed (see above); is there a network?" \
      "Behind a proxy set HTTPS_PROXY, for a mirror PIP_INDEX_URL, then start again"
  touch "$mark" 2>/dev/null || true # where all is there and nothing can be written, it is asked anew
}

install_requirements "$root/requirements.txt"
