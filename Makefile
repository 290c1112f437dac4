# make demo, make test and make lint each set up .venv first, with the newest Python there is and the
# versions in constraints.txt; PYTHON=python3.11 chooses another.

# The first that runs: pyenv's python3.13 may be there, and fail unless it has been chosen.
PYTHON ?= $(shell for v in 3.14 3.13 3.12 3.11; do for p in python$$v ~/.pyenv/versions/$$v.*/bin/python; do \
	"$$p" -c 'import ensurepip, venv' 2>/dev/null && echo "$$p" && exit; done; done; echo python3)
# The last versions for 3.11, which JAX has left behind, are another list.
CONSTRAINTS := $(firstword $(wildcard constraints-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt) constraints.txt)
BIN := .venv/bin

.PHONY: demo check test test-slow test-weekly lint format docs notebooks test-newest parity bench-input bench-torch bench-programs clean

demo: .venv/.ready
	$(BIN)/flaxcls train --config=digits_resnet20 --workdir=runs/demo
	$(BIN)/flaxcls report --workdir=runs/demo

test: .venv/.tested
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not weekly'

# For the hand: lint, and the tests that compile no network; see tests/helpers/costs.py.
check: lint .venv/.tested
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not weekly and not compiles'

# What does not fit into nine minutes: whole notebooks, the cluster, docs, several processes.
test-slow: .venv/.tested
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow and not weekly'

# The deepest networks, whose training steps take XLA minutes to compile; one at a time.
test-weekly: .venv/.tested
	$(BIN)/python -m pytest -m weekly

# Executes the notebooks in full, and keeps what they put out; translations take it over.
notebooks: .venv/.tested
	$(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=1800 --ignore-glob='*.zh.ipynb' notebooks
	$(BIN)/python -m notebooks.update_translations

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reference of all options, and the common mistakes in both languages; tests compare them with what they are from.
docs: .venv/.ready
	$(BIN)/python -m benchmarks.option_reference --out=docs/config.md
	$(BIN)/python -m benchmarks.common_mistakes --out=docs

# With the newest versions of everything, whatever constraints.txt has.
test-newest: .venv-newest/.ready
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal -m 'not slow and not weekly'

# Makes the goldens anew with the libraries as they are today, and compares every network to them.
parity: .venv/.ready .venv-parity/.ready
	.venv-parity/bin/python -m benchmarks.make_goldens
	$(BIN)/python -m pytest tests/models/test_parity.py

# Loading side by side with torchvision's and tf.data's.
bench-input: .venv-bench/.ready
	TF_CPP_MIN_LOG_LEVEL=3 .venv-bench/bin/python -m benchmarks.input_pipeline --rounds=2 --seconds=4
	.venv-bench/bin/python -m benchmarks.input_pipeline --augmentations --seconds=2

# Training steps side by side with torchvision's networks.
bench-torch: .venv-bench/.ready
	.venv-bench/bin/python -m benchmarks.vs_torch

# What the compilers of a TPU and of an H100 make of the steps, with neither at hand; for hours.
bench-programs: .venv-tpu/.ready .venv-cuda/.ready
	.venv-tpu/bin/python -m benchmarks.tpu_program
	.venv-tpu/bin/python -m benchmarks.tpu_program --models=families --dtype=float32,bfloat16 \
		--per_chip=32 --step=train,eval --effort=-1
	.venv-cuda/bin/python -m benchmarks.gpu_program --step=train,eval

clean:
	rm -rf .venv .venv-newest .venv-parity .venv-bench .venv-tpu .venv-cuda build *.egg-info

.venv/.ready: setup.cfg setup.py $(CONSTRAINTS) $(wildcard flaxcls/ops/kernels/*)
	@echo "$$($(PYTHON) --version) ($(PYTHON)), $(CONSTRAINTS)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) setuptools -e '.[native,test]'
	@# Again, since kernels are compiled against what has been installed.
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# Besides, what exports take; they fetch their converters themselves.
.venv/.tested: .venv/.ready
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[test,onnx,serve,tflite]'
	touch $@

.venv-newest/.ready: setup.cfg setup.py
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install -q setuptools -e '.[native,test,onnx,serve,tflite]'
	.venv-newest/bin/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

.venv-bench/.ready: setup.cfg setup.py
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q setuptools -e '.[native]' torch torchvision tensorflow-cpu
	.venv-bench/bin/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

.venv-tpu/.ready .venv-cuda/.ready: .venv-%/.ready: setup.cfg setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q -c $(CONSTRAINTS) -e '.[$*]'
	touch $@

.venv-parity/.ready:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install -q torch torchvision timm pytorchcv
	touch $@
