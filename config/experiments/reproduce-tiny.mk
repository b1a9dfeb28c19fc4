# The checkpoint that ships with the package, from nothing. Minutes are of two older cores; newer
# ones took half of them.
include stages.mk
SEED ?= 0
STAGES := demonstrations autoencoder policy checkpoint evaluation

# The card: how the checkpoint was made, and what it scored.
done/card: | $(STAGES:%=done/%)
	@minutes=$$(awk '{ printf "%s%s %.1f", sep, $$1, $$2 / 60; sep = ", " }' $(STAGES:%=done/%))
	how='`cosmos reproduce-tiny --seed $(SEED)`'
	rounded='The weights are rounded to float16.'
	printf '\n## How it was made\n\n%s, on %s cores (%s); minutes (of an interrupted stage, since it went on): %s. %s\n\n## Closed loop\n\n' \
		"$$how" "$$(nproc)" "$$(uname -m)" "$$minutes" "$$rounded" |
	cat policy_card.md - evaluation/table.md >tiny/README.md
	$(end)

done/demonstrations:
	@$(call begin,30)
	$(COSMOS) evaluate demonstrations --output demonstrations $(SMALL_EVALUATION) $(if $(REHEARSAL),--set trials=2)
	$(end)

done/autoencoder: | done/demonstrations
	@$(call begin,12)
	test -e autoencoder/vae.safetensors ||
	$(COSMOS) train-autoencoder tiny --output autoencoder --set seed=$(SEED) $(SMALL_AUTOENCODER)
	$(end)

done/policy: | done/autoencoder
	@$(call begin,80)
	$(call train,tiny_base,policy,--set run.seed=$(SEED))
	$(end)

done/checkpoint: | done/policy
	@$(call begin,1)
	$(COSMOS) round policy tiny --task either_cube
	cp tiny/README.md policy_card.md
	$(end)

done/evaluation: | done/checkpoint
	@$(call begin,10)
	$(COSMOS) evaluate tiny --output evaluation --checkpoint "$$PWD/tiny" $(SMALL_TRIALS)
	$(end)
