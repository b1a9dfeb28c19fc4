# What the experiments beside this file share. `cosmos reproduce-tiny`, `cosmos improve` and `cosmos
# ablate` run them with make, in the folder that holds everything they make. A stage is done when
# its file is in done/, with its name and its seconds; the same command goes on after a break.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

COSMOS ?= cosmos
# Each process of a training keeps images and latents of its own, up to 8 GB.
PROCESSES := $(shell n=$$(nproc); echo $$((n < 2 ? n : 2)))

# A rehearsal does every stage as small as it can be, to see that all of them work. Processes of an
# evaluation would each load everything for a trial or two.
ifdef REHEARSAL
SMALL_EVALUATION := --set trials=1 --set 'conditions=[usual]' --set processes=0
# Of what need not succeed.
SMALL_TRIALS := $(SMALL_EVALUATION) --set chunks=2
SMALL_TRAINING := --set run.steps=2 --set run.batch=8 --set run.micro_batch=8 \
	--set run.validation_windows=2 --set data.held_out=0.25
SMALL_AUTOENCODER := --set steps=2 --set moments=16 --set data.held_out=0.25
endif

# $(call train,CONFIG,FOLDER,OPTIONS): a training, or the rest of one. One that is interrupted saves
# what it has and exits with 0; `cosmos held-out` refuses it.
define train
resume=$$(test ! -d $(2)/training || echo --resume)
$(COSMOS) train $(1) --output $(2) --processes $(PROCESSES) $$resume $(3) $(SMALL_TRAINING)
$(COSMOS) held-out $(2)
endef

# Begins and ends a stage.
begin = echo "$(@F): about $(1) minutes"
end = mkdir -p done; echo "$(@F) $$SECONDS" >$@
