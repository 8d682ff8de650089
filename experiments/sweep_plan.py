"""Which runs a sweep has: every setting for every data set, network and seed, each with a name of its own.

A setting is a row of options, as a results table has rows: the variant first (-t -r -s --alpha), then what else sets it
apart, as `-t rank -r 1 --reg-weight 0`. A sweep makes its rows from lists; :func:`plan_run` takes any.
"""

import itertools
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.command_line import shown_command
from experiments.sweep_runs import Run
from linearconv_variants import OneLineParser, Variant
from training.errors import UsageError
from training.options import dataset_label, make_parser, parse_arguments, run_name
from training.recipe import SHORT, Recipe
from training.report import ROOT

WITHOUT_EFFECT = (  # options that the result does not depend on
    "count_only",
    "data_root",
    "device",
    "download",
    "in_channels",
    "may_change",
    "networks",
    "num_classes",
    "output",
    "program",
    "resume",
    "save_every",
    "tensorboard",
    "variant",  # its fields stand in its place
)
OF_VARIANT = ("-t", "-r", "-s", "--alpha")
WITHOUT_ALPHA = ("dense", "basis")
LISTED = {  # option that a sweep has lists for: that of the sweep
    **dict.fromkeys(("type", "rank", "sparsity", "alpha", "network")),
    "seed": "seeds",
    "dataset": "datasets",
}


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of a sweep, one seed after the other, so that every setting has a result early.

    Args:
        options: of the sweep.
        extra: training options for every run.

    Raises:
        UsageError, SystemExit: for values that the training scripts refuse.
    """
    alphas = [["--alpha", shortest(alpha)] for alpha in options.alpha or []] or [[]]
    compute = [] if options.compute == "auto" else ["--compute", options.compute]
    epochs = ["--epochs", str(options.epochs)] if options.epochs else []
    shared, folder = [*extra, *compute, *epochs], options.ckpt / options.name
    varied = _varied(options.vary, shared)
    rows = [
        [*variant, *alpha, *others]
        for variant in _variants(options)
        for alpha in ([[]] if variant[1] in WITHOUT_ALPHA else alphas)
        for others in varied
    ]
    every = itertools.product(options.seeds or [None], options.datasets or [None], options.network or [None], rows)
    return unique(
        plan_run(options.script, folder, row, shared, network=network, dataset=dataset, seed=seed)
        for seed, dataset, network, row in every
    )


def unique(runs: Iterable[Run]) -> list[Run]:
    """Return the runs without those that come again.

    Raises:
        UsageError: where runs of different settings share a name.
    """
    named = {}
    for run in runs:
        if named.setdefault(run.name, run).settings != run.settings:
            raise UsageError(f"two settings would share the name {run.name}: give rounder values")
    return list(named.values())


def plan_run(
    script: Path,
    folder: Path,
    row: Sequence[str],
    shared: Sequence[str] = (),
    *,
    network: str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
) -> Run:
    """Return the run of one row, one data set and one seed.

    Args:
        script: of models/.
        folder: of the sweep.
        row: options that set the run apart from its neighbours, those of the variant first, each with its values.
        shared: options that it has in common with them.
        network, dataset, seed: the script's choice where left out.

    Raises:
        SystemExit: with one line on stderr for what the script refuses.
    """
    arguments = [*shared, *row]
    for option, value in (("--network", network), ("--dataset", dataset), ("--seed", seed)):
        arguments += [] if value is None else [option, str(value)]
    script = script.resolve()
    shown = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    parser = script_parser(network or script.stem.removesuffix("_xcnn"))
    parsed = parse_arguments(parser, arguments)  # ends here if wrong
    settings = _settings(parsed, shown)
    if not {"--amp", "--no-amp"} & set(arguments):
        settings["amp"] = None  # the default is the machine's
    variant, others = split_row(row)
    name = run_name(parsed, parsed.dataset or "default")
    for option, *values in others:
        part = re.sub(r"[^\w.-]", "_", f"-{option[2:]}{'_'.join(values)}")
        name += "" if f"{part}-" in name else part  # a run's name has some already
    varied = " ".join(word for words in others for word in words)
    return Run(
        name,
        script=script,
        setting=f"{_setting(parsed.variant)} {varied}".rstrip(),
        varied=varied,
        dataset=dataset_label(parsed, parsed.dataset),
        arguments=arguments,
        settings=settings,
        defaults=_settings(parse_arguments(parser, [*variant, "--recipe", parsed.recipe]), shown),
        folder=folder / name,
        command=shown_command(["python", shown, *arguments], parsed.data_root),
        device=parsed.device,
    )


def script_parser(network: str = "") -> OneLineParser:
    """Return the parser of the options that all training scripts have, for those of one network."""
    return make_parser({network: None}, Recipe(lr=1e-3, epochs=1))


def split_row(row: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the options of a row's variant, and its others, each with its values, numbers in their shortest form."""
    size, others = 0, []
    while row[size : size + 1] and row[size] in OF_VARIANT:
        size += 2
    for word in row[size:]:
        if word.startswith("--"):
            others.append([word])
        else:
            others[-1].append(_shortest(word))
    return list(row[:size]), others


