"""``cosmos evaluate``: contenders on the same scenes of the simulated rig or a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cosmos_policy_ros.cli.shared import GOES_ON, add_config
from cosmos_policy_ros.core.config import load_changed, load_yaml, named_file, to_plain
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.files import replace_text, replacing
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.environments.benchmark import examine, load_benchmark, open_process
from cosmos_policy_ros.evaluation.benchmark_room import BenchmarkConfig, list_prompts
from cosmos_policy_ros.evaluation.benchmark_tables import benchmark_table
from cosmos_policy_ros.evaluation.contenders import DIRECT
from cosmos_policy_ros.evaluation.evaluate import TRIALS, evaluate
from cosmos_policy_ros.evaluation.results import Result, read_results
from cosmos_policy_ros.evaluation.sim_room import EvaluationConfig
from cosmos_policy_ros.evaluation.tables import (
    comparison,
    price_picture,
    price_table,
    spoken,
    table_by_condition,
)
from cosmos_policy_ros.sim.tasks import condition

CONFIG, TABLE, PICTURE = "evaluation.yaml", "table.md", "price.png"
FREE = (  # may change in between
    *("processes", "threads", "trials", "conditions", "ray", "gpus"),
    *("suites", "tasks", "first_trial", "noise_seeds", "environment"),
)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Let checkpoints, searches and baselines try the same scenes of a simulation.

    All meet the same noise, in shuffled order, and are compared. A killed evaluation goes on where
    it was.
    """
    add_config(parser, "evaluations")
    parser.add_argument("--output", type=Path, help="folder of the trials and the table")
    parser.add_argument("--checkpoint", help="in place of those that the config names")
    parser.add_argument(
        "--check", action="store_true", help="make no trial: examine a benchmark's environment"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="make no trial: list a benchmark's prompts"
    )
    parser.set_defaults(run=_evaluate, interrupted=GOES_ON)


def _evaluate(options: argparse.Namespace) -> int:
    file = named_file(options.config, config_folder("evaluations"))
    if "groups" in load_yaml(file):
        raise ConfigError(f"{file}: is a protocol of trials at a rig; give it to 'cosmos trials'")
    config: BenchmarkConfig | EvaluationConfig
    if "benchmark" in load_yaml(file):
        config = load_changed(BenchmarkConfig, file, options.set)
    else:
        config = load_changed(EvaluationConfig, file, options.set)
    if options.check or options.prompts:
        if not isinstance(config, BenchmarkConfig):
            raise ConfigError(f"{file}: is of the simulated rig; --check and --prompts are not")
        return _list_prompts(config, options.prompts) if options.prompts else _check(config)
    if options.output is None:
        raise ConfigError("--output is missing: the folder of the trials and the table")
    output = options.output.expanduser()
    if options.checkpoint:
        contenders = tuple(
            replace(each, checkpoint=options.checkpoint) if each.engine == "cosmos" else each
            for each in config.contenders
        )
        config = replace(config, contenders=contenders)
    try:
        _open(config, output)
        results = evaluate(config, output)
        lines = report(config, results)
        replace_text((output / TABLE), "\n".join(lines) + "\n")
        drawn = price_picture(results, [each.name for each in config.contenders])
        if drawn is not None:
            with replacing(output / PICTURE) as path:
                path.write_bytes(drawn)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    print("\n".join(lines))
    return 0


def _check(config: BenchmarkConfig) -> int:
    """Start a benchmark's environment and say what it is."""
    benchmark = load_benchmark(config.benchmark)
    environment = open_process(benchmark, config.environment)
    try:
        print(f"{benchmark.title}: {examine(benchmark, environment)}")
    finally:
        environment.close()
    return 0


def _list_prompts(config: BenchmarkConfig, path: Path) -> int:
    """Write the prompts of all trials, one a line."""
    prompts = list_prompts(config)
    try:
        replace_text(path.expanduser(), "".join(f"{prompt}\n" for prompt in prompts))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
    print(f"{path}: {len(prompts)} prompts")
    return 0


def report(config: EvaluationConfig | BenchmarkConfig, results: Sequence[Result]) -> list[str]:
    """Return the table and what it is about, as Markdown."""
    names = [contender.name for contender in config.contenders]
    if isinstance(config, BenchmarkConfig):
        benchmark = load_benchmark(config.benchmark)
        seeds = ", ".join(map(str, config.noise_seeds))
        return [
            f"# {benchmark.table}",
            "",
            f"Planned: {config.trials} trials per task and noise seed ({seeds}), in all "
            f"{len(config.jobs())}; made: {len({r.key for r in results if not r.crashed})}.",
            "",
            *(
                f"- {each.name}: {each.remote or each.checkpoint}, {each.planning}"
                for each in config.contenders
            ),
            "",
            *benchmark_table(benchmark, config.chosen(benchmark), names, results),
        ]
    known = {name: condition(config.task, name).says for name in config.conditions}
    return [
        f"# {config.task}: {config.trials} scenes per condition",
        "",
        "Mean score of 100 (95 % bootstrap interval); successes (95 % Wilson interval).",
        "",
        *table_by_condition(results, names, config.conditions),
        "",
        *(f"- {spoken(name)}: {says}" for name, says in known.items()),
        *_named(config, results),
        *_price(config, results),
        *comparison(results, names),
    ]


def _named(config: EvaluationConfig, results: Sequence[Result]) -> list[str]:
    """Return a line per contender with a prompt of its own: whether it does what that says."""
    lines = []
    for contender in config.contenders:
        mine = [r for r in results if r.contender == contender.name and not r.crashed]
        if contender.prompt and mine:
            done = sum(r.success_with_any for r in mine)
            lines.append(
                f"- {contender.name}: '{contender.prompt}'; with any object in {done} of "
                f"{len(mine)}, with the one that the prompt names in {sum(r.success for r in mine)}"
            )
    return lines


def _price(config: EvaluationConfig, results: Sequence[Result]) -> list[str]:
    """Return what decisions took, where a search takes part."""
    if not any(each.planning != DIRECT for each in config.contenders):
        return []
    lines = price_table(results, [each.name for each in config.contenders])
    return ["", *lines, ""] if lines else []


def _open(config: EvaluationConfig | BenchmarkConfig, output: Path) -> None:
    """Make the output folder, or make sure that its trials are of the same evaluation."""
    now = to_plain(config)
    path = output / CONFIG
    if path.is_file() and read_results(output / TRIALS):
        before, after = _by_name(load_yaml(path)), _by_name(now)
        for key in sorted(before.keys() & after.keys() - set(FREE)):
            if before[key] != after[key]:
                raise ConfigError(
                    f"{output}: holds an evaluation with {key} {before[key]!r}, this one has "
                    f"{after[key]!r}; give the same config, or another --output"
                )
    output.mkdir(parents=True, exist_ok=True)
    replace_text(path, yaml.safe_dump(now, sort_keys=False))


def _by_name(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with each contender by its name: there may be more of them, or fewer."""
    named = {f"contender {each['name']}": each for each in content["contenders"]}
    return {**{key: value for key, value in content.items() if key != "contenders"}, **named}
