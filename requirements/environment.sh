#!/bin/sh
# First step of `make setup`: checks the requirements of this machine and prints the ones that are not met. If all are
# met, it creates a Python environment with uv in the folder given as argument.
set -eu

folder=$1
requirements_met=yes

report() {
  echo "$1" >&2
  requirements_met=no
}

system="$(uname -s) on $(uname -m)"
if [ "$system" != "Linux on x86_64" ]; then
  echo "catbreeds runs on Linux on x86-64; this machine has $system." >&2
  echo "See docs/faq.md for how to run it in a container: \"catbreeds runs on Linux on x86-64\"." >&2
  exit 1
fi

# Minimum of the locked wheels, determined by pyarrow, NumPy and TensorFlow.
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || glibc="none"
version=${glibc#glibc 2.}
if ! [ "${version%%.*}" -ge 28 ] 2>/dev/null; then
  report "The packages need glibc 2.28 or newer; this machine has $glibc. Use a newer Linux, such as Debian 12."
fi

# Only a warning, because /proc/cpuinfo is not reliable in emulators.
if [ -r /proc/cpuinfo ] && ! grep -qw avx /proc/cpuinfo; then
  echo "Warning: /proc/cpuinfo does not list AVX; without AVX, TensorFlow crashes with \"Illegal instruction\"." >&2
fi

command -v git >/dev/null || report "git is missing. Install it: apt-get install git"

# Python 3.11 under its usual names; otherwise uv installs one.
python=
for name in python3.11 python3; do
  if "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    python=$name
    break
  fi
done
if command -v uv >/dev/null; then
  if [ -n "$python" ]; then "$python" -c 'import ensurepip, venv' 2>/dev/null || python=; fi
elif [ -z "$python" ]; then
  report "catbreeds needs Python 3.11; neither python3.11 nor a python3 of that version was found.
Install Python 3.11, or install uv (pip install uv), which installs it."
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  report "$python cannot create environments. Install the missing modules: apt-get install python3-venv"
fi

free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000000) }')
if [ "$free" -lt 5 ]; then
  report "The packages take 5 GB of disk space, the demo 1 GB more; $free GB are free in $(pwd). Free some space."
fi

if [ "$requirements_met" = no ]; then
  echo "Then rerun make." >&2
  exit 1
fi

if [ -n "$python" ]; then
  "$python" -m venv "$folder"
else
  uv venv --seed --python 3.11 "$folder"
fi
# PIP_USER=0, because user = true in pip's configuration would install uv outside of the environment.
PIP_USER=0 "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: uv
