# The paper's ablations at the tiny checkpoint's size: the same demonstrations, autoencoder and
# number of samples for all, and each time one thing less to learn besides the policy itself.
# REPRODUCED is the folder of `cosmos reproduce-tiny`.
include stages.mk
STEPS ?= 1500
SEED ?= 0
VARIANTS := full without_auxiliary_targets without_value_samples policy_samples_only
full :=
without_auxiliary_targets := --set objective.auxiliary=false
without_value_samples := --set mixture.value=0
policy_samples_only := --set mixture.value=0 --set mixture.world_model=0

# Two tables: errors on held-out demonstrations, and scores in closed loop.
done/evaluation: | $(VARIANTS:%=done/%)
	@$(call begin,10)
	$(COSMOS) evaluate ablations --output evaluation $(SMALL_TRIALS)
	{ $(COSMOS) held-out $(VARIANTS); echo; cat evaluation/table.md; } >table.md
	$(end)

$(VARIANTS:%=done/%): done/%:
	@$(call begin,$$(($(STEPS) * 13 / 1000)))
	demonstrations="[$$REPRODUCED/demonstrations/rollouts/red, $$REPRODUCED/demonstrations/rollouts/blue]"
	$(call train,tiny_base,$*,--set "start.checkpoint=$$REPRODUCED/autoencoder" \
	--set "data.demonstrations=$$demonstrations" --set run.seed=$(SEED) --set run.steps=$(STEPS) \
	--set optimiser.decay_steps=$(STEPS) $($*))
	$(end)
