# What a planner's value function is of (the paper's figure 7), and how many rollouts it takes. Each
# is trained as long as the one of `cosmos improve`, on its rollouts; IMPROVED is its folder.
include stages.mk
STEPS ?= 600
TRIALS ?= 100
VARIANTS := value_q value_sas rollouts_25 rollouts_50 rollouts_100 rollouts_25_and_demonstrations
value_q := --set objective.value=value_q
value_sas := --set objective.value=value_sas
rollouts_25_and_demonstrations := --set mixture.demonstrations_as_rollouts=true
# A number in a name is how many of the rollouts it learns from; they lie in a shuffled order.
count = $(firstword $(filter 25 50 100,$(subst _, ,$(1))) all)

done/evaluation: | $(VARIANTS:%=done/%)
	@$(call begin,60)
	for value in value_q value_sas; do
	  sed "s/^value: value_s/value: $$value/" "$$PLANNING/best_of_8_quick.yaml" >$$value.yaml
	done
	ln -sfn "$$IMPROVED/planner" all_rollouts
	$(COSMOS) evaluate planners --output evaluation --checkpoint "$$CHECKPOINT" \
		--set trials=$(TRIALS) $(SMALL_TRIALS)
	$(end)

$(VARIANTS:%=done/%): done/%:
	@$(call begin,20)
	rm -rf data/$*; mkdir -p data/$*
	ls "$$IMPROVED/rollouts/rollouts/direct" | { [ $(call count,$*) = all ] && cat || head -n $(call count,$*); } |
	while read -r bag; do cp -r "$$IMPROVED/rollouts/rollouts/direct/$$bag" data/$*/; done
	$(call train,tiny_planning,$*,--set "start.checkpoint=$$CHECKPOINT" \
	--set "data.demonstrations=$$DEMONSTRATIONS" --set "data.rollouts=[data/$*]" \
	--set run.steps=$(STEPS) --set optimiser.decay_steps=$(STEPS) $($*))
	$(end)
