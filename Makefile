PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup check test demo bench openclipart openclipart-demo tiny-checkpoint tiny-lm schema clean \
	ablate-smoke sounds audio-demo

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(STAMP) ## Make the environment in .venv

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

build/typing/winnow: ## Links that let mypy see winnow.* (the namespace has no folder of its own)
	mkdir -p $@
	for room in contracts filters models pipeline recipes stages; do ln -sfn ../../../$$room $@/$$room; done

check: $(STAMP) build/typing/winnow ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/typing $(BIN)/mypy -p winnow

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest

demo: $(STAMP) ## Run the quickstart end to end: a noisy web, curated, scored against its truth
	$(BIN)/winnow run recipes/quickstart.yaml --workspace runs/quickstart
	@echo "report: runs/quickstart/report/index.html"

openclipart: $(STAMP) ## Build a URL table and image folder from Debian's openclipart packages
	$(BIN)/python benchmarks/openclipart.py build --out data/openclipart

openclipart-demo: openclipart ## Curate openclipart, train a CLIP on it, curate with that
	$(BIN)/python benchmarks/openclipart.py demo --out data/openclipart

sounds: $(STAMP) ## Build tables of recordings and pictures from Debian packages
	$(BIN)/python benchmarks/sounds.py build --out data/sounds

audio-demo: $(STAMP) ## Curate synthesised recordings, scored against what was done to them
	$(BIN)/python benchmarks/sounds.py build --out data/sounds-demo --synthesised --sentences 100
	$(BIN)/winnow run recipes/audio-text.yaml --workspace runs/audio-demo \
		--set source.path=data/sounds-demo/audio.parquet
	$(BIN)/python benchmarks/sounds.py score --workspace runs/audio-demo

tiny-checkpoint: $(STAMP) ## Train the packaged tiny CLIP again
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/tiny_checkpoint.py

tiny-lm: $(STAMP) ## Train the packaged language model afresh (about 50 minutes of one core)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tiny_language_model.py

schema: $(STAMP) ## Write the JSON Schemas of recipes and studies
	$(BIN)/winnow schema > recipes/recipe.schema.json
	$(BIN)/winnow schema --study > recipes/study.schema.json

ablate-smoke: $(STAMP) ## Four small trials: tests the plumbing of ablations, claims nothing
	$(BIN)/winnow ablate recipes/ablations/smoke.yaml --workspace runs/ablate-smoke

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

bench: $(STAMP) ## Measure everything that is measured, against the named peers (about 40 minutes)
	$(BIN)/python benchmarks/download.py
	$(BIN)/python benchmarks/download_to_shard.py
	$(BIN)/python benchmarks/perceptual_hash.py
	$(BIN)/python benchmarks/near_duplicates.py
	$(BIN)/python benchmarks/rerun.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/webdataset_source.py
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/caption.py
	$(BIN)/python benchmarks/audio_stages.py
	$(BIN)/python benchmarks/audio_quality.py
	$(BIN)/python benchmarks/audio_duplicates.py
	$(BIN)/python benchmarks/transcript.py --precisions int8
	$(BIN)/python benchmarks/text_dedupe.py
	$(BIN)/python benchmarks/gpu.py
