"""The runs of a sweep: every setting for every data set, network and seed, each with a unique name.

A setting is a row of options, like a row of a results table: the options of the variant (-t -r -s --alpha), then the
options that distinguish the setting, such as `-t rank -r 1 --reg-weight 0`. A sweep builds its rows from lists;
:func:`plan_run` accepts any row.
"""

import itertools
import re
import shlex
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.sweep.runner import Run
from linearconv_variants import VARIANTS, OneLineParser
from training.errors import UsageError
from training.options import dataset_label, make_parser, parse_arguments, run_name
from training.recipe import SHORT, Recipe, without_effect
from training.report import ROOT

WITHOUT_EFFECT = "count_only data_root device download given help in_channels may_change networks num_classes output"
WITHOUT_EFFECT = {*WITHOUT_EFFECT.split(), "program", "resume", "save_every", "variant"}  # on the result
LISTED = {"type", "rank", "sparsity", "alpha", "network", "seed", "dataset"}  # a sweep has options for lists of these
ANY_RECIPE = Recipe(lr=1.0, epochs=1000, weight_decay=1.0, distill=0.5)  # with which every option has an effect
WITHOUT_ALPHA = ("dense", "basis")


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of a sweep, sorted by seed, so that every setting has a result early."""
    shared = [*extra, "--compute", options.compute] if options.compute != "auto" else [*extra]
    if options.epochs:
        shared += ["--epochs", str(options.epochs)]
    rows = []  # of the options of the variant, and the varied options
    for variant in _variants(options):
        alphas = [] if variant[1] in WITHOUT_ALPHA else options.alpha or []
        for alpha in [["--alpha", shortest(alpha)] for alpha in alphas] or [[]]:
            rows += [([*variant, *alpha], varied) for varied in _varied(options.vary, variant)]
    runs = []
    choices = options.seeds or [None], options.datasets or [None], options.network or [None], rows
    for seed, dataset, network, row in itertools.product(*choices):
        chosen = {"network": network, "dataset": dataset, "seed": seed}
        runs.append(plan_run(options.script, options.ckpt / options.name, *row, shared, **chosen))
    return unique(runs)


def unique(runs: Iterable[Run]) -> list[Run]:
    """Return the runs without repetitions."""
    named = {}
    for run in runs:
        if named.setdefault(run.name, run).settings != run.settings:
            raise UsageError(f"two settings would share the name {run.name}: give rounder values")
    return list(named.values())


def plan_run(
    script: Path,
    folder: Path,
    variant: Sequence[str],
    varied: Sequence[str] = (),
    shared: Sequence[str] = (),
    *,
    network: str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
) -> Run:
    """Return one run of a script in models/, in the folder of a sweep.

    Args:
        variant: the options -t, -r, -s, --alpha.
        varied: further options that distinguish the run.
        shared: options that all runs have in common.
        network, dataset, seed: default: the script's default.
    """
    arguments = [*shared, *variant, *varied]
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
    name, varied = run_name(parsed, parsed.dataset or "default"), " ".join(varied)
    for words in f" {varied}".split(" --")[1:]:
        option, _, values = words.partition(" ")
        part = re.sub(r"[^\w.-]", "_", f"-{option}{values}")
        if f"{part}-" not in name:  # a run's name already contains some options
            name += part
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


def shown_command(words: Sequence[str], data_root: str) -> str:
    """Return a command line for result files, with DIR instead of this machine's data root."""
    hidden = []
    for word in words:
        option, equals, value = word.rpartition("=")
        hidden.append(option + equals + "DIR" if value == data_root else word)
    return shlex.join(hidden)


def script_parser(network: str = "") -> OneLineParser:
    """Return a parser of the options that all training scripts share, for a script with one network."""
    return make_parser({network: None}, Recipe(lr=1e-3, epochs=1))


def shortest(value: float) -> str:
    """Return a number in its shortest form: 1 for 1.0."""
    return str(int(value)) if value.is_integer() else repr(value)


def _varied(given: Sequence[Sequence[str]], variant: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values of --vary that have an effect on the variant, at least an empty one."""
    parser, lists = script_parser(), {}
    actions = parser._option_string_actions
    ignored = without_effect(parse_arguments(parser, variant), ANY_RECIPE, "imagefolder")
    for name, *values in given:
        action = actions.get(f"--{name}")
        if action is None or action.dest in LISTED or action.dest in WITHOUT_EFFECT or action.nargs == 0 or not values:
            raise UsageError(f"--vary {name}: give an option of the script that takes values, and its values")
        if action.dest not in ignored:
            lists.setdefault(name, []).extend([f"--{name}", *value.split()] for value in values)
    return [list(itertools.chain(*words)) for words in itertools.product(*lists.values())]


def _variants(options: Namespace) -> list[list[str]]:
    """Return -t with -r or -s, for every type and every value that applies to the type."""
    given = {"rank": ("-r", options.rank or []), "sparsity": ("-s", options.sparsity or [])}
    types = options.type or ["rank"]
    settings = {type: VARIANTS[type].setting if type in VARIANTS else None for type in types}
    for setting, (option, values) in given.items():
        if values and setting not in settings.values():
            raise UsageError(f"{option} has no meaning with -t {' '.join(types)}")
    takes_numbers = {type: isinstance(VARIANTS[type].default, int) for type in types if settings[type] == "rank"}
    variants = []
    for type, setting in settings.items():
        option, values = given.get(setting, ("", []))
        if setting == "rank" and len(set(takes_numbers.values())) == 2:  # shares and whole numbers in one list
            values = [value for value in values if (value > 1) == takes_numbers[type]]
        variants += [["-t", type, option, shortest(value)] for value in values] or [["-t", type]]
    return variants


def _settings(options, script):
    """Return all options that the result depends on, with the current values of a short recipe."""
    settings = {key: value for key, value in vars(options).items() if key not in WITHOUT_EFFECT}
    if options.recipe in SHORT:
        recipe = SHORT[options.recipe].changed_by(options)
        settings |= vars(recipe)
        settings["milestones"] = list(recipe.milestones)
    return {**settings, **asdict(options.variant), "script": script}


def _setting(variant):
    alpha = variant.alpha if variant.alpha != 0.5 and variant.type not in WITHOUT_ALPHA else None
    words = f"-t {variant.type}"
    for option, value in (("-r", variant.rank), ("-s", variant.sparsity), ("--alpha", alpha)):
        if value is not None:
            words += f" {option} {value:g}"
    return words
