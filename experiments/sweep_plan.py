"""Which runs a sweep has: every setting for every data set, network and seed, each with a name of its own."""

import itertools
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from experiments.command_line import shown_command
from experiments.sweep_runs import Run
from training.errors import UsageError
from training.options import make_parser, parse_arguments, run_name
from training.report import ROOT
from training.settings import Recipe

WITHOUT_EFFECT = (  # options that the result does not depend on
    "count_only",
    "data_root",
    "device",
    "download",
    "in_channels",
    "may_change",
    "num_classes",
    "output",
    "program",
    "resume",
    "save_every",
    "tensorboard",
    "variant",  # its fields stand in its place
)


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return the runs of a sweep, one seed after the other, so that every setting has a result early.

    Args:
        options: of the sweep.
        extra: training options for every run.

    Raises:
        UsageError, SystemExit: for values that the training scripts refuse.
    """
    variants = list(_variants(options))
    alphas = [["--alpha", _text(alpha)] for alpha in options.alpha or []] or [[]]
    compute = [] if options.compute == "auto" else ["--compute", options.compute]
    epochs = ["--epochs", str(options.epochs)] if options.epochs else []
    runs = {}
    for seed, dataset, network, variant in itertools.product(
        options.seeds or [None], options.datasets or [None], options.network or [None], variants
    ):
        for alpha in [[]] if variant[1] == "dense" else alphas:
            arguments = [*extra, *variant, *alpha, *compute]
            for option, value in (("--network", network), ("--dataset", dataset), ("--seed", seed)):
                arguments += [] if value is None else [option, str(value)]
            run = _make_run(options, [*arguments, *epochs], network)
            if runs.setdefault(run.name, run).settings != run.settings:
                raise UsageError(f"two settings would share the name {run.name}: give rounder values")
    return list(runs.values())


def _variants(options: Namespace) -> Iterator[list[str]]:
    """Yield -t with -r or -s, for every type and every value that belongs to it."""
    ranks, sparsities = options.rank or [], options.sparsity or []
    types = list(dict.fromkeys(options.type or ()))
    if not types:
        types += ["rank"] * any(rank <= 1 for rank in ranks) + ["lowrank"] * any(not rank <= 1 for rank in ranks)
        types = types + ["sparse"] * bool(sparsities) or ["rank"]
    values = {"rank": ranks, "lowrank": ranks, "sparse": sparsities, "dense": []}
    if "rank" in types and "lowrank" in types:
        values |= {"rank": [r for r in ranks if r <= 1], "lowrank": [r for r in ranks if not r <= 1]}
    for given, option, owners in ((ranks, "-r", {"rank", "lowrank"}), (sparsities, "-s", {"sparse"})):
        if given and not owners & set(types):
            belongs = f"it belongs to {' and '.join(sorted(owners))}"
            raise UsageError(f"{option} has no meaning with -t {' '.join(types)}: {belongs}")
    for type in types:
        option = "-s" if type == "sparse" else "-r"
        yield from ([["-t", type, option, _text(value)] for value in values[type]] or [["-t", type]])


def _text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _make_run(options: Namespace, arguments: list[str], network: str | None) -> Run:
    network = network or options.script.stem.removesuffix("_xcnn")
    parsed = parse_arguments(make_parser({network: None}, Recipe(lr=1e-3, epochs=1)), arguments)  # ends here if wrong
    variant, name = parsed.variant, run_name(parsed, parsed.dataset or "default")
    script = options.script.resolve()
    script = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    settings = {key: value for key, value in vars(parsed).items() if key not in WITHOUT_EFFECT}
    settings |= asdict(variant) | {"script": script}
    if not {"--amp", "--no-amp"} & set(arguments):
        settings["amp"] = None  # the default is the machine's
    alpha = variant.alpha if variant.alpha != 0.5 and variant.type != "dense" else None
    values = {"-r": variant.rank, "-s": variant.sparsity, "--alpha": alpha}
    given = [f" {option} {value:g}" for option, value in values.items() if value is not None]
    setting = f"-t {variant.type}{''.join(given)}"
    command = shown_command(["python", script, *arguments], parsed.data_root)
    return Run(name, setting, arguments, settings, options.ckpt / options.name / name, command, parsed.device)
