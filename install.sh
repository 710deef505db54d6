#!/usr/bin/env bash
# Makes env/ with everything the project needs, or repairs it. Safe to run at any time, also after an interruption.
#   ./install.sh              look at everything by importing it; install what is missing
#   ./install.sh --if-needed  install only if env/ is not complete or requirements.txt has changed
set -eu
cd -- "$(dirname -- "$0")"

env_python=env/bin/python
stamp=env/complete
uv=$(command -v uv || true)
# uv does not read pip's settings, and separates by commas
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}"

say() { printf '%s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# What a complete env/ was made for. The place counts too: the scripts in env/bin name it.
wanted() { pwd; cat requirements.txt; }
is_complete() { [ -x "$env_python" ] && wanted | cmp -s - "$stamp"; }
imports_work() { "$env_python" -m acestep.core.health; }
has_nvidia_card() { [ "${CI:-}" != true ] && nvidia-smi >/dev/null 2>&1; }
# Builds of torch for CUDA 13 hold no code for cards before Turing (capability 7.5).
has_only_old_cards() {
    has_nvidia_card || return 1
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        LC_ALL=C awk '$1 + 0 > 0 { if ($1 + 0 < 7.5) old = 1; else young = 1 } END { exit !(old && !young) }'
}

find_python() {
    for candidate in python3 python3.13 python3.12 python3.14 python3.11 python; do
        # torch is built for these
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

make_env() {
    rm -rf env
    python=$(find_python)
    if [ -n "$uv" ]; then
        # without a Python of the right age uv fetches one
        "$uv" venv --seed --python "${python:-3.12}" env && return
        say "uv could not make env/ (see above); going on with Python's own venv."
        rm -rf env
    fi
    [ -n "$python" ] || fail "Python 3.11 to 3.14 was not found. Install one, or install uv, and run ./install.sh again."
    "$python" -m venv env ||
        fail "$python cannot make env/. On Debian and Ubuntu: sudo apt install python3-venv. Then run ./install.sh again."
}

pip_install() { "$env_python" -m pip install "$@"; }

# uv if it is there, else pip; pip as well where uv fails.
install() {
    if [ -n "$uv" ]; then
        "$uv" pip install --python "$env_python" "$@" && return
        say "uv failed (see above); going on with pip."
    fi
    pip_install "$@"
}

install_torch() {
    torch=$(grep '^torch==' requirements.txt)
    # a CPU build that lies ready on this machine saves a download
    has_nvidia_card || ! pip_install --quiet --no-index --no-deps "$torch+cpu" >/dev/null 2>&1 || return 0
    if [ -n "$uv" ]; then
        backend=auto
        [ "${CI:-}" != true ] || backend=cpu
        ! has_only_old_cards || backend=cu126
        "$uv" pip install --python "$env_python" --torch-backend="$backend" "$torch" && return
        say "uv could not install torch (see above); going on with pip."
    fi
    if has_only_old_cards; then
        pip_install --index-url https://download.pytorch.org/whl/cu126 "$torch"
        return
    fi
    if has_nvidia_card || [ "$(uname)" = Darwin ]; then
        pip_install "$torch"
        return
    fi
    # PyPI's build for Linux brings several GB of CUDA libraries, of no use without an NVIDIA card
    pip_install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" && return
    [ "${CI:-}" != true ] || fail "The CPU build of torch could not be fetched from download.pytorch.org."
    say "The CPU build of torch could not be fetched; taking the larger build with CUDA."
    pip_install "$torch"
}

install_packages() {
    { install_torch && install -r requirements.txt && install --no-deps -e .; } ||
        fail "The packages could not be installed (see above). Check the network and run ./install.sh again."
}

if is_complete; then
    [ "${1:-}" != --if-needed ] || exit 0
    if imports_work; then
        say "env/ is complete."
        exit 0
    fi
fi
say "Installing into env/. The first time this takes some minutes."
rm -f "$stamp"
"$env_python" -m pip --version >/dev/null 2>&1 || make_env
install_packages
if ! imports_work; then
    say "env/ is damaged; making it anew."
    make_env
    install_packages
    imports_work || fail "The installation is not complete (see above)."
fi
wanted >"$stamp"
say "env/ is complete."
