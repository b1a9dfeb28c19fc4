"""The operator panel's trials of a protocol: which one is next, and its contender loaded for it.

The sequence is that of ``cosmos trials``, one press at a time: prepare, arm, start, score.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.episodes.labels import rubric_of
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.nodes.operator_panel_graph import ANSWER, PanelGraph
from cosmos_policy_ros.panel.status import Trial, Unscored

if TYPE_CHECKING:  # a panel without a protocol does without its libraries
    from cosmos_policy_ros.evaluation.plan import Key
    from cosmos_policy_ros.panel.trials import PanelTrials


class TrialSequence:
    """The trials of a protocol on the graph.

    Attributes:
        trials: the protocol, and what its episodes say.
        preparing: whether the policy node is being given a contender.
    """

    def __init__(
        self,
        trials: PanelTrials,
        graph: PanelGraph,
        read: Callable[[Callable[[], Any]], Awaitable[Any]],
        doing: Callable[[str], None],
    ) -> None:
        """Prepare nothing yet.

        Args:
            trials: the protocol.
            graph: that reconfigures the policy node.
            read: has a function called in the thread that reads the disk.
            doing: shows what is being done; empty when it is over.
        """
        self.trials, self.preparing = trials, False
        self._graph, self._read, self._doing = graph, read, doing
        self._failed = ""
        # Whose contender is loaded, and the policy node's identity then: configured by anyone
        # else, or started again, it is another.
        self._prepared: tuple[Key, str] | None = None

    # ---------------------------------------------------------------- what is told

    @property
    def prepared(self) -> bool:
        """Whether the next trial's contender is loaded."""
        job, policy = self.trials.seen.job, self._graph.policy
        return (
            not self.preparing
            and job is not None
            and policy is not None
            and self._prepared == (job.key, policy.identity)
        )

    @property
    def between(self) -> bool:
        """Whether the policy node is between two contenders: not active, it can move nothing."""
        return POLICY_NODE in self._graph.inactive()

    def trial(self) -> Trial:
        """Return how far the trials are, for the page's sentence."""
        seen = self.trials.seen
        number, total = (seen.progress.number, seen.progress.total) if seen.progress else (1, 0)
        again = self._failed or ("" if self.prepared else self.trials.again())
        return Trial(number, total, self.prepared, self.preparing, again, seen.trouble)

    def described(self) -> dict[str, Any]:
        """Return what the page shows."""
        graph, prepared = self._graph, self.prepared
        running = graph.policy is not None and bool(graph.policy.run_id)
        recording = graph.recorder is not None and graph.recorder.phase == "recording"
        laying_out = (prepared or self.preparing) and not running and not recording
        return {**self.trials.described(), "prepared": prepared, "laying_out": laying_out}

    # ---------------------------------------------------------------- what is done

    def look(self) -> Unscored | None:
        """Look through the episodes, and return the first trial that waits for its score."""
        progress = self.trials.look().progress
        return to_score(progress.waiting[0], trial=True) if progress and progress.waiting else None

    async def prepare(self, *, lays_out: bool) -> None:
        """Load the next trial's contender, also where it is the one that ran last.

        Otherwise the time it takes would tell.

        Args:
            lays_out: whether to lay out the state, too, as the scene of a simulated rig.

        Raises:
            CosmosPolicyError: a node refused, or the contender could not be loaded.
        """
        from cosmos_policy_ros.evaluation.rig_trials import node_parameters

        job = self.trials.seen.job
        if job is None:
            raise CosmosPolicyError("no trial is left to be made")
        graph, protocol = self._graph, self.trials.protocol
        self.preparing, self._prepared, self._failed = True, None, ""
        self._doing("A contender is being loaded. Lay the state out meanwhile")
        try:
            if POLICY_NODE not in graph.inactive():
                await graph.answer("arm", ANSWER, data=False)
            if lays_out:
                state = job.state
                await graph.answer("reset", task=state.task, seed=state.number, prompt=state.prompt)
            await graph.reconfigure(node_parameters(protocol.contender(job.contender)))
            assert graph.policy is not None, "it is waited for"
            self._prepared = job.key, graph.policy.identity
        except CosmosPolicyError as error:
            why = self.trials.veil(str(error)).rstrip(".")
            self._failed = f"No contender could be loaded: {why}."
            raise
        finally:
            self.preparing = False
            self._doing("")

    def fields(self, operator_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of ``StartEpisode`` and of ``RunTask``'s goal for the next trial.

        Raises:
            CosmosPolicyError: its contender is not loaded.
        """
        job = self.trials.seen.job
        if job is None or not self.prepared:
            raise CosmosPolicyError("the next trial's contender is not loaded: press Prepare first")
        made = self.trials.rig_trials
        return made.episode_fields(job, operator_name), made.goal_fields(job)

    def begun(self) -> None:
        """Take note that the trial runs: the next one is to be prepared anew."""
        self._prepared = None


def to_score(episode: Episode, *, trial: bool = False) -> Unscored:
    """Return an episode as one that waits for its score."""
    try:
        return Unscored(episode.id, rubric_of(episode.metadata), trial)
    except RolloutError:  # of its task: a score alone will do
        return Unscored(episode.id, trial=trial)
