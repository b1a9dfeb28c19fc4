# The paper's loop (sections 4.2, 4.3 and 5.3): a checkpoint tries, its rollouts are scored, a world
# model is fine-tuned on them, and the same checkpoint is evaluated with and without it on the same
# scenes and noise. Minutes are of two older cores; newer ones took half of them.
include stages.mk
ROLLOUTS ?= 100
TRIALS ?= 100
CHECKPOINT ?= tiny
export CHECKPOINT
# What the checkpoint learned from, a YAML list of folders; it trains the policy in 10 % of the
# world model's batches. Without it demonstrations are made.
ifndef DEMONSTRATIONS
DEMONSTRATIONS := [demonstrations/rollouts/red, demonstrations/rollouts/blue]
MAKE_DEMONSTRATIONS := done/demonstrations
endif
export DEMONSTRATIONS

# What must be true for planning to help at all, and what it did; the planner's card says so, too.
done/report: | done/comparison
	@$(call begin,5)
	$(COSMOS) report comparison --policy "$$CHECKPOINT" --world-model planner \
		--rollouts held_out/rollouts/direct --output report
	{ cat planner_card.md; printf '\n## In closed loop\n\n'; cat comparison/table.md; } >planner/README.md
	$(end)

done/demonstrations:
	@$(call begin,6)
	$(COSMOS) evaluate demonstrations --output demonstrations --set trials=30 $(SMALL_EVALUATION)
	$(end)

done/rollouts:
	@$(call begin,14)
	$(COSMOS) evaluate rollouts --output rollouts --checkpoint "$$CHECKPOINT" \
		--set trials=$(ROLLOUTS) $(SMALL_TRIALS)
	$(end)

done/held_out:
	@$(call begin,4)
	$(COSMOS) evaluate rollouts --output held_out --checkpoint "$$CHECKPOINT" \
		--set first_seed=300000 --set trials=$$(($(ROLLOUTS) < 5 ? 1 : $(ROLLOUTS) / 5)) $(SMALL_TRIALS)
	$(end)

done/world_model: | $(MAKE_DEMONSTRATIONS) done/rollouts
	@$(call begin,20)
	$(call train,tiny_planning,world_model,--set "start.checkpoint=$$CHECKPOINT" \
	--set "data.demonstrations=$$DEMONSTRATIONS")
	$(end)

# As it is kept: in half precision, for the task's prompts alone.
done/planner: | done/world_model
	@$(call begin,1)
	$(COSMOS) round world_model planner --task either_cube
	cp planner/README.md planner_card.md
	$(end)

done/comparison: | done/planner done/held_out
	@$(call begin,22)
	$(COSMOS) evaluate planning --output comparison --checkpoint "$$CHECKPOINT" \
		--set trials=$(TRIALS) $(SMALL_TRIALS)
	$(end)
