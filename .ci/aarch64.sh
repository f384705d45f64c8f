#!/usr/bin/env bash
# Runs tests on an emulated 64-bit ARM processor: `.ci/aarch64.sh [FOLDER]` on Debian 12, as root, after
# apt-get install qemu-user debootstrap. FOLDER keeps what is downloaded and compiled for the next time.
# Python is Debian's, the packages are wheels in the versions of locked.txt. Allow an hour: compiling
# kernels is what is slow. What `invocupy info` found, which compares kernels with the reference, is
# written to benchmarks/results/aarch64.json. Then tests of files, locks and threads run, but one: the
# emulator itself fails when a process with threads forks.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath "${1:-$(mktemp -d)}")
root=$work/root packages=$work/packages python=$work/python
tests=(tests/test_checkpoint.py tests/train/test_lock.py tests/backends/cpu/test_pool.py
  --deselect tests/backends/cpu/test_pool.py::test_forked_child_has_workers_of_its_own)

if [ ! -e "$root/usr/bin/python3.11" ]; then
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$root"
  for file in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$file" "$root"; done
fi
if [ ! -d "$packages" ]; then
  python3 - <<'PY' > "$work/wanted.txt"
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], "hypothesis", "matplotlib", "pillow", "pytest", "pytest-timeout", sep="\n")
PY
  python3 -m pip install --quiet --target "$packages" --only-binary=:all: --implementation cp \
    --python-version 3.11 --platform=manylinux{2014,_2_17,_2_27,_2_28}_aarch64 \
    --constraint .ci/locked.txt --requirement "$work/wanted.txt"
fi
# The emulator does not start programs for itself: tests that start Python start this.
printf '#!/bin/sh\nexec qemu-aarch64 -L %s %s "$@"\n' "$root" "$root/usr/bin/python3.11" > "$python"
echo "import sys; sys.executable = '$python'" > "$packages/sitecustomize.py"
chmod +x "$python"

export PYTHONPATH=$PWD:$packages XDG_CACHE_HOME=$work/cache HYPOTHESIS_PROFILE=stand-in
mkdir -p "$XDG_CACHE_HOME"
"$python" -m invocupy info --json | tee "$work/info.json"
python3 - "$work/info.json" <<'PY'
import json, pathlib, subprocess, sys, time
info = json.loads(pathlib.Path(sys.argv[1]).read_text())
emulator = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True).stdout
result = {
    "date": time.strftime("%Y-%m-%d"),
    "command": ".ci/aarch64.sh",
    "emulator": emulator.splitlines()[0],
    "python": info["python"],
    "packages": {name: number for name, number in info["packages"].items() if number},
    "kernels that differ from the reference": info["self_check"]["cpu"],
}
pathlib.Path("benchmarks/results/aarch64.json").write_text(json.dumps(result, indent=2) + "\n")
PY
"$python" -m pytest -q --timeout 3000 "${tests[@]}"