def shortest(value: float) -> str:
    """Return a number in its shortest form: 1 for 1.0."""
    return str(int(value)) if value.is_integer() else repr(value)


def _varied(given: Sequence[Sequence[str]], shared: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of --vary, as options of the script; without --vary an empty one."""
    actions, lists = script_parser()._option_string_actions, {}
    for name, *values in given:
        option = f"--{name}"
        action = actions.get(option)
        if action is None:
            raise UsageError(f"--vary {name}: the training scripts have no option {option}")
        if action.dest in LISTED:
            raise UsageError(f"--vary {name}: give a list to the sweep's own --{LISTED[action.dest] or action.dest}")
        if action.dest in ("help", *WITHOUT_EFFECT):
            raise UsageError(f"--vary {name}: results do not depend on {option}")
        if action.nargs == 0:
            raise UsageError(f"--vary {name}: {option} is a switch without values; it can stand behind --")
        if option in {word.split("=")[0] for word in shared}:
            raise UsageError(f"--vary {name}: {option} is given for all runs already")
        if not values:
            raise UsageError(f"--vary {name}: give values")
        lists.setdefault(option, []).extend([option, *value.split()] for value in values)
    return [list(itertools.chain(*words)) for words in itertools.product(*lists.values())]


def _variants(options: Namespace) -> Iterator[list[str]]:
    """Yield -t with -r or -s, for every type and every value that belongs to it."""
    ranks, sparsities = options.rank or [], options.sparsity or []
    types = list(dict.fromkeys(options.type or ()))
    if not types:
        types += ["rank"] * any(rank <= 1 for rank in ranks) + ["lowrank"] * any(not rank <= 1 for rank in ranks)
        types = types + ["sparse"] * bool(sparsities) or ["rank"]
    values = {"rank": ranks, "lowrank": ranks, "sparse": sparsities}
    if "rank" in types and "lowrank" in types:
        values |= {"rank": [r for r in ranks if r <= 1], "lowrank": [r for r in ranks if not r <= 1]}
    for given, option, owners in ((ranks, "-r", {"rank", "lowrank"}), (sparsities, "-s", {"sparse"})):
        if given and not owners & set(types):
            belongs = f"it belongs to {' and '.join(sorted(owners))}"
            raise UsageError(f"{option} has no meaning with -t {' '.join(types)}: {belongs}")
    for type in types:
        option = "-s" if type == "sparse" else "-r"
        yield from ([["-t", type, option, shortest(value)] for value in values.get(type, ())] or [["-t", type]])


def _shortest(word):
    try:
        return shortest(float(word))
    except ValueError:
        return word


def _settings(options, script):
    """All options that the result depends on; of a recipe that may come to be another one, what it is now."""
    settings = {key: value for key, value in vars(options).items() if key not in WITHOUT_EFFECT}
    if options.recipe in SHORT:
        recipe = SHORT[options.recipe].changed_by(options)
        settings |= vars(recipe) | {"milestones": list(recipe.milestones)}
    return settings | asdict(options.variant) | {"script": script}


def _setting(variant: Variant) -> str:
    alpha = variant.alpha if variant.alpha != 0.5 and variant.type not in WITHOUT_ALPHA else None
    values = {"-r": variant.rank, "-s": variant.sparsity, "--alpha": alpha}
    given = [f" {option} {value:g}" for option, value in values.items() if value is not None]
    return f"-t {variant.type}{''.join(given)}"
