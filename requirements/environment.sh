#!/bin/sh
# `make setup` runs this first. It says in words what this machine lacks. If nothing is lacking, it makes a Python
# environment with uv in it, in the folder that its argument names.
set -eu

folder=$1
complete=yes

lacks() {
  echo "$1" >&2
  complete=no
}

system="$(uname -s) on $(uname -m)"
if [ "$system" != "Linux on x86_64" ]; then
  echo "catbreeds runs on Linux on x86-64; this machine has $system." >&2
  echo "docs/faq.md says how to run it in a container: \"catbreeds runs on Linux on x86-64\"." >&2
  exit 1
fi

# The least that all locked wheels take: pyarrow's, numpy's and TensorFlow's decide.
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || glibc="none"
version=${glibc#glibc 2.}
if ! [ "${version%%.*}" -ge 28 ] 2>/dev/null; then
  lacks "The packages need glibc 2.28 or newer; this machine has $glibc. Take a newer Linux, such as Debian 12."
fi

# A warning only: what emulators write there is not always true.
if [ -r /proc/cpuinfo ] && ! grep -qw avx /proc/cpuinfo; then
  echo "Warning: /proc/cpuinfo names no AVX; without, TensorFlow ends with \"Illegal instruction\"." >&2
fi

command -v git >/dev/null || lacks "git is missing. Install it: apt-get install git"

# A Python 3.11 by its usual names; else uv brings one.
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
  lacks "catbreeds needs Python 3.11, found neither python3.11 nor a python3 of that version.
Install it, or install uv (pip install uv), which brings one."
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  lacks "$python lacks the modules that make environments. Install them: apt-get install python3-venv"
fi

free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000000) }')
if [ "$free" -lt 5 ]; then
  lacks "The packages take 5 GB of disk, the demo 1 GB more; $free GB are free in $(pwd). Make room."
fi

if [ "$complete" = no ]; then
  echo "Then run make again." >&2
  exit 1
fi

if [ -n "$python" ]; then
  "$python" -m venv "$folder"
else
  uv venv --seed --python 3.11 "$folder"
fi
# With user = true in its configuration, pip would try to install beside the folder.
PIP_USER=0 "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: uv
