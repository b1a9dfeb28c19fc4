"""The policy node: observation → chunk → gate → one timed trajectory per arm.

A thin shell of parts: ``policy_topics`` takes what comes in and sends what goes to the arms,
``policy_runs`` drives ``rig.run``, ``policy_reports`` publishes the state and checks before arming.
The model lives in worker processes (``planning.scheduler``).
"""

from __future__ import annotations

import uuid

from rclpy.clock import Clock, ClockType
from std_srvs.srv import SetBool, Trigger

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.spec import EngineLoader
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.options import POLICY
from cosmos_policy_ros.nodes.policy_parameters import (
    PolicySettings,
    read_settings,
    trained_on,
    warnings,
)
from cosmos_policy_ros.nodes.policy_reports import PolicyChecks, PolicyReports
from cosmos_policy_ros.nodes.policy_runs import PolicyRuns
from cosmos_policy_ros.nodes.policy_topics import PolicyInputs, PolicyOutput, PollScheduler
from cosmos_policy_ros.nodes.policy_watchdog import WatchdogMonitor
from cosmos_policy_ros.planning.scheduler import Inference, start_inference
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.self_check import Check, failures, table
from cosmos_policy_ros.srv import SelfCheck

DIAGNOSIS_PERIOD = 1.0  # wall s
STRANGER_PERIOD = 0.25  # wall s between two looks at who can command the arms


