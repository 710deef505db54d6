#!/usr/bin/env bash
# Runs the tests; installs first where needed. Arguments go to pytest: ./test.sh tests/core -k lock
set -eu
cd -- "$(dirname -- "$0")"
bash install.sh --if-needed
# the models of the tests are so small that several processes are faster than several threads
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec env/bin/python -m pytest -n auto --maxprocesses 4 "$@"
