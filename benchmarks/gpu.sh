#!/usr/bin/env bash
# Ours and PyTorch's steps side by side on a GPU, in bfloat16, then the steps of our own runs.
#
#   PYTHON=python3 benchmarks/gpu.sh
#
# Installs nothing: it takes JAX, torch and torchvision as PYTHON has them, and leaves out what
# needs a package that is not there, with a word. The batches are for a GPU of 80 GB. Without a GPU,
# the same commands run in a small form, to see that they do. Exit code 1: one of them failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
failed=0

run() { # COMMAND... - continues if it fails.
    echo "+ $*"
    "$@" || failed=1
}

has() { # MODULE... - whether PYTHON has all of them.
    "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"
}

compare() { # FLAGS... - of benchmarks.vs_torch.
    # Two libraries share the GPU's memory, of which JAX would take three quarters.
    run env XLA_PYTHON_CLIENT_MEM_FRACTION=0.45 "$python" -m benchmarks.vs_torch "$@"
}

measure() { # EXPERIMENT BATCH - the step and the loop of a run on made-up images.
    run "$python" -m flaxcls benchmark --config="$1" --config.batch_size="$2" \
        --config.data.source="synthetic:$((8 * $2))" --config.model.dtype=bfloat16 --steps=20
}

if ! has jax flax; then
    echo "error: $python has no jax and flax; name another with PYTHON=..." >&2
    exit 2
fi
gpu=$("$python" -c 'import jax; print(jax.default_backend() == "gpu")')
torch=False
if has torch torchvision; then
    torch=$("$python" -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")')
fi

if [ "$gpu" = True ]; then
    if [ "$torch" = gpu ]; then
        for pair in resnet50:256 densenet121:128 alexnet:512; do
            compare --models="${pair%:*}" --batch="${pair#*:}" --dtype=bfloat16 --rounds=20 \
                --forms=channels_last-compiled
        done
    else
        echo 'Note: torch and torchvision with CUDA are not there; PyTorch is left out.'
    fi
    measure resnet50 256
    measure densenet121 128
    measure alexnet 512
else
    echo 'Note: JAX sees no GPU; what follows only shows that the commands run.'
    if [ "$torch" != False ]; then
        compare --models=resnet50 --batch=8 --rounds=2 --forms=channels_last-eager
    else
        echo 'Note: torch and torchvision are not there; PyTorch is left out.'
    fi
    run "$python" -m flaxcls benchmark --config=digits_resnet20 --steps=5
fi
exit "$failed"