class PolicyNode(shell.ManagedNode):
    """Lifecycle node ``policy_node``; disarmed at start."""

    def __init__(self, load: EngineLoader = load_engine) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("policy_node", POLICY)
        self._load = load
        self._inference: Inference | None = None

    def set_up(self) -> None:
        """Read the parameters, connect, start loading the engine."""
        self._settings = settings = read_settings(self)
        warned = warnings(settings)
        for warning in warned:
            self.get_logger().warning(warning)
        # Who owns the arms is told apart by it: two nodes may have one name.
        self._identity = "" if settings.dry_run else uuid.uuid4().hex
        self._motion_clock = shell.motion_clock(self)
        self._inputs = PolicyInputs(self, settings.rig, self._motion_clock)
        self._wake = self.create_guard_condition(self._on_wake)
        engine = settings.engine
        self._inference = start_inference(
            engine,
            settings.devices,
            settings.worker,
            self._wake.trigger,
            self._load,
            settings.ray or "",
            None if engine.search is None else SafetyGate(settings.rig).foresee,
        )
        self._watchdog = WatchdogMonitor(
            self, settings.rig, settings.watchdog, identity=self._identity, dry=settings.dry_run
        )
        self._checks = PolicyChecks(
            self,
            settings.rig,
            self._inputs,
            self._motion_clock,
            watchdog=self._watchdog,
            warnings=warned,
            dry=settings.dry_run,
            trained_on=trained_on(settings),
        )
        self._reports = PolicyReports(
            self,
            self._inference,
            self._inputs.sources,
            self._motion_clock,
            engine.engine,
            engine.checkpoint or (engine.remote.url if engine.remote else ""),
            images=settings.rig.recording.text,
            identity=self._identity,
            heartbeat=self._watchdog.needed,
        )
        self._connect(settings, self._inference)

    def tear_down(self) -> None:
        """End the inference processes."""
        if self._inference is not None:
            self._inference.close()
            self._inference = None

    def come_to_rest(self, reason: str) -> None:
        """Brake and disarm while the trajectory publishers still speak."""
        self._disarm(reason)

    def _connect(self, settings: PolicySettings, inference: Inference) -> None:
        self._output = PolicyOutput(
            self,
            settings.rig,
            self._watchdog,
            self._inputs.sources,
            self._motion_clock,
            self._reports.announce,
            dry=settings.dry_run,
        )
        self._runs = PolicyRuns(
            self,
            settings,
            self._inputs.sources,
            inference,
            self._output,
            self._watchdog,
            self._motion_clock,
            self._wake.trigger,
        )
        self._pace = PollScheduler(self, settings.rig.arms.keys(), self._poll)
        self._inputs.on_joint_state = self._pace.on_joint_state
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSIS_PERIOD, self._diagnose, clock=steady)
        self.create_timer(STRANGER_PERIOD, self._watch_strangers, clock=steady)
        self.create_service(SetBool, "~/arm", self._on_arm)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/go_to_start", self._on_go_to_start)
        self.create_service(SelfCheck, "~/self_check", self._on_self_check)

    # ---------------------------------------------------------------- what wakes it

    def _poll(self) -> None:
        if self._inference is not None:
            self._runs.poll()
        self.report()

    def _on_wake(self) -> None:
        """Look what the inference process has done; its thread only triggers the guard."""
        self._runs.take_answers()
        self.report()

    def _diagnose(self) -> None:
        self._checks.count()
        self._reports.diagnose(self._runs.latency, self._checks.live())

    def _watch_strangers(self) -> None:
        """Hold armed arms as soon as anything else can command them."""
        if self._output.armed and (stranger := self._checks.stranger()):
            self._runs.latch(stranger)
            self.report()

    def report(self) -> None:
        """Tell how things stand, if that has changed."""
        runs, task = self._runs, self._settings.task.name
        self._reports.report(runs.run, runs.motion, self._output.armed, task, runs.ended, runs.told)

    # ---------------------------------------------------------------- the operator

    def _on_arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and not self.active:
            response.message = "refused: the node is not active; activate it first"
            return response
        if request.data and self._output.armed and self._runs.latched:
            response.message = f"refused: {self._runs.latched}; disarm the arms first"
            return response
        if request.data and self._settings.self_check and (against := failures(self._check())):
            so_far = "; the arms stay armed" if self._output.armed else ""
            response.message = f"refused: {against}{so_far}"
            return response
        if not request.data:
            self._disarm("the arms were disarmed")
        elif not self._output.armed:
            self._runs.forget_commanded()
            self._runs.unlatch()
            self._output.armed = True
        self._watchdog.wake(request.data)
        response.success = True
        response.message = "armed: arms may move" if request.data else "disarmed: nothing is sent"
        self.get_logger().info(response.message)
        self.report()
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            if request.data:
                response.message = self._runs.pause()
            else:
                self._runs.resume()
                response.message = "resumed, with a new observation"
            response.success = True
        except CosmosPolicyError as error:
            response.message = f"refused: {error}"
        self.report()
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        stopped = self._disarm("~/stop was called")
        response.success = True
        response.message = "stopped and disarmed" if stopped else "nothing was running; disarmed"
        self.report()
        return response

    def _on_go_to_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            seconds = self._runs.go_to_start(self._settings.start_speed)
            response.success = True
            response.message = f"on the way to the start pose, for {seconds:.1f} s"
        except CosmosPolicyError as error:
            response.message = f"refused: {error}"
        self.get_logger().info(response.message)
        self.report()
        return response

    def _on_self_check(
        self, _: SelfCheck.Request, response: SelfCheck.Response
    ) -> SelfCheck.Response:
        checks = self._check()
        response.success, response.message = not failures(checks), table(checks)
        response.checks = [check.what for check in checks]
        response.passed = [check.passed for check in checks]
        response.found = [check.found for check in checks]
        response.advice = [check.advice for check in checks]
        return response

    def _check(self) -> list[Check]:
        checks = self._checks.run()
        self.get_logger().info(f"self-check\n{table(checks)}")
        return checks

    def _disarm(self, why: str) -> bool:
        """Brake what moves; return whether anything did."""
        stopped = self._runs.stop("stopped", why)
        self._output.disarm()
        self._runs.forget_commanded()
        self._runs.unlatch()
        return stopped


def make_node(load: EngineLoader = load_engine) -> shell.ManagedNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(PolicyNode(load))


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros policy_node``."""
    shell.main(make_node)
