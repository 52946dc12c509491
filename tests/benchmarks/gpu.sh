#!/usr/bin/env bash
# The tests and timings that need a GPU, on a machine that has torch >= 2.10, torchvision, transformers and no network.
#
#   bash tests/benchmarks/gpu.sh pack [3.12]   here, with a network: what else it takes, as wheels in build/wheels
#   bash tests/benchmarks/gpu.sh               there: pytest -m gpu, then bench_gpu.py, within eight minutes
#   bash tests/benchmarks/gpu.sh cpu           the same without a GPU, in tiny sizes: whether it runs, no results
#
# `pack` is given the Python of that machine (by default this one's), for Linux on x86-64, and refuses more than 60 MB of
# wheels and working tree. What the machine has already is used as it is; of the rest, only these wheels. The tests' log
# and gpu.json go to $OUT, or build/gpu. Exits with 1 if a test or a case failed, both having run.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
WHEELS=build/wheels
MOST=60000000      # bytes, wheels and working tree
TESTS=150          # seconds the tests may take
NO_NEW_CASE=420    # seconds from the start after which no case starts
END=470            # seconds after which all is stopped

# What `import prunelab` and the tests need beyond torch, torchvision and transformers, and all that these bring.
NEEDED=(scipy scikit-learn joblib threadpoolctl narwhals cloudpickle platformdirs
  pytest pluggy iniconfig pygments)

pack() {
  local python=${1:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')} tree wheels
  local platforms=() n
  for n in 17 24 27 28 34; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  rm -rf "$WHEELS"
  # In the versions of constraints.txt; --no-deps, for torch would come with them.
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$WHEELS" \
    --python-version "$python" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    --constraint constraints.txt "${NEEDED[@]}"
  wheels=$(cat "$WHEELS"/*.whl | wc -c)
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 cat | wc -c)
  printf '%s wheels for Python %s: %d bytes; working tree: %d bytes; of at most %d\n' \
    "${#NEEDED[@]}" "$python" "$wheels" "$tree" "$MOST"
  if ((wheels + tree > MOST)); then
    echo "too much to carry: leave wheels out that the machine has" >&2
    return 1
  fi
}

# Prints a folder with those of the wheels whose packages this Python lacks.
install_lacking() {
  local site=$1 wheel name lacking=()
  for wheel in "$WHEELS"/*.whl; do
    [[ -e $wheel ]] || continue
    name=${wheel##*/}
    "$PYTHON" -c 'import sys, importlib.metadata as m; m.version(sys.argv[1])' "${name%%-*}" 2>/dev/null ||
      lacking+=("$wheel")
  done
  echo "packages this Python lacks: ${lacking[*]##*/}"
  ((${#lacking[@]} == 0)) || "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --no-compile --no-cache-dir --target "$site" "${lacking[@]}"
}

run() {
  local out=${OUT:-build/gpu} failed=0 files
  mkdir -p "$out"
  site=$(mktemp -d) # not local: the trap outlives this function
  trap 'rm -rf "$site"' EXIT
  install_lacking "$site"
  export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

  # By file: the others import what is not here. Without -n2 and nbval; a warning of another torch fails nothing.
  mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py)
  timeout -k 5 "$TESTS" "$PYTHON" -m pytest -o addopts= -o filterwarnings=default --strict-markers -rfEs -q -m gpu \
    -p no:cacheprovider "${files[@]}" 2>&1 | tee "$out/tests.log" || failed=1

  timeout -k 5 "$((END - SECONDS))" "$PYTHON" tests/benchmarks/bench_gpu.py "$@" --out "$out/gpu.json" \
    --seconds "$((NO_NEW_CASE - SECONDS))" || failed=1
  return "$failed"
}

SECONDS=0
case ${1:-} in
  pack) pack "${@:2}" ;;
  cpu) PRUNELAB_GPU=cpu run --device cpu --tiny ;;
  "") run ;;
  *)
    echo "gpu.sh $1: there is pack, cpu, or nothing" >&2
    exit 2
    ;;
esac
