"""The runs of a sweep: every setting for every data set, network and seed, each with a unique name.

A setting is a row of options, like a row of a results table: the options of the variant (-t -r -s --alpha), then the
options that distinguish the setting, such as `-t rank -r 1 --reg-weight 0`. A sweep builds its rows from lists;
:func:`plan_run` accepts any row.
"""

import itertools
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.command_line import shown_command
from experiments.sweep.runner import Run
from linearconv_variants import VARIANTS, OneLineParser, Variant
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
    "variant",  # replaced by its fields
)
OF_VARIANT = ("-t", "-r", "-s", "--alpha")
SETTINGS = {"rank": "-r", "sparsity": "-s"}  # options of the variants' settings
WITHOUT_ALPHA = ("dense", "basis")
LISTED = {  # options for which a sweep has list options, and the names of these
    "type": "type",
    "rank": "rank",
    "sparsity": "sparsity",
    "alpha": "alpha",
    "network": "network",
    "seed": "seeds",
    "dataset": "datasets",
}


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of a sweep, sorted by seed, so that every setting has a result early.

    Args:
        options: options of the sweep.
        extra: training options for every run.

    Raises:
        UsageError, SystemExit: for values that the training scripts reject.
    """
    shared = list(extra)
    if options.compute != "auto":
        shared += ["--compute", options.compute]
    if options.epochs:
        shared += ["--epochs", str(options.epochs)]
    rows = []
    varied = _varied(options.vary, shared)
    for variant in _variants(options):
        alphas = [] if variant[1] in WITHOUT_ALPHA else options.alpha or []
        for alpha in [["--alpha", shortest(alpha)] for alpha in alphas] or [[]]:
            rows += [[*variant, *alpha, *others] for others in varied]
    runs, folder = [], options.ckpt / options.name
    choices = options.seeds or [None], options.datasets or [None], options.network or [None], rows
    for seed, dataset, network, row in itertools.product(*choices):
        runs.append(plan_run(options.script, folder, row, shared, network=network, dataset=dataset, seed=seed))
    return unique(runs)


def unique(runs: Iterable[Run]) -> list[Run]:
    """Return the runs without repetitions.

    Raises:
        UsageError: if runs with different settings share a name.
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
        script: script in models/.
        folder: folder of the sweep.
        row: options that distinguish the run, each with its values; options of the variant first.
        shared: options that all runs have in common.
        network, dataset, seed: default: the script's default.

    Raises:
        SystemExit: with one line on stderr for options that the script rejects.
    """
    arguments = [*shared, *row]
    for option, value in (("--network", network), ("--dataset", dataset), ("--seed", seed)):
        if value is not None:
            arguments += [option, str(value)]
    script = script.resolve()
    shown = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    parser = script_parser(network or script.stem.removesuffix("_xcnn"))
    parser.prog = script.name
    parsed = parse_arguments(parser, arguments)
    settings = _settings(parsed, shown)
    if not {"--amp", "--no-amp"} & set(arguments):
        settings["amp"] = None  # the default depends on the machine
    variant, others = split_row(row)
    name = run_name(parsed, parsed.dataset or "default")
    for option, *values in others:
        part = re.sub(r"[^\w.-]", "_", f"-{option[2:]}{'_'.join(values)}")
        if f"{part}-" not in name:  # a run's name already contains some options
            name += part
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
    """Return a parser of the options that all training scripts share, for a script with one network."""
    return make_parser({network: None}, Recipe(lr=1e-3, epochs=1))


def split_row(row: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the variant's options of a row, and its other options with values, numbers in their shortest form."""
    size, others = 0, []
    while row[size : size + 1] and row[size] in OF_VARIANT:
        size += 2
    for word in row[size:]:
        if word.startswith("--"):
            others.append([word])
        else:
            try:
                word = shortest(float(word))
            except ValueError:
                pass
            others[-1].append(word)
    return list(row[:size]), others


def shortest(value: float) -> str:
    """Return a number in its shortest form: 1 for 1.0."""
    return str(int(value)) if value.is_integer() else repr(value)


def _varied(given: Sequence[Sequence[str]], shared: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values of --vary as options of the script, at least an empty one."""
    actions, lists = script_parser()._option_string_actions, {}
    fixed = {word.split("=")[0] for word in shared}
    for name, *values in given:
        option = f"--{name}"
        action = actions.get(option)
        if problem := _why_not_varied(option, action, values, fixed):
            raise UsageError(f"--vary {name}: {problem}")
        lists.setdefault(option, []).extend([option, *value.split()] for value in values)
    return [list(itertools.chain(*words)) for words in itertools.product(*lists.values())]


def _why_not_varied(option, action, values, fixed):
    """Return the problem with an option of --vary; an empty text if the option is valid."""
    if action is None:
        return f"the training scripts have no option {option}"
    if action.dest in LISTED:
        return f"give a list to the sweep's own --{LISTED[action.dest]}"
    if action.dest in ("help", *WITHOUT_EFFECT):
        return f"results do not depend on {option}"
    if action.nargs == 0:
        return f"{option} is a switch without values; it can stand behind --"
    if option in fixed:
        return f"{option} is given for all runs already"
    return "" if values else "give values"


def _variants(options: Namespace) -> list[list[str]]:
    """Return -t with -r or -s, for every type and every value that applies to the type."""
    given = {"rank": options.rank or [], "sparsity": options.sparsity or []}
    types = list(dict.fromkeys(options.type or ()))
    if not types:
        wanted = {"rank": _shares(given["rank"]), "lowrank": _numbers(given["rank"]), "sparse": given["sparsity"]}
        types = [type for type, values in wanted.items() if values] or ["rank"]
    variants = [["-t", type] for type in types]
    for setting, values in given.items():
        if not values:
            continue
        option = SETTINGS[setting]
        owners = [type for type in types if type in VARIANTS and VARIANTS[type].setting == setting]
        if not owners:
            known = sorted(type for type, entry in VARIANTS.items() if entry.setting == setting)
            raise UsageError(f"{option} has no meaning with -t {' '.join(types)}: it belongs to {' and '.join(known)}")
        takes_numbers = {type: isinstance(VARIANTS[type].default, int) for type in owners}
        for type in owners:
            mine = values
            if len(set(takes_numbers.values())) == 2:  # shares and whole numbers in one list
                mine = _numbers(values) if takes_numbers[type] else _shares(values)
            place = variants.index(["-t", type])
            variants[place : place + 1] = [["-t", type, option, shortest(value)] for value in mine] or [["-t", type]]
    return variants


def _shares(values):
    return [value for value in values if value <= 1]


def _numbers(values):
    return [value for value in values if not value <= 1]


def _settings(options, script):
    """Return all options that the result depends on, with the current values of a short recipe."""
    settings = {key: value for key, value in vars(options).items() if key not in WITHOUT_EFFECT}
    if options.recipe in SHORT:
        recipe = SHORT[options.recipe].changed_by(options)
        settings |= vars(recipe)
        settings["milestones"] = list(recipe.milestones)
    return {**settings, **asdict(options.variant), "script": script}


def _setting(variant: Variant) -> str:
    alpha = variant.alpha if variant.alpha != 0.5 and variant.type not in WITHOUT_ALPHA else None
    words = f"-t {variant.type}"
    for option, value in (("-r", variant.rank), ("-s", variant.sparsity), ("--alpha", alpha)):
        if value is not None:
            words += f" {option} {value:g}"
    return words
